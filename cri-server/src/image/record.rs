//! The records of images and layers, and how a start reads them.
//!
//! A record that cannot be read, or that says what is not so, moves to `quarantine/` alone; the others are used. Left
//! out: repairing. The next pull does that.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use corten_proto::id::Digest;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::policy::Admission;
use super::unpack::Usage;
use crate::tree;

/// The suffix of what is not, or not any more, what its name says.
pub(super) const PARTIAL: &str = ".partial";

/// What the store is made of.
const DIRECTORIES: [&str; 3] = ["images", "layers", "quarantine"];

/// An image of this node, and its record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Digest of the config.
    pub id: Digest,
    /// Normalised names with a tag, sorted.
    pub repo_tags: Vec<String>,
    /// Normalised names with the digest of the manifest or index they were pulled as, sorted.
    pub repo_digests: Vec<String>,
    /// What its layers and its config take on disk, in bytes; layers shared with other images included.
    pub size: u64,
    /// The config as the registry sent it.
    pub config: ImageConfiguration,
    /// Diff ids, bottom first.
    pub layers: Vec<Digest>,
    /// What the policy saw, by the name with digest that it was pulled as; by the name alone for what an archive brought.
    #[serde(default)]
    pub admissions: BTreeMap<String, Admission>,
    /// Its one layer holds a checkpoint of a container, by the annotations of every manifest that it has come by. Anybody can
    /// annotate a manifest for a config and layers of others: one without makes it an image as any other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint: bool,
}

impl Image {
    /// The record after the image that `known` is about has come once more: its names, and what the policy saw of both.
    pub(super) fn joined(self, known: Option<&Image>) -> Image {
        let Some(known) = known else { return self };
        let mut joined = known.clone();
        joined.checkpoint &= self.checkpoint;
        for (name, admission) in self.admissions {
            // An archive takes away nothing of what a registry has shown.
            let keeps = joined.admissions.get(&name).is_some_and(|before| !before.imported);
            if !(keeps && admission.imported) {
                joined.admissions.insert(name, admission);
            }
        }
        joined
    }

    /// Writes the record of the store at `root`, in place of an earlier one.
    pub(super) fn save(&self, root: &Path) -> Result<()> {
        let path = path_of(root, &self.id);
        let partial = path.with_extension("json.partial");
        let saving = || format!("save {}", path.display());
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .with_context(saving)?;
        // Pulls are rare, and an empty record after a power cut would cost the image.
        file.write_all(&serde_json::to_vec_pretty(self)?)
            .and_then(|()| file.sync_all())
            .with_context(saving)?;
        fs::rename(&partial, &path).with_context(saving)?;
        sync_dir(&root.join("images"))
    }
}

/// Writes a directory's names to the disk: without it a power cut may take a rename or a removal back.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir)
        .and_then(|opened| opened.sync_all())
        .with_context(|| format!("fsync {}", dir.display()))
}

