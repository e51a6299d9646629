//! HTTP/2 and gRPC as they are not meant.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::container;
use tonic::Code;
use tonic::metadata::MetadataValue;

use super::{Watched, client, connect, count, crowd};

/// What every connection begins with, and empty settings.
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn raw(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.dir().join("run/corten.sock")).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("set a timeout");
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .expect("set a timeout");
    stream
}

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn connections_that_never_speak_give_their_places_up() {
    let node = Node::start();
    node.cri.version(cri::VersionRequest::default()).unwrap();
    let watched = Watched::begin(&node);
    let silent: Vec<_> = (0..count(300))
        .map(|number| {
            let mut stream = raw(&node);
            if number % 2 == 1 {
                stream.write_all(&BEGINNING[..7]).unwrap();
            }
            stream
        })
        .collect();
    // Others are served: who is connected, at once.
    node.cri.version(cri::VersionRequest::default()).unwrap();
    let began = Instant::now();
    let (executor, _channel) = crowd(&node);
    println!("a new connection after {:?}", began.elapsed());
    for mut stream in silent {
        let mut rest = Vec::new();
        // The server's own settings, perhaps, and the end.
        stream.read_to_end(&mut rest).expect("closed by the server");
    }
    drop(executor);
    watched.end(32, 1);
}

#[test]
fn events_that_nobody_reads_are_bounded_and_so_are_their_readers() {
    let node = Node::start();
    let pod = node.pod("web");
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    let subscribers: Vec<_> = (0..count(1000))
        .map(|_| {
            let mut client = client(&channel);
            executor.block_on(async move { client.get_container_events(cri::GetEventsRequest {}).await })
        })
        .collect();
    let refused = subscribers.iter().filter_map(|it| it.as_ref().err()).inspect(|status| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("GetContainerEvents: 32 streams"), "{status}");
    });
    let refused = refused.count();
    assert_eq!(subscribers.len() - refused, 32);
    // The server's own list is not held up by those that do not read.
    let mut listener = node.cri.listen().unwrap();
    for round in 0..20 {
        let ended = pod.sh(&format!("c{round}"), "true");
        ended.wait_exit();
        ended.remove();
        assert!(listener.next(Duration::from_secs(5)).unwrap().is_some());
    }
    drop((subscribers, listener));
    drop(channel);
    drop(executor);
    watched.end(48, 1);
}

#[test]
fn requests_are_bounded_alone_and_together() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    let exec = |bytes: usize| main.exec_request(&["true", &"x".repeat(bytes)], 5);
    for (bytes, code) in [(4 << 20, Code::OutOfRange), (15 << 20, Code::OutOfRange)] {
        let status = node.cri.exec_sync(exec(bytes)).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains("the limit is: 4194304"), "{status}");
    }
    // Of the largest size that is taken: the kernel has no room for such an argument, so that nothing runs.
    let calls: Vec<_> = (0..count(100))
        .map(|_| {
            let (mut client, request) = (client(&channel), exec((4 << 20) - 4096));
            executor.spawn(async move { client.exec_sync(request).await })
        })
        .collect();
    for call in calls {
        let status = executor.block_on(call).unwrap().unwrap_err();
        assert!(status.message().len() < 16 << 10, "{}", status.message().len());
    }
    assert_eq!(main.exec_sh("echo healthy"), "healthy\n");
    watched.end(160, 2);
}

/// Requests that say how long they are and do not come.
#[test]
fn messages_that_are_only_announced_take_no_memory() {
    let node = Node::start();
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = raw(&node);
        stream.write_all(BEGINNING).unwrap();
        for number in 0..100u32 {
            let id = 2 * number + 1;
            // A call's headers in the simplest coding (RFC 7541, section 6.2.2), then the first bytes of 4 MiB.
            let path = b"/runtime.v1.RuntimeService/RunPodSandbox";
            let mut headers = vec![0x83, 0x86, 0x44, u8::try_from(path.len()).unwrap()];
            headers.extend(path);
            headers.extend(b"\x41\x01x\x0f\x10\x10application/grpc");
            stream.write_all(&frame(1, 4, id, &headers)).unwrap();
            stream.write_all(&frame(0, 0, id, b"\0\0\x40\0\0abc")).unwrap();
        }
        streams.push(stream);
    }
    thread::sleep(Duration::from_secs(1));
    executor
        .block_on(async { client(&channel).version(cri::VersionRequest::default()).await })
        .unwrap();
    let peak = watched.before[0].0;
    println!("with 800 of them: {:?}", super::Sample::of(peak));
    drop(streams);
    drop((channel, executor));
    watched.end(32, 1);
}

