//! What is not built yet says so: UNIMPLEMENTED with the RPC's name, never success.

use corten_proto::cri::{self, GetEventsRequest, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest};
use corten_tests::cri::Cri;
use corten_tests::node::Node;
use tonic::{Code, Status};

/// An RPC's name and its answer to an empty request.
type Answer = (&'static str, Result<(), Status>);

fn of_containers(cri: &Cri) -> Vec<Answer> {
    let resources = cri::UpdateContainerResourcesRequest::default();
    vec![
        (
            "StreamContainers",
            cri.stream_containers(cri::StreamContainersRequest::default()).map(drop),
        ),
        (
            "UpdateContainerResources",
            cri.update_container_resources(resources).map(drop),
        ),
        (
            "CheckpointContainer",
            cri.checkpoint_container(cri::CheckpointContainerRequest::default())
                .map(drop),
        ),
        (
            "ContainerStats",
            cri.container_stats(cri::ContainerStatsRequest::default()).map(drop),
        ),
        (
            "ListContainerStats",
            cri.list_container_stats(cri::ListContainerStatsRequest::default())
                .map(drop),
        ),
        (
            "StreamContainerStats",
            cri.stream_container_stats(cri::StreamContainerStatsRequest::default())
                .map(drop),
        ),
        (
            "GetContainerEvents",
            cri.get_container_events(GetEventsRequest {}).map(drop),
        ),
    ]
}

fn of_sandboxes(cri: &Cri) -> Vec<Answer> {
    let resources = cri::UpdatePodSandboxResourcesRequest::default();
    let stream_metrics = cri::StreamPodSandboxMetricsRequest {};
    vec![
        (
            "StreamPodSandboxes",
            cri.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())
                .map(drop),
        ),
        (
            "UpdatePodSandboxResources",
            cri.update_pod_sandbox_resources(resources).map(drop),
        ),
        (
            "CheckpointPod",
            cri.checkpoint_pod(cri::CheckpointPodRequest::default()).map(drop),
        ),
        (
            "RestorePod",
            cri.restore_pod(cri::RestorePodRequest::default()).map(drop),
        ),
        (
            "PodSandboxStats",
            cri.pod_sandbox_stats(cri::PodSandboxStatsRequest::default()).map(drop),
        ),
        (
            "ListPodSandboxStats",
            cri.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())
                .map(drop),
        ),
        (
            "StreamPodSandboxStats",
            cri.stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())
                .map(drop),
        ),
        (
            "ListMetricDescriptors",
            cri.list_metric_descriptors(ListMetricDescriptorsRequest {}).map(drop),
        ),
        (
            "ListPodSandboxMetrics",
            cri.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).map(drop),
        ),
        (
            "StreamPodSandboxMetrics",
            cri.stream_pod_sandbox_metrics(stream_metrics).map(drop),
        ),
    ]
}

#[test]
fn every_rpc_that_is_not_built_says_so_by_name() {
    let node = Node::start();
    let cri = &node.cri;
    let request = cri::UpdateRuntimeConfigRequest::default();
    let node_wide = vec![("UpdateRuntimeConfig", cri.update_runtime_config(request).map(drop))];
    for (name, answer) in [of_containers(cri), of_sandboxes(cri), node_wide].concat() {
        let status = answer.expect_err(name);
        assert_eq!(status.code(), Code::Unimplemented, "{name}: {status}");
        assert!(status.message().contains(name), "{name}: {status}");
    }
    node.assert_no_pods_left();
}
