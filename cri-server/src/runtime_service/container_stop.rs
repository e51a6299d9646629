//! StopContainer, and the ending of containers that other calls ask for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use corten_proto::cri::{StopContainerRequest, StopContainerResponse};
use corten_proto::id::ContainerId;
use nix::libc::SIGKILL;
use tokio::sync::MutexGuard;

use super::container_start::in_order;
use crate::container::Container;
use crate::error::Error;
use crate::node::Node;
use crate::oci;
use crate::sandbox::Sandbox;
use crate::stage::stage;
use crate::store::now;

/// How long a container may take to end after SIGKILL: more than any process takes that is not stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long a checkpoint may take to let a container go on that is to be stopped.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);
/// How long the news of an exit may take once the container is deleted, from a shim that may not be there any more.
const TOLD_LIMIT: Duration = Duration::from_secs(2);

impl Node {
    /// StopContainer: the stop signal, the grace period, SIGKILL. Unknown ids and ended containers are no error.
    ///
    /// Takes no lock while it waits: a second call with a shorter grace period cuts the first one's short.
    pub(super) async fn container_stop(&self, request: &StopContainerRequest) -> Result<StopContainerResponse, Error> {
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Error::invalid("timeout", request.timeout, "must not be negative"));
        };
        let container = match self.container(&request.container_id) {
            Err(Error::NotFound { .. }) => return Ok(StopContainerResponse {}),
            container => container?,
        };
        let _order = restore_in_order(&container).await;
        self.end_container(&container, Duration::from_secs(seconds), "StopContainer")
            .await?;
        Ok(StopContainerResponse {})
    }

    /// Ends a container and has its cgroup removed; nothing of it runs afterwards. One that is to be restored must not be
    /// started meanwhile ([`restore_in_order`]).
    ///
    /// Its shim does that, and where no shim answers the runtime itself: a container must not outlive the answer, whatever
    /// has become of its shim. `call` is who asks for it, for the record of the exit.
    pub(super) async fn end_container(
        &self,
        container: &Arc<Container>,
        grace: Duration,
        call: &str,
    ) -> Result<(), Error> {
        let sandbox = self.sandbox_of(container)?;
        // A signal to one that is held still is heard of when its grace is over.
        container.let_go(RELEASE_LIMIT).await;
        if container.awaits_restore() {
            // A restore that nobody waits for any more may be under way.
            self.delete(&sandbox, container.id()).await?;
            self.container_changed(container, |status| status.abandoned(now()))
                .await;
            return Ok(());
        }
        // The init of a created container has no handler yet, and a pid namespace's first process ignores what it does
        // not handle: only SIGKILL ends it.
        let started = container.status().started_at() > 0;
        let mut reason = call.to_owned();
        if started && !container.has_exited() && !grace.is_zero() {
            let polite = format!("{call} with {} s of grace", grace.as_secs());
            reason = format!("{polite}, which were over");
            let asked = async {
                self.ask_to_end(&sandbox, container, &polite).await?;
                let signal = container.metadata.stop_signal;
                let _stage =
                    stage(|| format!("the end of {} after signal {signal}", container.id())).named("stop_signal");
                container.exit().await;
                anyhow::Ok(())
            };
            if let Ok(result) = tokio::time::timeout(grace, asked).await {
                result?;
            }
        }
        let id = container.id();
        if container.has_exited() || self.kill(&sandbox, container, &reason).await? {
            self.delete(&sandbox, id).await?;
        } else {
            let deleted = self.delete_orphan(&sandbox, id).await;
            deleted.with_context(|| format!("delete {id} without its shim"))?;
        }
        if sandbox.shim().is_none() || !container.wait_exit(TOLD_LIMIT).await {
            self.settle(container, "its shim does not answer").await;
        }
        Ok(())
    }

    /// Sends the container's stop signal to its init. One that has ended meanwhile is no error.
    async fn ask_to_end(&self, sandbox: &Sandbox, container: &Container, reason: &str) -> Result<(), Error> {
        let (id, signal) = (container.id(), container.metadata.stop_signal);
        if let Some(shim) = sandbox.shim() {
            match shim.kill(id, signal, false, reason).await {
                Err(error) if error.is_unanswered() => {
                    tracing::warn!(container = %id, "{error}; leaving the stop to the runtime");
                }
                Err(_) if container.has_exited() => return Ok(()),
                result => return Ok(result.with_context(|| format!("signal {signal} to {id}"))?),
            }
        }
        let (runtime, root) = self.runtime(&sandbox.metadata.runtime)?;
        // It may have ended already, which nobody is there to tell; if not, SIGKILL follows.
        if let Err(error) = oci::kill(&runtime, &root, id, signal).await {
            tracing::warn!(container = %id, "{error:#}");
        }
        Ok(())
    }

    /// Has the shim send SIGKILL to all of the container, and waits for its end. False where no shim answers: there is
    /// nothing to wait for then.
    async fn kill(&self, sandbox: &Sandbox, container: &Container, reason: &str) -> Result<bool, Error> {
        let id = container.id();
        let Some(shim) = sandbox.shim() else {
            return Ok(false);
        };
        match shim.kill(id, SIGKILL, true, reason).await {
            Err(error) if error.is_unanswered() => return Ok(false),
            Err(_) if container.has_exited() => return Ok(true),
            // It has been deleted, and its exit is still to be told.
            Err(error) if error.is_not_found() => return Ok(true),
            result => result.with_context(|| format!("signal {SIGKILL} to {id}"))?,
        }
        let _stage = stage(|| format!("the end of {id} after SIGKILL")).named("kill_signal");
        if container.wait_exit(KILL_LIMIT).await {
            return Ok(true);
        }
        let (limit, pid) = (KILL_LIMIT.as_secs(), container.status().pid().unwrap_or_default());
        let text = format!("stop {id}: process {pid} has not ended {limit} s after SIGKILL");
        Err(Error::Deadline(text))
    }

    /// Has a container deleted: by its shim, and where none answers by the runtime itself.
    pub(super) async fn delete(&self, sandbox: &Sandbox, id: &ContainerId) -> anyhow::Result<()> {
        if let Some(shim) = sandbox.shim() {
            match shim.delete(id).await {
                Err(error) if error.is_unanswered() => {
                    tracing::warn!(container = %id, "{error}; leaving the removal to the runtime");
                }
                result => return result.with_context(|| format!("delete {id}")),
            }
        }
        let deleted = self.delete_orphan(sandbox, id).await;
        deleted.with_context(|| format!("delete {id} without its shim"))
    }
}

/// Waits until nobody restores the container, and keeps others from it; nothing where there is nothing to restore: a stop
/// waits for no other call.
pub(super) async fn restore_in_order(container: &Container) -> Option<MutexGuard<'_, ()>> {
    match container.awaits_restore() {
        true => Some(in_order(container).await),
        false => None,
    }
}
