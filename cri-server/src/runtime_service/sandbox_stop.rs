//! StopPodSandbox: ends everything that runs in a pod and gives its network back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri::StopPodSandboxResponse;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::sync::RwLockWriteGuard;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::container_stop::restore_in_order;
use super::sandbox_run::pod_network;
use super::stop_grace::grace_of;
use crate::error::Error;
use crate::network::netns;
use crate::network::teardown::{self, Teardown};
use crate::node::{Node, blocking};
use crate::sandbox::{Sandbox, Status};
use crate::stage::{part, stage};
use crate::telemetry::names;

impl Node {
    /// StopPodSandbox. Unknown ids and stopped sandboxes are no error; a second call joins the first.
    pub(super) async fn sandbox_stop(
        self: &Arc<Self>,
        id: &str,
        grace: Duration,
    ) -> Result<StopPodSandboxResponse, Error> {
        match self.sandbox(id) {
            Err(Error::NotFound { .. }) => {}
            sandbox => self.stop_sandbox(&sandbox?, grace, "StopPodSandbox").await?,
        }
        Ok(StopPodSandboxResponse {})
    }

    /// Stops a sandbox, for `call`. A step that fails leaves it `Stopping`, and the call can be repeated.
    pub(super) async fn stop_sandbox(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        grace: Duration,
        call: &'static str,
    ) -> Result<(), Error> {
        // From here no container is added; those being created are waited for, then stopped with the others.
        self.sandbox_changed(sandbox, Status::stopping).await;
        let _alone = alone(sandbox).await;
        if sandbox.status() == Status::Stopped {
            return Ok(());
        }
        self.end_containers(sandbox, grace, call).await?;
        self.end_infra(sandbox).await?;
        // The network goes last, with nobody left to use it, and the address is free when this returns.
        self.remove_network(sandbox).await?;
        let shm = self.paths.sandbox(sandbox.id()).join("shm");
        blocking(move || unmount_if_mounted(&shm)).await?;
        self.sandbox_changed(sandbox, Status::stopped).await;
        Ok(())
    }

    /// Ends all containers at once, each with the grace that is of use to it (`stop_grace`).
    async fn end_containers(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        grace: Duration,
        call: &'static str,
    ) -> Result<(), Error> {
        let mut ends = JoinSet::new();
        for container in self.store.containers_of(sandbox.id()) {
            let node = self.clone();
            let grace = grace_of(&container, grace);
            let span = names::of_container(&container, sandbox);
            let end = async move {
                let _order = restore_in_order(&container).await;
                node.end_container(&container, grace, call).await
            };
            ends.spawn(part(end.instrument(span)));
        }
        let mut result = Ok(());
        while let Some(end) = ends.join_next().await {
            let end = end.context("end a container").map_err(Error::from).flatten();
            result = result.and(end);
        }
        result
    }

    /// Ends the infra container and has its cgroup removed.
    pub(super) async fn end_infra(&self, sandbox: &Sandbox) -> Result<()> {
        let deleted = self.delete(sandbox, sandbox.id()).await;
        deleted.context("end the infra container")
    }

    /// The network and its namespace.
    ///
    /// A plugin that fails must not keep a pod for ever: after `[cni] stop_patience_s` the pod is let go, and its network is
    /// left to [`teardown`].
    pub(super) async fn remove_network(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let metadata = &sandbox.metadata;
        let Some(pod) = pod_network(metadata) else {
            return Ok(());
        };
        if let Err(error) = self.detach(&pod, metadata.network.as_ref()).await {
            let error = error.context("take the pod's network down");
            let patience = Duration::from_secs(self.config().cni.stop_patience_s);
            let Some(attachment) = metadata
                .network
                .clone()
                .filter(|_| sandbox.network_is_stuck() >= patience)
            else {
                return Err(error);
            };
            tracing::error!(sandbox = %sandbox.id(), "{error:#}; letting the pod go, trying on");
            teardown::leave(self, Teardown { pod, attachment }).await?;
        }
        let (netns_dir, id) = (self.config().netns_dir.clone(), metadata.id.clone());
        blocking(move || netns::remove(&netns_dir, &id)).await
    }
}

/// Waits until no other call makes, stops or removes anything in the sandbox.
pub(super) async fn alone(sandbox: &Sandbox) -> RwLockWriteGuard<'_, ()> {
    let _stage = stage(|| format!("wait for other calls in pod sandbox {}", sandbox.id())).named("wait_in_line");
    sandbox.operations.write().await
}

/// Unmounts `path`; one that is not mounted or not there is no error. Lazily: a process that was killed may hold it for
/// another moment, and nothing waits for its content.
pub(super) fn unmount_if_mounted(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("umount2 {}", path.display())),
    }
}
