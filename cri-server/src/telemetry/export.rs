//! The way of spans to the collector: OTLP, by gRPC or as POSTs.
//!
//! One task takes what there is, waits a little for more, and sends it. Spans that the collector does not take are dropped and
//! counted, never sent again: an answer that is late may have been a yes. After a failure it waits, longer each time; what
//! comes meanwhile fills the queue, and the rest is dropped at its other end. A failure is logged once, until it is over.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use corten_proto::otlp::trace_service_client::TraceServiceClient;
use corten_proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, Resource, ResourceSpans, ScopeSpans,
    Span,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};

use super::metrics::{SpanLoss, metrics, spans_dropped};
use super::trace::text;
use crate::config::{Collector, OtlpProtocol};

/// Most spans in one message.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take for a message.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Pauses after a failure: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// Spans on their way.
pub(super) struct Spans {
    queue: mpsc::Receiver<Span>,
    collector: Collector,
    protocol: OtlpProtocol,
}

impl Spans {
    pub(super) fn new(queue: mpsc::Receiver<Span>, collector: Collector, protocol: OtlpProtocol) -> Self {
        Spans {
            queue,
            collector,
            protocol,
        }
    }

    /// Sends what comes, until `stopping`; then what there is, once.
    pub(super) async fn export(mut self, mut stopping: watch::Receiver<bool>) {
        let channel = match self.channel() {
            Ok(channel) => channel,
            Err(error) => return tracing::error!("traces: {error:#}"),
        };
        let (mut batch, mut pause) = (Vec::new(), None);
        while !*stopping.borrow() {
            tokio::select! {
                () = self.gather(&mut batch) => {}
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
            pause = self.send(&channel, std::mem::take(&mut batch), pause).await;
            if let Some(pause) = pause {
                let stopped = stopping.wait_for(|stopping| *stopping);
                drop(timeout(pause, stopped).await);
            }
        }
        while let Ok(span) = self.queue.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.send(&channel, batch, pause).await;
        }
    }

    /// Connects when there is something to send, and again after a failure.
    fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(self.collector.to_string()).context("the collector's address")?;
        Ok(endpoint
            .timeout(ANSWER_LIMIT)
            .connect_timeout(CONNECT_LIMIT)
            .connect_lazy())
    }

    /// Waits for spans, and a little for more. What has come is in `batch`, wherever this is given up.
    async fn gather(&mut self, batch: &mut Vec<Span>) {
        self.queue.recv_many(batch, BATCH).await;
        let deadline = Instant::now() + LINGER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match timeout_at(deadline, self.queue.recv_many(batch, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
    }

    /// Sends a batch; how long to wait where that failed, after so long a pause before.
    async fn send(&self, channel: &Channel, batch: Vec<Span>, before: Option<Duration>) -> Option<Duration> {
        let count = batch.len();
        let request = message(batch);
        let sent = match self.protocol {
            OtlpProtocol::Grpc => by_grpc(channel.clone(), request).await,
            OtlpProtocol::Http => timeout(ANSWER_LIMIT, by_http(self.collector, request))
                .await
                .unwrap_or_else(|_elapsed| Err(anyhow!("no answer in {} s", ANSWER_LIMIT.as_secs()))),
        };
        match sent {
            Ok(refused) => {
                let refused = usize::try_from(refused).unwrap_or(0).min(count);
                spans_dropped(SpanLoss::Export, refused);
                if let Some(metrics) = metrics() {
                    metrics.spans_sent.inc_by((count - refused) as u64);
                }
                if before.is_some() {
                    tracing::info!(collector = %self.collector, "traces are taken again");
                }
                None
            }
            Err(error) => {
                spans_dropped(SpanLoss::Export, count);
                if before.is_none() {
                    tracing::warn!(collector = %self.collector, "traces are dropped until they are taken: {error:#}");
                }
                Some(before.map_or(PAUSES.0, |pause| (pause * 2).min(PAUSES.1)))
            }
        }
    }
}

/// The message that tells of these spans.
fn message(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let node = rustix::system::uname();
    let attributes = vec![
        text("service.name", "corten-cri"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", &node.nodename().to_string_lossy()),
    ];
    let scope = InstrumentationScope {
        name: "corten-cri".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
            }],
        }],
    }
}

/// How many spans were refused.
async fn by_grpc(channel: Channel, request: ExportTraceServiceRequest) -> Result<i64> {
    let answer = TraceServiceClient::new(channel).export(request).await;
    let answer = answer.map_err(|status| anyhow!("{:?}: {}", status.code(), status.message()))?;
    Ok(refused(answer.into_inner()))
}

/// The same by HTTP, on a connection of its own.
async fn by_http(collector: Collector, request: ExportTraceServiceRequest) -> Result<i64> {
    let stream = timeout(CONNECT_LIMIT, TcpStream::connect(collector.0))
        .await
        .context("connect")?
        .context("connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post("/v1/traces")
        .header("host", collector.0.to_string())
        .header("content-type", "application/x-protobuf")
        .body(Full::new(Bytes::from(request.encode_to_vec())))?;
    let exchange = async move {
        let response = sender.send_request(request).await.context("send")?;
        answer(response).await
    };
    // Both: the connection moves what the exchange waits for.
    let (answer, _closed) = tokio::join!(exchange, connection);
    answer
}

async fn answer(response: Response<Incoming>) -> Result<i64> {
    let status = response.status();
    ensure!(status.is_success(), "the collector answered {status}");
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body
        .map_err(|error| anyhow!("read the collector's answer: {error}"))?
        .to_bytes();
    let answer = ExportTraceServiceResponse::decode(body).context("decode the collector's answer")?;
    Ok(refused(answer))
}

fn refused(answer: ExportTraceServiceResponse) -> i64 {
    answer.partial_success.map_or(0, |partial| partial.rejected_spans)
}
