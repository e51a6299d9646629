//! ListPodSandboxMetrics: every ready sandbox, in one blocking task.
//!
//! Some 60 metrics a container, which take 11 KiB, and 16 KiB with the kubelet's long names of cgroups: 500 containers are
//! about 8 MiB, of the 16 that the kubelet takes. For more than 1,000 StreamPodSandboxMetrics is the call.

use std::sync::Arc;

use corten_proto::cri::PodSandboxMetrics;

use crate::error::Error;
use crate::node::Node;
use crate::stats::Round;

impl Node {
    /// ListPodSandboxMetrics and StreamPodSandboxMetrics, oldest first.
    pub(super) async fn sandbox_metrics_list(self: &Arc<Self>) -> Result<Vec<PodSandboxMetrics>, Error> {
        let sandboxes = self.store.sandboxes();
        let measured = self.measure(move |node| {
            let (mut round, containers) = (Round::new(node), node.containers_by_sandbox());
            let of = |id| containers.get(id).map_or(&[][..], Vec::as_slice);
            let pods = sandboxes.iter();
            pods.filter_map(|sandbox| round.pod_metrics(sandbox, of(sandbox.id())))
                .collect()
        });
        Ok(measured.await?)
    }
}
