//! StopContainer, and the ending of containers that other calls ask for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use corten_proto::cri::{StopContainerRequest, StopContainerResponse};
use nix::libc::SIGKILL;

use crate::container::{Container, Status};
use crate::error::Error;
use crate::node::Node;
use crate::shim;

/// How long a container may take to end after SIGKILL: more than any process takes that is not stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(30);

impl Node {
    /// StopContainer: the stop signal, the grace period, SIGKILL. Unknown ids and ended containers are no error.
    ///
    /// Takes no lock while it waits: a second call with a shorter grace period cuts the first one's short.
    pub(super) async fn container_stop(
        &self,
        request: &StopContainerRequest,
    ) -> Result<StopContainerResponse, Error> {
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Error::invalid(
                "timeout",
                request.timeout,
                "must not be negative",
            ));
        };
        let container = match self.container(&request.container_id) {
            Err(Error::NotFound { .. }) => return Ok(StopContainerResponse {}),
            container => container?,
        };
        self.end_container(&container, Duration::from_secs(seconds))
            .await?;
        Ok(StopContainerResponse {})
    }

    /// Ends a container and has its cgroup removed; nothing of it runs afterwards.
    pub(super) async fn end_container(
        &self,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), Error> {
        let id = container.id();
        // The init of a created container has no handler yet, and a pid namespace's first process ignores what it does
        // not handle: only SIGKILL ends it.
        let running = matches!(container.status(), Status::Running { .. });
        if running && !grace.is_zero() {
            self.signal(container, container.metadata.stop_signal, false)
                .await?;
            container.wait_exit(grace).await;
        }
        if !container.has_exited() {
            self.signal(container, SIGKILL, true).await?;
            if !container.wait_exit(KILL_LIMIT).await {
                let limit = KILL_LIMIT.as_secs();
                let pid = container.status().pid().unwrap_or(0);
                let text =
                    format!("stop {id}: process {pid} has not ended {limit} s after SIGKILL");
                return Err(Error::Deadline(text));
            }
        }
        let Some(shim) = self.sandbox_of(container)?.shim() else {
            return Ok(());
        };
        match shim.delete(id).await {
            // The shim has just ended; its supervisor deletes what it held.
            Err(shim::Error::Disconnected { .. }) => Ok(()),
            result => Ok(result.with_context(|| format!("delete {id} after its end"))?),
        }
    }

    /// Sends a signal to a container. One that has ended meanwhile is no error.
    async fn signal(&self, container: &Container, signal: i32, all: bool) -> anyhow::Result<()> {
        let id = container.id();
        let sandbox = self
            .sandbox_of(container)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let Some(shim) = sandbox.shim() else {
            bail!("signal {signal} to {id}: the shim of its pod has ended");
        };
        match shim.kill(id, signal, all).await {
            Ok(()) => Ok(()),
            Err(_) if container.has_exited() => Ok(()),
            // The supervisor finds out whether the shim has gone and ends the container's life if so.
            Err(shim::Error::Disconnected { .. }) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal {signal} to {id}")),
        }
    }
}
