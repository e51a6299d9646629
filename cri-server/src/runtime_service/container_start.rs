//! StartContainer: lets the waiting init go, or restores a container that has none (`container_restore`).

use std::sync::Arc;

use corten_proto::cri::StartContainerResponse;
use tokio::sync::MutexGuard;

use crate::container::{Container, Status};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox;
use crate::shim::{self, Shim};
use crate::stage::stage;
use crate::store::now;

impl Node {
    /// StartContainer. One that the runtime refuses to start is shown as exited, with the runtime's words.
    pub(super) async fn container_start(&self, id: &str) -> Result<StartContainerResponse, Error> {
        let container = self.container(id)?;
        let _order = in_order(&container).await;
        if !matches!(container.status(), Status::Created { .. }) {
            let state = container.status().state().as_str_name();
            let text = format!("start {}: it is {state}, not CONTAINER_CREATED", container.id());
            return Err(Error::State(text));
        }
        let sandbox = self.sandbox_of(&container)?;
        if !matches!(sandbox.status(), sandbox::Status::Ready { .. }) {
            let text = format!("start {}: pod sandbox {} is not ready", container.id(), sandbox.id());
            return Err(Error::State(text));
        }
        let shim = self.shim_of(&container)?;
        let started = match container.awaits_restore() {
            true => self.restore(&container, &sandbox, &shim).await?,
            // The pid is known.
            false => shim.start(container.id()).await.map(|at| (0, at)),
        };
        match started {
            Ok((pid, at)) => {
                self.container_changed(&container, |status| status.restored(pid, at))
                    .await;
                Ok(StartContainerResponse {})
            }
            Err(shim::Error::Refused { message, .. }) => {
                self.container_changed(&container, |status| status.start_failed(&message, now()))
                    .await;
                // Its init may still wait for a start that will not come.
                if let Err(error) = self.delete(&sandbox, container.id()).await {
                    tracing::warn!("after a failed start: {error:#}");
                }
                Err(Error::Failed(anyhow::anyhow!("start {}: {message}", container.id())))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The client of a container's shim.
    pub(crate) fn shim_of(&self, container: &Container) -> Result<Arc<Shim>, Error> {
        let sandbox = self.sandbox_of(container)?;
        sandbox
            .shim()
            .ok_or_else(|| Error::State(format!("container {}: the shim of its pod has ended", container.id())))
    }
}

/// Waits until no other call starts or removes the container.
pub(super) async fn in_order(container: &Container) -> MutexGuard<'_, ()> {
    let _stage = stage(|| format!("wait for another call for {}", container.id())).named("wait_in_line");
    container.operations.lock().await
}
