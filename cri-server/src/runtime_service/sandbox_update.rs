//! UpdatePodSandboxResources: what the kubelet has made of a pod's limits.
//!
//! It has written the pod's cgroup before it calls, so that nothing is left to set; the numbers are kept for those who ask
//! (`resources` of the verbose status).

use corten_proto::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use crate::error::Error;
use crate::node::Node;
use crate::sandbox::{Resources, Sandbox, Status};
use crate::stage::stage;

impl Node {
    /// UpdatePodSandboxResources.
    pub(super) async fn sandbox_update(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // Before the wait too: a stop that is under way has the lock for as long as it takes.
        check_ready(&sandbox)?;
        let waiting = stage(|| format!("wait for other calls in pod sandbox {}", sandbox.id())).named("wait_in_line");
        let _open = sandbox.operations.read().await;
        drop(waiting);
        check_ready(&sandbox)?;
        let change = Resources {
            overhead: request.overhead,
            resources: request.resources,
        };
        self.sandbox_updated(&sandbox, |before| before.updated(change)).await?;
        Ok(UpdatePodSandboxResourcesResponse {})
    }
}

fn check_ready(sandbox: &Sandbox) -> Result<(), Error> {
    let status = sandbox.status();
    if matches!(status, Status::Ready { .. }) {
        return Ok(());
    }
    let state = status.state().as_str_name();
    let text = format!("update the resources of pod sandbox {}: it is {state}", sandbox.id());
    Err(Error::State(text))
}
