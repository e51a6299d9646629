//! What a registry says an image is: indexes, manifests, descriptors. Pure; no IO.
//!
//! Read: OCI index and manifest, Docker manifest list and schema 2. Refused, because guessing has been the bug (CVE-2021-41190):
//! a document that is index and manifest at once, one with a member twice or in another case of letters (which Go's
//! parsers take for the same), a `mediaType` other than the reply's `Content-Type`, schema 1, nested indexes, layers that
//! live elsewhere (`urls`, foreign layers), packings other than plain, gzip and zstd. Left out: artifacts, encrypted layers.

use std::collections::BTreeMap;

use corten_proto::id::Digest;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::PullError;
use super::json;
use super::platform::Platform;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a request for a manifest accepts.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Most layers of an image: Docker's limit, and with it an overlay mount's options fit a page on every kernel.
const MAX_LAYERS: usize = 127;

/// Most entries of an index that are looked at.
const MAX_INDEX: usize = 1024;

/// Most platforms that an error lists.
const MAX_OFFERED: usize = 32;

/// A pointer to content (OCI image-spec, descriptor.md).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// In bytes; what is fetched has exactly as many.
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    urls: Vec<String>,
}

/// How a layer's archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    /// One or more members, one after the other.
    Gzip,
    /// One or more frames, one after the other.
    Zstd,
}

/// An image's manifest: everything needed to fetch it.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    /// Bottom first.
    pub(super) layers: Vec<(Descriptor, Packing)>,
    /// Its annotations say that it holds a checkpoint of a container.
    pub(super) checkpoint: bool,
}

/// Annotations of images that hold a checkpoint: CRI-O's, the one that CRI-O and containerd share, Podman's, and
/// checkpointctl's.
const CHECKPOINT: [&str; 4] = [
    "io.kubernetes.cri-o.annotations.checkpoint.name",
    "org.criu.checkpoint.container.name",
    "io.podman.annotations.checkpoint.name",
    "checkpointctl.annotation.checkpoint.name",
];

/// A document that a registry returns for a reference.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

/// Every member that decides what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
    /// Whatever it is: only the names in it count, and decide no digest.
    #[serde(default)]
    annotations: serde_json::Value,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

/// The members of [`Raw`].
const MEMBERS: [&str; 6] = [
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "fsLayers",
];

impl Raw {
    /// The first member that another parser might take for one of ours.
    fn lookalike(&self) -> Option<&String> {
        let alike = |name: &&String| MEMBERS.iter().any(|member| member.eq_ignore_ascii_case(name));
        self.others.keys().find(alike)
    }
}

/// Reads the document `content` that came as `content_type`.
pub(super) fn parse(content: &[u8], content_type: &str) -> Result<Document, PullError> {
    // Parameters such as charset say nothing about the form.
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let raw: Raw = json::parse(content)
        .map_err(|error| PullError::refused(format!("manifest of type {content_type:?}: {error}")))?;
    if raw.schema_version != 2 || raw.fs_layers.is_some() {
        let version = raw.schema_version;
        return Err(PullError::refused(format!(
            "manifest schema {version} of type {content_type:?}: only schema 2 is supported; push the image again with a \
             tool that writes Docker schema 2 or OCI manifests"
        )));
    }
    if let Some(name) = raw.lookalike() {
        return Err(PullError::refused(format!(
            "manifest: member {name:?} differs from a known one in upper and lower case only"
        )));
    }
    if let Some(media_type) = raw.media_type.as_deref().filter(|own| *own != content_type) {
        return Err(PullError::refused(format!(
            "manifest: its mediaType is {media_type:?} but the registry sent it as {content_type:?}"
        )));
    }
    let is_index = match content_type {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        other => {
            return Err(PullError::refused(format!(
                "manifest of type {other:?} is not supported"
            )));
        }
    };
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if is_index => Ok(Document::Index(manifests)),
        (None, Some(config), Some(layers)) if !is_index => {
            let checkpoint = CHECKPOINT.iter().any(|name| raw.annotations.get(name).is_some());
            let manifest = manifest(config, layers)?;
            Ok(Document::Image(Manifest { checkpoint, ..manifest }))
        }
        _ => Err(PullError::refused(format!(
            "manifest of type {content_type:?}: an index has manifests, an image has config and layers, and neither has both"
        ))),
    }
}

