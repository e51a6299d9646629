//! The JSON documents of an archive, with the names that the field's tools know. Pure.

use std::time::{Duration, SystemTime};

use corten_proto::id::Digest;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::container::{self, Container};

/// `config.dump`: whose checkpoint it is. Of a foreign one only the image's names are used.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    /// The container's id.
    pub(crate) id: String,
    /// Its name in the pod.
    pub(crate) name: String,
    /// The image's id.
    pub(crate) rootfs_image: String,
    /// The image by digest, or its id.
    pub(crate) rootfs_image_ref: String,
    /// The image as the pod named it.
    pub(crate) rootfs_image_name: String,
    /// The runtime's name.
    pub(crate) runtime: String,
    /// RFC 3339.
    pub(crate) created_time: String,
    /// RFC 3339.
    pub(crate) checkpointed_time: String,
}

impl Config {
    /// That of a container which runs by `runtime`.
    pub(crate) fn of(container: &Container, runtime: &str, at: SystemTime) -> Config {
        let metadata = &container.metadata;
        let asked = metadata.config.image.clone().unwrap_or_default();
        let name = match asked.user_specified_image.is_empty() {
            true => asked.image,
            false => asked.user_specified_image,
        };
        let created = u64::try_from(metadata.created_at).unwrap_or_default();
        let time = |at| humantime::format_rfc3339_nanos(at).to_string();
        Config {
            id: metadata.id.to_string(),
            name: container_name(container),
            rootfs_image: metadata.image_id.clone(),
            rootfs_image_ref: metadata.image_ref.clone(),
            // One that was restored itself named an archive.
            rootfs_image_name: match metadata.checkpoint {
                Some(_) => metadata.image_ref.clone(),
                None => name,
            },
            runtime: runtime.to_owned(),
            created_time: time(SystemTime::UNIX_EPOCH + Duration::from_nanos(created)),
            checkpointed_time: time(at),
        }
    }

    /// By what the image may be known, the surest first.
    pub(crate) fn image_names(&self) -> impl Iterator<Item = &str> {
        let names = [&self.rootfs_image_ref, &self.rootfs_image, &self.rootfs_image_name];
        names.into_iter().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Those of them that are one content for ever: an id, a name with a digest.
    pub(crate) fn image_digests(&self) -> impl Iterator<Item = &str> {
        self.image_names().filter(|name| {
            let digest = name.rsplit_once('@').map_or(*name, |(_, digest)| digest);
            digest.parse::<Digest>().is_ok()
        })
    }
}

/// `status.dump`, in containerd's form.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    pid: i32,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: String,
    message: String,
}

impl Status {
    /// That of a container with this status.
    pub(crate) fn of(container: &Container, status: &container::Status) -> Status {
        Status {
            pid: status.pid().unwrap_or_default(),
            created_at: container.metadata.created_at,
            started_at: status.started_at(),
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// An entry of `bind.mounts`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BindMount {
    source: String,
    destination: String,
}

/// The bind mounts of a specification.
pub(crate) fn bind_mounts(spec: &Spec) -> Vec<BindMount> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| mount.typ().as_deref() == Some("bind"));
    binds
        .map(|mount| BindMount {
            source: mount.source().clone().unwrap_or_default().display().to_string(),
            destination: mount.destination().display().to_string(),
        })
        .collect()
}

/// A container's name in its pod.
pub(crate) fn container_name(container: &Container) -> String {
    let metadata = container.metadata.config.metadata.as_ref();
    metadata.map(|metadata| metadata.name.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_document_needs_the_image_alone() {
        let text = r#"{"rootfsImageName":"docker.io/library/a:1","rootfsImageRef":"","restored":true,"other":{}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.image_names().collect::<Vec<_>>(), ["docker.io/library/a:1"]);
        for bad in [r#"{"rootfsImageName":7}"#, "null", "7", ""] {
            assert!(serde_json::from_str::<Config>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_whole() {
        let id = format!("sha256:{}", "ab".repeat(32));
        let full = format!("docker.io/library/a@{id}");
        let table = [
            (id.as_str(), true),
            (&full, true),
            (&id[..20], false),
            (&id[7..19], false),
            (&full[..full.len() - 1], false),
            ("docker.io/library/a:1", false),
            ("@", false),
        ];
        for (name, exact) in table {
            let config = Config {
                rootfs_image_ref: name.to_owned(),
                ..Config::default()
            };
            assert_eq!(config.image_digests().eq([name]), exact, "{name}");
        }
    }
}
