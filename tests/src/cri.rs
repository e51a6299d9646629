//! A blocking CRI client: what a kubelet sees of the server, for tests and for `cri-client`.
//!
//! Every RPC of CRI v1 is here, so that a test can show what the server answers to each. A call has two minutes, as
//! the kubelet's; one that takes longer is the caller's failure, not an answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri;
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use prost::bytes::Buf as _;
use tokio::runtime::{Builder, Runtime};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

/// What kubelet's client accepts, in bytes; a larger reply is lost for it.
const MAX_MESSAGE: usize = 16 << 20;

/// Longest any call here may take.
const CALL: Duration = Duration::from_secs(120);

/// A connection to a CRI endpoint; clones share it. It connects at the first call, and again after a restart.
#[derive(Clone, Debug)]
pub struct Cri {
    executor: Arc<Runtime>,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    channel: Channel,
    deadline: Option<Duration>,
    traceparent: Option<MetadataValue<Ascii>>,
}

/// A stream that a server goes on with.
#[derive(Debug)]
pub struct Listener<T> {
    executor: Arc<Runtime>,
    stream: Streaming<T>,
}

impl<T: Send + 'static> Listener<T> {
    /// The next message; none at the end.
    ///
    /// # Errors
    /// The status the stream ended with, or CANCELLED without a message within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<T>, Status> {
        let (executor, stream) = (&self.executor, &mut self.stream);
        let message = executor.block_on(async { tokio::time::timeout(limit, stream.message()).await });
        message.unwrap_or_else(|_elapsed| Err(Status::cancelled(format!("no message within {limit:?}"))))
    }

    /// All messages up to the end.
    ///
    /// # Errors
    /// See [`Listener::next`].
    pub fn rest(mut self) -> Result<Vec<T>, Status> {
        let mut messages = Vec::new();
        while let Some(message) = self.next(CALL)? {
            messages.push(message);
        }
        Ok(messages)
    }
}

impl Cri {
    /// A client of the socket at `path`, which need not exist yet.
    ///
    /// # Errors
    /// If no executor thread can be made.
    pub fn new(path: &Path) -> Result<Cri> {
        let executor = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("make an executor")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?;
        let channel = {
            let _context = executor.enter();
            endpoint.connect_lazy()
        };
        Ok(Cri {
            executor: Arc::new(executor),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            channel,
            deadline: None,
            traceparent: None,
        })
    }

    /// The same client, which tells the server to answer each unary call within `deadline`.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Cri {
        let mut client = self.clone();
        client.deadline = Some(deadline);
        client
    }

    /// The same client, whose unary calls belong to this trace.
    ///
    /// # Panics
    /// If the text cannot stand in a header.
    #[must_use]
    pub fn traced(&self, traceparent: &str) -> Cri {
        let mut client = self.clone();
        client.traceparent = Some(traceparent.parse().expect("a header's value"));
        client
    }

    /// Calls a method of the RuntimeService that there is not.
    ///
    /// # Panics
    /// If it is answered by anything but UNIMPLEMENTED.
    pub fn unknown_method(&self, name: &str) {
        let path = format!("/runtime.v1.RuntimeService/{name}").parse().expect("a path");
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let call = async move {
            client.ready().await.expect("a connection");
            let codec = tonic_prost::ProstCodec::<cri::VersionRequest, cri::VersionResponse>::default();
            let request = tonic::Request::new(cri::VersionRequest::default());
            client.unary(request, path, codec).await
        };
        let status = self.wait("unknown_method", call).expect_err("no such method");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
    }

    /// `GetContainerEvents`, subscribed when this returns.
    ///
    /// # Errors
    /// The server's status.
    pub fn listen(&self) -> Result<Listener<cri::ContainerEventResponse>, Status> {
        let mut client = self.runtime.clone();
        let call = async move { client.get_container_events(cri::GetEventsRequest {}).await };
        let stream = self.wait("get_container_events", call)?;
        Ok(self.listener(stream))
    }

    /// All messages of `StreamPodSandboxes`.
    ///
    /// # Errors
    /// The server's status.
    pub fn pod_sandbox_messages(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::StreamPodSandboxesResponse>, Status> {
        let mut client = self.runtime.clone();
        let request = cri::StreamPodSandboxesRequest { filter };
        let stream = self.wait("stream_pod_sandboxes", async move {
            client.stream_pod_sandboxes(request).await
        })?;
        self.listener(stream).rest()
    }

    /// All messages of `StreamContainers`.
    ///
    /// # Errors
    /// The server's status.
    pub fn container_messages(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::StreamContainersResponse>, Status> {
        let mut client = self.runtime.clone();
        let request = cri::StreamContainersRequest { filter };
        let stream = self.wait(
            "stream_containers",
            async move { client.stream_containers(request).await },
        )?;
        self.listener(stream).rest()
    }

    fn listener<T>(&self, stream: Streaming<T>) -> Listener<T> {
        Listener {
            executor: self.executor.clone(),
            stream,
        }
    }

    /// `PullImage` by a caller that gives up after `deadline`.
    ///
    /// # Errors
    /// The server's status, or what became of the call at the deadline.
    pub fn pull_image_within(
        &self,
        request: cri::PullImageRequest,
        deadline: Duration,
    ) -> Result<cri::PullImageResponse, Status> {
        let mut client = self.image.clone();
        let mut request = tonic::Request::new(request);
        request.set_timeout(deadline);
        self.wait("pull_image", async move { client.pull_image(request).await })
    }

    /// What a call of the runtime service, by its name in the API, answers to an empty request, as it came: a clock around
    /// this shows the server's time and not that of taking the message apart.
    ///
    /// # Errors
    /// The server's status.
    pub fn undecoded(&self, call: &'static str) -> Result<Vec<u8>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        self.wait(call, async move {
            let ready = client.ready().await;
            ready.map_err(|error| Status::unavailable(format!("{call}: {error}")))?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{call}"));
            let path = path.map_err(|error| Status::invalid_argument(format!("{call}: {error}")))?;
            client.unary(tonic::Request::new(()), path, Undecoded).await
        })
    }

    /// Blocks until `call` has answered.
    fn wait<T>(&self, name: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        let answer = self.executor.block_on(async { tokio::time::timeout(CALL, call).await });
        let Ok(answer) = answer else {
            return Err(Status::cancelled(format!(
                "{name}: no answer within {} s",
                CALL.as_secs()
            )));
        };
        answer.map(Response::into_inner)
    }
}