/// The manifest of an index for `platform`.
///
/// A descriptor without platform is taken only if it is the sole one: then the config tells.
pub(super) fn choose(index: Vec<Descriptor>, platform: &Platform) -> Result<Descriptor, PullError> {
    if index.len() > MAX_INDEX {
        return Err(PullError::refused(format!(
            "index: {} entries, at most {MAX_INDEX}",
            index.len()
        )));
    }
    let offered = index.iter().filter_map(|entry| entry.platform.as_ref());
    let offered: Vec<String> = offered.map(Platform::to_string).take(MAX_OFFERED).collect();
    let sole = index.len() == 1;
    let fits = |entry: &Descriptor| match &entry.platform {
        Some(offered) => platform.preference(offered),
        None => sole.then_some(0),
    };
    // Of equals the first: max_by_key takes the last.
    let chosen = index
        .into_iter()
        .rev()
        .filter(|entry| fits(entry).is_some())
        .max_by_key(fits);
    let chosen = chosen
        .ok_or_else(|| PullError::refused(format!("no image for {platform}; there is {}", offered.join(", "))))?;
    match chosen.media_type.as_str() {
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(chosen),
        other => Err(PullError::refused(format!(
            "index entry of type {other:?}: only image manifests are supported"
        ))),
    }
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest, PullError> {
    if layers.len() > MAX_LAYERS {
        return Err(PullError::refused(format!(
            "manifest: {} layers, at most {MAX_LAYERS}",
            layers.len()
        )));
    }
    match config.media_type.as_str() {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
        other => {
            return Err(PullError::refused(format!("config of type {other:?}: not an image's")));
        }
    }
    let layers: Result<Vec<_>, PullError> = layers
        .into_iter()
        .map(|layer| packing(&layer).map(|packing| (layer, packing)))
        .collect();
    Ok(Manifest {
        config,
        layers: layers?,
        checkpoint: false,
    })
}

fn packing(layer: &Descriptor) -> Result<Packing, PullError> {
    // CVE-2020-15157: an address inside a manifest would be asked with the registry's credentials.
    if !layer.urls.is_empty() {
        return Err(PullError::refused(format!(
            "layer {}: kept elsewhere (urls), not supported",
            layer.digest
        )));
    }
    match layer.media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Plain),
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok(Packing::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Packing::Zstd)
        }
        other => Err(PullError::refused(format!(
            "layer {} of type {other:?}: only tar, plain or packed by gzip or zstd, is supported",
            layer.digest
        ))),
    }
}

/// Reads an image's config.
pub(super) fn parse_config(content: &[u8]) -> Result<ImageConfiguration, PullError> {
    json::parse(content).map_err(|error| PullError::refused(error.to_string()))
}

