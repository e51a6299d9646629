//! What holds of everything that parsers of images accept, for the fuzz targets of `tests/fuzz`: compiled for these only.
//!
//! Each function takes what a stranger may send, and panics where a promise is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use serde_json::Value;

use super::error::PullError;
use super::manifest::{self, Descriptor, Document, Manifest};
use super::place::Place;
use super::platform::Platform;
use super::reference::{Reference, Version, is_registry, short_name};
use super::unpack::{InvalidEntry, Usage, unpack};
use super::{check, layer_tar};
use crate::tree;

/// A reference that is accepted prints as one that means the same, within the limits, and names a host and no more.
pub fn reference(text: &str) {
    let short = short_name(text).is_some();
    let reference: Reference = match text.parse() {
        Ok(reference) => reference,
        Err(error) => return one_line(&error),
    };
    let printed = reference.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&reference), "{printed} is another one");
    assert!(printed.bytes().all(|byte| byte.is_ascii_graphic()), "{printed:?}");
    assert!(reference.name().len() <= 255, "{printed} is too long");
    assert!(is_registry(&reference.registry), "{printed}: no registry");
    assert!(!short || reference.registry == "docker.io", "{printed}: whose is it?");
    for part in reference.repository.split('/') {
        assert!(!part.is_empty() && !part.starts_with('.'), "{printed}: leads elsewhere");
    }
    if let Version::Tag(tag) = &reference.version {
        assert!((1..=128).contains(&tag.len()), "{printed}: tag");
    }
    let url = reqwest::Url::parse(&format!("https://{}/v2/{}/x", reference.registry, reference.repository));
    if let Ok(url) = url {
        assert_eq!(url.path(), format!("/v2/{}/x", reference.repository), "{printed}");
        let more = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
        assert!(!more && url.fragment().is_none(), "{url} of {printed}");
    }
}

/// A manifest that is accepted has a config and few layers, all here and of known form, and no other parser would take
/// the document for something else.
pub fn image_manifest(content: &[u8]) {
    for content_type in [manifest::DOCKER_MANIFEST, manifest::OCI_MANIFEST] {
        manifest_as(content, content_type);
    }
}

fn manifest_as(content: &[u8], content_type: &str) {
    match manifest::parse(content, content_type) {
        Err(error) => one_line(&error),
        Ok(Document::Index(_)) => panic!("an index came as {content_type}"),
        Ok(Document::Image(image)) => {
            assert!(image.layers.len() <= 127, "{} layers", image.layers.len());
            if let Some(members) = unambiguous(content, content_type) {
                assert!(!members.contains_key("manifests"), "an index too");
                assert_eq!(members["layers"].as_array().map(Vec::len), Some(image.layers.len()));
            }
            assert!(image.config.media_type.contains("image") && image.config.media_type.ends_with("+json"));
            let packed: Vec<_> = image
                .layers
                .iter()
                .map(|(layer, packing)| (&layer.media_type, packing))
                .collect();
            for (media_type, packing) in packed {
                let ending = media_type.rsplit(['+', '.']).next().unwrap_or_default();
                let name = format!("{packing:?}").to_lowercase().replace("plain", "tar");
                assert_eq!(ending, name, "{media_type} is taken for {packing:?}");
            }
        }
    }
}

/// Of an index that is accepted an image's manifest is chosen, one that is in it and runs on the node, or none.
pub fn image_index(content: &[u8]) {
    for content_type in [manifest::DOCKER_LIST, manifest::OCI_INDEX] {
        index_as(content, content_type);
    }
}

fn index_as(content: &[u8], content_type: &str) {
    let index = match manifest::parse(content, content_type) {
        Err(error) => return one_line(&error),
        Ok(Document::Image(_)) => panic!("an image came as {content_type}"),
        Ok(Document::Index(index)) => index,
    };
    if let Some(members) = unambiguous(content, content_type) {
        assert!(
            !members.contains_key("config") && !members.contains_key("layers"),
            "an image too"
        );
    }
    let (length, digests): (usize, BTreeSet<_>) = (index.len(), index.iter().map(|it| it.digest.clone()).collect());
    match manifest::choose(index, &node(content.len())) {
        Err(error) => one_line(&error),
        Ok(chosen) => {
            assert!(length <= 1024 && digests.contains(&chosen.digest));
            let is_manifest = [manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST].contains(&chosen.media_type.as_str());
            assert!(is_manifest, "{} was chosen", chosen.media_type);
        }
    }
}

