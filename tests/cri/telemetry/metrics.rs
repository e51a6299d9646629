//! Metrics, as our own strict reader, promtool and Prometheus see them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use corten_proto::cri;
use corten_tests::exposition::Exposition;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};

use super::{METRICS, ask, measured, scrape, set, text};
use crate::lost::wait_for;

#[test]
fn calls_and_their_stages_are_measured() {
    let node = measured();
    let pod = node.pod("measured");
    let main = pod.sh("main", "sleep 1000");
    main.exec(&["true"]);
    let request = cri::ContainerStatusRequest {
        container_id: "nobody".to_owned(),
        verbose: false,
    };
    node.cri.container_status(request).unwrap_err();
    let seen = scrape(&node);
    let calls = |method, code| {
        seen.count(
            "corten_rpc_duration_seconds_count",
            &[("code", code), ("method", method)],
        )
    };
    for method in [
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "ExecSync",
        "PullImage",
    ] {
        assert_eq!(calls(method, "OK"), 1.0, "{method}");
    }
    assert_eq!(calls("ContainerStatus", "NOT_FOUND"), 1.0);
    assert_eq!(calls("ContainerStatus", "OK"), 0.0);
    assert_eq!(seen.count("corten_rpcs_in_flight", &[]), 0.0);
    let stages = |method, stage| {
        seen.count(
            "corten_stage_duration_seconds_count",
            &[("method", method), ("stage", stage)],
        )
    };
    for (method, stage, times) in [
        ("RunPodSandbox", "network", 1.0),
        ("RunPodSandbox", "cni_plugin", 2.0),
        ("RunPodSandbox", "shim_start", 1.0),
        ("RunPodSandbox", "infra_container", 1.0),
        ("RunPodSandbox", "shim_create", 1.0),
        ("CreateContainer", "root_filesystem", 1.0),
        ("CreateContainer", "host_paths", 1.0),
        ("CreateContainer", "shim_create", 1.0),
        ("StartContainer", "shim_start_container", 1.0),
        ("ExecSync", "shim_exec", 1.0),
        ("PullImage", "manifest", 1.0),
        ("PullImage", "layers", 1.0),
    ] {
        assert_eq!(stages(method, stage), times, "{method} {stage}");
    }
    let all = seen.values("corten_stage_duration_seconds_count", "stage");
    assert!(!all.contains("other"), "every stage has a name: {all:?}");
    // The stages of a call are within it.
    let of = |name, labels: &[(&str, &str)]| seen.get(name, labels).unwrap();
    let whole = of(
        "corten_rpc_duration_seconds_sum",
        &[("code", "OK"), ("method", "RunPodSandbox")],
    );
    let part = of(
        "corten_stage_duration_seconds_sum",
        &[("method", "RunPodSandbox"), ("stage", "network")],
    );
    assert!(0.0 < part && part < whole, "{part} of {whole} s");
}

