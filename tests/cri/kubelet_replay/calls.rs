//! Calls by name, with messages whose kind is known only then.

use corten_tests::cri::Cri;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::Status;

use super::recorded::messages;

/// Makes a call.
///
/// # Errors
/// The server's status.
#[track_caller]
pub(super) fn call(cri: &Cri, method: &str, request: &DynamicMessage) -> Result<DynamicMessage, Status> {
    let response = messages(method).1;
    match method {
        "Version" => via(request, response, |it| cri.version(it)),
        "Status" => via(request, response, |it| cri.status(it)),
        "RuntimeConfig" => via(request, response, |it| cri.runtime_config(it)),
        "UpdateRuntimeConfig" => via(request, response, |it| cri.update_runtime_config(it)),
        "RunPodSandbox" => via(request, response, |it| cri.run_pod_sandbox(it)),
        "StopPodSandbox" => via(request, response, |it| cri.stop_pod_sandbox(it)),
        "RemovePodSandbox" => via(request, response, |it| cri.remove_pod_sandbox(it)),
        "PodSandboxStatus" => via(request, response, |it| cri.pod_sandbox_status(it)),
        "ListPodSandbox" => via(request, response, |it| cri.list_pod_sandbox(it)),
        "CreateContainer" => via(request, response, |it| cri.create_container(it)),
        "StartContainer" => via(request, response, |it| cri.start_container(it)),
        "StopContainer" => via(request, response, |it| cri.stop_container(it)),
        "RemoveContainer" => via(request, response, |it| cri.remove_container(it)),
        "ListContainers" => via(request, response, |it| cri.list_containers(it)),
        "ContainerStatus" => via(request, response, |it| cri.container_status(it)),
        "UpdateContainerResources" => via(request, response, |it| cri.update_container_resources(it)),
        "UpdatePodSandboxResources" => via(request, response, |it| cri.update_pod_sandbox_resources(it)),
        "ExecSync" => via(request, response, |it| cri.exec_sync(it)),
        "ListContainerStats" => via(request, response, |it| cri.list_container_stats(it)),
        "ListMetricDescriptors" => via(request, response, |it| cri.list_metric_descriptors(it)),
        "ListImages" => via(request, response, |it| cri.list_images(it)),
        "ImageStatus" => via(request, response, |it| cri.image_status(it)),
        "ImageFsInfo" => via(request, response, |it| cri.image_fs_info(it)),
        // The first message of a stream has all that these tests make.
        "StreamImages" => via(request, response, |it| {
            cri.stream_images(it).map(Option::unwrap_or_default)
        }),
        "StreamContainers" => via(request, response, |it| {
            cri.stream_containers(it).map(Option::unwrap_or_default)
        }),
        "StreamPodSandboxes" => via(request, response, |it| {
            cri.stream_pod_sandboxes(it).map(Option::unwrap_or_default)
        }),
        "StreamPodSandboxStats" => via(request, response, |it| {
            cri.stream_pod_sandbox_stats(it).map(Option::unwrap_or_default)
        }),
        "StreamPodSandboxMetrics" => via(request, response, |it| {
            cri.stream_pod_sandbox_metrics(it).map(Option::unwrap_or_default)
        }),
        other => panic!("{other}: not among the calls that are replayed"),
    }
}

/// Takes a message over to our types and the answer back.
fn via<Q: Message + Default, R: Message>(
    request: &DynamicMessage,
    response: MessageDescriptor,
    call: impl FnOnce(Q) -> Result<R, Status>,
) -> Result<DynamicMessage, Status> {
    let request = request.transcode_to().expect("one description made both");
    let answer = call(request)?;
    let mut message = DynamicMessage::new(response);
    message.transcode_from(&answer).expect("one description made both");
    Ok(message)
}
