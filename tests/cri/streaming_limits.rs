//! What a client of the streaming server can cost: one that vanishes, does not read, does not open its streams, or sends
//! what nobody takes.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use corten_proto::cri::ExecRequest;
use corten_tests::node::Node;
use corten_tests::spdy::Spdy;
use corten_tests::stream::{STDIN, STDOUT, Stream, connect};

use crate::streaming::{V5, descriptors, exec, exec_request, forward_request, long_time, open, running, wait_until};

/// What one connection may add to the server's memory, in KiB: 4 MiB of bytes that wait, and some 4 KiB for each of its
/// 2048 streams.
const CONNECTION_KIB: u64 = 16 << 10;

/// A node on which a session may be idle for a second.
fn impatient() -> Node {
    Node::with(|config| {
        let table = [("idle_timeout_s".to_owned(), toml::Value::Integer(1))];
        config.insert("streaming".into(), toml::Value::Table(table.into_iter().collect()));
    })
}

/// A line of the server's memory, in KiB.
fn memory(node: &Node, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.server_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':')
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap()
}

/// By how much the server's memory has grown at most while `work` was done.
fn growth(node: &Node, work: impl FnOnce()) -> u64 {
    // Forgets the peak so far.
    fs::write(format!("/proc/{}/clear_refs", node.server_pid()), "5").unwrap();
    let before = memory(node, "VmRSS");
    work();
    let growth = memory(node, "VmHWM").saturating_sub(before);
    println!("the server has grown by {growth} KiB");
    growth
}

#[test]
fn clients_that_vanish_leave_nothing() {
    let node = Node::start();
    let pod = node.pod("vanish");
    let container = pod.sh("main", "sleep 1000");
    exec(&node, &container, "true", V5).rest();
    let (before, time) = (descriptors(&node), long_time(2));
    for round in 0..20 {
        let script = format!("trap '' HUP PIPE; echo pid $$; sleep {time} & wait");
        let request = ExecRequest {
            tty: round % 2 == 1,
            stderr: false,
            ..exec_request(&container, &script)
        };
        let mut stream = open(&node, request, V5);
        stream.wait_for(STDOUT, "pid");
        stream.vanish();
    }
    wait_until(&0, || running(&time));
    wait_until(&true, || descriptors(&node) <= before);
    assert_eq!(fs::read_dir(node.dir().join("run/consoles")).unwrap().count(), 0);
}

#[test]
fn a_client_that_vanishes_behind_full_input_takes_its_command_along() {
    let node = Node::start();
    let pod = node.pod("full");
    let container = pod.sh("main", "sleep 1000");
    exec(&node, &container, "true", V5).rest();
    let (before, time) = (descriptors(&node), long_time(4));
    let mut stream = exec(&node, &container, &format!("echo unread; sleep {time}"), V5);
    wait_until(&1, || running(&time));
    stream.fill(STDIN);
    // What it has not read makes this a break, not an end that would wait behind its input.
    stream.vanish();
    wait_until(&0, || running(&time));
    wait_until(&true, || descriptors(&node) <= before);
}

#[test]
fn a_session_in_which_nothing_moves_is_ended() {
    let node = impatient();
    let pod = node.pod("idle");
    let container = pod.sh("main", "sleep 1000");
    let status = exec(&node, &container, "sleep 3000", V5).rest().status();
    assert!(
        status["message"].as_str().unwrap().contains("idle_timeout_s"),
        "{status}"
    );
}

#[test]
fn a_client_that_does_not_read_is_let_go_when_nothing_moves() {
    let node = impatient();
    let pod = node.pod("unread");
    let container = pod.sh("main", "sleep 1000");
    exec(&node, &container, "true", V5).rest();
    let (before, word) = (descriptors(&node), long_time(5));
    let stream = exec(&node, &container, &format!("exec /bin/yes {word}"), V5);
    wait_until(&1, || running(&word));
    assert!(descriptors(&node) > before);
    wait_until(&0, || running(&word));
    wait_until(&true, || descriptors(&node) <= before);
    drop(stream);
}