#[test]
fn the_node_and_the_process_are_shown_as_they_are() {
    let node = measured();
    let pod = node.pod("gauges");
    let [main, done] = [("main", "sleep 1000"), ("done", "exit 3")].map(|(name, script)| pod.sh(name, script));
    done.wait_exit();
    pod.create(container("waits", &["true"]));
    let seen = scrape(&node);
    let state = |name, state| seen.get(name, &[("state", state)]);
    assert_eq!(state("corten_sandboxes", "ready"), Some(1.0));
    assert_eq!(state("corten_sandboxes", "not_ready"), Some(0.0));
    for name in ["running", "exited", "created"] {
        assert_eq!(state("corten_containers", name), Some(1.0), "{name}");
    }
    assert_eq!(
        seen.get("corten_container_exits_total", &[("reason", "Error")]),
        Some(1.0)
    );
    assert_eq!(seen.get("corten_images", &[]), Some(1.0));
    assert!(seen.count("corten_storage_used_bytes", &[("kind", "layers")]) > 1e5);
    assert_eq!(
        seen.get("corten_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
        Some(1.0)
    );

    let resident = seen.count("process_resident_memory_bytes", &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", node.server_pid())).unwrap();
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    assert!(
        (0.5..2.0).contains(&(resident / (kib * 1024.0))),
        "{resident} of {kib} KiB"
    );
    let open = fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap().count();
    let counted = seen.count("process_open_fds", &[]);
    assert!((counted - open as f64).abs() < 8.0, "{counted} of {open}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - seen.count("process_start_time_seconds", &[]);
    assert!((-2.0..120.0).contains(&age), "{age} s old");
    assert!(seen.count("process_cpu_seconds_total", &[]) > 0.0 && seen.count("process_threads", &[]) > 1.0);

    let listener = node.cri.listen().unwrap();
    assert_eq!(scrape(&node).get("corten_event_subscribers", &[]), Some(1.0));
    drop(listener);
    main.stop(0);
    pod.remove();
    wait_for("the sandbox and the subscriber are counted", || {
        let seen = scrape(&node);
        seen.get("corten_sandboxes", &[("state", "ready")]) == Some(0.0)
            && seen.get("corten_event_subscribers", &[]) == Some(0.0)
    });
}

#[test]
fn pulls_are_counted_by_what_became_of_them() {
    let node = measured();
    node.pull(BUSYBOX);
    node.pull(BUSYBOX);
    let request = cri::PullImageRequest {
        image: Some(image("127.0.0.1:5000/none:latest")),
        ..Default::default()
    };
    node.cri.pull_image(request).unwrap_err();
    let request = cri::PullImageRequest {
        image: Some(image("127.0.0.1:1/none:latest")),
        ..Default::default()
    };
    node.cri.pull_image(request).unwrap_err();
    let seen = scrape(&node);
    let pulls = |result| seen.get("corten_pulls_total", &[("result", result)]);
    for (result, count) in [("done", 2.0), ("not_found", 1.0), ("unreachable", 1.0), ("denied", 0.0)] {
        assert_eq!(pulls(result), Some(count), "{result}");
    }
    assert_eq!(seen.get("corten_pulls_in_flight", &[]), Some(0.0));
    assert_eq!(seen.get("corten_pull_duration_seconds_count", &[]), Some(2.0));
    assert_eq!(
        seen.get("corten_pull_layers_total", &[("source", "registry")]),
        Some(1.0)
    );
    assert_eq!(seen.get("corten_pull_layers_total", &[("source", "here")]), Some(1.0));
    let packed: u64 = fs::read_dir(node.dir().join("images/blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .max()
        .unwrap();
    let received = seen.get("corten_pull_received_bytes_total", &[]);
    assert_eq!(received, Some(packed as f64), "the layer, and once");
}

#[test]
fn what_a_restart_finds_and_removes_is_counted() {
    let node = measured();
    let pod = node.pod("lost");
    let removed = |node: &Node| scrape(node).values("corten_leftovers_removed_total", "kind").len();
    assert_eq!(removed(&node), 5, "all kinds are there from the start");
    node.kill_server();
    fs::write(node.dir().join(format!("lib/sandboxes/{}.json", pod.id)), "{ not json").unwrap();
    node.launch().unwrap();
    let seen = scrape(&node);
    for (kind, count) in [("record", 1.0), ("sandbox", 1.0), ("network", 0.0)] {
        let found = seen.get("corten_leftovers_removed_total", &[("kind", kind)]);
        assert_eq!(found, Some(count), "{kind}");
    }
}

#[test]
fn a_unix_socket_is_for_root_alone_and_goes_with_the_server() {
    let node = Node::with(|config| {
        let path = format!("{}/metrics.sock", config["state"].as_str().unwrap());
        set(config, "metrics", &[("listen", path.into())]);
    });
    let path = node.dir().join("run/metrics.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let stream = UnixStream::connect(&path).unwrap();
    let (_head, body) = ask(stream, "GET /metrics HTTP/1.0\r\n\r\n");
    Exposition::parse(&body).unwrap();
    node.kill_server();
    assert!(path.exists(), "a killed server leaves it");
    node.launch().expect("and the next one takes it over");
    node.stop_server();
    assert!(!path.exists());
}

#[test]
fn nothing_listens_unless_it_is_configured() {
    let node = Node::start();
    let connected = node.network.enter(|| std::net::TcpStream::connect(METRICS));
    connected.expect_err("nobody is there");
    assert!(!node.server_log().contains("serving metrics"));
}

#[test]
fn an_address_that_is_taken_is_an_error_that_names_it() {
    let node = measured();
    let config = fs::read_to_string(node.dir().join("config.toml")).unwrap();
    let other = node.dir().join("other.toml");
    fs::write(&other, config.replace("/lib\"", "/lib2\"").replace("/run", "/run2")).unwrap();
    let mut command = Command::new(corten_tests::binary("corten-cri"));
    command.arg("--config").arg(&other);
    let output = node.network.enter(|| command.output().unwrap());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && stderr.contains(METRICS), "{stderr}");
}

#[test]
fn promtool_has_nothing_to_say() {
    let node = measured();
    let pod = node.pod("linted");
    pod.sh("main", "exit 0").wait_exit();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text(&node).as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A failure means that it is gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn prometheus_scrapes_and_answers() {
    let node = measured();
    let _pod = node.pod("scraped");
    let data = tempfile::tempdir().unwrap();
    let config = data.path().join("prometheus.yml");
    let jobs = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: corten\n  static_configs:\n  - targets: ['{METRICS}']\n"
    );
    fs::write(&config, jobs).unwrap();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", data.path().join("tsdb").display()))
        .arg("--web.listen-address=127.0.0.1:9090")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _prometheus = Running(node.network.enter(|| command.spawn()).expect("prometheus, of Debian"));
    let ask_it = |path: &str| {
        let stream = node.network.enter(|| std::net::TcpStream::connect("127.0.0.1:9090"));
        let Ok(stream) = stream else { return String::new() };
        ask(stream, &format!("GET {path} HTTP/1.0\r\n\r\n")).1
    };
    let query = |expression: &str| ask_it(&format!("/api/v1/query?query={expression}"));
    wait_for("Prometheus has the sandbox", || {
        query("corten_sandboxes{state=\"ready\"}")
            .replace(' ', "")
            .contains(",\"1\"]")
    });
    assert!(query("up").contains(",\"1\"]"), "{}", query("up"));
    let targets = ask_it("/api/v1/targets");
    assert!(
        targets.contains("\"health\":\"up\"") && targets.contains("\"lastError\":\"\""),
        "{targets}"
    );
    let metadata = ask_it("/api/v1/metadata?metric=corten_rpc_duration_seconds");
    assert!(metadata.contains("\"type\":\"histogram\""), "{metadata}");
    let quantile = query("histogram_quantile(0.5,corten_rpc_duration_seconds_bucket{method=\"RunPodSandbox\"})");
    assert!(quantile.contains("RunPodSandbox"), "{quantile}");
}
