//! What the server tells of itself: metrics, traces, and the names in its log.

mod hostile;
mod metrics;
mod names;
mod traces;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use corten_tests::exposition::Exposition;
use corten_tests::node::Node;

/// Where the servers of these tests have their metrics; each test has a loopback of its own.
const METRICS: &str = "127.0.0.1:9095";

/// Sets keys of one table of the configuration.
fn set(config: &mut toml::Table, table: &str, keys: &[(&str, toml::Value)]) {
    let table = config.entry(table).or_insert_with(|| toml::Table::new().into());
    for (key, value) in keys {
        table.as_table_mut().unwrap().insert((*key).to_owned(), value.clone());
    }
}

/// A node with metrics.
fn measured() -> Node {
    Node::with(|config| set(config, "metrics", &[("listen", METRICS.into())]))
}

/// A connection to the endpoint.
fn connect(node: &Node) -> TcpStream {
    let stream = node.network.enter(|| TcpStream::connect(METRICS)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Head and body of the answer to a request that ends the connection.
fn ask(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).expect("send the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

/// The metrics' text.
fn text(node: &Node) -> String {
    let (head, body) = ask(connect(node), "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    body
}

/// The metrics, strictly read.
fn scrape(node: &Node) -> Exposition {
    let text = text(node);
    Exposition::parse(&text).unwrap_or_else(|error| panic!("{error:#}\n{text}"))
}
