//! What a starting server does about what the last one left.
//!
//! 1. Records are read. One that makes no sense is quarantined alone, and what it was about is removed like everything
//!    that has no record: the kubelet makes it anew, where otherwise it would run on unseen. One that could not be read,
//!    or that a later server wrote, says nothing of the kind: then nothing is touched, and the server does not start.
//! 2. Sandboxes and containers enter memory with the status they had. After a reboot everything has ended.
//! 3. Each sandbox's shim is reconnected, all at once. What it says goes through the same transitions as its events.
//! 4. Leftovers are removed: runs and creations that had no time to finish, and directories without a record.
//!
//! The endpoint opens after that, so that no caller sees half of it. Every step but reading goes on past a failure,
//! which is logged: one hopeless pod must not keep the node down.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use corten_proto::cri::PodSandboxConfig;
use corten_proto::id::{ContainerId, SandboxId};
use corten_proto::shim::Connected;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::container::Container;
use crate::network::Attachment;
use crate::node::{Node, blocking, remove_file};
use crate::record::{ContainerRecord, ReadError, Record, SandboxRecord, quarantine, read};
use crate::runtime_service::pod_network;
use crate::sandbox::{Metadata, Sandbox, Status};
use crate::shim::{self, ConnectError, Shim};
use crate::telemetry::metrics::{Leftover, removed_leftover};
use crate::telemetry::names;

/// What the disk holds.
#[derive(Default)]
struct Found {
    sandboxes: Vec<SandboxRecord>,
    containers: Vec<ContainerRecord>,
    /// Sandboxes' state directories.
    sandbox_directories: Vec<SandboxId>,
    /// Containers' directories, of either kind.
    container_directories: BTreeSet<ContainerId>,
}

/// Brings `node` to where the last server left off.
pub async fn recover(node: &Arc<Node>) -> Result<()> {
    let paths = node.paths.clone();
    let found = blocking(move || {
        Ok(Found {
            sandboxes: sandbox_records(&paths.sandbox_records(), &paths.quarantine())?,
            containers: container_records(&paths.containers(), &paths.quarantine())?,
            sandbox_directories: ids(&paths.sandboxes())?,
            container_directories: ids(&paths.containers())?
                .into_iter()
                .chain(ids(&paths.bundles())?)
                .collect(),
        })
    })
    .await?;
    let (sandboxes, containers) = (found.sandboxes.len(), found.containers.len());
    let unfinished = load(node, found.sandboxes, found.containers).await;
    let mut orphans = found.container_directories;
    for unfinished in reconnect_all(node).await {
        orphans.remove(&unfinished);
    }
    undo_unfinished(node, unfinished, found.sandbox_directories).await;
    remove_orphans(node, orphans).await;
    node.release_held().await;
    tracing::info!(sandboxes, containers, "recovered");
    Ok(())
}

/// Puts what was recorded into memory; gives back the sandboxes whose run did not end.
async fn load(node: &Arc<Node>, sandboxes: Vec<SandboxRecord>, containers: Vec<ContainerRecord>) -> Vec<Metadata> {
    let mut unfinished = Vec::new();
    let mut rebooted = Vec::new();
    for record in sandboxes {
        if record.status == Status::Starting {
            unfinished.push(record.metadata);
            continue;
        }
        let sandbox = Sandbox::new(record.metadata, record.status, None);
        sandbox.set_resources(record.resources);
        adopt_network(node, &sandbox, record.boot_id == node.boot_id);
        node.sandbox_added(&sandbox);
        if record.boot_id != node.boot_id {
            node.sandbox_changed(&sandbox, Status::infra_exited).await;
            rebooted.push(sandbox.id().clone());
        }
    }
    for record in containers {
        let metadata = record.metadata;
        if node.sandbox(metadata.sandbox.as_str()).is_err() {
            tracing::warn!(container = %metadata.id, "its sandbox is not known; removing it");
            continue;
        }
        let lease = match node.images.lease(&metadata.layers) {
            Ok(lease) => Some(lease),
            Err(error) => {
                tracing::warn!(container = %metadata.id, "its image's layers: {error:#}");
                None
            }
        };
        let container = Container::new(metadata, record.status, lease);
        container.set_resources(record.resources);
        node.container_added(&container);
        if rebooted.contains(&container.metadata.sandbox) {
            node.settle(&container, "the machine was restarted").await;
        }
    }
    unfinished
}

