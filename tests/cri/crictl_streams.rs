//! crictl's commands that stay connected: exec, attach, port-forward and events; over SPDY and over WebSocket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use corten_tests::node::Node;
use corten_tests::pod::container;

/// The transports of crictl's streaming commands.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

#[test]
fn exec_sync() {
    let node = Node::start();
    let pod = node.pod("exec-sync");
    let main = pod.sh("main", "sleep 1000");
    let printed = node.crictl(&["exec", "--sync", &main.id, "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(printed, "out\n\nerr\n\n", "each stream with a line break of crictl's");
    let failed = node.crictl_output(&["exec", "--sync", &main.id, "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(1), "crictl's own: {failed:?}");
    let slow = node.crictl_output(&["exec", "--sync", "--timeout", "1", &main.id, "sleep", "1000"]);
    assert!(String::from_utf8_lossy(&slow.stderr).contains("DeadlineExceeded"));
}

#[test]
fn exec_with_and_without_stdin() {
    let node = Node::start();
    let pod = node.pod("exec");
    let main = pod.sh("main", "sleep 1000");
    let id = main.id.as_str();
    for transport in TRANSPORTS {
        let exec = ["exec", "--transport", transport];
        let output = node.crictl_output(&[&exec[..], &[id, "sh", "-c", "echo out; echo err >&2"]].concat());
        let streams = (output.stdout.as_slice(), output.stderr.as_slice());
        assert_eq!(streams, (&b"out\n"[..], &b"err\n"[..]), "{transport}");
        assert!(output.status.success(), "{transport}");
        // The end of the input has to arrive, or cat stays.
        let echoed = node.crictl_with_input(&[&exec[..], &["-i", id, "cat"]].concat(), "typed\nin\n");
        assert_eq!(echoed, "typed\nin\n", "{transport}");
        let failed = node.crictl_output(&[&exec[..], &[id, "sh", "-c", "exit 7"]].concat());
        let complaint = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success(), "{transport}");
        assert!(complaint.contains("exit code 7"), "{transport}: {complaint}");
    }
}

#[test]
fn exec_at_a_terminal() {
    let node = Node::start();
    let pod = node.pod("exec-tty");
    let main = pod.sh("main", "sleep 1000");
    for transport in TRANSPORTS {
        let mut shell = node.crictl_at_a_terminal(&["exec", "--transport", transport, "-it", &main.id, "sh"]);
        shell.type_in("tty; echo $((40 + 2))\n");
        shell.wait_for("/dev/pts/");
        shell.wait_for("42");
        shell.type_in("exit\n");
        assert!(shell.wait().success(), "{transport}: {}", shell.printed());
    }
    let without = node.crictl_output(&["exec", &main.id, "tty"]);
    assert_eq!(without.stdout, b"not a tty\n", "only where one is asked for");
}

#[test]
fn attach() {
    let node = Node::start();
    let pod = node.pod("attach");
    for transport in TRANSPORTS {
        let mut config = container(transport, &["cat"]);
        config.stdin = true;
        config.stdin_once = true;
        let cat = pod.start(config);
        let printed = node.crictl_with_input(&["attach", "--transport", transport, "-i", &cat.id], "to cat\n");
        assert_eq!(printed, "to cat\n", "{transport}");
        assert_eq!(
            cat.wait_exit().exit_code,
            0,
            "its input ended with the client's: {transport}"
        );
        assert_eq!(cat.output("stdout"), "to cat\n", "the log has it too: {transport}");
    }
}

#[test]
fn attach_at_a_terminal() {
    let node = Node::start();
    let pod = node.pod("attach-tty");
    let mut config = container("main", &["sh"]);
    config.stdin = true;
    config.tty = true;
    let shell = pod.start(config);
    let mut terminal = node.crictl_at_a_terminal(&["attach", "-it", &shell.id]);
    terminal.type_in("echo $((40 + 2))\n");
    terminal.wait_for("42");
    terminal.type_in("exit 5\n");
    terminal.wait();
    assert_eq!(shell.wait_exit().exit_code, 5);
}

#[test]
fn port_forward() {
    let node = Node::start();
    let pod = node.pod("forward");
    let server = "mkdir /www; echo 'from the pod' >/www/index.html; echo ready; exec httpd -f -p 80 -h /www";
    let main = pod.sh("main", server);
    main.wait_output("ready");
    for (transport, port) in TRANSPORTS.into_iter().zip(18080..) {
        let ports = format!("{port}:80");
        let forward = node.crictl_start(&["port-forward", "--transport", transport, &pod.id, &ports]);
        forward.wait_for(&format!("Forwarding from 127.0.0.1:{port} -> 80"));
        // Twice: a connection's end is not the forwarding's.
        for _ in 0..2 {
            let reply = node.network.enter(|| get(port));
            assert!(reply.contains("from the pod"), "{transport}: {reply}");
        }
    }
}

/// An HTTP reply from this port of loopback.
fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn events() {
    let node = Node::start();
    let pod = node.pod("events");
    let events = node.crictl_start(&["events"]);
    // Nothing tells when it listens: containers come and go until it has heard of one.
    for attempt in 0.. {
        assert!(attempt < 50, "no event after {attempt} containers");
        pod.create(container(&format!("early-{attempt}"), &["true"])).remove();
        if events.printed().contains("CONTAINER_DELETED_EVENT") {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let main = pod.sh("main", "sleep 1000");
    main.stop(0);
    main.remove();
    let expected = ["CREATED", "STARTED", "STOPPED", "DELETED"].map(|kind| format!("CONTAINER_{kind}_EVENT"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = Vec::new();
    while heard.last() != expected.last() {
        assert!(Instant::now() < deadline, "no end in {heard:?}: {}", events.printed());
        thread::sleep(Duration::from_millis(10));
        heard = events_of(&events.printed(), &main.id);
    }
    assert_eq!(heard, expected, "each once and in order");
}

/// The kinds of the events that concern a container, in their order; the last document may be half printed.
fn events_of(printed: &str, id: &str) -> Vec<String> {
    let documents = serde_json::Deserializer::from_str(printed).into_iter::<serde_json::Value>();
    documents
        .map_while(Result::ok)
        .filter(|event| event["containerId"] == id)
        .map(|event| event["containerEventType"].as_str().unwrap_or_default().to_owned())
        .collect()
}
