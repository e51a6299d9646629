//! What the server tells of itself: metrics for Prometheus, traces for a collector, and the names in its log.
//!
//! ```text
//! request ─> Observed (rpc) ── Call, in a task-local and in every Progress ──> handler, its tasks, its stages
//!               │                │                                               │
//!               │                ├─ names: pod, container ─> log lines            └─ stage ends ─> histogram, child span
//!               └─ answer: histogram by method and code, the call's span
//!
//! metrics (atomics, one registry) <── http: GET /metrics renders them, with gauges of the node as it is then
//! trace ── bounded queue ──> export: OTLP by gRPC or HTTP
//! ```
//!
//! Metrics and traces that are not configured are not kept: each place that would observe something looks at one pointer.
//! Labels come from sets that the program knows, never from a request: nobody outside can make the metrics grow. Pods,
//! containers and images have names in log lines and spans only.
//!
//! | module | owns |
//! |---|---|
//! | `call` | one call: its method, its names, its trace |
//! | `rpc` | the layer around the gRPC services |
//! | `names` | whom a call or a log line is about |
//! | `metrics`, `gauges`, `process` | what is counted, what is read at the scrape, what /proc says of this process |
//! | `http` | the endpoint of metrics |
//! | `trace`, `traceparent`, `export` | spans, whose children they are, and the way to the collector |

pub(crate) mod call;
mod export;
mod gauges;
mod http;
pub(crate) mod metrics;
pub(crate) mod names;
mod process;
pub(crate) mod rpc;
pub(crate) mod trace;
mod traceparent;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::node::Node;

/// How long the last spans may take to be sent when the server ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// What runs beside the server to be scraped and to export.
pub(crate) struct Telemetry {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Telemetry {
    /// Begins to keep what the configuration asks for. First of all, so that what a starting server finds is counted; for
    /// once in a process.
    pub(crate) fn start(config: &Config) -> Result<Self> {
        if config.metrics.listen.is_some() {
            metrics::keep()?;
        }
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some(spans) = trace::keep(&config.tracing) {
            tasks.spawn(spans.export(stopping));
        }
        Ok(Telemetry { tasks, stop })
    }

    /// Answers whoever scrapes, from here on.
    pub(crate) fn serve(&mut self, node: &Arc<Node>) -> Result<()> {
        if let Some(address) = &node.config.metrics.listen {
            let endpoint = http::Endpoint::open(address)?;
            tracing::info!(%address, "serving metrics");
            self.tasks.spawn(endpoint.serve(node.clone(), self.stop.subscribe()));
        }
        Ok(())
    }

    /// Sends what is left to send, and ends.
    pub(crate) async fn finish(mut self) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH_LIMIT, all).await.is_err() {
            tracing::debug!("ending with spans that nobody took");
        }
    }
}
