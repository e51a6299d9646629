//! PodSandboxStatus and ListPodSandbox, answered from memory.

use std::collections::HashMap;

use anyhow::Result;
use corten_proto::cri::{
    LinuxPodSandboxStatus, ListPodSandboxResponse, Namespace, PodIp, PodSandbox, PodSandboxFilter,
    PodSandboxNetworkStatus, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
    StreamPodSandboxesResponse,
};
use serde_json::json;

use super::{container_status, info, selector};
use crate::batches::{Batches, batches};
use crate::error::Error;
use crate::network::Attachment;
use crate::node::Node;
use crate::sandbox::{Metadata, Sandbox, Status};

impl Node {
    /// PodSandboxStatus.
    pub(super) async fn sandbox_status(
        &self,
        request: &PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Error> {
        let id = self.sandbox(&request.pod_sandbox_id)?.id().clone();
        let pod = self.pod(&id);
        let Some((sandbox, now)) = &pod.sandbox else {
            let (what, id) = ("pod sandbox", id.to_string());
            return Err(Error::NotFound { what, id });
        };
        let info = match request.verbose {
            true => self.sandbox_info(sandbox).await?,
            false => HashMap::new(),
        };
        Ok(PodSandboxStatusResponse {
            status: Some(status(sandbox, *now)),
            info,
            // The evented PLEG of the kubelet reads these.
            containers_statuses: container_status::statuses(&pod),
            timestamp: pod.at,
        })
    }

    /// ListPodSandbox, oldest first.
    pub(super) fn sandbox_list(&self, filter: &PodSandboxFilter) -> ListPodSandboxResponse {
        ListPodSandboxResponse {
            items: self.matching_sandboxes(filter.clone()).collect(),
        }
    }

    /// StreamPodSandboxes: the same list in several messages.
    pub(super) fn sandbox_stream(&self, filter: PodSandboxFilter) -> Batches<StreamPodSandboxesResponse> {
        batches(self.matching_sandboxes(filter), |pod_sandboxes| {
            StreamPodSandboxesResponse { pod_sandboxes }
        })
    }

    /// The sandboxes that pass the filter, oldest first; each as it is when it is taken.
    fn matching_sandboxes(&self, filter: PodSandboxFilter) -> impl Iterator<Item = PodSandbox> + Send + use<> {
        let all = self.store.sandboxes().into_iter();
        all.filter(move |sandbox| selector::sandbox(&filter, sandbox))
            .map(|sandbox| item(&sandbox))
    }

    /// What `crictl inspectp` shows under `info`.
    async fn sandbox_info(&self, sandbox: &Sandbox) -> Result<HashMap<String, String>> {
        let metadata = &sandbox.metadata;
        let linux = metadata.config.linux.as_ref();
        let spec = info::runtime_spec(self.paths.sandbox(sandbox.id())).await;
        info::document(&json!({
            "pid": sandbox.pid().unwrap_or(0),
            "processStatus": match sandbox.status() {
                Status::Ready { .. } => "running",
                _ => "deleted",
            },
            "networkNamespace": metadata.netns,
            "netNamespaceClosed": metadata.netns.as_ref().is_some_and(|netns| !netns.exists()),
            "cniResult": metadata.network.as_ref().and_then(Attachment::cni_result),
            "builtinNetwork": match &metadata.network {
                Some(Attachment::Builtin(attachment)) => Some(attachment),
                _ => None,
            },
            "runtime": metadata.runtime,
            "runtimeHandler": metadata.runtime_handler,
            "runtimeType": metadata.runtime,
            "runtimeOptions": self.runtime_options(&metadata.runtime),
            "overhead": linux.and_then(|linux| linux.overhead.as_ref()),
            // What counts now: the configuration says what the pod was run with.
            "resources": sandbox.resources(),
            "config": metadata.config,
            "runtimeSpec": spec.document,
            "runtimeSpecError": spec.error,
        }))
    }
}

/// A sandbox's status, `status` being what changes of it.
pub(super) fn status(sandbox: &Sandbox, status: Status) -> PodSandboxStatus {
    let metadata = &sandbox.metadata;
    let options = Some(metadata.namespace_options());
    PodSandboxStatus {
        id: metadata.id.to_string(),
        metadata: metadata.config.metadata.clone(),
        state: status.state().into(),
        created_at: metadata.created_at,
        network: Some(network(metadata, status)),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options }),
        }),
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        runtime_handler: metadata.runtime_handler.clone(),
    }
}

/// The pod's addresses; none with the node's network, and none any more after the stop gave them back.
fn network(metadata: &Metadata, status: Status) -> PodSandboxNetworkStatus {
    let ips = match status {
        Status::Stopped => Vec::new(),
        _ => metadata.ips(),
    };
    let mut ips = ips.iter().map(ToString::to_string);
    PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    }
}

fn item(sandbox: &Sandbox) -> PodSandbox {
    let metadata = &sandbox.metadata;
    PodSandbox {
        id: metadata.id.to_string(),
        metadata: metadata.config.metadata.clone(),
        state: sandbox.status().state().into(),
        created_at: metadata.created_at,
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        runtime_handler: metadata.runtime_handler.clone(),
    }
}
