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

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::Context;
use corten_proto::id::Digest;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::archive::{Archive, ArchiveSource, Packing, Section, is_packed};
use super::error::PullError;
use super::layer::Expected;
use super::manifest::{self, Descriptor, Document, Manifest, Platform};
use super::policy::Admission;
use super::progress::{LayerProgress, Progress};
use super::pull::{LayerResult, MAX_CONFIG, check_digest, ended};
use super::record::Image;
use super::reference::{Reference, Version};
use super::store::{ImageStore, LayerLease};

/// Largest manifest or index, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Most images of one archive.
const MAX_IMAGES: usize = 1000;

/// Most names of one image.
const MAX_NAMES: usize = 100;

/// Pieces of a layer that may wait for its unpacker, and their size.
const PIECES_WAITING: usize = 4;
const PIECE: u64 = 256 << 10;

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

/// An image of the archive.
#[derive(Debug)]
struct Candidate {
    names: Vec<Reference>,
    /// What the names stand for, where the archive has a manifest of its own.
    manifest_digest: Option<Digest>,
    manifest: Manifest,
    config: ImageConfiguration,
    layers: Vec<Part>,
}

/// A layer of the archive.
#[derive(Clone, Debug)]
struct Part {
    expected: Expected,
    section: Section,
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
            config: candidate.config,
            layers,
            admissions,
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

impl Candidate {
    /// What a person knows it by.
    fn label(&self) -> String {
        let id = || self.manifest.config.digest.to_string();
        self.names.first().map_or_else(id, Reference::to_string)
    }
}

/// Sends a file to its end, in reads short enough that whoever gives up on it is done soon.
async fn feed(file: File, sender: mpsc::Sender<Result<bytes::Bytes, PullError>>) {
    let file = Arc::new(file);
    let mut position = 0;
    loop {
        let file = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE as usize];
            let count = file.read_at(&mut piece, position).context("read the archive");
            piece.truncate(count.map_err(|error| PullError::local(&error))?);
            Ok(bytes::Bytes::from(piece))
        });
        let piece = read.await.unwrap_or_else(|_panic| Err(ended("reading the archive")));
        let count = piece.as_ref().map_or(0, bytes::Bytes::len);
        position += count as u64;
        let is_last = count == 0;
        // Nobody listens where the archive was refused.
        if is_last && piece.is_ok() || sender.send(piece).await.is_err() || is_last {
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

/// Reads the archive's documents. Blocks.
fn candidates(archive: &Archive) -> Result<Vec<Candidate>, PullError> {
    // Docker since 25 writes both forms; the layout's documents have digests.
    if archive.has("oci-layout") && archive.has("index.json") {
        return of_layout(archive);
    }
    if archive.has("manifest.json") {
        return of_docker(archive);
    }
    Err(PullError::refused(
        "archive: neither an OCI layout (oci-layout, index.json) nor one of docker save (manifest.json)",
    ))
}

/// What a layout's index says of an entry beside its descriptor.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    annotations: Annotations,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.containerd.image.name")]
    full: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    reference: Option<String>,
}

fn of_layout(archive: &Archive) -> Result<Vec<Candidate>, PullError> {
    #[derive(Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let layout: Layout = parse("oci-layout", &archive.read("oci-layout", MAX_MANIFEST)?)?;
    if layout.version != "1.0.0" {
        let version = layout.version;
        return Err(PullError::refused(format!(
            "oci-layout: version {version:?}, must be \"1.0.0\""
        )));
    }
    #[derive(Deserialize)]
    struct Names {
        manifests: Vec<Named>,
    }
    let content = archive.read("index.json", MAX_MANIFEST)?;
    let names: Names = parse("index.json", &content)?;
    let Document::Index(entries) = manifest::parse(&content, manifest::OCI_INDEX)? else {
        return Err(PullError::refused("index.json: not an index"));
    };
    if entries.len() > MAX_IMAGES {
        let count = entries.len();
        return Err(PullError::refused(format!(
            "index.json: {count} entries, at most {MAX_IMAGES}"
        )));
    }
    let platform = Platform::host();
    let mut found: Vec<Candidate> = Vec::new();
    for (entry, named) in entries.into_iter().zip(names.manifests) {
        // A layout may list an image's platforms one by one, without an index of its own.
        if named.platform.is_none_or(|other| platform.runs(&other)) {
            let name = full_name(&named.annotations)?;
            merge(&mut found, of_entry(archive, entry)?, name)?;
        }
    }
    if found.is_empty() {
        return Err(PullError::refused(format!(
            "index.json: it lists no image for {platform}"
        )));
    }
    Ok(found)
}

