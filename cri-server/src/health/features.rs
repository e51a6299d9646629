//! What the configured runtimes can do, by their own word: `RUNTIME features`, the document of the OCI runtime
//! specification (features.md).
//!
//! A runtime is asked once, and again when its executable has changed. One that does not know the command (runc before
//! 1.1, crun before 1.8) has none of the features; it is asked again after a while, since it may have been too slow only.
//! What the kernel and the filesystem cannot do is taken off.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::statfs;
use serde_json::Value;

use super::Handler;
use crate::config::OWN_RUNTIME;
use crate::node::{Node, blocking};
use crate::oci;
use crate::spec::{self, kernel_at_least};

/// When a runtime that gave no document is asked again.
const RETRY: Duration = Duration::from_secs(60);
/// Filesystems (statfs `f_type`, linux/magic.h) whose mounts can have their ids mapped, and since when.
const ID_MAPPED: [(u64, (u32, u32)); 4] = [
    (0xEF53, (5, 12)),      // ext4
    (0x5846_5342, (5, 12)), // XFS
    (0x9123_683E, (5, 15)), // Btrfs
    (0x0102_1994, (6, 3)),  // tmpfs
];

/// What a runtime can do of what CRI asks about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Make a mount read-only with all that is mounted below it.
    pub(crate) recursive_read_only: bool,
    /// Map the ids of bind mounts. A runtime that cannot passes over the mappings without a word.
    pub(crate) idmapped_mounts: bool,
    /// User namespaces, and mounts with mapped ids for them.
    pub(crate) user_namespaces: bool,
}

/// What executables have said, by path.
pub(super) type Known = BTreeMap<PathBuf, Answer>;

/// What an executable has said of itself.
#[derive(Clone)]
pub(super) struct Answer {
    of: Identity,
    at: Instant,
    features: Result<Features, String>,
}

/// What changes when an executable is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Node {
    /// All handlers in the order of their names, the default's empty one first.
    pub(super) async fn handlers(&self) -> Vec<Handler> {
        let names = std::iter::once("").chain(self.config.handlers());
        let mut handlers = Vec::new();
        for name in names {
            let path = self.config.runtime(name).unwrap_or_default();
            let features = self.asked(&path).await;
            let problem = features.as_ref().err().cloned();
            handlers.push(Handler {
                name: name.to_owned(),
                features: self.allowed(&path, features.unwrap_or_default()),
                path,
                problem,
            });
        }
        handlers
    }

    /// What the runtime of a handler can do by its own word; nothing where it says nothing, or is not configured any more.
    pub(crate) async fn handler(&self, name: &str) -> spec::Handler {
        let features = match self.config.runtime(name) {
            Some(path) => self.asked(&path).await.unwrap_or_default(),
            None => Features::default(),
        };
        spec::Handler {
            recursive_read_only: features.recursive_read_only,
            idmapped_mounts: features.idmapped_mounts,
        }
    }

    /// What of a runtime's features this machine, and this server, allow. Pods with user namespaces join one that is there
    /// already, which other runtimes have not been tried with.
    fn allowed(&self, path: &Path, features: Features) -> Features {
        let is_own = self.config.runtime(OWN_RUNTIME).is_some_and(|own| own == path);
        let machine = self.host.user_namespaces && has_id_mapped_mounts(self.paths.state());
        Features {
            recursive_read_only: features.recursive_read_only && self.host.recursive_read_only,
            user_namespaces: features.user_namespaces && is_own && machine,
            ..features
        }
    }

    /// A runtime's features, from memory where its executable is the one that was asked.
    async fn asked(&self, runtime: &Path) -> Result<Features, String> {
        let identity = identity(runtime).await.map_err(|error| format!("{error:#}"))?;
        let mut known = self.health.known.lock().await;
        if let Some(answer) = known.get(runtime)
            && answer.of == identity
            && (answer.features.is_ok() || answer.at.elapsed() < RETRY)
        {
            return answer.features.clone();
        }
        let features = match oci::features(runtime).await {
            Ok(document) => Ok(read(&document)),
            Err(error) => Err(format!("{error:#}")),
        };
        let answer = Answer {
            of: identity,
            at: Instant::now(),
            features: features.clone(),
        };
        known.insert(runtime.to_owned(), answer);
        features
    }
}

async fn identity(path: &Path) -> Result<Identity> {
    let path = path.to_owned();
    blocking(move || {
        let metadata = std::fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    })
    .await
}

/// What a features document says.
fn read(document: &Value) -> Features {
    let holds = |list: &Value, name: &str| list.as_array().is_some_and(|list| list.iter().any(|item| item == name));
    let linux = &document["linux"];
    let has_id_maps = linux["mountExtensions"]["idmap"]["enabled"] == true;
    Features {
        recursive_read_only: holds(&document["mountOptions"], "rro"),
        idmapped_mounts: has_id_maps,
        user_namespaces: holds(&linux["namespaces"], "user") && has_id_maps,
    }
}

/// Whether mounts of the filesystem that holds `path` can have their ids mapped.
fn has_id_mapped_mounts(path: &Path) -> bool {
    let Ok(stat) = statfs(path) else { return false };
    let kind = u64::try_from(stat.f_type).unwrap_or_default();
    let since = ID_MAPPED.iter().find(|(known, _since)| *known == kind);
    since.is_some_and(|&(_known, (major, minor))| kernel_at_least(major, minor))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_document_says() {
        let full = json!({
            "mountOptions": ["ro", "rro"],
            "linux": { "namespaces": ["pid", "user"], "mountExtensions": { "idmap": { "enabled": true } } },
        });
        let no_user =
            json!({ "linux": { "namespaces": ["pid"], "mountExtensions": { "idmap": { "enabled": true } } } });
        let no_map = json!({ "mountOptions": ["rro"], "linux": { "namespaces": ["user"] } });
        let table = [
            (full, (true, true, true)),
            (no_user, (false, true, false)),
            (no_map, (true, false, false)),
            (json!({}), (false, false, false)),
            (json!([1]), (false, false, false)),
        ];
        for (document, expected) in table {
            let found = read(&document);
            assert_eq!(
                (found.recursive_read_only, found.idmapped_mounts, found.user_namespaces),
                expected,
                "{document}"
            );
        }
    }
}
