//! What is counted, and its text for Prometheus.
//!
//! Kept only where the configuration has an address for it: [`metrics`] is none otherwise, and whoever would observe
//! something goes on at once. An observation is a few atomic operations; nothing is allocated once a label's values have
//! been seen.
//!
//! All labels' values are names that the program knows. Counters begin at the start of the process.

use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use prometheus::{
    Counter, Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::image::Cause;

/// Bounds of the times of calls and stages, in seconds: from an answer out of memory to the kubelet's deadline.
const CALL_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// Bounds of the times of pulls, in seconds.
const PULL_BOUNDS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];

static METRICS: OnceLock<Metrics> = OnceLock::new();

/// The metrics, where they are kept.
pub(crate) fn metrics() -> Option<&'static Metrics> {
    METRICS.get()
}

/// Keeps metrics from here on.
pub(super) fn keep() -> Result<()> {
    let metrics = Metrics::new().context("define the metrics")?;
    ensure!(METRICS.set(metrics).is_ok(), "metrics are kept already");
    Ok(())
}

/// Every metric.
pub(crate) struct Metrics {
    registry: Registry,
    /// By method and code.
    pub(super) rpcs: HistogramVec,
    pub(super) rpcs_in_flight: IntGauge,
    /// By method and stage.
    pub(super) stages: HistogramVec,
    pub(crate) pulls: Pulls,
    /// Work handed to threads that may block, until it is done.
    pub(crate) blocking: IntGauge,
    /// Networks that are still to be taken down.
    pub(crate) teardowns: IntGauge,
    /// Streams of events that were ended because their readers did not read.
    pub(crate) event_overflows: IntCounter,
    /// What was left behind and removed, by kind.
    leftovers: IntCounterVec,
    /// Containers that ended, by reason.
    exits: IntCounterVec,
    /// Spans that a collector has taken.
    pub(super) spans_sent: IntCounter,
    /// Spans that no collector took, by reason.
    spans_dropped: IntCounterVec,
    pub(super) node: NodeGauges,
    pub(super) process: ProcessMetrics,
}

/// Pulls of images.
pub(crate) struct Pulls {
    pub(super) in_flight: IntGauge,
    results: IntCounterVec,
    seconds: Histogram,
    /// Bytes of layers that came from registries.
    pub(crate) bytes: IntCounter,
    /// Layers, by where they came from.
    layers: IntCounterVec,
}

/// What is read of the node when somebody scrapes.
pub(super) struct NodeGauges {
    pub(super) sandboxes: IntGaugeVec,
    pub(super) containers: IntGaugeVec,
    pub(super) images: IntGauge,
    pub(super) storage_bytes: IntGaugeVec,
    pub(super) tasks: IntGaugeVec,
    pub(super) looks: IntGauge,
    pub(super) layers_in_flight: IntGauge,
    pub(super) event_subscribers: IntGauge,
    pub(super) events_queued: IntGauge,
}

/// What /proc says of this process; the names are those of Prometheus' own clients.
pub(super) struct ProcessMetrics {
    pub(super) cpu_seconds: Counter,
    pub(super) resident_bytes: IntGauge,
    pub(super) virtual_bytes: IntGauge,
    pub(super) open_fds: IntGauge,
    pub(super) max_fds: IntGauge,
    pub(super) threads: IntGauge,
    pub(super) start_time: Gauge,
}

/// What is left behind and removed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// A record that makes no sense, put aside.
    Record,
    /// A sandbox whose run did not end, or that has no record.
    Sandbox,
    /// A container in a shim that no record knows.
    Container,
    /// Directories of a container that no record knows.
    Files,
    /// The network of a pod that was let go before a plugin would take it down.
    Network,
}

/// Where a layer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerFrom {
    /// It was here.
    Here,
    /// A registry.
    Registry,
}

/// Why spans were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanLoss {
    /// The queue was full.
    Queue,
    /// The collector did not answer, or did not want them.
    Export,
}

impl Leftover {
    const ALL: [Leftover; 5] = [
        Leftover::Record,
        Leftover::Sandbox,
        Leftover::Container,
        Leftover::Files,
        Leftover::Network,
    ];

    fn name(self) -> &'static str {
        match self {
            Leftover::Record => "record",
            Leftover::Sandbox => "sandbox",
            Leftover::Container => "container",
            Leftover::Files => "container_files",
            Leftover::Network => "network",
        }
    }
}

/// Notes that something that was left behind was removed.
pub(crate) fn removed_leftover(what: Leftover) {
    if let Some(metrics) = metrics() {
        metrics.leftovers.with_label_values(&[what.name()]).inc();
    }
}