/// Several entries of one image are one image of several names.
fn merge(found: &mut Vec<Candidate>, mut candidate: Candidate, name: Option<Reference>) -> Result<(), PullError> {
    let same = found
        .iter_mut()
        .find(|it| it.manifest_digest == candidate.manifest_digest);
    match same {
        Some(same) if same.names.len() >= MAX_NAMES => Err(PullError::refused(format!(
            "index.json: more than {MAX_NAMES} names of one image"
        ))),
        Some(same) => {
            same.names.extend(name);
            Ok(())
        }
        None => {
            candidate.names.extend(name);
            found.push(candidate);
            Ok(())
        }
    }
}

fn full_name(annotations: &Annotations) -> Result<Option<Reference>, PullError> {
    // A bare tag says nothing about the repository.
    let reference = annotations.reference.as_deref();
    let reference = reference.filter(|name| name.contains([':', '/']));
    let Some(name) = annotations.full.as_deref().or(reference) else {
        return Ok(None);
    };
    let name: Reference = name.parse()?;
    Ok(matches!(name.version, Version::Tag(_)).then_some(name))
}

/// The image of an entry of index.json: a manifest, or an index of several platforms.
fn of_entry(archive: &Archive, entry: Descriptor) -> Result<Candidate, PullError> {
    let platform = Platform::host();
    let named = entry.digest.clone();
    let chosen = if entry.media_type == manifest::OCI_INDEX || entry.media_type == manifest::DOCKER_LIST {
        let content = blob(archive, &entry, MAX_MANIFEST).map_err(|error| error.context("index"))?;
        match manifest::parse(&content, &entry.media_type)? {
            Document::Index(index) => manifest::choose(index, &platform)?,
            Document::Image(_) => return Err(PullError::refused("index.json: an index that is a manifest")),
        }
    } else {
        manifest::choose(vec![entry], &platform)?
    };
    let content = blob(archive, &chosen, MAX_MANIFEST).map_err(|error| error.context("manifest"))?;
    let Document::Image(manifest) = manifest::parse(&content, &chosen.media_type)? else {
        return Err(PullError::refused("index within an index: not supported"));
    };
    let config = blob(archive, &manifest.config, MAX_CONFIG).map_err(|error| error.context("config"))?;
    let config: ImageConfiguration = parse("config", &config)?;
    let diff_ids = manifest::diff_ids(&config, &manifest, &platform)?;
    let layers = manifest.layers.iter().zip(diff_ids).map(|((blob, packing), diff_id)| {
        let section = archive.find(&blob_name(&blob.digest))?;
        Ok(Part {
            expected: Expected {
                blob: blob.clone(),
                packing: *packing,
                diff_id,
            },
            section,
        })
    });
    Ok(Candidate {
        names: Vec::new(),
        manifest_digest: Some(named),
        layers: layers.collect::<Result<_, PullError>>()?,
        manifest,
        config,
    })
}

/// Where a layout keeps a blob.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}

