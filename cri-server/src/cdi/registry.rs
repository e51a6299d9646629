//! All CDI specifications of the node, and which of them has a device.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use super::document::Document;
use super::edits::Edits;
use crate::spec::SpecError;

/// Largest file that is read, in bytes. Those that exist are a few KiB.
const MAX_FILE: u64 = 1 << 20;
/// Most files that an error names.
const MAX_NAMED: usize = 5;

/// The specifications as they were when it was made.
pub(super) struct Registry {
    dirs: Vec<PathBuf>,
    documents: Vec<(PathBuf, Document)>,
    /// Files that break a rule, and which.
    bad: Vec<(PathBuf, String)>,
    /// By full name.
    devices: BTreeMap<String, Place>,
}

/// Where a device is described.
struct Place {
    /// The directory's place in the order of the directories.
    dir: usize,
    /// Of the document.
    document: usize,
    /// Of the device in it.
    device: usize,
    /// Another document of the same directory that describes it too.
    conflict: Option<usize>,
}

impl Registry {
    /// Reads the files of `dirs`; a directory that is not there has none.
    pub(super) fn read(dirs: &[PathBuf]) -> Registry {
        let mut registry = Registry {
            dirs: dirs.to_vec(),
            documents: Vec::new(),
            bad: Vec::new(),
            devices: BTreeMap::new(),
        };
        for (dir, path) in dirs.iter().enumerate().flat_map(|(dir, path)| {
            let files = files(path);
            files.into_iter().map(move |file| (dir, file))
        }) {
            match read(&path) {
                Ok(document) => registry.add(dir, path, document),
                Err(rule) => {
                    if is_news(&path) {
                        tracing::warn!("CDI specification {}: {rule}", path.display());
                    }
                    registry.bad.push((path, rule));
                }
            }
        }
        registry
    }

    fn add(&mut self, dir: usize, path: PathBuf, document: Document) {
        let own = self.documents.len();
        for (index, device) in document.devices.iter().enumerate() {
            let name = format!("{}={}", document.kind, device.name);
            let place = Place {
                dir,
                document: own,
                device: index,
                conflict: None,
            };
            match self.devices.get_mut(&name) {
                Some(known) if known.dir == dir => known.conflict = Some(own),
                _ => {
                    self.devices.insert(name, place);
                }
            }
        }
        self.documents.push((path, document));
    }

    /// What the named devices make of a container: for each its specification's part for every device of it, once, then
    /// its own. `names` are fields of the request and names.
    pub(super) fn edits(&self, names: &[(String, String)]) -> Result<Edits, SpecError> {
        let mut edits = Edits::default();
        let mut seen = BTreeSet::new();
        for (field, name) in names {
            let place = self.place(name).map_err(|rule| SpecError::invalid(field, name, rule))?;
            let (path, document) = &self.documents[place.document];
            let common = seen.insert(place.document).then_some(&document.container_edits);
            let own = &document.devices[place.device].container_edits;
            for part in common.into_iter().chain([own]) {
                let added = edits.add(part);
                added.map_err(|cause| SpecError::failed(field, name, format!("{}: {cause}", path.display())))?;
            }
        }
        Ok(edits)
    }

    fn place(&self, name: &str) -> Result<&Place, String> {
        let Some(place) = self.devices.get(name) else {
            return Err(self.missing());
        };
        match place.conflict {
            None => Ok(place),
            Some(other) => Err(format!(
                "is described by two files of one directory: {} and {}",
                self.documents[place.document].0.display(),
                self.documents[other].0.display()
            )),
        }
    }

    fn missing(&self) -> String {
        let mut text = format!("no CDI specification in {:?} has this device", self.dirs);
        for (path, rule) in self.bad.iter().take(MAX_NAMED) {
            text += &format!("; {} cannot be used: {rule}", path.display());
        }
        text
    }
}

/// The specifications in a directory, by name.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("CDI specifications in {}: {error}", dir.display());
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let named = path.extension().is_some_and(|it| it == "json" || it == "yaml");
        named && path.is_file()
    });
    files.sort();
    files
}

/// Whether the log does not have it yet that a file is bad: it is read with every container that asks for a device.
fn is_news(path: &Path) -> bool {
    /// When each file had changed last that the log has.
    static TOLD: Mutex<BTreeMap<PathBuf, Option<SystemTime>>> = Mutex::new(BTreeMap::new());
    let changed = fs::metadata(path).and_then(|file| file.modified()).ok();
    let mut told = TOLD.lock().expect("no holder panics");
    if told.get(path) == Some(&changed) {
        return false;
    }
    told.retain(|path, _| path.exists());
    told.insert(path.to_owned(), changed);
    true
}

fn read(path: &Path) -> Result<Document, String> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| format!("open: {error}"))?;
    let read = file.take(MAX_FILE + 1).read_to_end(&mut text);
    read.map_err(|error| format!("read: {error}"))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("has more than {MAX_FILE} bytes"));
    }
    Document::parse(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(env: &str, device: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.5.0","kind":"v.com/gpu","containerEdits":{{"env":["ALL=1"]}},
                "devices":[{{"name":"{device}","containerEdits":{{"env":["{env}"]}}}}]}}"#
        )
    }

    fn names(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|&name| ("f".to_owned(), name.to_owned())).collect()
    }

    #[test]
    fn a_bad_file_is_told_of_once_for_each_change() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bad.json");
        let file = File::create(&path).unwrap();
        for second in 1..3 {
            let changed = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
            file.set_modified(changed).unwrap();
            assert!(is_news(&path));
            assert!(!is_news(&path));
        }
    }

    #[test]
    fn later_directories_count_and_equal_ones_conflict() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["static", "dynamic", "absent"].map(|name| root.path().join(name));
        dirs[..2].iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let write = |dir: usize, name: &str, text: &str| fs::write(dirs[dir].join(name), text).unwrap();
        write(0, "a.json", &document("FROM=static", "0"));
        write(0, "b.json", &document("FROM=b", "1"));
        write(0, "c.json", &document("FROM=c", "1"));
        write(0, "d.json.off", &document("FROM=off", "9"));
        write(0, "broken.yaml", "kind: [");
        write(1, "a.json", &document("FROM=dynamic", "0"));
        write(1, "large.json", &" ".repeat(1 + usize::try_from(MAX_FILE).unwrap()));
        let registry = Registry::read(&dirs);
        let edits = registry.edits(&names(&["v.com/gpu=0"])).unwrap();
        assert_eq!(edits.env(), ["ALL=1", "FROM=dynamic"]);
        for (name, texts) in [
            ("v.com/gpu=1", &["b.json", "c.json"][..]),
            (
                "v.com/gpu=9",
                &[
                    "no CDI specification",
                    "broken.yaml",
                    "large.json has",
                    "cannot be used",
                ],
            ),
        ] {
            let error = registry.edits(&names(&[name])).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            for text in texts {
                assert!(error.contains(text.split(' ').next().unwrap()), "{error}");
            }
        }
        // A later directory settles the conflict.
        write(1, "e.json", &document("FROM=e", "1"));
        let edits = Registry::read(&dirs)
            .edits(&names(&["v.com/gpu=1", "v.com/gpu=0"]))
            .unwrap();
        assert_eq!(edits.env(), ["ALL=1", "FROM=e", "ALL=1", "FROM=dynamic"]);
    }
}
