//! What an archive says is in it: the documents of an OCI layout or of docker save, as a pull would have them.
//!
//! No layer is read here but for docker save's packed ones, whose digests nothing else tells, and each of those once. What is
//! kept of an archive is bounded whatever it repeats: an image that is listed often is one image, and its config is kept as
//! it came, because parsed it may be many times as large.

use std::collections::HashMap;

use corten_proto::id::Digest;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::super::archive::{Archive, Packing, Section};
use super::super::error::PullError;
use super::super::hash;
use super::super::json;
use super::super::layer::Expected;
use super::super::manifest::{self, Descriptor, Document, Manifest};
use super::super::platform::Platform;
use super::super::pull::MAX_CONFIG;
use super::super::reference::{Reference, Version};

/// Largest manifest or index, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Most images of one archive.
const MAX_IMAGES: usize = 1000;

/// Most names of one image.
const MAX_NAMES: usize = 100;

/// Largest configs of all images together, in bytes. Most are a few kilobytes.
const MAX_CONFIGS: usize = 32 << 20;

/// Bytes of a layer that are hashed at once.
const PIECE: u64 = 256 << 10;

/// An image of the archive.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) names: Vec<Reference>,
    /// What the names stand for, where the archive has a manifest of its own.
    pub(super) manifest_digest: Option<Digest>,
    pub(super) manifest: Manifest,
    /// As it came; known to be one.
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Part>,
}

/// A layer of the archive.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) expected: Expected,
    pub(super) section: Section,
}

impl Candidate {
    /// What a person knows it by.
    pub(super) fn label(&self) -> String {
        let id = || self.manifest.config.digest.to_string();
        self.names.first().map_or_else(id, Reference::to_string)
    }
}

/// Reads the archive's documents. Blocks.
pub(super) fn candidates(archive: &Archive) -> Result<Vec<Candidate>, PullError> {
    // Docker since 25 writes both forms; the layout's documents have digests.
    let mut documents = Documents {
        archive,
        configs: 0,
        digests: HashMap::new(),
    };
    if archive.has("oci-layout") && archive.has("index.json") {
        return of_layout(&mut documents);
    }
    if archive.has("manifest.json") {
        return of_docker(&mut documents);
    }
    Err(PullError::refused(
        "archive: neither an OCI layout (oci-layout, index.json) nor one of docker save (manifest.json)",
    ))
}

/// An archive, and what has been read of it.
struct Documents<'a> {
    archive: &'a Archive,
    /// Bytes of the configs so far.
    configs: usize,
    /// Of packed layers without one of their own.
    digests: HashMap<Section, Digest>,
}

impl Documents<'_> {
    /// Parses a config that is to be kept.
    fn config(&mut self, content: &[u8]) -> Result<ImageConfiguration, PullError> {
        self.configs += content.len();
        if self.configs > MAX_CONFIGS {
            return Err(PullError::refused(format!(
                "archive: configs of more than {MAX_CONFIGS} bytes together"
            )));
        }
        manifest::parse_config(content).map_err(|error| error.context("config"))
    }

    /// The digest of a section.
    fn digest(&mut self, section: Section) -> Result<Digest, PullError> {
        if let Some(known) = self.digests.get(&section) {
            return Ok(known.clone());
        }
        let digest = hash(self.archive, section)?;
        self.digests.insert(section, digest.clone());
        Ok(digest)
    }
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

fn of_layout(documents: &mut Documents<'_>) -> Result<Vec<Candidate>, PullError> {
    let archive = documents.archive;
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
        if named.platform.is_none_or(|other| platform.preference(&other).is_some()) {
            let name = full_name(&named.annotations)?;
            add(&mut found, documents, entry, name)?;
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
fn add(
    found: &mut Vec<Candidate>,
    documents: &mut Documents<'_>,
    entry: Descriptor,
    name: Option<Reference>,
) -> Result<(), PullError> {
    let known = found
        .iter_mut()
        .find(|it| it.manifest_digest.as_ref() == Some(&entry.digest));
    match known {
        Some(known) if known.names.len() >= MAX_NAMES => Err(PullError::refused(format!(
            "index.json: more than {MAX_NAMES} names of one image"
        ))),
        Some(known) => {
            known.names.extend(name);
            Ok(())
        }
        None => {
            let mut candidate = of_entry(documents, entry)?;
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
fn of_entry(documents: &mut Documents<'_>, entry: Descriptor) -> Result<Candidate, PullError> {
    let archive = documents.archive;
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
    let diff_ids = manifest::diff_ids(&documents.config(&config)?, &manifest, &platform)?;
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
    hash::check(&content, &descriptor.digest)?;
    Ok(content)
}

fn parse<'a, T: Deserialize<'a>>(what: &str, content: &'a [u8]) -> Result<T, PullError> {
    json::parse(content).map_err(|error| PullError::refused(format!("{what}: {error}")))
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

fn of_docker(documents: &mut Documents<'_>) -> Result<Vec<Candidate>, PullError> {
    let content = documents.archive.read("manifest.json", MAX_MANIFEST)?;
    let images: Vec<Saved> = parse("manifest.json", &content)?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        let count = images.len();
        return Err(PullError::refused(format!(
            "manifest.json: {count} images, must be 1 to {MAX_IMAGES}"
        )));
    }
    let mut distinct: Vec<Saved> = Vec::new();
    for saved in images {
        let known = distinct
            .iter_mut()
            .find(|it| (&it.config, &it.layers) == (&saved.config, &saved.layers));
        match known {
            Some(known) => known
                .repo_tags
                .get_or_insert_default()
                .extend(saved.repo_tags.into_iter().flatten()),
            None => distinct.push(saved),
        }
    }
    distinct.iter().map(|saved| of_saved(documents, saved)).collect()
}

/// An image of docker save, in the words of a registry: so it passes the same checks.
fn of_saved(documents: &mut Documents<'_>, saved: &Saved) -> Result<Candidate, PullError> {
    let content = documents.archive.read(&saved.config, MAX_CONFIG)?;
    let config = documents.config(&content)?;
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
        let section = documents.archive.find(name)?;
        descriptors.push(describe_layer(documents, section, diff_id)?);
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
        config: content,
    })
}

/// The descriptor that a layer of docker save lacks. Packed, it is read once more for its digest.
fn describe_layer(
    documents: &mut Documents<'_>,
    section: Section,
    diff_id: &str,
) -> Result<serde_json::Value, PullError> {
    let start = documents.archive.read_at(Section {
        size: section.size.min(8),
        ..section
    })?;
    let (media_type, digest) = match Packing::of(&start) {
        Packing::None => ("application/vnd.docker.image.rootfs.diff.tar", diff_id.to_owned()),
        Packing::Gzip => (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            documents.digest(section)?.to_string(),
        ),
        Packing::Zstd => (
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            documents.digest(section)?.to_string(),
        ),
        Packing::Other(name) => {
            return Err(PullError::refused(format!(
                "layer {diff_id}: packed with {name}; only gzip, zstd and unpacked layers are supported"
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