/// Notes what a sandbox has of its network. After a reboot all that is left of it is what plugins keep on disk.
fn adopt_network(node: &Node, sandbox: &Sandbox, same_boot: bool) {
    let metadata = &sandbox.metadata;
    let (Some(pod), Some(attachment)) = (pod_network(metadata), &metadata.network) else {
        return;
    };
    let gone = matches!(attachment, Attachment::Builtin(_)) && !same_boot;
    if sandbox.status() != Status::Stopped && !gone {
        node.adopt_network(&pod, attachment);
    }
}

/// Reconnects every sandbox's shim. Gives back the containers no record knows that could not be deleted.
async fn reconnect_all(node: &Arc<Node>) -> Vec<ContainerId> {
    let mut reconnects = JoinSet::new();
    for sandbox in node.store.sandboxes() {
        let (node, span) = (node.clone(), names::of_sandbox(&sandbox));
        let work = async move {
            match reconnect(&node, &sandbox).await {
                Some(connected) => delete_strangers(&node, &sandbox, &connected).await,
                None => Vec::new(),
            }
        };
        reconnects.spawn(work.instrument(span));
    }
    reconnects.join_all().await.into_iter().flatten().collect()
}

/// Reconnects one shim and applies what it says; that, if it is there.
async fn reconnect(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Option<Connected> {
    let shim = Shim::new(sandbox.id(), &node.paths.sandbox(sandbox.id()));
    match shim.connect().await {
        Ok((incoming, connected)) => {
            sandbox.set_shim(Some(shim.clone()));
            node.reconcile(sandbox, &connected).await;
            node.supervise(sandbox, shim, Some(incoming));
            Some(connected)
        }
        Err(ConnectError::Gone) => {
            node.shim_gone(sandbox).await;
            None
        }
        Err(ConnectError::Failed(error)) => {
            tracing::warn!(sandbox = %sandbox.id(), "{error:#}; trying on");
            sandbox.set_shim(Some(shim.clone()));
            node.silent(sandbox).await;
            node.supervise(sandbox, shim, None);
            None
        }
    }
}

/// Has a shim delete the containers it holds and nobody knows: their creation did not end. One that the shim is still at
/// is deleted when it is made. Gives back those that could not be deleted: the removal of the pod has them, and their
/// files must not go before them.
async fn delete_strangers(node: &Node, sandbox: &Sandbox, connected: &Connected) -> Vec<ContainerId> {
    let mut left = Vec::new();
    let Some(shim) = sandbox.shim() else {
        return left;
    };
    let ids = shim::ids(connected).into_iter();
    for id in ids.filter(|id| id != sandbox.id() && node.container(id.as_str()).is_err()) {
        match shim.delete(&id).await {
            Ok(()) => {
                removed_leftover(Leftover::Container);
                tracing::info!(container = %id, "deleted: no record knows it");
            }
            Err(error) => {
                tracing::warn!(container = %id, "delete an unfinished container: {error}");
                left.push(id);
            }
        }
    }
    left
}

/// Undoes the sandboxes whose run did not end, and those that have a directory and no record.
async fn undo_unfinished(node: &Arc<Node>, mut unfinished: Vec<Metadata>, directories: Vec<SandboxId>) {
    for id in directories {
        let known = node.sandbox(id.as_str()).is_ok();
        if !known && unfinished.iter().all(|metadata| metadata.id != id) {
            unfinished.push(stranger(node, id));
        }
    }
    for metadata in unfinished {
        let sandbox = Sandbox::new(metadata, Status::Stopping, None);
        if let Some(connected) = reconnect(node, &sandbox).await {
            delete_strangers(node, &sandbox, &connected).await;
        }
        match node.discard_sandbox(&sandbox).await {
            Ok(()) => {
                removed_leftover(Leftover::Sandbox);
                tracing::info!(sandbox = %sandbox.id(), "removed: it has no complete record");
            }
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.id(), "remove an unfinished sandbox: {error:#}");
                node.sandbox_added(&sandbox);
            }
        }
    }
}

/// What is to be assumed of a sandbox that has no record.
fn stranger(node: &Node, id: SandboxId) -> Metadata {
    let netns = node.config().netns_dir.join(id.as_str());
    Metadata {
        config: PodSandboxConfig::default(),
        runtime_handler: String::new(),
        runtime: node.config().default_runtime.clone(),
        created_at: node.store.next_created_at(),
        netns: netns.exists().then_some(netns),
        network: None,
        id,
    }
}