/// Empty requests, and answers as they come.
#[derive(Default)]
struct Undecoded;

impl Codec for Undecoded {
    type Encode = ();
    type Decode = Vec<u8>;
    type Encoder = Undecoded;
    type Decoder = Undecoded;

    fn encoder(&mut self) -> Undecoded {
        Undecoded
    }

    fn decoder(&mut self) -> Undecoded {
        Undecoded
    }
}

impl Encoder for Undecoded {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _message: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Undecoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; message.remaining()];
        message.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// One blocking method for each unary RPC.
macro_rules! unary {
    ($service:ident: $($call:ident($request:ident) -> $response:ident,)*) => {
        impl Cri {
            $(
                #[doc = concat!("Calls `", stringify!($call), "` and waits for its answer.")]
                ///
                /// # Errors
                /// The server's status, or CANCELLED without an answer in time.
                pub fn $call(&self, request: cri::$request) -> Result<cri::$response, Status> {
                    let mut client = self.$service.clone();
                    let mut request = tonic::Request::new(request);
                    if let Some(deadline) = self.deadline {
                        request.set_timeout(deadline);
                    }
                    if let Some(traceparent) = &self.traceparent {
                        request.metadata_mut().insert("traceparent", traceparent.clone());
                    }
                    self.wait(stringify!($call), async move { client.$call(request).await })
                }
            )*
        }
    };
}

/// One blocking method for each RPC that answers with a stream; it gives the first message.
macro_rules! streaming {
    ($service:ident: $($call:ident($request:ident) -> $response:ident,)*) => {
        impl Cri {
            $(
                #[doc = concat!("Calls `", stringify!($call), "` and waits for the first message or the end.")]
                ///
                /// # Errors
                /// The server's status, or CANCELLED without a message in time.
                pub fn $call(&self, request: cri::$request) -> Result<Option<cri::$response>, Status> {
                    let mut client = self.$service.clone();
                    self.wait(stringify!($call), async move {
                        let mut stream = client.$call(request).await?.into_inner();
                        stream.message().await.map(Response::new)
                    })
                }
            )*
        }
    };
}

unary! { runtime:
    version(VersionRequest) -> VersionResponse,
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse,
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse,
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse,
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse,
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse,
    create_container(CreateContainerRequest) -> CreateContainerResponse,
    start_container(StartContainerRequest) -> StartContainerResponse,
    stop_container(StopContainerRequest) -> StopContainerResponse,
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse,
    list_containers(ListContainersRequest) -> ListContainersResponse,
    container_status(ContainerStatusRequest) -> ContainerStatusResponse,
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse,
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse,
    exec_sync(ExecSyncRequest) -> ExecSyncResponse,
    exec(ExecRequest) -> ExecResponse,
    attach(AttachRequest) -> AttachResponse,
    port_forward(PortForwardRequest) -> PortForwardResponse,
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse,
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse,
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse,
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse,
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse,
    status(StatusRequest) -> StatusResponse,
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse,
    checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse,
    restore_pod(RestorePodRequest) -> RestorePodResponse,
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse,
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse,
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse,
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse,
}

streaming! { runtime:
    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse,
    stream_containers(StreamContainersRequest) -> StreamContainersResponse,
    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse,
    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse,
    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse,
    get_container_events(GetEventsRequest) -> ContainerEventResponse,
}

unary! { image:
    list_images(ListImagesRequest) -> ListImagesResponse,
    image_status(ImageStatusRequest) -> ImageStatusResponse,
    pull_image(PullImageRequest) -> PullImageResponse,
    remove_image(RemoveImageRequest) -> RemoveImageResponse,
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse,
}

streaming! { image:
    stream_images(StreamImagesRequest) -> StreamImagesResponse,
}