#[test]
fn headers_without_end_close_their_connection() {
    let node = Node::start();
    let watched = Watched::begin(&node);
    let mut stream = raw(&node);
    stream.write_all(BEGINNING).unwrap();
    // HEADERS without its end, then CONTINUATION after CONTINUATION (CVE-2024-27316 and its like).
    let filler = [b"\0\x01a\x7f\x80\x7e".as_slice(), &[b'x'; 16_000]].concat();
    let mut sent = stream.write_all(&frame(1, 0, 1, &filler));
    for _ in 0..count(2000) {
        if sent.is_err() {
            break;
        }
        sent = stream.write_all(&frame(9, 0, 1, &filler));
    }
    assert!(sent.is_err(), "the server has closed the connection");
    watched.end(16, 1);
}

#[test]
fn long_headers_fail_their_call_alone() {
    let node = Node::start();
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    for _ in 0..count(50) {
        let mut request = tonic::Request::new(cri::VersionRequest::default());
        let value: MetadataValue<_> = "x".repeat(20 << 10).parse().unwrap();
        request.metadata_mut().insert("x-long", value);
        let mut client = client(&channel);
        let failed = executor.block_on(async move { client.version(request).await });
        assert!(failed.is_err());
    }
    let mut client = client(&channel);
    executor
        .block_on(async move { client.version(cri::VersionRequest::default()).await })
        .unwrap();
    drop((channel, executor));
    watched.end(16, 1);
}

/// Calls that are given up at once, thousands of them on a connection (CVE-2023-44487).
#[test]
fn calls_that_are_given_up_at_once_cost_nothing() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    for round in 0..count(2000) {
        let (mut client, request) = (client(&channel), main.exec_request(&["sleep", "100"], 0));
        let limit = Duration::from_micros(u64::try_from(round % 7).unwrap() * 500);
        executor.block_on(async move {
            // ExecSync costs a process, so that few are begun.
            if round % 50 == 0 {
                drop(tokio::time::timeout(limit, client.exec_sync(request)).await);
            } else {
                let request = cri::ListContainersRequest::default();
                drop(tokio::time::timeout(limit, client.list_containers(request)).await);
            }
        });
    }
    drop((channel, executor));
    watched.end(48, 2);
    let left = main.exec_sh("ps | grep -c '[s]leep 100$'; true");
    assert_eq!(left, "0\n", "commands whose callers have gone");
}

#[test]
fn the_server_accepts_again_after_it_had_no_descriptors() {
    let node = Node::start();
    node.cri.version(cri::VersionRequest::default()).unwrap();
    let pid = rustix::process::Pid::from_raw(node.server_pid()).unwrap();
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let none = rustix::process::Rlimit {
        current: Some(1),
        maximum: hard,
    };
    let before = rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, none).unwrap();
    let (executor, socket) = (tokio::runtime::Runtime::new().unwrap(), &node);
    let refused = executor.block_on(async {
        tokio::time::timeout(Duration::from_secs(1), async {
            let channel = connect(socket).await?;
            anyhow::Ok(client(&channel).version(cri::VersionRequest::default()).await?)
        })
        .await
    });
    assert!(!matches!(refused, Ok(Ok(_))), "there is none left for it");
    node.cri
        .version(cri::VersionRequest::default())
        .expect("who is connected is served");
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, before).unwrap();
    let (again, channel) = crowd(&node);
    again
        .block_on(async { client(&channel).version(cri::VersionRequest::default()).await })
        .unwrap();
}
