//! PodSandboxStatus and ListPodSandbox, answered from memory.

use std::collections::HashMap;

use anyhow::{Context, Result};
use corten_proto::cri::{
    LinuxPodSandboxStatus, ListPodSandboxResponse, Namespace, PodIp, PodSandbox, PodSandboxFilter,
    PodSandboxNetworkStatus, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
};

use super::selector;
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::record::read_optional;
use crate::sandbox::{Metadata, Sandbox, Status};

impl Node {
    /// PodSandboxStatus.
    pub(super) async fn sandbox_status(
        &self,
        request: &PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let info = match request.verbose {
            true => self.sandbox_info(&sandbox).await?,
            false => HashMap::new(),
        };
        Ok(PodSandboxStatusResponse {
            status: Some(status(&sandbox)),
            info,
            // Only the evented PLEG reads the rest, which needs GetContainerEvents.
            ..Default::default()
        })
    }

    /// ListPodSandbox, oldest first.
    pub(super) fn sandbox_list(&self, filter: &PodSandboxFilter) -> ListPodSandboxResponse {
        let all = self.store.sandboxes();
        let matching = all.iter().filter(|sandbox| selector::sandbox(filter, sandbox));
        ListPodSandboxResponse {
            items: matching.map(|sandbox| item(sandbox)).collect(),
        }
    }

    /// What `crictl inspectp` shows under `info`.
    async fn sandbox_info(&self, sandbox: &Sandbox) -> Result<HashMap<String, String>> {
        let path = self.paths.sandbox(sandbox.id()).join("config.json");
        let spec: Option<serde_json::Value> = blocking(move || read_optional(&path)).await?;
        let metadata = &sandbox.metadata;
        let info = serde_json::json!({
            "pid": sandbox.pid().unwrap_or(0),
            "runtimeHandler": metadata.runtime_handler,
            "runtime": metadata.runtime,
            "networkNamespace": metadata.netns,
            "config": metadata.config,
            // What counts now: the configuration says what the pod was run with.
            "resources": sandbox.resources(),
            "runtimeSpec": spec,
        });
        let text = serde_json::to_string(&info).context("encode the sandbox's info")?;
        Ok(HashMap::from([("info".to_owned(), text)]))
    }
}

fn status(sandbox: &Sandbox) -> PodSandboxStatus {
    let metadata = &sandbox.metadata;
    let status = sandbox.status();
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
        Status::Stopped => &[],
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
