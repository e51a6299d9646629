//! Strangers at the endpoint of metrics, and whoever sends calls to make them grow.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use corten_tests::node::Node;

use super::{ask, connect, measured, scrape, text};

/// More connections than the endpoint serves at once, by far.
const MANY: usize = 200;

fn open_files(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap().count()
}

fn resident_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.server_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn idle_and_slow_connections_keep_no_scraper_out() {
    let node = measured();
    text(&node);
    let (files, memory) = (open_files(&node), resident_kib(&node));
    let mut held = Vec::new();
    for number in 0..MANY {
        let mut stream = connect(&node);
        if number % 2 == 0 {
            // It may be ended already by those after it.
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").ok();
        }
        held.push(stream);
    }
    let began = Instant::now();
    text(&node);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(open_files(&node) < files + 32, "{} of {files}", open_files(&node));
    assert!(
        resident_kib(&node) < memory + 4096,
        "{} of {memory} KiB",
        resident_kib(&node)
    );
    // The oldest were ended, the newest will be: nobody stays.
    let mut end = Vec::new();
    held.first_mut().unwrap().read_to_end(&mut end).ok();
    held.last_mut().unwrap().read_to_end(&mut end).ok();
}

#[test]
fn one_that_asks_and_does_not_read_is_ended() {
    let node = measured();
    let mut held = Vec::new();
    for _ in 0..MANY {
        let mut stream = connect(&node);
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").ok();
        held.push(stream);
    }
    let began = Instant::now();
    text(&node);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn requests_are_bounded_and_only_get_and_head_are_answered() {
    let node = measured();
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "405"),
        ("DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /metrics/../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let (head, body) = ask(connect(&node), request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{head}");
        assert!(!body.contains("corten_"), "{body}");
    }
    let (head, body) = ask(connect(&node), "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}{body}");

    let memory = resident_kib(&node);
    let mut huge = connect(&node);
    let line = format!("X-Filler: {}\r\n", "x".repeat(1000));
    huge.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n").unwrap();
    // 16 MiB of head: the other end gives up long before.
    let sent = (0..16 << 10)
        .take_while(|_| huge.write_all(line.as_bytes()).is_ok())
        .count();
    assert!(sent < 16 << 10, "all of it was taken");
    assert!(
        resident_kib(&node) < memory + 2048,
        "{} of {memory} KiB",
        resident_kib(&node)
    );
    text(&node);
}

#[test]
fn names_out_of_requests_are_no_labels() {
    let node = measured();
    for number in 0..50 {
        node.cri.unknown_method(&format!("Made{number}Up"));
    }
    let seen = scrape(&node);
    let unknown = [("code", "UNIMPLEMENTED"), ("method", "unknown")];
    assert_eq!(seen.get("corten_rpc_duration_seconds_count", &unknown), Some(50.0));
    let methods = seen.values("corten_rpc_duration_seconds_count", "method");
    assert!(methods.iter().all(|method| !method.contains("Made")), "{methods:?}");
}
