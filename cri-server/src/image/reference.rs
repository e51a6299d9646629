//! Image references: `[registry[:port]/]repository[:tag][@digest]`, parsed once and normalised as Docker does.
//!
//! `busybox` is `docker.io/library/busybox:latest`. A reference with tag and digest is the digest's: a tag can move, and
//! keeping it would name what was not asked for. Grammar: distribution's reference rules. Pure; no look-up of any kind.

use std::fmt;
use std::str::FromStr;

use corten_proto::id::Digest;

/// The registry of references that name none.
pub(super) const DEFAULT_REGISTRY: &str = "docker.io";

/// Longest registry and repository together, in bytes (distribution's limit).
const MAX_NAME: usize = 255;

/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// What a reference points at within its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A name that the registry may move.
    Tag(String),
    /// Content.
    Digest(Digest),
}

/// A normalised reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host and optional port, `docker.io` or `[::1]:5000`.
    pub registry: String,
    /// `library/busybox`.
    pub repository: String,
    /// Tag or digest.
    pub version: Version,
}

/// A string that is no reference: which part, its value, and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceError {
    /// `image reference`, or the part of it at fault.
    pub field: &'static str,
    /// The part as given.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug form: the value is a stranger's and may hold line breaks.
        write!(f, "{} {:?}: {}", self.field, self.value, self.rule)
    }
}

impl std::error::Error for ReferenceError {}

impl Reference {
    /// Registry and repository, which tags and digests are appended to.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository's `digest`.
    #[must_use]
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        check("image reference", text, !text.is_empty(), "must not be empty")?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag {
            check(
                "image tag",
                tag,
                is_tag(tag),
                "1 to 128 of A-Z a-z 0-9 _ . - and not beginning with . or -",
            )?;
        }
        let (registry, repository) = split_registry(name)?;
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        let reference = Reference {
            registry,
            repository,
            version,
        };
        let length = reference.name().len();
        check(
            "image name",
            name,
            length <= MAX_NAME,
            "registry and repository have at most 255 bytes",
        )?;
        Ok(reference)
    }
}

fn check(field: &'static str, value: &str, holds: bool, rule: &'static str) -> Result<(), ReferenceError> {
    if holds {
        return Ok(());
    }
    Err(ReferenceError {
        field,
        value: value.to_owned(),
        rule,
    })
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    text.parse().or(Err(ReferenceError {
        field: "image digest",
        value: text.to_owned(),
        rule: "sha256: and 64 or sha512: and 128 lower-case hexadecimal digits",
    }))
}

/// A colon after the last slash starts the tag; any earlier one belongs to a port or an IPv6 address.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[last..].find(':') {
        Some(colon) => (&text[..last + colon], Some(&text[last + colon + 1..])),
        None => (text, None),
    }
}

/// The name within a reference, without tag and digest, if it names no registry.
pub(crate) fn short_name(text: &str) -> Option<&str> {
    let (rest, _) = text.split_once('@').unwrap_or((text, ""));
    let (name, _) = split_tag(rest);
    let has_registry = name.split_once('/').is_some_and(|(first, _)| looks_like_host(first));
    (!has_registry).then_some(name)
}

/// Whether `text` can be the registry of a reference.
pub(crate) fn is_registry(text: &str) -> bool {
    looks_like_host(text) && is_host(text)
}

/// The part before the first slash is a registry if it cannot be a repository: it holds a dot, a colon or an upper-case
/// letter, or it is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), ReferenceError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => {
            check(
                "registry",
                first,
                is_host(first),
                "a host name, an IPv4 address or an [IPv6 address], and optionally :port",
            )?;
            (
                if first == "index.docker.io" {
                    DEFAULT_REGISTRY
                } else {
                    first
                },
                rest,
            )
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let valid = repository.split('/').all(is_component);
    check(
        "image repository",
        repository,
        valid,
        "components of a-z 0-9, joined by one of . _ __ or dashes, separated by /",
    )?;
    let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let repository = if official {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    Ok((registry.to_owned(), repository))
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost"
        || first
            .bytes()
            .any(|b| matches!(b, b'.' | b':') || b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return rest.is_empty(),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    // No sign: u16's parser would take "+80".
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Runs of a-z 0-9, and between two of them one separator: `.`, `_`, `__` or any number of dashes.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = text.bytes().next().is_some_and(alphanumeric) && text.bytes().last().is_some_and(alphanumeric);
    let separator = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    edges
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let table = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
            ("user/app", "docker.io/user/app:latest".into()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".into()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("127.0.0.1:5000/app:v1", "127.0.0.1:5000/app:v1".into()),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest".into()),
            (
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
                "registry.k8s.io/e2e-test-images/busybox:1.29-2".into(),
            ),
            ("a.b/c__d/e-----f.g_h", "a.b/c__d/e-----f.g_h:latest".into()),
            (&format!("a.b/c@{digest}"), format!("a.b/c@{digest}")),
            (&format!("a.b:1/c:tag@{digest}"), format!("a.b:1/c@{digest}")),
        ];
        for (text, normal) in table {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal);
            assert_eq!(normal.parse::<Reference>().unwrap(), reference, "{normal} is stable");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_by_field_and_rule() {
        let long = "a".repeat(256);
        let table = [
            ("", "image reference"),
            ("busybox:", "image tag"),
            ("busybox:-x", "image tag"),
            ("busybox:a b", "image tag"),
            (&format!("busybox:{}", "t".repeat(129)), "image tag"),
            ("busybox@", "image digest"),
            ("busybox@sha256:xyz", "image digest"),
            ("busybox@sha512:00", "image digest"),
            ("a@b@c", "image digest"),
            ("Busybox", "image repository"),
            ("a//b", "image repository"),
            ("/a", "image repository"),
            ("a.b/", "image repository"),
            ("a___b", "image repository"),
            ("a/../b", "image repository"),
            ("a.b/../c", "image repository"),
            ("-a", "image repository"),
            ("a\nb", "image repository"),
            ("../a", "registry"),
            ("host:port/a", "registry"),
            ("host:0/a", "registry"),
            ("host:+80/a", "registry"),
            ("host:65536/a", "registry"),
            ("[::1/a", "registry"),
            ("[::1]5000/a", "registry"),
            ("[zz]:5000/a", "registry"),
            ("user:pw@host/a", "image digest"),
            (&long, "image name"),
        ];
        for (text, field) in table {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.field, field, "{text:?}: {error}");
        }
    }
}
