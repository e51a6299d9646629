//! Whether the store is what it says it is: records, layers, accounts.
//!
//! What is found is told and not repaired: a start of the server does that, and pulls. Layers whose content was changed where
//! they lie are noticed by the number and size of their files only: the archives they were verified against are not kept.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use corten_proto::id::Digest;

use super::holes;
use super::record::{Image, PARTIAL};
use super::store::ImageStore;
use super::unpack::Usage;

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Something is wrong, as opposed to odd.
    pub is_error: bool,
    /// What it is about: an image, a layer, a file.
    pub subject: String,
    /// What was found.
    pub text: String,
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything found.
    pub findings: Vec<Finding>,
    /// Images and layers looked at.
    pub images: u64,
    /// See `images`.
    pub layers: u64,
    /// The store's own account, bytes and inodes.
    pub bytes: u64,
    /// See `bytes`.
    pub inodes: u64,
}

impl Report {
    fn error(&mut self, subject: impl ToString, text: impl Into<String>) {
        self.add(true, subject, text);
    }

    fn note(&mut self, subject: impl ToString, text: impl Into<String>) {
        self.add(false, subject, text);
    }

    fn add(&mut self, is_error: bool, subject: impl ToString, text: impl Into<String>) {
        self.findings.push(Finding {
            is_error,
            subject: subject.to_string(),
            text: text.into(),
        });
    }
}

impl ImageStore {
    /// Compares memory and disk. Blocks: it walks through all layers. What comes or goes meanwhile is not held against
    /// the store.
    pub fn check(&self) -> Result<Report> {
        let mut report = Report::default();
        (report.bytes, report.inodes) = self.usage();
        let layers = self.layer_usages();
        let images = self.list();
        let known: BTreeSet<&Digest> = layers.iter().map(|(layer, _)| layer).collect();
        for image in &images {
            self.check_image(image, &known, &mut report);
        }
        let used: BTreeSet<&Digest> = images.iter().flat_map(|image| &image.layers).collect();
        for (layer, usage) in &layers {
            self.check_layer(layer, *usage, &mut report)?;
            if !used.contains(layer) {
                report.note(layer, "no image has it: a container does, or it is about to go");
            }
        }
        (report.images, report.layers) = (images.len() as u64, layers.len() as u64);
        let records = || {
            self.list()
                .into_iter()
                .map(|image| format!("{}.json", image.id.hex()))
                .collect()
        };
        strays(&self.root().join("images"), records, &mut report)?;
        let directories = || {
            self.layer_usages()
                .into_iter()
                .map(|(layer, _)| layer.hex().to_owned())
                .collect()
        };
        strays(&self.root().join("layers"), directories, &mut report)?;
        let quarantine = self.root().join("quarantine");
        for name in names(&quarantine)? {
            let text = "was unusable at an earlier start; may be looked at and removed";
            report.note(quarantine.join(name).display(), text);
        }
        Ok(report)
    }

    fn check_image(&self, image: &Image, known: &BTreeSet<&Digest>, report: &mut Report) {
        let path = self.root().join("images").join(format!("{}.json", image.id.hex()));
        let record = fs::read(&path).map_err(anyhow::Error::from);
        match record.and_then(|text| Ok(serde_json::from_slice::<Image>(&text)?)) {
            Ok(record) if record.id == image.id && record.layers == image.layers => {}
            Ok(_) => report.error(&image.id, format!("{} is of another image", path.display())),
            Err(_) if self.is_gone(&image.id) => return,
            Err(error) => report.error(&image.id, format!("read {}: {error}", path.display())),
        }
        for layer in image.layers.iter().filter(|layer| !known.contains(layer)) {
            report.error(&image.id, format!("its layer {layer} is unknown"));
        }
    }

    fn is_gone(&self, image: &Digest) -> bool {
        !self.list().iter().any(|known| known.id == *image)
    }

    fn check_layer(&self, layer: &Digest, usage: Usage, report: &mut Report) -> Result<()> {
        // Held while it is walked through; one that went since the list was made is no finding.
        let Ok(_lease) = self.lease(std::slice::from_ref(layer)) else {
            return Ok(());
        };
        let files = self.layer_path(layer);
        if !files.is_dir() {
            report.error(layer, format!("{} is missing", files.display()));
            return Ok(());
        }
        let record = files.with_file_name("layer.json");
        let read = fs::read(&record).map_err(anyhow::Error::from);
        match read.and_then(|text| Ok(serde_json::from_slice::<Usage>(&text)?)) {
            Ok(recorded) if recorded == usage => {}
            Ok(_) => report.error(layer, format!("{} is not what the server counts", record.display())),
            Err(error) => report.error(layer, format!("read {}: {error}", record.display())),
        }
        let found = match walk(&files) {
            Ok(found) => found,
            // The others are checked all the same.
            Err(error) => {
                report.error(layer, format!("cannot be walked through: {error:#}"));
                return Ok(());
            }
        };
        if found != usage {
            let text = format!(
                "has {} inodes and {} bytes, {} and {} were counted when it was unpacked",
                found.inodes, found.bytes, usage.inodes, usage.bytes
            );
            report.note(layer, text);
        }
        Ok(())
    }
}

/// What a directory takes, counted as `unpack` does.
pub(super) fn walk(root: &Path) -> Result<Usage> {
    let mut usage = Usage { bytes: 4096, inodes: 1 };
    let mut linked = BTreeSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let reading = || format!("read {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let metadata = entry.metadata().with_context(reading)?;
            if metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino()) {
                continue;
            }
            usage.inodes += 1;
            if metadata.is_dir() {
                usage.bytes += 4096;
                waiting.push(entry.path());
            } else if metadata.is_file() {
                usage.bytes += content(&entry.path(), &metadata).with_context(reading)?;
            }
        }
    }
    Ok(usage)
}

/// What the content of a file takes: all of it, or where there are holes, what is between them.
fn content(path: &Path, metadata: &Metadata) -> Result<u64> {
    let whole = || metadata.len().div_ceil(4096) * 4096;
    // Most files; they need not be opened.
    if metadata.blocks() * 512 >= metadata.len() {
        return Ok(whole());
    }
    let file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let pieces = holes::pieces(&file, metadata).with_context(|| format!("holes of {}", path.display()))?;
    let taken = pieces.map(|pieces| pieces.iter().map(|(_, length)| length.div_ceil(4096) * 4096).sum());
    Ok(taken.unwrap_or_else(whole))
}

/// Tells of what is in `dir` and is not expected there; what is under way has a name that says so.
fn strays(dir: &Path, expected: impl Fn() -> BTreeSet<String>, report: &mut Report) -> Result<()> {
    let found = names(dir)?;
    // Asked after the directory was read: what was made in between is expected by now, what went is there no more.
    let expected = expected();
    for name in found {
        if !expected.contains(&name) && !name.ends_with(PARTIAL) && dir.join(&name).exists() {
            report.error(dir.join(name).display(), "is no part of the store");
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let reading = || format!("read {}", dir.display());
    let entries = fs::read_dir(dir).with_context(reading)?;
    let mut names = entries
        .map(|entry| entry.map(|found| found.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<String>, _>>()
        .with_context(reading)?;
    names.sort();
    Ok(names)
}