#[test]
fn a_client_that_goes_in_order_behind_unread_input_takes_its_command_along() {
    let node = Node::start();
    let pod = node.pod("fin");
    let container = pod.sh("main", "sleep 1000");
    exec(&node, &container, "true", V5).rest();
    let before = descriptors(&node);
    for protocol in ["websocket", "spdy"] {
        let time = long_time(6);
        let script = format!("echo ready; sleep {time}");
        // More than the pipe and the stream's queue hold. The end comes in behind it, or is stuck at the client.
        let piece = vec![7; 32 << 10];
        if protocol == "websocket" {
            let mut stream = exec(&node, &container, &script, V5);
            stream.wait_for(STDOUT, "ready");
            (0..12).for_each(|_| stream.send(STDIN, &piece));
            stream.vanish();
        } else {
            let url = node.cri.exec(exec_request(&container, &script)).expect("Exec").url;
            let mut client = Spdy::open(&node, &url, "v4.channel.k8s.io").expect("upgrade");
            let draining = client.drain().unwrap();
            let [stdin, ..] =
                ["stdin", "stdout", "stderr", "error"].map(|kind| client.stream(&[("streamtype", kind)]).unwrap());
            wait_until(&1, || running(&time));
            (0..20).for_each(|_| assert!(client.push(stdin, &piece).unwrap()));
            client.vanish();
            draining.join().unwrap();
        }
        wait_until(&0, || running(&time));
        wait_until(&true, || descriptors(&node) <= before);
    }
}

#[test]
fn what_a_client_can_make_the_server_keep_is_bounded() {
    let node = Node::start();
    let pod = node.pod("hostile");
    let url = node
        .cri
        .port_forward(forward_request(&pod.id, 80))
        .expect("PortForward")
        .url;
    let mut client = Spdy::open(&node, &url, "portforward.k8s.io").expect("upgrade");
    let draining = client.drain().unwrap();
    let long = "x".repeat(60 << 10);
    let grown = growth(&node, || {
        // Halves of forwards wait for their other halves, and nobody takes their bytes.
        let mut streams = Vec::new();
        for number in 0..3000 {
            let request = number.to_string();
            let headers = [
                ("streamtype", "data"),
                ("port", "80"),
                ("requestid", &request),
                ("x", &long),
            ];
            streams.push(client.stream(&headers).unwrap());
        }
        let piece = vec![7; 16 << 10];
        let mut sent = 0;
        for &stream in streams.iter().cycle() {
            if !client.push(stream, &piece).unwrap() {
                break;
            }
            sent += piece.len();
            assert!(sent < 256 << 20, "it takes everything");
        }
        assert!(sent > 4 << 20, "{sent} bytes");
    });
    assert!(grown < CONNECTION_KIB, "{grown} KiB");
    client.vanish();
    draining.join().unwrap();
}

#[test]
fn streams_that_come_and_go_leave_nothing_in_a_long_connection() {
    let node = Node::start();
    let pod = node.pod("long");
    let url = node
        .cri
        .port_forward(forward_request(&pod.id, 80))
        .expect("PortForward")
        .url;
    let mut client = Spdy::open(&node, &url, "portforward.k8s.io").expect("upgrade");
    let draining = client.drain().unwrap();
    let mut round = |count| {
        for _ in 0..count {
            // One is refused, and never closed by the client; one is given up by it.
            client.stream(&[("streamtype", "none")]).unwrap();
            let other = client.stream(&[("streamtype", "none")]).unwrap();
            client.reset(other).unwrap();
        }
    };
    round(500);
    let grown = growth(&node, || round(20_000));
    assert!(grown < 4 << 10, "{grown} KiB");
    client.vanish();
    draining.join().unwrap();
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let node = Node::start();
    let pod = node.pod("silent");
    let container = pod.sh("main", "sleep 1000");
    let url = node.cri.exec(exec_request(&container, "true")).expect("Exec").url;
    let begun = Instant::now();
    let mut silent = connect(&node, &url).unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(9)..Duration::from_secs(30)).contains(&took),
        "{took:?}"
    );
    // The token was not brought: it is still good.
    assert_eq!(
        Stream::open(&node, &url, V5).unwrap().rest().status()["status"],
        "Success"
    );
}
