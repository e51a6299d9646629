//! UpdatePodSandboxResources: what the kubelet has made of a pod's limits.
//!
//! It has written the pod's cgroup before it calls, so that nothing is left to set; the numbers are kept for those who ask
//! (`resources` of the verbose status).

use corten_proto::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use crate::error::Error;
use crate::node::Node;
use crate::sandbox::{Resources, Status};

impl Node {
    /// UpdatePodSandboxResources.
    pub(super) async fn sandbox_update(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let _open = sandbox.operations.read().await;
        if !matches!(sandbox.status(), Status::Ready { .. }) {
            let state = sandbox.status().state().as_str_name();
            let text = format!("update the resources of pod sandbox {}: it is {state}", sandbox.id());
            return Err(Error::State(text));
        }
        let change = Resources {
            overhead: request.overhead,
            resources: request.resources,
        };
        self.sandbox_updated(&sandbox, |before| before.updated(change)).await?;
        Ok(UpdatePodSandboxResourcesResponse {})
    }
}
