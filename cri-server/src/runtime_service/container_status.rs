//! ContainerStatus and ListContainers, answered from memory.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use anyhow::Result;
use corten_proto::cri::{
    self, ContainerFilter, ContainerResources, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    ContainerUser, ImageSpec, ListContainersResponse, StreamContainersResponse,
};
use serde_json::json;

use super::{info, selector};
use crate::batches::{Batches, batches};
use crate::container::{Container, Metadata, Status};
use crate::error::Error;
use crate::events::Pod;
use crate::node::Node;
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
            status: Some(status(&container, container.status())),
            info,
        })
    }

    /// ListContainers, oldest first.
    pub(super) fn container_list(&self, filter: &ContainerFilter) -> ListContainersResponse {
        ListContainersResponse {
            containers: self.matching_containers(filter.clone()).collect(),
        }
    }

    /// StreamContainers: the same list in several messages.
    pub(super) fn container_stream(&self, filter: ContainerFilter) -> Batches<StreamContainersResponse> {
        batches(self.matching_containers(filter), |containers| {
            StreamContainersResponse { containers }
        })
    }

    /// The containers that pass the filter, oldest first; each as it is when it is taken.
    fn matching_containers(&self, filter: ContainerFilter) -> impl Iterator<Item = cri::Container> + Send + use<> {
        let all = self.store.containers().into_iter();
        all.filter(move |container| selector::container(&filter, container))
            .map(|container| item(&container))
    }

    /// What `crictl inspect` shows under `info`.
    async fn container_info(&self, container: &Container) -> Result<HashMap<String, String>> {
        let metadata = &container.metadata;
        let sandbox = self.sandbox_of(container).ok();
        let runtime = sandbox.as_ref().map(|sandbox| &sandbox.metadata);
        let spec = info::runtime_spec(self.paths.bundle(container.id())).await;
        let death = self.death_of(container).await;
        let exit = death.as_ref().and_then(|death| death.record.as_ref());
        info::document(&json!({
            "sandboxID": metadata.sandbox,
            "pid": container.status().pid().unwrap_or(0),
            "outputLost": exit.map(|exit| exit.output_lost),
            "oomKills": exit.map(|exit| exit.oom_kills),
            "exit": death,
            "removing": container.removing.load(Ordering::Relaxed),
            "snapshotKey": metadata.id,
            "runtimeHandler": runtime.map(|runtime| &runtime.runtime_handler),
            "runtimeType": runtime.map(|runtime| &runtime.runtime),
            "runtimeOptions": runtime.map(|runtime| self.runtime_options(&runtime.runtime)),
            "config": metadata.config,
            "runtimeSpec": spec.document,
            "runtimeSpecError": spec.error,
        }))
    }
}

/// The statuses of all containers of a pod.
pub(super) fn statuses(pod: &Pod) -> Vec<ContainerStatus> {
    let containers = pod.containers.iter();
    containers
        .map(|(container, now)| status(container, now.clone()))
        .collect()
}

/// A container's status, `status` being what changes of it.
fn status(container: &Container, status: Status) -> ContainerStatus {
    let metadata = &container.metadata;
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
