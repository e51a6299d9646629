//! Execs and attaches whose clients go away, and SPDY that claims what it does not send.

use std::io::{Read, Write};

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, container};
use corten_tests::stream::{Stream, connect};

use super::{Watched, count};

fn exec_url(node: &Node, container: &Container<'_>, command: &str, tty: bool) -> String {
    let request = cri::ExecRequest {
        container_id: container.id.clone(),
        cmd: vec![command.to_owned()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    node.cri.exec(request).expect("Exec").url
}

#[test]
fn terminals_for_programs_that_are_not_there_are_given_back() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let run = || {
        let url = exec_url(&node, &main, "/no/such/program", true);
        let ended = Stream::open(&node, &url, "v5.channel.k8s.io").expect("upgrade").rest();
        assert_eq!(ended.status()["status"], "Failure", "{ended:?}");
    };
    run();
    let watched = Watched::begin(&node);
    (0..count(50)).for_each(|_| run());
    watched.end(16, 1);
    let consoles = std::fs::read_dir(node.dir().join("run/consoles")).unwrap();
    assert_eq!(consoles.count(), 0);
}

#[test]
fn clients_that_attach_and_vanish_leave_nothing() {
    let node = Node::start();
    let pod = node.pod("web");
    let mut config = container("main", &["sh", "-c", "while true; do echo x; sleep 0.1; done"]);
    config.stdin = true;
    let main = pod.start(config);
    let run = |number: usize| {
        let request = cri::AttachRequest {
            container_id: main.id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = node.cri.attach(request).expect("Attach").url;
        let mut stream = Stream::open(&node, &url, "v5.channel.k8s.io").expect("upgrade");
        if number.is_multiple_of(2) {
            stream.send(0, b"y");
        }
        stream.vanish();
    };
    run(0);
    let watched = Watched::begin(&node);
    (0..count(100)).for_each(run);
    watched.end(16, 1);
    assert!(main.status().state() == cri::ContainerState::ContainerRunning);
}

#[test]
fn clients_that_exec_and_vanish_leave_no_command() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let run = |number: usize| {
        let url = exec_url(&node, &main, "cat", number.is_multiple_of(2));
        Stream::open(&node, &url, "v4.channel.k8s.io")
            .expect("upgrade")
            .vanish();
    };
    run(0);
    let watched = Watched::begin(&node);
    (0..count(40)).for_each(run);
    watched.end(24, 1);
    assert_eq!(main.exec_sh("ps | grep -c '[c]at$'; true"), "0\n");
}

#[test]
fn spdy_frames_that_claim_16_mib_are_not_waited_for() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let watched = Watched::begin(&node);
    // SYN_STREAM, HEADERS and a frame of no kind, of 2^24 - 1 bytes each (SPDY/3.1, section 2.2), of which some come; and a
    // block of headers that inflates to 16 MiB.
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![0; 16 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    let length = u32::try_from(bomb.len() + 10).unwrap().to_be_bytes();
    let block = [
        &[0x80, 3, 0, 1, 0][..],
        &length[1..],
        &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &bomb,
    ]
    .concat();
    let claim = |kind: u8| [&[0x80, 3, 0, kind, 0, 0xff, 0xff, 0xff][..], &[0; 4096]].concat();
    for number in 0..count(40) {
        let url = exec_url(&node, &main, "cat", false);
        let mut stream = connect(&node, &url).unwrap();
        let path = url.splitn(4, '/').nth(3).unwrap();
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
        let frames = [claim(1), claim(8), claim(77), block.clone()];
        // The server may have closed already.
        drop(stream.write_all(&frames[number % frames.len()]));
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || rest.len() < 64 << 10, "{ended:?}");
    }
    watched.end(32, 1);
}
