//! ContainerStatus and ListContainers, answered from memory.

use std::collections::HashMap;

use anyhow::{Context, Result};
use corten_proto::cri::{
    self, ContainerFilter, ContainerResources, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    ContainerUser, ImageSpec, ListContainersResponse,
};

use super::selector;
use crate::container::{Container, Metadata, Status};
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::record::read_optional;
use crate::spec::stop_signal;

impl Node {
    /// ContainerStatus.
    pub(super) async fn container_status(
        &self,
        request: &ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Error> {
        let container = self.container(&request.container_id)?;
        let info = match request.verbose {
            true => self.container_info(&container).await?,
            false => HashMap::new(),
        };
        Ok(ContainerStatusResponse {
            status: Some(status(&container)),
            info,
        })
    }

    /// ListContainers, oldest first.
    pub(super) fn container_list(&self, filter: &ContainerFilter) -> ListContainersResponse {
        let all = self.store.containers();
        let matching = all.iter().filter(|container| selector::container(filter, container));
        ListContainersResponse {
            containers: matching.map(|container| item(container)).collect(),
        }
    }

    /// What `crictl inspect` shows under `info`.
    async fn container_info(&self, container: &Container) -> Result<HashMap<String, String>> {
        let path = self.paths.bundle(container.id()).join("config.json");
        let spec: Option<serde_json::Value> = blocking(move || read_optional(&path)).await?;
        let info = serde_json::json!({
            "sandboxID": container.metadata.sandbox,
            "pid": container.status().pid().unwrap_or(0),
            "config": container.metadata.config,
            "runtimeSpec": spec,
        });
        let text = serde_json::to_string(&info).context("encode the container's info")?;
        Ok(HashMap::from([("info".to_owned(), text)]))
    }
}

fn status(container: &Container) -> ContainerStatus {
    let metadata = &container.metadata;
    let status = container.status();
    let mut result = ContainerStatus {
        id: metadata.id.to_string(),
        metadata: metadata.config.metadata.clone(),
        state: status.state().into(),
        created_at: metadata.created_at,
        started_at: status.started_at(),
        image: Some(image(metadata)),
        image_ref: metadata.image_ref.clone(),
        image_id: metadata.image_id.clone(),
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        mounts: metadata.config.mounts.clone(),
        log_path: metadata.log_path.clone(),
        resources: Some(ContainerResources {
            linux: container.resources(),
            windows: None,
        }),
        user: Some(ContainerUser {
            linux: Some(metadata.user.clone()),
        }),
        stop_signal: stop_signal::to_cri(metadata.stop_signal).into(),
        ..Default::default()
    };
    if let Status::Exited(exited) = status {
        result.finished_at = exited.finished_at;
        result.exit_code = exited.code;
        result.reason = exited.reason.as_str().to_owned();
        result.message = exited.message;
    }
    result
}

/// The image by the name the user gave it: one image may have several, and the kubelet compares.
fn image(metadata: &Metadata) -> ImageSpec {
    let mut image = metadata.config.image.clone().unwrap_or_default();
    if !image.user_specified_image.is_empty() {
        image.image.clone_from(&image.user_specified_image);
    }
    image
}

fn item(container: &Container) -> cri::Container {
    let metadata = &container.metadata;
    cri::Container {
        id: metadata.id.to_string(),
        pod_sandbox_id: metadata.sandbox.to_string(),
        metadata: metadata.config.metadata.clone(),
        image: Some(image(metadata)),
        image_ref: metadata.image_ref.clone(),
        state: container.status.borrow().state().into(),
        created_at: metadata.created_at,
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        image_id: metadata.image_id.clone(),
    }
}
