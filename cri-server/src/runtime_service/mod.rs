//! `runtime.v1.RuntimeService`.
//!
//! This file dispatches; each call's work is a file of its own, noun first. Calls that change something run as tasks
//! that outlive their caller (`tasks`), calls that only ask are answered from memory.
//!
//! | file | calls |
//! |---|---|
//! | `sandbox_run` | RunPodSandbox: the ordered list that makes a pod |
//! | `sandbox_stop` `sandbox_remove` | StopPodSandbox, RemovePodSandbox: the lists that undo it |
//! | `sandbox_status` `container_status` | the status and list calls |
//! | `container_create` `container_start` `container_stop` `container_remove` | a container's life |
//! | `container_update` `container_cgroup` `sandbox_update` | UpdateContainerResources, UpdatePodSandboxResources |
//! | `container_checkpoint` `container_hold` | CheckpointContainer; containers that are held meanwhile |
//! | `container_restore` | containers that are made from a checkpoint |
//! | `pod_checkpoint` `pod_restore` | CheckpointPod, RestorePod |
//! | `container_exec` | ExecSync; `exec` begins and ends a command, for it and for streams |
//! | `streams` | Exec, Attach, PortForward: a URL; `crate::streaming` does the rest |
//! | `container_events` | GetContainerEvents |
//! | `status` `runtime_config` | Version, Status, ReopenContainerLog; RuntimeConfig, UpdateRuntimeConfig |
//! | `names` | what names, labels and annotations must be |
//! | `info` | what the verbose status calls have in common |
//! | `stats` `metrics` | what containers and pods use, as messages and as metrics |

mod container_cgroup;
mod container_checkpoint;
mod container_create;
mod container_events;
pub(crate) mod container_exec;
mod container_hold;
mod container_namespaces;
mod container_remove;
mod container_restore;
mod container_start;
mod container_status;
mod container_stop;
mod container_update;
pub(crate) mod exec;
mod image_volumes;
mod info;
mod metrics;
mod names;
mod pod_checkpoint;
mod pod_restore;
mod runtime_config;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod selector;
mod stats;
mod status;
mod stop_grace;
mod streams;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use corten_proto::cri::runtime_service_server::RuntimeService as Rpc;
use corten_proto::cri::*;
use tonic::{Code, Request, Response, Status};

use self::container_events::ContainerEvents;
pub(crate) use self::sandbox_run::pod_network;
use crate::batches::{Batches, batches};
use crate::error::Error;
use crate::node::Node;
use crate::stage::{Patience, scope};
use crate::stats::descriptors;

/// The service.
pub struct RuntimeService {
    node: Arc<Node>,
}

impl RuntimeService {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> Self {
        RuntimeService { node }
    }

    /// Runs a call that changes something, to its end even if the caller goes away.
    async fn change<T: Send + 'static, W>(
        &self,
        patience: Patience,
        work: impl FnOnce(Arc<Node>) -> W,
    ) -> Result<Response<T>, Status>
    where
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let result = self.node.work.run_within(&patience, work(self.node.clone())).await;
        answer(patience.call, patience.began, result.and_then(|result| Ok(result?)))
    }
}

/// The one place where failed calls are logged: with the name of the call and the time it took.
fn answer<T>(call: &'static str, started: Instant, result: Result<T, Status>) -> Result<Response<T>, Status> {
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &result {
        Ok(_) => tracing::debug!(call, ms, "done"),
        Err(error) if error.code() == Code::NotFound => {
            tracing::debug!(call, ms, "{}", error.message())
        }
        Err(error) => tracing::warn!(call, ms, code = ?error.code(), "{}", error.message()),
    }
    result.map(Response::new)
}