/// Checks that an image's config is for `platform` and has one diff id per layer, and returns these, bottom first.
pub(super) fn diff_ids(
    config: &ImageConfiguration,
    manifest: &Manifest,
    platform: &Platform,
) -> Result<Vec<Digest>, PullError> {
    let own = Platform {
        architecture: config.architecture().to_string(),
        os: config.os().to_string(),
        variant: config.variant().clone(),
    };
    if platform.preference(&own).is_none() {
        return Err(PullError::refused(format!(
            "the image is for {own}, this node is {platform}"
        )));
    }
    let kind = config.rootfs().typ();
    if kind != "layers" {
        return Err(PullError::refused(format!(
            "config: rootfs of type {kind:?}: only layers are supported"
        )));
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() != manifest.layers.len() {
        return Err(PullError::refused(format!(
            "config: {} diff_ids for {} layers",
            ids.len(),
            manifest.layers.len()
        )));
    }
    ids.iter()
        .map(|id| {
            id.parse()
                .map_err(|error| PullError::refused(format!("config: diff_ids: {error}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry(media_type: &str, platform: Option<(&str, &str)>) -> Value {
        let mut entry = json!({
            "mediaType": media_type, "size": 1, "digest": format!("sha256:{}", "ab".repeat(32)),
        });
        if let Some((architecture, variant)) = platform {
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            if !variant.is_empty() {
                entry["platform"]["variant"] = variant.into();
            }
        }
        entry
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "config": entry("application/vnd.oci.image.config.v1+json", None),
            "layers": [entry("application/vnd.oci.image.layer.v1.tar+gzip", None)],
        })
    }

    fn refusal(document: &Value, content_type: &str) -> String {
        parse(document.to_string().as_bytes(), content_type)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn documents_that_are_read() {
        let manifest = image().to_string();
        for content_type in [OCI_MANIFEST, DOCKER_MANIFEST, &format!("{OCI_MANIFEST}; charset=utf-8")] {
            let Document::Image(manifest) = parse(manifest.as_bytes(), content_type).unwrap() else {
                panic!("{content_type} is an image");
            };
            assert_eq!(manifest.layers[0].1, Packing::Gzip);
        }
        let index = json!({ "schemaVersion": 2, "manifests": [entry(OCI_MANIFEST, None)] }).to_string();
        for content_type in [OCI_INDEX, DOCKER_LIST] {
            assert!(matches!(parse(index.as_bytes(), content_type).unwrap(), Document::Index(list) if list.len() == 1));
        }
    }

    #[test]
    fn documents_that_are_refused() {
        let with = |key: &str, value: Value| {
            let mut document = image();
            document[key] = value;
            document
        };
        let layers = |layer: Value| with("layers", json!([layer]));
        let mut elsewhere = entry("application/vnd.oci.image.layer.v1.tar", None);
        elsewhere["urls"] = json!(["https://elsewhere/"]);
        let table = [
            (with("manifests", json!([])), OCI_MANIFEST, "neither has both"),
            (with("manifests", json!([])), OCI_INDEX, "neither has both"),
            (image(), OCI_INDEX, "neither has both"),
            (with("mediaType", OCI_INDEX.into()), OCI_MANIFEST, "sent it as"),
            (image(), "text/html", "not supported"),
            (
                json!({ "schemaVersion": 1, "fsLayers": [], "history": [], "name": "a", "tag": "b" }),
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                "only schema 2",
            ),
            (image(), "", "not supported"),
            (with("schemaVersion", 1.into()), OCI_MANIFEST, "schema 1"),
            (with("fsLayers", json!([])), OCI_MANIFEST, "only schema 2"),
            (
                with("config", entry("application/x", None)),
                OCI_MANIFEST,
                "config of type",
            ),
            (
                layers(entry("application/vnd.oci.image.layer.v1.tar+xz", None)),
                OCI_MANIFEST,
                "only tar, plain or packed",
            ),
            (
                layers(entry("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None)),
                OCI_MANIFEST,
                "only tar, plain or packed",
            ),
            (
                with("config", entry("application/vnd.oci.empty.v1+json", None)),
                OCI_MANIFEST,
                "not an image's",
            ),
            (with("Layers", json!([])), OCI_MANIFEST, "upper and lower case"),
            (with("MANIFESTS", json!([])), OCI_MANIFEST, "upper and lower case"),
            (layers(elsewhere), OCI_MANIFEST, "kept elsewhere"),
            (
                layers(json!({ "mediaType": "x", "size": -1, "digest": "y" })),
                OCI_MANIFEST,
                "manifest of type",
            ),
            (
                with(
                    "layers",
                    vec![entry("application/vnd.oci.image.layer.v1.tar", None); 128].into(),
                ),
                OCI_MANIFEST,
                "at most 127",
            ),
        ];
        for (document, content_type, says) in table {
            let text = refusal(&document, content_type);
            assert!(text.contains(says), "{text} should say {says:?}");
        }
    }

    #[test]
    fn an_error_is_one_line_whatever_the_platforms_are_called() {
        let index = json!([entry(OCI_MANIFEST, Some(("arm\nroot:", "v\t8")))]);
        let error = choose(serde_json::from_value(index).unwrap(), &Platform::host()).unwrap_err();
        assert!(
            error.to_string().ends_with(r"there is linux/arm\nroot:/v\t8"),
            "{error}"
        );
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused() {
        let text = image().to_string().replacen('{', r#"{"layers":[],"#, 1);
        let error = parse(text.as_bytes(), OCI_MANIFEST).unwrap_err().to_string();
        assert!(error.contains("duplicate field"), "{error}");
    }

    #[test]
    fn layers_are_packed_in_three_ways() {
        for (media_type, packing) in [
            ("application/vnd.oci.image.layer.v1.tar", Packing::Plain),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Packing::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Packing::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar", Packing::Plain),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Packing::Gzip),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Packing::Zstd),
        ] {
            let layer = serde_json::from_value(entry(media_type, None)).unwrap();
            assert_eq!(super::packing(&layer).unwrap(), packing, "{media_type}");
        }
    }

    #[test]
    fn the_index_entry_of_the_platform_is_chosen() {
        let amd64 = Platform {
            architecture: "amd64".into(),
            os: "linux".into(),
            variant: Some("v3".into()),
        };
        let choose = |entries: &[Value]| {
            let entries = entries
                .iter()
                .map(|entry| serde_json::from_value(entry.clone()).unwrap())
                .collect();
            super::choose(entries, &amd64)
        };
        let (arm, amd) = (
            entry(OCI_MANIFEST, Some(("arm64", "v8"))),
            entry(DOCKER_MANIFEST, Some(("amd64", ""))),
        );
        assert_eq!(choose(&[arm.clone(), amd.clone()]).unwrap().media_type, DOCKER_MANIFEST);
        assert!(choose(&[entry(OCI_MANIFEST, None)]).is_ok());
        let level = |variant| entry(OCI_MANIFEST, Some(("amd64", variant)));
        let best = choose(&[amd.clone(), level("v4"), level("v3"), level("v2")]).unwrap();
        assert_eq!(best.platform.unwrap().variant.as_deref(), Some("v3"));
        let first = choose(&[amd, level("v1")]).unwrap();
        assert_eq!(first.media_type, DOCKER_MANIFEST, "of equals the first");
        let nested = entry(OCI_INDEX, Some(("amd64", "")));
        let table: [(&[Value], &str); 6] = [
            (
                std::slice::from_ref(&arm),
                "no image for linux/amd64/v3; there is linux/arm64/v8",
            ),
            (&[], "no image for"),
            (&[arm.clone(), entry(OCI_MANIFEST, None)], "no image for"),
            (&[nested], "only image manifests"),
            (&[level("v4")], "no image for"),
            (&vec![level("v1"); 1025], "at most 1024"),
        ];
        for (entries, says) in table {
            let text = choose(entries).unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
