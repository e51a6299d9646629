//! Images from an archive instead of a registry.
//!
//! ```text
//! archive --> file (archive) --> oci-layout, index.json?  each of its manifests, as a registry's would be
//!                            \-> manifest.json?           each of its images, as docker save writes them
//!                                                 \-> config --> layers, a few at a time --> record
//! ```
//! Documents, digests and layers are checked by the same code as a pull's; what is here already is not unpacked again. An
//! archive with several images is imported image by image: those before one that fails stay.
//!
//! Names come from the archive (`io.containerd.image.name`, else `org.opencontainers.image.ref.name` where it is more than
//! a tag; Docker's `RepoTags`) or from the caller. An image without any is known by its id.

mod documents;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::Context;
use corten_proto::id::Digest;
use tokio::sync::mpsc;

use self::documents::{Candidate, Part, candidates};
use super::archive::{Archive, ArchiveSource, Section, is_packed};
use super::error::PullError;
use super::manifest;
use super::policy::Admission;
use super::progress::{LayerProgress, Progress};
use super::pull::{LayerResult, ended};
use super::record::Image;
use super::reference::{Reference, Version};
use super::store::{ImageStore, LayerLease};

/// Pieces of a layer that may wait for its unpacker, and their size.
const PIECES_WAITING: usize = 4;
const PIECE: u64 = 256 << 10;

/// Bytes that are read of a packed file at once.
const FILE_PIECE: usize = 256 << 10;

/// What imports are to the slots: one source among the registries.
const SLOTS_OF: &str = "import";

/// An image that came in.
#[derive(Debug)]
pub struct Imported {
    /// The image.
    pub image: Arc<Image>,
    /// The names it got, normalised.
    pub names: Vec<String>,
}

impl ImageStore {
    /// Imports every image of an archive, under `name` if it is not empty: then there must be one image only.
    pub async fn import(
        self: &Arc<Self>,
        source: ArchiveSource,
        name: &str,
        progress: &Arc<Progress>,
    ) -> Result<Vec<Imported>, PullError> {
        let name = parse_name(name)?;
        progress.stage("archive");
        let (archive, mut candidates) = self.read_archive(source).await?;
        if let Some(name) = name {
            let count = candidates.len();
            let [only] = candidates.as_mut_slice() else {
                let text = format!("archive: it has {count} images, a name can be given to one only");
                return Err(PullError::refused(text));
            };
            only.names = vec![name];
        }
        let archive = Arc::new(archive);
        let counter = |part: &Part| {
            self.pulls
                .board
                .layer(&part.expected.blob.digest, part.expected.blob.size)
        };
        progress.layers(candidates.iter().flat_map(|it| &it.layers).map(counter).collect());
        progress.stage("layers");
        let mut imported = Vec::new();
        for candidate in candidates {
            let label = candidate.label();
            let done = self.import_one(&archive, candidate).await;
            progress.log_end("import", &label, done.as_ref().map(|it| &it.image.id));
            imported.push(done.map_err(|error| error.context(format!("import {label}")))?);
        }
        Ok(imported)
    }

    async fn read_archive(&self, source: ArchiveSource) -> Result<(Archive, Vec<Candidate>), PullError> {
        let (source, feeding) = match source {
            ArchiveSource::File(file) if is_packed(&file)? => {
                let (sender, receiver) = mpsc::channel(PIECES_WAITING);
                (ArchiveSource::Pieces(receiver), Some((file, sender)))
            }
            source => (source, None),
        };
        let root = self.root().to_owned();
        let reading = tokio::task::spawn_blocking(move || {
            let archive = Archive::open(source, &root)?;
            let candidates = candidates(&archive)?;
            Ok((archive, candidates))
        });
        let feeding = async {
            if let Some((file, sender)) = feeding {
                feed(file, sender).await;
            }
        };
        let (read, ()) = tokio::join!(reading, feeding);
        read.unwrap_or_else(|_panic| Err(ended("reading the archive")))
    }

    async fn import_one(self: &Arc<Self>, archive: &Arc<Archive>, candidate: Candidate) -> Result<Imported, PullError> {
        let admissions = self.admit_names(&candidate).await?;
        // Held until the record names the layers.
        let leases = self.place_layers(archive, &candidate).await?;
        let layers: Vec<Digest> = candidate.layers.iter().map(|it| it.expected.diff_id.clone()).collect();
        let image = Image {
            id: candidate.manifest.config.digest.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: self.layers_size(&layers).saturating_add(candidate.manifest.config.size),
            config: manifest::parse_config(&candidate.config)?,
            layers,
            admissions,
            checkpoint: candidate.manifest.checkpoint,
        };
        let (store, names, manifest) = (Arc::clone(self), candidate.names, candidate.manifest_digest);
        let publishing = tokio::task::spawn_blocking(move || {
            let published = store.publish_import(image, &names, manifest.as_ref());
            drop(leases);
            published.map(|image| Imported {
                image,
                names: names.iter().map(Reference::to_string).collect(),
            })
        });
        let published = publishing.await.map_err(|_panic| ended("recording the image"))?;
        published.map_err(|error| PullError::local(&error))
    }