/// Removes containers' directories that belong to no known container.
async fn remove_orphans(node: &Arc<Node>, directories: BTreeSet<ContainerId>) {
    for id in directories {
        if node.container(id.as_str()).is_ok() {
            continue;
        }
        match node.discard_files(&id).await {
            Ok(()) => {
                removed_leftover(Leftover::Files);
                tracing::info!(container = %id, "removed: it has no record");
            }
            Err(error) => {
                tracing::warn!(container = %id, "remove a container without record: {error:#}")
            }
        }
    }
}

fn sandbox_records(directory: &Path, to: &Path) -> Result<Vec<SandboxRecord>> {
    let mut records = Vec::new();
    for path in entries(directory)? {
        if path.extension() == Some(OsStr::new("json")) {
            let id = path.file_stem().unwrap_or_default().to_owned();
            records.extend(read_or_quarantine(&path, &id, to, |record: &SandboxRecord| {
                record.metadata.id.as_str()
            })?);
        } else if let Err(error) = remove_file(&path) {
            // What an interrupted write left, or somebody else's.
            tracing::warn!("{error:#}");
        }
    }
    Ok(records)
}

fn container_records(directory: &Path, to: &Path) -> Result<Vec<ContainerRecord>> {
    let mut records = Vec::new();
    for path in entries(directory)? {
        let record = path.join("record.json");
        if record.exists() {
            let id = path.file_name().unwrap_or_default().to_owned();
            records.extend(read_or_quarantine(&record, &id, to, |record: &ContainerRecord| {
                record.metadata.id.as_str()
            })?);
        }
    }
    Ok(records)
}

/// Reads a record that must be about `id`; moves it out of the way if it makes no sense or is about something else.
fn read_or_quarantine<M, S, R>(
    path: &Path,
    id: &OsStr,
    to: &Path,
    own_id: impl Fn(&Record<M, S, R>) -> &str,
) -> Result<Option<Record<M, S, R>>>
where
    M: DeserializeOwned,
    S: DeserializeOwned,
    R: DeserializeOwned,
{
    let bad = match read(path) {
        Ok(record) if OsStr::new(own_id(&record)) == id => return Ok(Some(record)),
        Ok(record) => anyhow!("{} is about {}", path.display(), own_id(&record)),
        Err(ReadError::Bad(error)) => error,
        Err(ReadError::Failed(error)) => return Err(error),
    };
    match quarantine(path, to) {
        Ok(target) => {
            removed_leftover(Leftover::Record);
            tracing::error!("{bad:#}; moved to {}", target.display());
        }
        Err(second) => tracing::error!("{bad:#}; {second:#}"),
    }
    Ok(None)
}

/// The directories in `directory` that are named by an id.
fn ids(directory: &Path) -> Result<Vec<ContainerId>> {
    let paths = entries(directory)?;
    let names = paths.iter().filter_map(|path| path.file_name().and_then(OsStr::to_str));
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// The paths in a directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect();
    let list: std::io::Result<Vec<PathBuf>> = list();
    list.with_context(|| format!("list {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_record_is_quarantined_alone() {
        let root = tempfile::tempdir().unwrap();
        let (records, quarantine) = (root.path().join("records"), root.path().join("quarantine"));
        fs::create_dir(&records).unwrap();
        fs::create_dir(&quarantine).unwrap();
        let metadata = |id: &str| Metadata {
            id: id.parse().unwrap(),
            config: PodSandboxConfig::default(),
            runtime_handler: String::new(),
            runtime: "corten".to_owned(),
            created_at: 1,
            netns: None,
            network: None,
        };
        let write = |name: &str, id: &str| {
            let record = Record::new("boot", metadata(id), Status::NotReady, None::<()>);
            crate::record::write(&records.join(name), &record).unwrap();
        };
        write("good.json", "good");
        write("other.json", "someone-else");
        fs::write(records.join("torn.json"), "{\"version\":1").unwrap();
        fs::write(records.join("late.partial"), "{").unwrap();

        let found = sandbox_records(&records, &quarantine).unwrap();
        let ids: Vec<_> = found.iter().map(|record| record.metadata.id.as_str()).collect();
        assert_eq!(ids, ["good"]);
        assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 2);
        assert_eq!(fs::read_dir(&records).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_or_is_newer_stops_the_start_and_stays() {
        let records = tempfile::tempdir().unwrap();
        let path = records.path().join("a.json");
        let list = || sandbox_records(records.path(), Path::new("/nowhere"));
        fs::write(&path, r#"{"version":2,"something":"else"}"#).unwrap();
        let error = list().err().expect("refused");
        assert!(format!("{error:#}").contains("newer"), "{error:#}");
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        list().err().expect("EISDIR");
        assert!(path.exists());
    }
}