/// A document of the layout, checked.
fn blob(archive: &Archive, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, PullError> {
    let content = archive.read(&blob_name(&descriptor.digest), limit)?;
    if content.len() as u64 != descriptor.size {
        let (found, said) = (content.len(), descriptor.size);
        return Err(PullError::refused(format!("{found} bytes, its descriptor says {said}")));
    }
    check_digest(&content, &descriptor.digest)?;
    Ok(content)
}

fn parse<'a, T: Deserialize<'a>>(what: &str, content: &'a [u8]) -> Result<T, PullError> {
    serde_json::from_slice(content).map_err(|error| PullError::refused(format!("{what}: {error}")))
}

/// An image of docker save.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn of_docker(archive: &Archive) -> Result<Vec<Candidate>, PullError> {
    let content = archive.read("manifest.json", MAX_MANIFEST)?;
    let images: Vec<Saved> = parse("manifest.json", &content)?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        let count = images.len();
        return Err(PullError::refused(format!(
            "manifest.json: {count} images, must be 1 to {MAX_IMAGES}"
        )));
    }
    images.iter().map(|saved| of_saved(archive, saved)).collect()
}

/// An image of docker save, in the words of a registry: so it passes the same checks.
fn of_saved(archive: &Archive, saved: &Saved) -> Result<Candidate, PullError> {
    let content = archive.read(&saved.config, MAX_CONFIG)?;
    let config: ImageConfiguration = parse("config", &content)?;
    let tags = saved.repo_tags.as_deref().unwrap_or_default();
    let (layers, diff_ids) = (saved.layers.len(), config.rootfs().diff_ids().len());
    if layers != diff_ids || tags.len() > MAX_NAMES {
        return Err(PullError::refused(format!(
            "manifest.json: {layers} layers for {diff_ids} diff_ids and {} names, at most {MAX_NAMES}",
            tags.len()
        )));
    }
    let mut sections = Vec::new();
    let mut descriptors = Vec::new();
    for (name, diff_id) in saved.layers.iter().zip(config.rootfs().diff_ids()) {
        let section = archive.find(name)?;
        descriptors.push(describe_layer(archive, section, diff_id)?);
        sections.push(section);
    }
    let digest = Digest::from_sha256(&Sha256::digest(&content).into());
    let document = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest, "size": content.len(),
        },
        "layers": descriptors,
    });
    let Document::Image(manifest) = manifest::parse(document.to_string().as_bytes(), manifest::DOCKER_MANIFEST)? else {
        return Err(PullError::refused("manifest.json: not an image"));
    };
    let diff_ids = manifest::diff_ids(&config, &manifest, &Platform::host())?;
    let parts = manifest.layers.iter().zip(diff_ids).zip(sections);
    let parts = parts.map(|(((blob, packing), diff_id), section)| Part {
        expected: Expected {
            blob: blob.clone(),
            packing: *packing,
            diff_id,
        },
        section,
    });
    Ok(Candidate {
        names: tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?,
        manifest_digest: None,
        layers: parts.collect(),
        manifest,
        config,
    })
}

/// The descriptor that a layer of docker save lacks. Packed, it is read once more for its digest.
fn describe_layer(archive: &Archive, section: Section, diff_id: &str) -> Result<serde_json::Value, PullError> {
    let start = archive.read_at(Section {
        size: section.size.min(8),
        ..section
    })?;
    let (media_type, digest) = match Packing::of(&start) {
        Packing::None => ("application/vnd.docker.image.rootfs.diff.tar", diff_id.to_owned()),
        Packing::Gzip => (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            hash(archive, section)?.to_string(),
        ),
        Packing::Other(name) => {
            return Err(PullError::refused(format!(
                "layer {diff_id}: packed with {name}; only gzip and unpacked layers are supported"
            )));
        }
    };
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": section.size }))
}

fn hash(archive: &Archive, section: Section) -> Result<Digest, PullError> {
    let mut hash = Sha256::new();
    let mut read = 0;
    while read < section.size {
        let piece = Section {
            offset: section.offset + read,
            size: PIECE.min(section.size - read),
        };
        hash.update(archive.read_at(piece)?);
        read += piece.size;
    }
    Ok(Digest::from_sha256(&hash.finalize().into()))
}
