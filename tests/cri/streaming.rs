//! Exec, Attach and PortForward by a client of our own: what kubectl and crictl do not show.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use corten_tests::node::Node;
use corten_tests::pod::{Container, container, is_alive};
use corten_tests::stream::{ERROR, RESIZE, STDERR, STDIN, STDOUT, Stream, connect, echo, echo_at, http};
use sha2::{Digest, Sha256};
use tonic::Code;

pub(crate) const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// A request with all streams and no terminal.
pub(crate) fn exec_request(container: &Container<'_>, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

pub(crate) fn exec(node: &Node, container: &Container<'_>, script: &str, protocol: &str) -> Stream {
    open(node, exec_request(container, script), protocol)
}

pub(crate) fn open(node: &Node, request: ExecRequest, protocol: &str) -> Stream {
    let url = node.cri.exec(request).expect("Exec").url;
    Stream::open(node, &url, protocol).expect("upgrade")
}

/// How many processes of the machine have this argument.
pub(crate) fn running(argument: &str) -> usize {
    let has = |directory: fs::DirEntry| {
        let command = fs::read(directory.path().join("cmdline")).unwrap_or_default();
        command.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(has)
        .filter(|&has| has)
        .count()
}

/// An argument of sleep(1) that no other process has.
pub(crate) fn long_time(digit: u8) -> String {
    format!("{digit}{:07}.5", std::process::id())
}

/// Descriptors that the server has open.
pub(crate) fn descriptors(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap().count()
}

/// Waits until `found` is `wanted`.
#[track_caller]
pub(crate) fn wait_until<T: PartialEq + std::fmt::Debug>(wanted: &T, found: impl Fn() -> T) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = found();
        if now == *wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?}, not {wanted:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A request for one port.
pub(crate) fn forward_request(pod: &str, port: i32) -> PortForwardRequest {
    PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: vec![port],
    }
}

/// Each refusal's code, and what its message holds.
fn assert_refused(table: impl IntoIterator<Item = (Result<(), tonic::Status>, Code, &'static str)>) {
    for (answer, code, text) in table {
        let status = answer.expect_err(text);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
}

#[test]
fn an_exec_that_cannot_be_is_refused() {
    let node = Node::start();
    let pod = node.pod("refused");
    let container = pod.sh("main", "sleep 1000");
    let created = pod.create(corten_tests::pod::container("created", &["true"]));
    let exec = |change: &dyn Fn(&mut ExecRequest)| {
        let mut request = exec_request(&container, "true");
        change(&mut request);
        node.cri.exec(request).map(drop)
    };
    assert_refused([
        (exec(&|it| it.cmd.clear()), Code::InvalidArgument, "cmd"),
        (
            exec(&|it| (it.stdin, it.stdout, it.stderr) = (false, false, false)),
            Code::InvalidArgument,
            "stdout",
        ),
        (exec(&|it| it.tty = true), Code::InvalidArgument, "stderr"),
        (exec(&|it| it.container_id = "none".into()), Code::NotFound, "none"),
        (
            exec(&|it| it.container_id.clone_from(&created.id)),
            Code::FailedPrecondition,
            "CREATED",
        ),
    ]);
}

#[test]
fn an_attach_or_a_forward_that_cannot_be_is_refused() {
    let node = Node::start();
    let pod = node.pod("refused");
    let container = pod.sh("main", "sleep 1000");
    let created = pod.create(corten_tests::pod::container("created", &["true"]));
    let attach = |stdin, id: &str| {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin,
            stdout: true,
            ..Default::default()
        };
        node.cri.attach(request).map(drop)
    };
    let forward = |id: &str, port: &[i32]| {
        let request = PortForwardRequest {
            pod_sandbox_id: id.to_owned(),
            port: port.to_vec(),
        };
        node.cri.port_forward(request).map(drop)
    };
    assert_refused([
        (attach(true, &container.id), Code::InvalidArgument, "stdin"),
        (attach(false, &created.id), Code::FailedPrecondition, "CREATED"),
        (attach(false, "none"), Code::NotFound, "none"),
        (forward("none", &[]), Code::NotFound, "none"),
        (forward(&pod.id, &[70000]), Code::InvalidArgument, "port"),
    ]);
    pod.stop();
    assert_refused([(forward(&pod.id, &[]), Code::FailedPrecondition, "SANDBOX_NOTREADY")]);
}

#[test]
fn a_token_is_good_once_and_never_logged() {
    let node = Node::with(|config| {
        config.insert(
            "log".into(),
            toml::Value::Table([("level".into(), "trace".into())].into_iter().collect()),
        );
    });
    let pod = node.pod("token");
    let container = pod.sh("main", "sleep 1000");
    let url = node.cri.exec(exec_request(&container, "echo once")).unwrap().url;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let plain = http(&node, &url.replace("/exec/", "/attach/"), "").unwrap();
    assert!(plain.starts_with("HTTP/1.1 404"), "{plain}");
    assert_eq!(Stream::open(&node, &url, V5).unwrap().rest().text(STDOUT), "once\n");
    let again = http(&node, &url, "").unwrap();
    assert!(again.starts_with("HTTP/1.1 404"), "{again}");
    let token = url.rsplit('/').next().unwrap();
    assert!(!node.server_log().contains(token));
    let base = url.strip_suffix(token).unwrap();
    for wrong in ["", "0", "../..", "%00"] {
        let answer = http(&node, &format!("{base}{wrong}"), "").unwrap();
        assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
    }
}

#[test]
fn requests_that_are_not_upgraded() {
    let node = Node::start();
    let pod = node.pod("upgrade");
    let container = pod.sh("main", "sleep 1000");
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let table = [
        (String::new(), "HTTP/1.1 400", "upgrade"),
        (spdy.to_owned(), "HTTP/1.1 403", "v4.channel.k8s.io"),
        (
            format!("{spdy}X-Stream-Protocol-Version: v9\r\n"),
            "HTTP/1.1 403",
            "x-accepted-stream-protocol-versions",
        ),
        (
            "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(),
            "HTTP/1.1 400",
            "",
        ),
    ];
    for (head, status, text) in table {
        let url = node.cri.exec(exec_request(&container, "true")).unwrap().url;
        let answer = http(&node, &url, &head).unwrap();
        assert!(answer.starts_with(status) && answer.contains(text), "{head}: {answer}");
    }
    let url = node.cri.exec(exec_request(&container, "true")).unwrap().url;
    let answer = http(&node, &url, &format!("X: {}\r\n", "x".repeat(64 << 10)));
    assert!(answer.is_err() || answer.unwrap().starts_with("HTTP/1.1 431"));
}

#[test]
fn output_exit_codes_and_the_end_of_input() {
    let node = Node::start();
    let pod = node.pod("codes");
    let container = pod.sh("main", "sleep 1000");
    for protocol in [V5, V4] {
        let received = exec(&node, &container, "echo out; echo err >&2; exit 42", protocol).rest();
        assert_eq!(
            (received.text(STDOUT), received.text(STDERR)),
            ("out\n".into(), "err\n".into())
        );
        let status = received.status();
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        assert_eq!(status["details"]["causes"][0]["message"], "42");
        let status = exec(&node, &container, "true", protocol).rest().status();
        assert_eq!(status["status"], "Success", "{status}");
    }
    // v5 closes one channel; the command reads the end of its input.
    let mut stream = exec(&node, &container, "cat; echo end", V5);
    stream.send(STDIN, b"input\n");
    stream.send(255, &[STDIN]);
    assert_eq!(stream.rest().text(STDOUT), "input\nend\n");
    // Before v4 it is text, and nothing where all is well.
    assert_eq!(
        exec(&node, &container, "exit 3", "").rest().text(ERROR),
        "command terminated with exit code 3"
    );
    assert_eq!(exec(&node, &container, "true", "channel.k8s.io").rest().text(ERROR), "");
    let request = ExecRequest {
        cmd: vec!["/none".into()],
        ..exec_request(&container, "")
    };
    let status = open(&node, request, V5).rest().status();
    assert_eq!(status["reason"], "InternalError", "{status}");
    assert!(status["message"].as_str().unwrap().contains("/none"), "{status}");
}

#[test]
fn megabytes_come_back_as_they_went() {
    let node = Node::start();
    let pod = node.pod("bytes");
    let container = pod.sh("main", "sleep 1000");
    let mut stream = exec(
        &node,
        &container,
        "sha256sum; head -c 8388608 /dev/zero | sha256sum",
        V5,
    );
    let piece: Vec<u8> = (0..=255u8).cycle().take(64 << 10).collect();
    let mut sum = Sha256::new();
    for _ in 0..128 {
        stream.send(STDIN, &piece);
        sum.update(&piece);
    }
    stream.send(255, &[STDIN]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sent = hex(&sum.finalize());
    assert!(stream.rest().text(STDOUT).starts_with(&sent));
    let received = exec(&node, &container, "head -c 8388608 /dev/zero", V5).rest();
    let zeros = &received.channels[usize::from(STDOUT)];
    assert_eq!(
        (zeros.len(), hex(&Sha256::digest(zeros))),
        (8 << 20, hex(&Sha256::digest(vec![0; 8 << 20])))
    );
}

#[test]
fn a_terminal_has_a_size_and_hangs_up() {
    let node = Node::start();
    let pod = node.pod("terminal");
    let container = pod.sh("main", "sleep 1000");
    let script = "trap 'echo resized' WINCH; trap 'echo hup > /tmp/hup; exit' HUP; echo ready $$; \
                  read line; stty size; while :; do sleep 0.1; done";
    let request = ExecRequest {
        tty: true,
        stderr: false,
        ..exec_request(&container, script)
    };
    let mut stream = open(&node, request, V5);
    stream.wait_for(STDOUT, "ready");
    stream.send(RESIZE, br#"{"Width":123,"Height":45}"#);
    stream.send(STDIN, b"go\n");
    stream.wait_for(STDOUT, "45 123");
    stream.vanish();
    wait_until(&"hup\n".to_owned(), || {
        container.exec_sh("cat /tmp/hup 2>/dev/null || :")
    });
}

#[test]
fn what_others_hold_open_is_not_waited_for() {
    let node = Node::start();
    let pod = node.pod("orphan");
    let container = pod.sh("main", "sleep 1000");
    let received = exec(&node, &container, "sleep 600 & echo done", V5).rest();
    assert_eq!(received.text(STDOUT), "done\n");
    assert_eq!(received.status()["status"], "Success");
}

#[test]
fn attached_clients_come_and_go() {
    let node = Node::start();
    let pod = node.pod("attach");
    let mut config = container(
        "main",
        &["sh", "-c", "while read line; do echo got $line; done; echo end"],
    );
    config.stdin = true;
    config.stdin_once = true;
    let container = pod.start(config);
    let attach = |stdin| {
        let request = AttachRequest {
            container_id: container.id.clone(),
            stdin,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let mut stream = Stream::open(&node, &node.cri.attach(request).expect("Attach").url, V5).expect("upgrade");
        // The first message says that it is attached.
        assert_eq!(stream.receive(), Some((STDOUT, vec![])));
        stream
    };
    let mut watcher = attach(false);
    attach(false).vanish();
    let mut stream = attach(true);
    stream.send(STDIN, b"one\n");
    stream.wait_for(STDOUT, "got one");
    watcher.wait_for(STDOUT, "got one");
    let pid = container.pid();
    assert!(is_alive(pid));
    // stdin_once: the end of the first client's input is the container's.
    stream.send(255, &[STDIN]);
    assert_eq!(stream.rest().text(STDOUT), "end\n");
    assert_eq!(watcher.rest().text(STDOUT), "end\n");
    assert_eq!(container.wait_exit().exit_code, 0);
}

#[test]
fn ports_of_a_websocket() {
    let node = Node::start();
    let pod = node.pod("ports");
    let serving = echo(&node, &pod, 7777, 1).unwrap();
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![],
    };
    let url = || node.cri.port_forward(request.clone()).expect("PortForward").url;
    let none = Stream::open(&node, &url(), V4);
    assert!(none.err().unwrap().to_string().contains("400"));
    let mut stream = Stream::open(&node, &format!("{}?port=7777&port=7778", url()), V4).unwrap();
    let mut ports = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    stream.send(0, b"hello");
    while ports[0].len() < 7 || !String::from_utf8_lossy(&ports[3]).contains("refused") {
        let (channel, bytes) = stream.receive().expect("still open");
        ports[usize::from(channel)].extend_from_slice(&bytes);
    }
    assert_eq!(ports[0], b"\x61\x1ehello");
    assert_eq!((&ports[1][..], &ports[2][..]), (&b"\x61\x1e"[..], &b"\x62\x1e"[..]));
    assert!(String::from_utf8_lossy(&ports[3][2..]).starts_with("port 7778: "));
    stream.vanish();
    serving.join().unwrap();
}

#[test]
fn a_server_that_ends_takes_its_sessions_along() {
    let node = Node::start();
    let pod = node.pod("ending");
    let container = pod.sh("main", "sleep 1000");
    let time = long_time(3);
    let mut stream = exec(&node, &container, &format!("echo ready; sleep {time}"), V5);
    stream.wait_for(STDOUT, "ready");
    let idle = connect(&node, &node.cri.exec(exec_request(&container, "true")).unwrap().url).unwrap();
    let waiting = thread::spawn(move || stream.rest());
    node.stop_server();
    let status = waiting.join().unwrap().status();
    assert!(status["message"].as_str().unwrap().contains("ending"), "{status}");
    drop(idle);
    node.launch().unwrap();
    assert_eq!(running(&time), 0);
}

/// A server may listen at the pod's `[::1]` alone.
#[test]
fn ports_of_ipv6() {
    let node = Node::start();
    let pod = node.pod("ipv6");
    let serving = echo_at(&node, &pod, "[::1]:7777".parse().unwrap(), 1).unwrap();
    let url = node
        .cri
        .port_forward(forward_request(&pod.id, 7777))
        .expect("PortForward")
        .url;
    let mut stream = Stream::open(&node, &url, V4).unwrap();
    stream.send(0, b"six");
    assert!(stream.wait_for(0, "six").ends_with("six"));
    serving.join().unwrap();
    // Where nobody listens at all, it is IPv4 that is told.
    let url = node
        .cri
        .port_forward(forward_request(&pod.id, 7778))
        .expect("PortForward")
        .url;
    let said = Stream::open(&node, &url, V4).unwrap().wait_for(1, "refused");
    assert!(said.contains("port 7778: connect to 127.0.0.1:7778"), "{said:?}");
}

/// A pod on the node's own network is reached there.
#[test]
fn ports_of_the_node() {
    let node = Node::start();
    node.pull(corten_tests::node::BUSYBOX);
    let mut config = node.pod_config("host-ports");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context
        .namespace_options
        .as_mut()
        .unwrap()
        .set_network(corten_proto::cri::NamespaceMode::Node);
    let pod = node.run_pod(config);
    let listener = node.network.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut bytes = [0; 2];
        peer.read_exact(&mut bytes).unwrap();
        peer.write_all(&bytes).unwrap();
    });
    let request = forward_request(&pod.id, port.into());
    let url = node.cri.port_forward(request).expect("PortForward").url;
    let mut stream = Stream::open(&node, &url, V4).unwrap();
    stream.send(0, b"hi");
    assert!(stream.wait_for(0, "hi").ends_with("hi"));
    serving.join().unwrap();
}