/// Notes that a container has ended, for one of the reasons that its status can have.
pub(crate) fn container_exited(reason: &'static str) {
    if let Some(metrics) = metrics() {
        metrics.exits.with_label_values(&[reason]).inc();
    }
}

/// Notes where a layer came from.
pub(crate) fn layer_came(from: LayerFrom) {
    if let Some(metrics) = metrics() {
        let from = match from {
            LayerFrom::Here => "here",
            LayerFrom::Registry => "registry",
        };
        metrics.pulls.layers.with_label_values(&[from]).inc();
    }
}

/// Notes that spans were dropped.
pub(super) fn spans_dropped(why: SpanLoss, count: usize) {
    if let Some(metrics) = metrics() {
        let why = match why {
            SpanLoss::Queue => "queue_full",
            SpanLoss::Export => "not_taken",
        };
        metrics.spans_dropped.with_label_values(&[why]).inc_by(count as u64);
    }
}

/// One more of something, as long as this lives.
#[must_use = "it counts until this is dropped"]
pub(crate) struct Counted(Option<&'static IntGauge>);

impl Counted {
    /// One more of what the gauge counts.
    pub(crate) fn new(gauge: impl FnOnce(&'static Metrics) -> &'static IntGauge) -> Self {
        let gauge = metrics().map(gauge);
        if let Some(gauge) = gauge {
            gauge.inc();
        }
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(gauge) = self.0 {
            gauge.dec();
        }
    }
}

/// A pull under way; one that is dropped was given up by everybody who waited for it.
pub(crate) struct PullObservation {
    began: std::time::Instant,
    ended: bool,
    _in_flight: Counted,
}

impl PullObservation {
    /// A pull begins.
    pub(crate) fn begin() -> Self {
        PullObservation {
            began: std::time::Instant::now(),
            ended: false,
            _in_flight: Counted::new(|metrics| &metrics.pulls.in_flight),
        }
    }

    /// It has ended so.
    pub(crate) fn end(mut self, failure: Option<Cause>) {
        self.ended = true;
        let Some(metrics) = metrics() else { return };
        metrics.pulls.results.with_label_values(&[result(failure)]).inc();
        if failure.is_none() {
            metrics.pulls.seconds.observe(self.began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for PullObservation {
    fn drop(&mut self) {
        if let (false, Some(metrics)) = (self.ended, metrics()) {
            metrics.pulls.results.with_label_values(&["given_up"]).inc();
        }
    }
}

/// All that a failed pull may be put down to.
const CAUSES: [Cause; 7] = [
    Cause::Invalid,
    Cause::NotFound,
    Cause::Denied,
    Cause::Unreachable,
    Cause::Refused,
    Cause::Untrusted,
    Cause::Local,
];

fn result(failure: Option<Cause>) -> &'static str {
    match failure {
        None => "done",
        Some(Cause::Invalid) => "invalid",
        Some(Cause::NotFound) => "not_found",
        Some(Cause::Denied) => "denied",
        Some(Cause::Unreachable) => "unreachable",
        Some(Cause::Refused) => "refused",
        Some(Cause::Untrusted) => "untrusted",
        Some(Cause::Local) => "local",
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        let define = Definer(Registry::new());
        let metrics = Metrics {
            rpcs: define.histograms(
                "corten_rpc_duration_seconds",
                "Time from a call's arrival to its answer, by method and gRPC code; of a streaming call, to the begin of \
                 its answer.",
                &["method", "code"],
            )?,
            rpcs_in_flight: define.gauge("corten_rpcs_in_flight", "Calls that have no answer yet.")?,
            stages: define.histograms(
                "corten_stage_duration_seconds",
                "Time that calls spent in their stages; stages may lie within others.",
                &["method", "stage"],
            )?,
            pulls: Pulls::new(&define)?,
            blocking: define.gauge(
                "corten_blocking_tasks",
                "Work on files, mounts and the like that waits for a thread or has one.",
            )?,
            teardowns: define.gauge(
                "corten_network_teardowns_pending",
                "Networks of pods that were let go, still to be taken down.",
            )?,
            event_overflows: define.counter(
                "corten_event_streams_overflowed_total",
                "Streams of container events that were ended because their reader fell too far behind.",
            )?,
            leftovers: define.counters(
                "corten_leftovers_removed_total",
                "What was left behind, by an earlier server or after a failure, and removed since the start, by kind.",
                "kind",
                &Leftover::ALL.map(Leftover::name),
            )?,
            exits: define.counters(
                "corten_container_exits_total",
                "Containers that ended, by the reason in their status.",
                "reason",
                &[],
            )?,
            spans_sent: define.counter("corten_trace_spans_sent_total", "Spans that the collector has taken.")?,
            spans_dropped: define.counters(
                "corten_trace_spans_dropped_total",
                "Spans that were dropped: the queue was full, or the collector did not take them.",
                "reason",
                &["queue_full", "not_taken"],
            )?,
            node: NodeGauges::new(&define)?,
            process: ProcessMetrics::new(&define)?,
            registry: define.0,
        };
        metrics.build_info()?;
        Ok(metrics)
    }

    fn build_info(&self) -> prometheus::Result<()> {
        let help = "1, with what this server was built as.";
        let info = IntGaugeVec::new(Opts::new("corten_build_info", help), &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.registry.register(Box::new(info))
    }

    /// The text of all metrics, format 0.0.4.
    pub(super) fn text(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .context("write the metrics")?;
        Ok(text)
    }
}

impl Pulls {
    fn new(define: &Definer) -> prometheus::Result<Self> {
        let causes = CAUSES.iter().map(|&cause| result(Some(cause)));
        let results: Vec<_> = [result(None), "given_up"].into_iter().chain(causes).collect();
        Ok(Pulls {
            in_flight: define.gauge("corten_pulls_in_flight", "Pulls of images under way.")?,
            results: define.counters(
                "corten_pulls_total",
                "Pulls of images that have ended, by what became of them.",
                "result",
                &results,
            )?,
            seconds: define.histogram(
                "corten_pull_duration_seconds",
                "Time of pulls that brought their image.",
            )?,
            bytes: define.counter(
                "corten_pull_received_bytes_total",
                "Bytes of packed layers that registries have sent.",
            )?,
            layers: define.counters(
                "corten_pull_layers_total",
                "Layers of images that were pulled, by where they came from.",
                "source",
                &["here", "registry"],
            )?,
        })
    }
}

impl NodeGauges {
    fn new(define: &Definer) -> prometheus::Result<Self> {
        Ok(NodeGauges {
            sandboxes: define.gauges("corten_sandboxes", "Pod sandboxes, by state.", "state")?,
            containers: define.gauges("corten_containers", "Containers, by state.", "state")?,
            images: define.gauge("corten_images", "Images.")?,
            storage_bytes: define.gauges(
                "corten_storage_used_bytes",
                "Bytes on disk, of layers of images and of what containers have written.",
                "kind",
            )?,
            tasks: define.gauges("corten_tasks", "Tasks under way, by their owner.", "owner")?,
            looks: define.gauge("corten_host_path_looks", "Threads that look at host paths of mounts.")?,
            layers_in_flight: define.gauge("corten_layers_in_flight", "Layers that are fetched or unpacked.")?,
            event_subscribers: define.gauge("corten_event_subscribers", "Streams of container events.")?,
            events_queued: define.gauge("corten_events_queued", "Events that wait for readers of these streams.")?,
        })
    }
}

impl ProcessMetrics {
    fn new(define: &Definer) -> prometheus::Result<Self> {
        let cpu_seconds = Counter::new("process_cpu_seconds_total", "Processor time of this process.")?;
        let start_time = Gauge::new(
            "process_start_time_seconds",
            "When this process started, since the epoch.",
        )?;
        define.0.register(Box::new(cpu_seconds.clone()))?;
        define.0.register(Box::new(start_time.clone()))?;
        Ok(ProcessMetrics {
            cpu_seconds,
            resident_bytes: define.gauge("process_resident_memory_bytes", "Resident memory of this process.")?,
            virtual_bytes: define.gauge("process_virtual_memory_bytes", "Address space of this process.")?,
            open_fds: define.gauge("process_open_fds", "Open file descriptors of this process.")?,
            max_fds: define.gauge(
                "process_max_fds",
                "Most file descriptors that this process may have open.",
            )?,
            threads: define.gauge("process_threads", "Threads of this process.")?,
            start_time,
        })
    }
}

/// Defines metrics in a registry.
struct Definer(Registry);

impl Definer {
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    /// With one label, whose `values` are there from the start: a rate needs the zero before the first one.
    fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        for value in values {
            counters.with_label_values(&[*value]);
        }
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(PULL_BOUNDS.to_vec());
        let histogram = Histogram::with_opts(options)?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(CALL_BOUNDS.to_vec());
        let histograms = HistogramVec::new(options, labels)?;
        self.0.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_defined_once_and_every_result_is_there_from_the_start() {
        let metrics = Metrics::new().unwrap();
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for cause in CAUSES {
            let line = format!("corten_pulls_total{{result=\"{}\"}} 0\n", result(Some(cause)));
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(
            text.contains("corten_leftovers_removed_total{kind=\"network\"} 0\n"),
            "{text}"
        );
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("corten_build_info{{version=\"{version}\"}} 1\n")));
    }
}