/// Removes an image's record from the store at `root`, for good: its layers may go next, and a record that a power cut
/// brought back would miss them.
pub(super) fn remove(root: &Path, image: &Digest) -> Result<()> {
    let path = path_of(root, image);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(&root.join("images")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Writes `layer.json` into the directory of an unpacked layer.
pub(super) fn save_layer(dir: &Path, usage: Usage) -> Result<()> {
    let path = dir.join("layer.json");
    fs::write(&path, serde_json::to_vec(&usage)?).with_context(|| format!("write {}", path.display()))
}

/// Renames an unpacked layer to what it is, and makes that last with `sync`. What does not last is renamed back: else the
/// directory would be in the way of each later pull, unknown to all of them.
pub(super) fn give_name(partial: &Path, path: &Path, sync: impl FnOnce() -> Result<()>) -> Result<()> {
    fs::rename(partial, path).with_context(|| format!("rename a layer to {}", path.display()))?;
    sync().or_else(|error| {
        fs::rename(path, partial).with_context(|| format!("rename {} back after: {error:#}", path.display()))?;
        Err(error)
    })
}

/// Makes the directories below `root` that are missing, and removes what was left half done; how many that were.
pub(super) fn prepare(root: &Path) -> Result<usize> {
    let mut removed = 0;
    for name in DIRECTORIES {
        let dir = root.join(name);
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        made.with_context(|| format!("create {}", dir.display()))?;
        for (name, path) in entries(&dir)? {
            if name.ends_with(PARTIAL) {
                tracing::info!(path = %path.display(), "removing what an earlier server left half done");
                match remove_any(&path) {
                    Ok(()) => removed += 1,
                    // It takes space and nothing else: no reason to be without every other image.
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "left where it is"),
                }
            }
        }
    }
    Ok(removed)
}

/// What every layer of the store at `root` takes.
pub(super) fn load_layers(root: &Path) -> Result<HashMap<Digest, Usage>> {
    let mut layers = HashMap::new();
    for (name, path) in whole_entries(&root.join("layers"))? {
        match load_layer(&name, &path) {
            Ok((digest, usage)) => drop(layers.insert(digest, usage)),
            Err(error) => quarantine(root, "layer", &path, &error)?,
        }
    }
    Ok(layers)
}

fn load_layer(name: &str, path: &Path) -> Result<(Digest, Usage)> {
    let digest = Digest::from_hex(name).context("its name is no digest")?;
    let usage = serde_json::from_slice(&fs::read(path.join("layer.json"))?)?;
    ensure!(path.join("fs").is_dir(), "its files are missing");
    Ok((digest, usage))
}

/// The images of the store at `root` whose layers are among `layers`.
pub(super) fn load_images(root: &Path, layers: &HashMap<Digest, Usage>) -> Result<BTreeMap<Digest, Arc<Image>>> {
    let mut images = BTreeMap::new();
    for (name, path) in whole_entries(&root.join("images"))? {
        match load_image(&name, &path, layers) {
            Ok(image) => drop(images.insert(image.id.clone(), Arc::new(image))),
            Err(error) => quarantine(root, "image", &path, &error)?,
        }
    }
    Ok(images)
}

fn load_image(name: &str, path: &Path, layers: &HashMap<Digest, Usage>) -> Result<Image> {
    let image: Image = serde_json::from_slice(&fs::read(path)?)?;
    ensure!(
        name.strip_suffix(".json") == Some(image.id.hex()),
        "the record is of image {}",
        image.id
    );
    // An image that lost a layer would fail at every container; without it the next pull repairs it.
    for layer in &image.layers {
        ensure!(layers.contains_key(layer), "layer {layer} is missing");
    }
    Ok(image)
}

fn path_of(root: &Path, image: &Digest) -> PathBuf {
    root.join("images").join(format!("{}.json", image.hex()))
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let reading = || format!("read {}", dir.display());
    fs::read_dir(dir)
        .with_context(reading)?
        .map(|entry| entry.map(|found| (found.file_name().to_string_lossy().into_owned(), found.path())))
        .collect::<Result<_, _>>()
        .with_context(reading)
}

/// Those that are what their names say: leftovers that could not be removed are neither used nor damaged.
fn whole_entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = entries(dir)?;
    found.retain(|(name, _)| !name.ends_with(PARTIAL));
    Ok(found)
}

/// Moves what cannot be used out of the way, where a human finds it; the newest of one name stays.
fn quarantine(root: &Path, kind: &str, path: &Path, error: &anyhow::Error) -> Result<()> {
    let name = path
        .file_name()
        .context("an entry of a directory has a name")?
        .to_string_lossy();
    let target = root.join("quarantine").join(format!("{kind}-{name}"));
    tracing::warn!(path = %path.display(), error = format!("{error:#}"), "unusable, moved to quarantine");
    remove_any(&target)?;
    fs::rename(path, &target).with_context(|| format!("rename {} to {}", path.display(), target.display()))
}

fn remove_any(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => tree::remove(path),
        Ok(_) => fs::remove_file(path).with_context(|| format!("remove {}", path.display())),
        Err(_gone) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_manifest_without_the_annotation_makes_it_an_image_as_any_other() {
        let image = |checkpoint| Image {
            id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 1,
            config: ImageConfiguration::default(),
            layers: Vec::new(),
            admissions: BTreeMap::new(),
            checkpoint,
        };
        let table = [
            (&[true][..], true),
            (&[false], false),
            (&[true, true], true),
            (&[true, false], false),
            (&[false, true], false),
            (&[true, false, true], false),
        ];
        for (manifests, expected) in table {
            let come = |known: Option<Image>, checkpoint: &bool| Some(image(*checkpoint).joined(known.as_ref()));
            let known = manifests.iter().fold(None, come).unwrap();
            assert_eq!(known.checkpoint, expected, "{manifests:?}");
        }
    }

    #[test]
    fn a_name_that_does_not_last_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (partial, path) = (dir.path().join("a.0.partial"), dir.path().join("a"));
        fs::create_dir(&partial).unwrap();
        let error = give_name(&partial, &path, || anyhow::bail!("fsync")).unwrap_err();
        assert_eq!(error.to_string(), "fsync");
        assert!(partial.is_dir() && !path.exists());
        give_name(&partial, &path, || Ok(())).unwrap();
        assert!(path.is_dir() && !partial.exists());
    }
}