#[tonic::async_trait]
impl Rpc for RuntimeService {
    async fn version(&self, _request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(status::version()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let started = Instant::now();
        let result = self.node.node_status(request.get_ref()).await;
        answer("Status", started, result.map_err(Status::from))
    }

    async fn runtime_config(
        &self,
        _request: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        Ok(Response::new(self.node.runtime_config()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let patience = Patience::of("RunPodSandbox", &request);
        let result = self.node.sandbox_run(request.into_inner(), &patience).await;
        answer(patience.call, patience.began, result)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let patience = Patience::of("StopPodSandbox", &request);
        let grace = stop_grace::grace(patience.limit());
        let id = request.into_inner().pod_sandbox_id;
        self.change(patience, |node| async move { node.sandbox_stop(&id, grace).await })
            .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let patience = Patience::of("RemovePodSandbox", &request);
        let id = request.into_inner().pod_sandbox_id;
        self.change(patience, |node| async move { node.sandbox_remove(&id).await })
            .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_status(request.get_ref()).await;
        answer("PodSandboxStatus", started, result.map_err(Status::from))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(self.node.sandbox_list(&filter)))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let patience = Patience::of("CreateContainer", &request);
        let result = self.node.container_create(request.into_inner(), &patience).await;
        answer(patience.call, patience.began, result)
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let patience = Patience::of("StartContainer", &request);
        let id = request.into_inner().container_id;
        self.change(patience, |node| async move { node.container_start(&id).await })
            .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let patience = Patience::of("StopContainer", &request);
        let request = request.into_inner();
        self.change(patience, |node| async move { node.container_stop(&request).await })
            .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let patience = Patience::of("RemoveContainer", &request);
        let id = request.into_inner().container_id;
        self.change(patience, |node| async move { node.container_remove(&id).await })
            .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let started = Instant::now();
        let result = self.node.container_status(request.get_ref()).await;
        answer("ContainerStatus", started, result.map_err(Status::from))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(self.node.container_list(&filter)))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Result<Response<ExecSyncResponse>, Status> {
        let started = Instant::now();
        // Not a task of its own: a caller that goes away ends its exec.
        let work = self.node.container_exec(request.into_inner());
        let result = scope(Arc::default(), work).await;
        let mut response = answer("ExecSync", started, result.map_err(Status::from))?;
        let (_, held) = response.get_ref();
        let held = held.clone();
        // Until the caller has taken it.
        response.extensions_mut().insert(held);
        Ok(response.map(|(reply, _held)| reply))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        let patience = Patience::of("ReopenContainerLog", &request);
        let id = request.into_inner().container_id;
        self.change(patience, |node| async move { node.log_reopen(&id).await })
            .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let patience = Patience::of("UpdateContainerResources", &request);
        let request = request.into_inner();
        self.change(patience, |node| async move { node.container_update(request).await })
            .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let started = Instant::now();
        let result = self.node.stream_exec(request.into_inner());
        answer("Exec", started, result.map_err(Status::from))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let started = Instant::now();
        let result = self.node.stream_attach(request.into_inner());
        answer("Attach", started, result.map_err(Status::from))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let started = Instant::now();
        let result = self.node.stream_port_forward(request.into_inner());
        answer("PortForward", started, result.map_err(Status::from))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let started = Instant::now();
        let result = self.node.container_stats(request.get_ref()).await;
        let result = result.map(|stats| ContainerStatsResponse { stats: Some(stats) });
        answer("ContainerStats", started, result.map_err(Status::from))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let started = Instant::now();
        let result = self.node.container_stats_list(request.into_inner().filter).await;
        let result = result.map(|stats| ListContainerStatsResponse { stats });
        answer("ListContainerStats", started, result.map_err(Status::from))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_stats(request.get_ref()).await;
        let result = result.map(|stats| PodSandboxStatsResponse { stats: Some(stats) });
        answer("PodSandboxStats", started, result.map_err(Status::from))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_stats_list(request.into_inner().filter).await;
        let result = result.map(|stats| ListPodSandboxStatsResponse { stats });
        answer("ListPodSandboxStats", started, result.map_err(Status::from))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        let patience = Patience::of("UpdateRuntimeConfig", &request);
        let request = request.into_inner();
        self.change(
            patience,
            |node| async move { node.update_runtime_config(request).await },
        )
        .await
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        let patience = Patience::of("CheckpointContainer", &request);
        let request = request.into_inner();
        self.change(patience.clone(), move |node| async move {
            node.container_checkpoint(&request, &patience).await
        })
        .await
    }

    async fn checkpoint_pod(
        &self,
        request: Request<CheckpointPodRequest>,
    ) -> Result<Response<CheckpointPodResponse>, Status> {
        let patience = Patience::of("CheckpointPod", &request);
        let request = request.into_inner();
        self.change(patience.clone(), move |node| async move {
            node.pod_checkpoint(&request, &patience).await
        })
        .await
    }

    async fn restore_pod(&self, request: Request<RestorePodRequest>) -> Result<Response<RestorePodResponse>, Status> {
        let patience = Patience::of("RestorePod", &request);
        let result = self.node.pod_restore(request.into_inner(), &patience).await;
        answer(patience.call, patience.began, result)
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(ListMetricDescriptorsResponse {
            descriptors: descriptors(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_metrics_list().await;
        let result = result.map(|pod_metrics| ListPodSandboxMetricsResponse { pod_metrics });
        answer("ListPodSandboxMetrics", started, result.map_err(Status::from))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        let patience = Patience::of("UpdatePodSandboxResources", &request);
        let request = request.into_inner();
        self.change(patience, |node| async move { node.sandbox_update(request).await })
            .await
    }

    type StreamPodSandboxesStream = Batches<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(self.node.sandbox_stream(filter)))
    }

    type StreamContainersStream = Batches<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(self.node.container_stream(filter)))
    }

    type StreamContainerStatsStream = Batches<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let started = Instant::now();
        let result = self.node.container_stats_list(request.into_inner().filter).await;
        let result = result.map(|all| batches(all, |container_stats| StreamContainerStatsResponse { container_stats }));
        answer("StreamContainerStats", started, result.map_err(Status::from))
    }

    type StreamPodSandboxStatsStream = Batches<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_stats_list(request.into_inner().filter).await;
        let result = result.map(|all| {
            batches(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
                pod_sandbox_stats,
            })
        });
        answer("StreamPodSandboxStats", started, result.map_err(Status::from))
    }

    type GetContainerEventsStream = ContainerEvents;
    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(self.node.container_events()))
    }

    type StreamPodSandboxMetricsStream = Batches<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let started = Instant::now();
        let result = self.node.sandbox_metrics_list().await;
        let message = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        let result = result.map(|all| batches(all, message));
        answer("StreamPodSandboxMetrics", started, result.map_err(Status::from))
    }
}
