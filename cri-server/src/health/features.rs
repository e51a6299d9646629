//! What the configured runtimes can do, by their own word: `RUNTIME features`, the document of the OCI runtime
//! specification (features.md).
//!
//! A runtime is asked once, and again when its executable has changed. One that does not know the command (runc before
//! 1.1, crun before 1.8) has none of the features; it is asked again after a while, and one that was too slow sooner.
//! Whoever waits for an answer waits for that runtime alone.
//! What the kernel and the filesystem cannot do is taken off.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use rustix::fs::statfs;
use serde_json::Value;
use tokio::time::error::Elapsed;

use super::{Handler, Health};
use crate::node::{Node, blocking};
use crate::oci;
use crate::spec::{Features, kernel_at_least};

/// When a runtime that gave no document is asked again.
const RETRY: Duration = Duration::from_secs(60);
/// The same for one that did not answer in time, which says nothing of what it can do.
const RETRY_SLOW: Duration = Duration::from_secs(2);
/// What a runtime that was built with CRIU says so by; runc's annotation, which crun has taken over.
const CHECKPOINT: &str = "org.opencontainers.runc.checkpoint.enabled";
/// Filesystems (statfs `f_type`, linux/magic.h) whose mounts can have their ids mapped, and since when.
const ID_MAPPED: [(u64, (u32, u32)); 4] = [
    (0xEF53, (5, 12)),      // ext4
    (0x5846_5342, (5, 12)), // XFS
    (0x9123_683E, (5, 15)), // Btrfs
    (0x0102_1994, (6, 3)),  // tmpfs
];

/// What executables have said, by path: a lock each, which is held while one is asked.
pub(super) type Known = BTreeMap<PathBuf, Arc<tokio::sync::Mutex<Option<Answer>>>>;

/// What an executable has said of itself.
#[derive(Clone)]
pub(super) struct Answer {
    of: Identity,
    at: Instant,
    features: Result<Features, Problem>,
}

impl Answer {
    /// Whether the executable need not be asked again.
    fn stands(&self) -> bool {
        match &self.features {
            Ok(_) => true,
            Err(problem) => self.at.elapsed() < problem.retry,
        }
    }
}

/// Why an executable gave no document.
#[derive(Clone)]
struct Problem {
    text: String,
    /// When it is asked again.
    retry: Duration,
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
        let config = self.config();
        let names = std::iter::once("").chain(config.handlers());
        let config = &config;
        let handlers = names.map(|name| async move {
            let path = config.runtime(name).unwrap_or_default();
            let features = self.asked(&path).await;
            let problem = features.as_ref().err().cloned();
            Handler {
                name: name.to_owned(),
                features: self.allowed(name, features.unwrap_or_default()),
                path,
                problem,
            }
        });
        join_all(handlers).await
    }

    /// What the runtime of a handler can do by its own word; nothing where it says nothing, or is not configured any more.
    pub(crate) async fn runtime_features(&self, handler: &str) -> Features {
        match self.config().runtime(handler) {
            Some(path) => self.asked(&path).await.unwrap_or_default(),
            None => Features::default(),
        }
    }

    /// What of a runtime's features this machine, and this server, allow. Pods with user namespaces join one that is there
    /// already, which other runtimes have not been tried with.
    fn allowed(&self, handler: &str, features: Features) -> Features {
        let is_own = self.config().is_own_runtime(handler);
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
        let answer = self.health.answer_of(runtime);
        let mut answer = answer.lock().await;
        let known = answer.take().filter(|answer| answer.of == identity && answer.stands());
        let known = match known {
            Some(known) => known,
            None => Answer {
                of: identity,
                features: ask(runtime).await,
                at: Instant::now(),
            },
        };
        let features = known.features.clone().map_err(|problem| problem.text);
        *answer = Some(known);
        features
    }
}

impl Health {
    fn answer_of(&self, runtime: &Path) -> Arc<tokio::sync::Mutex<Option<Answer>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(runtime.to_owned()).or_default().clone()
    }
}

async fn ask(runtime: &Path) -> Result<Features, Problem> {
    let document = oci::features(runtime).await.map_err(|error| Problem {
        text: format!("{error:#}"),
        retry: if error.is::<Elapsed>() { RETRY_SLOW } else { RETRY },
    })?;
    Ok(read(&document))
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
        checkpoint: document["annotations"][CHECKPOINT] == "true",
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
            "annotations": { "org.opencontainers.runc.checkpoint.enabled": "true" },
            "linux": { "namespaces": ["pid", "user"], "mountExtensions": { "idmap": { "enabled": true } } },
        });
        let no_user =
            json!({ "linux": { "namespaces": ["pid"], "mountExtensions": { "idmap": { "enabled": true } } } });
        let no_map = json!({ "mountOptions": ["rro"], "linux": { "namespaces": ["user"] } });
        let table = [
            (full, (true, true, true, true)),
            (no_user, (false, true, false, false)),
            (no_map, (true, false, false, false)),
            (
                json!({ "annotations": { "org.opencontainers.runc.checkpoint.enabled": true } }),
                (false, false, false, false),
            ),
            (json!({}), (false, false, false, false)),
            (json!([1]), (false, false, false, false)),
        ];
        for (document, expected) in table {
            let found = read(&document);
            assert_eq!(
                (
                    found.recursive_read_only,
                    found.idmapped_mounts,
                    found.user_namespaces,
                    found.checkpoint
                ),
                expected,
                "{document}"
            );
        }
    }
}
