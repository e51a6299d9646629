//! Traces, as a collector gets them, and what becomes of calls where there is none.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_proto::otlp::{Span, SpanKind, StatusCode, any_value};
use corten_tests::collector::{Collector, attribute};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;

use super::{METRICS, scrape, set};
use crate::lost::wait_for;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SERVICE: &str = "runtime.v1.RuntimeService";

/// A node that sends its traces to this address, and has metrics.
fn traced(endpoint: &str, more: &[(&str, toml::Value)]) -> Node {
    Node::with(|config| {
        set(config, "metrics", &[("listen", METRICS.into())]);
        set(config, "tracing", &[("otlp_endpoint", endpoint.into())]);
        set(config, "tracing", more);
    })
}

fn listen(node: &Node) -> Collector {
    let address = ([127, 0, 0, 1], 4317).into();
    node.network.enter(|| Collector::grpc(address)).expect("listen")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn version(node: &Node) {
    node.cri.version(cri::VersionRequest::default()).unwrap();
}

#[test]
fn a_call_is_a_span_of_its_caller_s_trace_with_its_stages_below() {
    let node = traced("http://127.0.0.1:4317", &[]);
    let collector = listen(&node);
    node.pull(BUSYBOX);
    let config = node.pod_config("traced");
    let uid = config.metadata.clone().unwrap().uid;
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    };
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let reply = node.cri.traced(&parent).run_pod_sandbox(request).unwrap();

    let is_ours = |span: &Span| hex(&span.trace_id) == TRACE;
    let call = collector.wait(&format!("{SERVICE}/RunPodSandbox"), is_ours);
    assert_eq!(hex(&call.parent_span_id), CALLER);
    assert_eq!((call.kind(), call.status.is_none()), (SpanKind::Server, true));
    for (key, value) in [
        ("k8s.namespace.name", "default"),
        ("k8s.pod.name", "traced"),
        ("k8s.pod.uid", &uid),
        ("corten.sandbox.id", &reply.pod_sandbox_id),
        ("rpc.system", "grpc"),
        ("rpc.method", "RunPodSandbox"),
    ] {
        assert_eq!(attribute(&call, key), value, "{key}");
    }
    for name in ["network", "shim_start", "infra_container"] {
        let stage = collector.wait(name, is_ours);
        assert_eq!(stage.parent_span_id, call.span_id, "{name}");
        assert_eq!(stage.kind(), SpanKind::Internal);
        assert!(stage.start_time_unix_nano <= stage.end_time_unix_nano);
        // Two clocks are read for each: a stage may seem a little longer than it was.
        let slack = 5_000_000;
        assert!(
            call.start_time_unix_nano <= stage.start_time_unix_nano + slack,
            "{name}"
        );
        assert!(stage.end_time_unix_nano <= call.end_time_unix_nano + slack, "{name}");
    }
    let network = collector.wait("network", is_ours);
    let plugin = collector.wait("cni_plugin", is_ours);
    assert_eq!(plugin.parent_span_id, network.span_id, "a stage within another");
    assert!(attribute(&plugin, "corten.stage").starts_with("CNI plugin "));

    let spans = collector.spans();
    let mut ids: Vec<_> = spans.iter().map(|(_, span)| (&span.trace_id, &span.span_id)).collect();
    ids.sort();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "ids are unique");
    let (resource, _) = &spans[0];
    let service = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name");
    let service = service.and_then(|service| service.value.as_ref()?.value.clone());
    assert_eq!(service, Some(any_value::Value::StringValue("corten-cri".to_owned())));
}