/// A config that is accepted says the same after it was written and read again, as records are; and where it is taken for
/// an image's, it has a diff id for each layer.
pub fn image_config(content: &[u8]) {
    let config = match manifest::parse_config(content) {
        Err(error) => return one_line(&error),
        Ok(config) => config,
    };
    // As documents: sets have no order in them.
    let written = serde_json::to_value(&config).expect("what was read can be written");
    let again = manifest::parse_config(written.to_string().as_bytes()).expect("what was written can be read");
    assert_eq!(serde_json::to_value(again).ok(), Some(written));
    let node = node(content.len());
    let layers = config.rootfs().diff_ids().len();
    match manifest::diff_ids(&config, &image_of(layers), &node) {
        Err(error) => one_line(&error),
        Ok(ids) => assert_eq!(ids.len(), layers),
    }
    assert!(manifest::diff_ids(&config, &image_of(layers + 1), &node).is_err());
}

fn image_of(layers: usize) -> Manifest {
    let layer = serde_json::json!({
        "mediaType": "x", "size": 1, "digest": format!("sha256:{}", "ab".repeat(32)),
    });
    let layer: Descriptor = serde_json::from_value(layer).expect("a descriptor");
    Manifest {
        config: layer.clone(),
        layers: vec![(layer, manifest::Packing::Gzip); layers],
        checkpoint: false,
    }
}

/// Applies an archive to `dir/root`: nothing appears beside it, what is there can be counted, is no more than was
/// accounted for, is the same after a way through an archive of ours, and can be removed.
///
/// `dir` is on a tmpfs and holds nothing else of anyone's.
pub fn tar_apply(dir: &Path, archive: &[u8]) {
    // Archives come in pieces of any length.
    let choice: usize = archive.iter().map(|byte| usize::from(*byte)).sum();
    let piece = [1 << 16, 512, 513, 100][choice % 4];
    let tripwires = Tripwires::set(dir);
    let (root, copy) = (dir.join("root"), dir.join("copy"));
    if let Some(usage) = apply(&root, archive, piece) {
        accounted(&root, usage);
        let mut again = Vec::new();
        layer_tar::write(&root, &mut again).expect("what was unpacked can be packed");
        apply(&copy, &again, 1 << 16).expect("what we packed can be unpacked");
        let (first, second) = (describe(&root), describe(&copy));
        for (path, found) in &first {
            assert_eq!(second.get(path), Some(found), "{} differs in the copy", path.display());
        }
        assert_eq!(first.len(), second.len(), "the copy has more");
    }
    for tree in [root, copy] {
        tree::remove(&tree).expect("what was unpacked can be removed");
    }
    tripwires.check();
}

/// What the archive takes; `None` if it is refused. A fault of its own never counts as the node's.
fn apply(root: &Path, archive: &[u8], piece: usize) -> Option<Usage> {
    fs::create_dir(root).expect("create the root");
    let opened = fs::File::open(root).expect("open the root");
    let arrived = Arc::new(AtomicU64::new(archive.len() as u64));
    match unpack(BufReader::with_capacity(piece, archive), opened.into(), arrived) {
        Ok(unpacked) => Some(unpacked.usage),
        Err(error) => {
            one_line(&format!("{error:#}"));
            let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| error.root_cause().downcast_ref() == Some(&errno));
            let known = error.chain().any(|cause| cause.is::<InvalidEntry>());
            assert!(
                known || full.contains(&true) || is_full(&error),
                "the node's fault? {error:#}"
            );
            None
        }
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let full = io.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull);
    full || error.chain().any(|cause| cause.is::<PullError>())
}

/// What replaced something else was counted twice, and a piece of a file may touch one block more than it fills.
fn accounted(root: &Path, usage: Usage) {
    let found = check::walk(root).expect("what was unpacked can be counted");
    assert!(found.inodes <= usage.inodes, "{found:?} of {usage:?}");
    assert!(found.bytes <= 2 * usage.bytes, "{found:?} of {usage:?}");
}

