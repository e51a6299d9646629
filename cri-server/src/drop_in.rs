//! The directory whose archives are imported when the server starts: how a node without a registry gets its images.
//!
//! ```text
//! ROOT/import/ANY.NAME       an archive, as `corten-cri image import` takes
//! ROOT/import/.imported      names, sizes and times of those that were imported
//! ```
//! An archive is imported once, and again when its size or time has changed: so an image that was removed stays removed, until
//! its file is touched. One that fails is tried at every start. Files whose names begin with a dot are passed over, so that
//! one that is still being copied can have such a name.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::image::{ArchiveSource, ImageStore, Progress};
use crate::node::blocking;
use crate::record;

/// Where it is noted what was imported.
const NOTES: &str = ".imported";

/// What tells one version of a file from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    size: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// The files that were imported, by name.
type Notes = BTreeMap<String, Version>;

/// Imports what is new in `dir`, file by file in the order of their names. Failures are logged.
pub(crate) async fn import_all(images: Arc<ImageStore>, dir: PathBuf) {
    if let Err(error) = try_all(&images, &dir).await {
        tracing::error!("import the archives in {}: {error:#}", dir.display());
    }
}

async fn try_all(images: &Arc<ImageStore>, dir: &Path) -> Result<()> {
    let (found, mut notes) = {
        let dir = dir.to_owned();
        blocking(move || Ok((list(&dir)?, read_notes(&dir)))).await?
    };
    // What is gone, and comes back another day, is new.
    notes.retain(|name, _| found.contains_key(name));
    for (name, version) in found {
        if notes.get(&name) == Some(&version) {
            continue;
        }
        match import(images, &dir.join(&name)).await {
            Ok(()) => {
                notes.insert(name, version);
                let (path, notes) = (dir.join(NOTES), notes.clone());
                blocking(move || record::write(&path, &notes)).await?;
            }
            Err(error) => tracing::error!(file = %dir.join(&name).display(), "import: {error:#}"),
        }
    }
    Ok(())
}

async fn import(images: &Arc<ImageStore>, path: &Path) -> Result<()> {
    let file = {
        let path = path.to_owned();
        blocking(move || File::open(&path).context("open")).await?
    };
    let progress = Arc::new(Progress::default());
    let imported = images.import(ArchiveSource::File(file), "", &progress).await?;
    for one in imported {
        tracing::info!(file = %path.display(), id = %one.image.id, names = ?one.names, "imported");
    }
    Ok(())
}

/// The files in `dir` whose names do not begin with a dot; none if there is no directory.
fn list(dir: &Path) -> Result<Notes> {
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Notes::new()),
        Err(error) => return Err(error).context("read the directory"),
    };
    let mut found = Notes::new();
    for entry in entries {
        let entry = entry.context("read the directory")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link's target counts: archives may lie elsewhere.
        let Ok(metadata) = entry.path().metadata() else {
            tracing::error!(file = %entry.path().display(), "import: a link that leads nowhere");
            continue;
        };
        if metadata.is_file() && !name.starts_with('.') {
            let version = Version {
                size: metadata.len(),
                inode: metadata.ino(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            };
            found.insert(name, version);
        }
    }
    Ok(found)
}

/// What was imported before. Notes that cannot be read are as good as none: what is here already costs little.
fn read_notes(dir: &Path) -> Notes {
    record::read_optional(&dir.join(NOTES))
        .unwrap_or_else(|error| {
            tracing::warn!("{error:#}; every archive is looked at again");
            None
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_what_changes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
        std::fs::write(dir.path().join("a.tar"), "1").unwrap();
        std::fs::write(dir.path().join(".b.tar"), "1").unwrap();
        std::fs::create_dir(dir.path().join("c.tar")).unwrap();
        let before = list(dir.path()).unwrap();
        assert_eq!(before.keys().collect::<Vec<_>>(), ["a.tar"]);
        std::fs::write(dir.path().join("a.tar"), "12").unwrap();
        assert_ne!(list(dir.path()).unwrap(), before);
    }

    #[test]
    fn notes_that_make_no_sense_are_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_notes(dir.path()).is_empty());
        std::fs::write(dir.path().join(NOTES), "{").unwrap();
        assert!(read_notes(dir.path()).is_empty());
    }
}
