//! What the server says of itself and of everything it keeps, as `crictl inspect` would show it.

use std::time::Duration;

use anyhow::Result;
use corten_proto::cri::{
    ContainerStatusRequest, ImageSpec, ImageStatusRequest, ListContainersRequest, ListImagesRequest,
    ListPodSandboxRequest, PodSandboxStatusRequest, StatusRequest,
};

use super::entry::{Entry, MAX_FILES};
use crate::client::Client;
use crate::config::Config;

/// How long the server may take for everything.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn collect(config: &Config) -> Vec<Entry> {
    let asked = Client::block_on(&config.listen, LIMIT, ask);
    asked.unwrap_or_else(|error| vec![Entry::text("cri/error.txt", &format!("{error:#}\n"))])
}

async fn ask(mut client: Client) -> Result<Vec<Entry>> {
    let status = client
        .runtime
        .status(StatusRequest { verbose: true })
        .await?
        .into_inner();
    let mut entries = vec![Entry::json("cri/status.json", &status)];
    let pods = client
        .runtime
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?
        .into_inner()
        .items;
    entries.push(Entry::json("cri/pods.json", &pods));
    for pod in pods.iter().take(MAX_FILES) {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let name = format!("cri/pod-{}.json", pod.id);
        entries.push(answer(name, client.runtime.pod_sandbox_status(request).await));
    }
    let containers = client.runtime.list_containers(ListContainersRequest::default()).await?;
    let containers = containers.into_inner().containers;
    entries.push(Entry::json("cri/containers.json", &containers));
    for container in containers.iter().take(MAX_FILES) {
        let request = ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: true,
        };
        let name = format!("cri/container-{}.json", container.id);
        entries.push(answer(name, client.runtime.container_status(request).await));
    }
    let images = client
        .images
        .list_images(ListImagesRequest::default())
        .await?
        .into_inner()
        .images;
    entries.push(Entry::json("cri/images.json", &images));
    for image in images.iter().take(MAX_FILES) {
        let spec = ImageSpec {
            image: image.id.clone(),
            ..ImageSpec::default()
        };
        let request = ImageStatusRequest {
            image: Some(spec),
            verbose: true,
        };
        let name = format!("cri/image-{}.json", image.id.replace(':', "-"));
        entries.push(answer(name, client.images.image_status(request).await));
    }
    Ok(entries)
}

/// An answer, or why there is none: an object may have gone since it was listed.
fn answer<T: serde::Serialize>(name: String, answer: Result<tonic::Response<T>, tonic::Status>) -> Entry {
    match answer {
        Ok(answer) => Entry::json(name, answer.get_ref()),
        Err(status) => Entry::text(name, &format!("{:?}: {}\n", status.code(), status.message())),
    }
}
