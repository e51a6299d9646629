//! The same streams by crictl, whose SPDY and WebSocket are Kubernetes' own: both transports, many connections at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use corten_tests::node::Node;
use corten_tests::pod::Pod;
use corten_tests::stream::echo;
use sha2::{Digest, Sha256};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
/// Connections through one port-forward at once.
const CONNECTIONS: usize = 100;
/// Bytes that each sends and gets back.
const BYTES: usize = 256 << 10;

/// crictl, as hack/test.sh builds it.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test
        .ancestors()
        .map(|dir| dir.join("tools/crictl"))
        .find(|path| path.exists());
    found.expect("no target/tools/crictl: hack/test.sh builds it")
}

fn crictl(node: &Node, arguments: &[&str]) -> Command {
    let config = node.dir().join("crictl.yaml");
    std::fs::write(&config, "").unwrap();
    let endpoint = format!("unix://{}", node.dir().join("run/corten.sock").display());
    let mut command = Command::new(program());
    command
        .arg("--config")
        .arg(config)
        .args(["--runtime-endpoint", &endpoint])
        .args(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it with `input` to its end.
fn run(node: &Node, arguments: &[&str], input: Vec<u8>) -> Output {
    let mut child = node.network.enter(|| crictl(node, arguments).spawn()).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Not all of it may be wanted.
    let writing = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exec_by_both_transports() {
    let node = Node::start();
    let pod = node.pod("exec");
    let container = pod.sh("main", "sleep 1000");
    for transport in TRANSPORTS {
        let exec = |flags: &str, script: &str, input: &[u8]| {
            let arguments = ["exec", "-r", transport, flags, &container.id, "sh", "-c", script];
            run(&node, &arguments, input.to_vec())
        };
        let output = exec("-i=false", "echo out; echo err >&2; exit 42", b"");
        assert_eq!(
            (text(&output.stdout), output.status.success()),
            ("out\n".into(), false),
            "{transport}"
        );
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("err\n") && stderr.contains("42"),
            "{transport}: {stderr}"
        );
        let input = vec![b'x'; 4 << 20];
        let output = exec("-i", "cat | sha256sum", &input);
        let sum: String = Sha256::digest(&input)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            text(&output.stdout),
            format!("{sum}  -\n"),
            "{transport}: {}",
            text(&output.stderr)
        );
        let output = exec("-i", "cat", &input);
        assert!(output.stdout == input, "{transport}: {} bytes", output.stdout.len());
    }
}

/// A forward in progress; crictl ends with it.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(node: &Node, pod: &Pod<'_>, transport: &str, to: u16) -> Forward {
        let ports = format!(":{to}");
        let arguments = ["port-forward", "-r", transport, &pod.id, &ports];
        let mut child = node.network.enter(|| crictl(node, &arguments).spawn()).unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // Forwarding from 127.0.0.1:PORT -> TO
        printed.read_line(&mut line).unwrap();
        let port = line.split([':', ' ']).find_map(|word| word.parse().ok());
        let port = port.unwrap_or_else(|| panic!("{transport}: {line:?}"));
        thread::spawn(move || drop(printed.read_to_end(&mut Vec::new())));
        Forward { child, port }
    }

    fn connect(&self, node: &Node) -> TcpStream {
        node.network
            .enter(|| TcpStream::connect(("127.0.0.1", self.port)))
            .unwrap()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It serves until it is told.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends `BYTES` of its own and compares what comes back.
fn round_trip(mut stream: TcpStream, number: usize) {
    let sent: Vec<u8> = (0..BYTES)
        .map(|at| u8::try_from((at * 31 + number * 7) % 251).unwrap())
        .collect();
    let mut writer = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == sent, "connection {number}: {} bytes", received.len());
}

#[test]
fn a_hundred_connections_at_once() {
    let node = Node::start();
    let pod = node.pod("forward");
    let serving = echo(&node, &pod, 7777, TRANSPORTS.len() * CONNECTIONS).unwrap();
    for transport in TRANSPORTS {
        let forward = Forward::start(&node, &pod, transport, 7777);
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| forward.connect(&node)).collect();
        thread::scope(|scope| {
            for (number, stream) in streams.into_iter().enumerate() {
                scope.spawn(move || round_trip(stream, number));
            }
        });
    }
    serving.join().unwrap();
}

#[test]
fn a_port_without_a_listener_says_so() {
    let node = Node::start();
    let pod = node.pod("refused");
    for transport in TRANSPORTS {
        let mut forward = Forward::start(&node, &pod, transport, 9);
        // Closed or reset, as the client does it; it ends itself by that.
        drop(forward.connect(&node).read_to_end(&mut Vec::new()));
        let mut complaint = String::new();
        let mut stderr = BufReader::new(forward.child.stderr.take().unwrap());
        while !complaint.contains("port 9: connect to 127.0.0.1:9 in the pod's network: Connection refused") {
            let read = stderr.read_line(&mut complaint).unwrap();
            assert!(read > 0, "{transport}: {complaint}");
        }
    }
}
