//! Networks of pods that were let go although a plugin failed to take them down.
//!
//! ```text
//! ROOT/networks/ID.json      what DEL needs, until it succeeds
//! ```
//!
//! Each is tried again, after ten seconds at first and then after twice as long each time, up to ten minutes, by this
//! server and by the next. Meanwhile whoever manages addresses still counts the pod's as taken, so that none is given
//! twice.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use corten_proto::id::SandboxId;
use serde::{Deserialize, Serialize};

use super::{Attachment, PodNetwork};
use crate::node::{Node, blocking, remove_file};
use crate::record;
use crate::recover::entries;
use crate::telemetry::metrics::{Counted, Leftover, removed_leftover};

/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Before the first collection of garbage: the pods that wait for a server to start come first.
const COLLECT_FIRST: Duration = Duration::from_secs(10);
/// Between two collections of garbage.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Before a collection that had to be put off.
const COLLECT_SOON: Duration = Duration::from_secs(30);

/// A network that is still to be taken down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Teardown {
    /// What plugins are told of the pod.
    pub pod: PodNetwork,
    /// What ADD came to.
    pub attachment: Attachment,
}

impl Teardown {
    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.pod.id))
    }
}

/// Puts a network on record and has it taken down in the background.
pub async fn leave(node: &Arc<Node>, teardown: Teardown) -> Result<()> {
    let (path, copy) = (teardown.path(&node.paths.networks()), teardown.clone());
    blocking(move || record::write(&path, &copy)).await?;
    if let Attachment::Cni(_) = teardown.attachment {
        node.cni.let_go(&teardown.pod.id);
    }
    spawn(node, teardown);
    Ok(())
}

/// Goes on with what the last server left, and collects garbage now and then. At the start, before the first pod.
pub async fn resume(node: &Arc<Node>) -> Result<()> {
    let directory = node.paths.networks();
    for teardown in blocking(move || list(&directory)).await? {
        // What it has is not to be given to anyone meanwhile; plugins know by themselves.
        if let Attachment::Builtin(_) = teardown.attachment {
            node.adopt_network(&teardown.pod, &teardown.attachment);
        }
        spawn(node, teardown);
    }
    let owner = node.clone();
    node.supervisors.spawn(async move { collect(&owner).await });
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<Teardown>> {
    let mut found = Vec::new();
    for path in entries(directory)? {
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        match record::read_optional(&path) {
            Ok(teardown) => found.extend(teardown),
            Err(error) => tracing::error!("a network that is to be taken down: {error:#}"),
        }
    }
    Ok(found)
}

fn spawn(node: &Arc<Node>, teardown: Teardown) {
    let owner = node.clone();
    node.supervisors
        .spawn(async move { take_down(&owner, &teardown).await });
}

#[tracing::instrument(
    name = "teardown",
    level = "error",
    skip_all,
    fields(
        pod_namespace = teardown.pod.namespace,
        pod_name = teardown.pod.name,
        pod_uid = teardown.pod.uid,
        sandbox_id = %teardown.pod.id,
    )
)]
async fn take_down(node: &Node, teardown: &Teardown) {
    let _pending = Counted::new(|metrics| &metrics.teardowns);
    let id: &SandboxId = &teardown.pod.id;
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        match node.detach(&teardown.pod, Some(&teardown.attachment)).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(sandbox = %id, "take a left network down: {error:#}"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let path = teardown.path(&node.paths.networks());
    match blocking(move || remove_file(&path)).await {
        Ok(()) => {
            removed_leftover(Leftover::Network);
            tracing::info!(sandbox = %id, "a left network has been taken down");
        }
        Err(error) => tracing::warn!(sandbox = %id, "{error:#}"),
    }
}

async fn collect(node: &Node) {
    tokio::time::sleep(COLLECT_FIRST).await;
    loop {
        let pause = match node.cni.collect().await {
            Ok(true) => COLLECT_EVERY,
            Ok(false) => COLLECT_SOON,
            Err(error) => {
                tracing::warn!("collect garbage of networks: {error:#}");
                COLLECT_EVERY
            }
        };
        tokio::time::sleep(pause).await;
    }
}
