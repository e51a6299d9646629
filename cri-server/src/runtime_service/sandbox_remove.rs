//! RemovePodSandbox, and the list that undoes a sandbox.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use corten_proto::cri::RemovePodSandboxResponse;

use super::sandbox_stop::{alone, unmount_if_mounted};
use crate::error::Error;
use crate::node::{Node, blocking, remove_file};
use crate::sandbox::{Sandbox, Status};
use crate::shim::{self, Shim};
use crate::tree;

/// How long a shim may take to end after its shutdown.
const SHIM_LIMIT: Duration = Duration::from_secs(5);

impl Node {
    /// RemovePodSandbox, by force. Unknown ids are no error; a second call joins the first.
    pub(super) async fn sandbox_remove(self: &Arc<Self>, id: &str) -> Result<RemovePodSandboxResponse, Error> {
        let sandbox = match self.sandbox(id) {
            Err(Error::NotFound { .. }) => return Ok(RemovePodSandboxResponse {}),
            sandbox => sandbox?,
        };
        self.stop_sandbox(&sandbox, Duration::ZERO, "RemovePodSandbox").await?;
        let _alone = alone(&sandbox).await;
        if self.sandbox(sandbox.id().as_str()).is_err() {
            // The call that held the lock has removed it.
            return Ok(RemovePodSandboxResponse {});
        }
        for container in self.store.containers_of(sandbox.id()) {
            self.remove_container(&container).await?;
        }
        self.discard_sandbox(&sandbox).await?;
        self.sandbox_removed(&sandbox);
        Ok(RemovePodSandboxResponse {})
    }

    /// Undoes whatever there is of a sandbox that has no containers: the record last, so that what fails can be
    /// repeated, by the kubelet or by the next start.
    pub(crate) async fn discard_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        // A stop has done the rest already; a run that failed has not been stopped.
        let stopped = sandbox.status() == Status::Stopped;
        if !stopped {
            self.end_infra(sandbox).await?;
        }
        self.end_shim(sandbox).await?;
        if !stopped {
            self.remove_network(sandbox).await?;
        }
        let directory = self.paths.sandbox(sandbox.id());
        let record = self.paths.sandbox_record(sandbox.id());
        blocking(move || {
            unmount_if_mounted(&directory.join("shm"))?;
            tree::remove(&directory)?;
            remove_file(&record)
        })
        .await
    }

    /// Ends the shim and waits until it has. One that does not answer is killed: whatever it held has been deleted.
    async fn end_shim(&self, sandbox: &Sandbox) -> Result<()> {
        let Some(shim) = sandbox.shim() else {
            return Ok(());
        };
        match shut_down(&shim).await {
            Err(shim::Error::Refused { message, .. }) => bail!("end the shim: {message}"),
            Ok(()) => {}
            Err(error) => tracing::warn!(sandbox = %sandbox.id(), "{error}"),
        }
        if has_ended(sandbox).await {
            return Ok(());
        }
        tracing::warn!(sandbox = %sandbox.id(), "the shim does not end; killing it");
        blocking(move || shim.kill_process()).await?;
        let limit = SHIM_LIMIT.as_secs();
        ensure!(
            has_ended(sandbox).await,
            "the shim has not ended {limit} s after SIGKILL"
        );
        Ok(())
    }
}

/// Has a shim end, with what it may still hold: containers whose creation was not seen through.
async fn shut_down(shim: &Shim) -> Result<(), shim::Error> {
    match shim.shutdown().await {
        Err(shim::Error::Refused { .. }) => {}
        result => return result,
    }
    for id in shim.held().await? {
        shim.delete(&id).await?;
    }
    shim.shutdown().await
}

/// Whether the shim ends within [`SHIM_LIMIT`].
async fn has_ended(sandbox: &Sandbox) -> bool {
    let ended = async {
        while sandbox.shim().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SHIM_LIMIT, ended).await.is_ok()
}