#[test]
fn containers_and_failures_are_named() {
    let node = traced("http://127.0.0.1:4317", &[]);
    let collector = listen(&node);
    let pod = node.pod("named");
    let main = pod.create(container("main", &["sleep", "1000"]));
    let call = collector.wait(&format!("{SERVICE}/CreateContainer"), |_| true);
    for (key, value) in [
        ("k8s.pod.name", "named"),
        ("k8s.container.name", "main"),
        ("container.id", &main.id),
        ("container.image.name", BUSYBOX),
    ] {
        assert_eq!(attribute(&call, key), value, "{key}");
    }
    assert!(call.parent_span_id.is_empty(), "nobody else's trace");
    collector.wait("root_filesystem", |span| span.parent_span_id == call.span_id);
    main.start();
    let call = collector.wait(&format!("{SERVICE}/StartContainer"), |_| true);
    assert_eq!(attribute(&call, "k8s.container.name"), "main");

    let container_id = main.id.clone();
    let error = node.cri.start_container(cri::StartContainerRequest { container_id });
    let message = error.unwrap_err().message().to_owned();
    let call = collector.wait(&format!("{SERVICE}/StartContainer"), |span| span.status.is_some());
    let status = call.status.clone().unwrap();
    assert_eq!(status.code(), StatusCode::Error);
    assert!(message.starts_with(&status.message), "{message}");
    assert_eq!(attribute(&call, "container.id"), main.id);
}

#[test]
fn the_caller_decides_and_without_one_the_ratio() {
    let node = traced("http://127.0.0.1:4317", &[("sample_ratio", 0.0.into())]);
    let collector = listen(&node);
    version(&node);
    let call = |flags: &str, span: &str| {
        let client = node.cri.traced(&format!("00-{TRACE}-{span}-{flags}"));
        client.version(cri::VersionRequest::default()).unwrap();
    };
    call("00", "00000000000000aa");
    call("01", "00000000000000bb");
    collector.wait(&format!("{SERVICE}/Version"), |span| {
        hex(&span.parent_span_id).ends_with("bb")
    });
    assert_eq!(collector.spans().len(), 1, "{:?}", collector.spans());
}

#[test]
fn spans_travel_by_http_too() {
    let node = traced("http://127.0.0.1:4318", &[("otlp_protocol", "http/protobuf".into())]);
    let address = ([127, 0, 0, 1], 4318).into();
    let collector = node.network.enter(|| Collector::http(address)).unwrap();
    version(&node);
    let span = collector.wait(&format!("{SERVICE}/Version"), |_| true);
    assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
    wait_for("what was taken is counted", || {
        scrape(&node).count("corten_trace_spans_sent_total", &[]) >= 1.0
    });
}

#[test]
fn the_last_spans_are_sent_at_the_end() {
    let node = traced("http://127.0.0.1:4317", &[]);
    let collector = listen(&node);
    version(&node);
    node.stop_server();
    collector.wait(&format!("{SERVICE}/Version"), |_| true);
}

/// Calls, as many as the queue cannot hold: none is held up, and how many spans were dropped is counted, some for `reason`.
fn calls_go_on(node: &Node, reason: &str) {
    let began = Instant::now();
    for _ in 0..3000 {
        version(node);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "3000 calls took {took:?}");
    wait_for("what was dropped is counted", || {
        let seen = scrape(node);
        let dropped = |reason| seen.count("corten_trace_spans_dropped_total", &[("reason", reason)]);
        dropped(reason) > 0.0 && dropped("queue_full") + dropped("not_taken") > 400.0
    });
    assert_eq!(scrape(node).count("corten_trace_spans_sent_total", &[]), 0.0);
    let resident = scrape(node).count("process_resident_memory_bytes", &[]);
    assert!(resident < f64::from(64 << 20), "{resident} bytes");
}

#[test]
fn a_collector_that_is_away_costs_no_call_anything() {
    let node = traced("http://127.0.0.1:4317", &[]);
    calls_go_on(&node, "not_taken");
    let log = node.server_log();
    let told = log.lines().filter(|line| line.contains("traces are dropped")).count();
    assert_eq!(told, 1, "once, not at each failure");
    node.stop_server();
}

#[test]
fn a_collector_that_does_not_answer_costs_no_call_anything() {
    let node = traced("http://127.0.0.1:4317", &[]);
    let _silent = node.network.enter(|| TcpListener::bind("127.0.0.1:4317")).unwrap();
    calls_go_on(&node, "queue_full");
    node.stop_server();
}