    /// What the policy says to each name. An archive has no signatures, so where a digest is known it is not by them.
    async fn admit_names(&self, candidate: &Candidate) -> Result<BTreeMap<String, Admission>, PullError> {
        let mut admissions = BTreeMap::new();
        if candidate.names.is_empty() {
            admissions.insert(String::new(), self.admit_import("").await?);
        }
        for name in &candidate.names {
            let admission = self.admit_import(&name.name()).await?;
            let key = match &candidate.manifest_digest {
                Some(digest) => name.at(digest),
                None => name.name(),
            };
            admissions.insert(key, admission);
        }
        Ok(admissions)
    }

    /// Makes all layers present, several at a time, and keeps them with leases.
    async fn place_layers(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        candidate: &Candidate,
    ) -> Result<Vec<Arc<LayerLease>>, PullError> {
        let label = candidate.label();
        let mut tasks = tokio::task::JoinSet::new();
        for (index, part) in candidate.layers.iter().enumerate() {
            let before = &candidate.layers[..index];
            if before.iter().any(|it| it.expected.diff_id == part.expected.diff_id) {
                continue;
            }
            let (store, archive, part, label) = (Arc::clone(self), Arc::clone(archive), part.clone(), label.clone());
            tasks.spawn(async move {
                let blob = &part.expected.blob;
                let counter = store.pulls.board.layer(&blob.digest, blob.size);
                let layer = store.place(&archive, &part, &counter).await;
                let layer = layer.map_err(|error| error.context(format!("layer {}", blob.digest)))?;
                counter.finish(&label);
                Ok(layer)
            });
        }
        let mut leases = Vec::new();
        while let Some(layer) = tasks.join_next().await {
            leases.push(layer.unwrap_or_else(|_panic| Err(ended("a layer")))?);
        }
        // Those too that were not read, because another blob has the same content.
        let blobs = candidate.layers.iter().map(|part| &part.expected.blob);
        self.pulls.board.finish(blobs, &label);
        Ok(leases)
    }

    /// Unpacks one layer, unless it is here.
    async fn place(self: &Arc<Self>, archive: &Arc<Archive>, part: &Part, counter: &LayerProgress) -> LayerResult {
        let slot = self.pulls.slots.take(SLOTS_OF).await;
        if let Some(lease) = self.present(&part.expected) {
            return Ok(lease);
        }
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let (store, expected) = (Arc::clone(self), part.expected.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = store.unpack(receiver, &expected);
            drop(slot);
            unpacked
        });
        let mut read = 0;
        while read < part.section.size {
            let piece = Section {
                offset: part.section.offset + read,
                size: PIECE.min(part.section.size - read),
            };
            let archive = Arc::clone(archive);
            // A thread for each piece and not for the layer: two for one layer could be all there are.
            let content = tokio::task::spawn_blocking(move || archive.read_at(piece)).await;
            let content = content.unwrap_or_else(|_panic| Err(ended("reading the archive")));
            let broken = content.is_err();
            // A closed channel is an unpacker that has failed; its result says why.
            if sender.send(content.map(bytes::Bytes::from)).await.is_err() || broken {
                break;
            }
            read += piece.size;
            counter.received(read);
        }
        drop(sender);
        let unpacked = unpacking.await;
        unpacked.unwrap_or_else(|_panic| Err(ended("unpacking"))).map(Arc::new)
    }
}

/// Sends a file to its end, in reads short enough that whoever gives up on it is done soon.
async fn feed(file: File, sender: mpsc::Sender<Result<bytes::Bytes, PullError>>) {
    let file = Arc::new(file);
    let mut position = 0;
    loop {
        let file = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; FILE_PIECE];
            let count = file.read_at(&mut piece, position).context("read the archive");
            piece.truncate(count.map_err(|error| PullError::local(&error))?);
            Ok(bytes::Bytes::from(piece))
        });
        let piece = read.await.unwrap_or_else(|_panic| Err(ended("reading the archive")));
        match &piece {
            Ok(piece) if piece.is_empty() => return,
            Ok(piece) => position += piece.len() as u64,
            Err(_) => {}
        }
        let broken = piece.is_err();
        // Nobody listens where the archive was refused.
        if sender.send(piece).await.is_err() || broken {
            return;
        }
    }
}

fn parse_name(name: &str) -> Result<Option<Reference>, PullError> {
    if name.is_empty() {
        return Ok(None);
    }
    let name: Reference = name.parse()?;
    match name.version {
        Version::Tag(_) => Ok(Some(name)),
        Version::Digest(_) => Err(PullError::refused(format!(
            "name {name}: must have a tag; the digest is the archive's"
        ))),
    }
}