/// Every file, by what a container sees of it: type and mode, owner, time, device, xattrs, content, and which are one.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![PathBuf::new()]);
    let mut firsts = BTreeMap::new();
    let tree = Place::root(root).expect("open the root");
    while let Some(short) = waiting.pop() {
        let path = root.join(&short);
        let metadata = fs::symlink_metadata(&path).expect("lstat");
        let kind = metadata.file_type();
        let mut content = Vec::new();
        if kind.is_dir() {
            let names = fs::read_dir(&path).expect("read the directory");
            waiting.extend(names.map(|entry| short.join(entry.expect("read the directory").file_name())));
        } else if kind.is_symlink() {
            content = fs::read_link(&path)
                .expect("readlink")
                .into_os_string()
                .into_encoded_bytes();
        } else if kind.is_file() && metadata.len() < 1 << 20 {
            content = fs::read(&path).expect("read");
        }
        let is_whiteout = kind.is_char_device() && metadata.rdev() == 0;
        let times = (!is_whiteout).then(|| (metadata.mtime(), metadata.mtime_nsec()));
        let length = if kind.is_dir() { 0 } else { metadata.len() };
        let attributes = tree.at(&short).expect("open").xattrs().expect("xattrs");
        let text = format!(
            "{:o} {}:{} {times:?} {} {length} {attributes:?} {content:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev()
        );
        if metadata.nlink() > 1 && !kind.is_dir() {
            firsts
                .entry(metadata.ino())
                .or_insert_with(Vec::new)
                .push(short.clone());
        }
        found.insert(short, text);
    }
    for mut names in firsts.into_values() {
        names.sort();
        for name in names.iter().skip(1) {
            found
                .entry(name.clone())
                .or_default()
                .push_str(&format!(" is {}", names[0].display()));
        }
    }
    found
}

/// Files around the directory that a layer is unpacked into, which must stay as they are.
struct Tripwires {
    dir: PathBuf,
    files: Vec<(PathBuf, String)>,
}

impl Tripwires {
    /// Sets them, where they are not set yet.
    fn set(dir: &Path) -> Tripwires {
        let above = dir.parent().expect("a directory of our own");
        let files = [above.join("tripwire"), dir.join("tripwire"), dir.join("etc")];
        for file in &files {
            if !file.exists() {
                fs::write(file, "untouched").expect("write a tripwire");
            }
        }
        for left in ["root", "copy"] {
            tree::remove(&dir.join(left)).expect("remove what an earlier run left");
        }
        let state = |file: PathBuf| (file.clone(), seen(&file));
        Tripwires {
            dir: dir.to_owned(),
            files: files.into_iter().map(state).collect(),
        }
    }

    fn check(self) {
        for (file, before) in &self.files {
            assert_eq!(&seen(file), before, "{} was touched", file.display());
        }
        let count = |dir: &Path| fs::read_dir(dir).expect("read the directory").count();
        assert_eq!(count(&self.dir), 2, "something is new in {}", self.dir.display());
        let above = self.dir.parent().expect("a directory of our own");
        assert_eq!(count(above), 2, "something is new in {}", above.display());
    }
}

fn seen(file: &Path) -> String {
    let metadata = fs::symlink_metadata(file).expect("lstat of a tripwire");
    let content = fs::read(file).expect("read a tripwire");
    format!(
        "{:o} {} {} {:?} {content:?}",
        metadata.mode(),
        metadata.nlink(),
        metadata.uid(),
        metadata.modified().ok()
    )
}

/// A node, one of a few.
fn node(choice: usize) -> Platform {
    let (architecture, variant) = [("amd64", "v3"), ("arm64", "v8"), ("arm", "v7"), ("386", "")][choice % 4];
    Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        variant: Some(variant.to_owned()).filter(|variant| !variant.is_empty()),
    }
}

/// The members of an accepted document as a parser reads them that does not care about case, like Go's; `None` where it
/// has texts, of members that are ignored, that are no Unicode.
fn unambiguous(content: &[u8], content_type: &str) -> Option<BTreeMap<String, Value>> {
    let document: serde_json::Map<String, Value> = serde_json::from_slice(content).ok()?;
    let mut members = BTreeMap::new();
    for (name, value) in document {
        let known = [
            "schemaversion",
            "mediatype",
            "manifests",
            "config",
            "layers",
            "fslayers",
        ];
        let (small, value) = (name.to_lowercase(), Some(value).filter(|value| !value.is_null()));
        let Some(value) = value else { continue };
        let twice = members.insert(small.clone(), value).is_some();
        assert!(!(twice && known.contains(&small.as_str())), "{name} is there twice");
    }
    assert_eq!(members["schemaversion"], 2);
    assert!(members.get("mediatype").is_none_or(|own| own == content_type));
    Some(members)
}

/// An error is a line of a log.
fn one_line(error: &impl ToString) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
}
