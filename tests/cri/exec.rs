//! ExecSync: output, exit codes, deadlines, and processes that outlive the command.

use std::thread;
use std::time::{Duration, Instant};

use corten_tests::node::Node;
use corten_tests::pod::container;
use corten_tests::shim::processes_with;
use tonic::Code;

#[test]
fn output_and_exit_code() {
    let node = Node::start();
    let pod = node.pod("exec");
    let container = pod.sh("main", "sleep 1000");
    let reply = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(
        (reply.stdout.as_slice(), reply.stderr.as_slice(), reply.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 42)
    );
    let reply = container.exec(&["true"]);
    assert_eq!((reply.stdout.len(), reply.stderr.len(), reply.exit_code), (0, 0, 0));
    let reply = container.exec(&["sh", "-c", "kill -TERM $$"]);
    assert_eq!(reply.exit_code, 143);
    let reply = container.exec(&["printf", "\\000\\377\\r\\n"]);
    assert_eq!(reply.stdout, b"\0\xff\r\n", "bytes, not text");
}

#[test]
fn it_runs_as_the_container_does() {
    let node = Node::start();
    let pod = node.pod("exec-as");
    let mut config = container("main", &["sleep", "1000"]);
    config.working_dir = "/tmp".to_owned();
    config.envs = vec![corten_proto::cri::KeyValue {
        key: "VARIABLE".to_owned(),
        value: b"value".to_vec(),
    }];
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_user = Some(corten_proto::cri::Int64Value { value: 1000 });
    let container = pod.start(config);
    assert_eq!(
        container.exec_sh("id -u; pwd; echo $VARIABLE; hostname"),
        "1000\n/tmp\nvalue\nexec-as\n"
    );
    assert_eq!(
        container.exec_sh("cat /proc/self/status | grep CapEff | cut -f2"),
        "0000000000000000\n"
    );
    // Its standard input is empty, not somebody else's.
    assert_eq!(container.exec_sh("cat"), "");
}

#[test]
fn a_deadline_ends_the_command_and_all_it_started() {
    let node = Node::start();
    let pod = node.pod("deadline");
    let container = pod.sh("main", "sleep 1000");
    let marker = format!("7{}.5", std::process::id());
    let script = format!("sleep {marker} & sleep {marker}; echo never");
    let began = Instant::now();
    let error = node
        .cri
        .exec_sync(container.exec_request(&["sh", "-c", &script], 1))
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    let deadline = Instant::now() + Duration::from_secs(1);
    while !processes_with(&marker).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", processes_with(&marker));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(container.exec_sh("echo alive"), "alive\n");
}

/// A helper that has detached itself by a double fork, in a session of its own, belongs to the command all the same.
#[test]
fn a_deadline_ends_what_has_detached_itself() {
    let node = Node::start();
    let pod = node.pod("detached");
    let container = pod.sh("main", "sleep 1000");
    let marker = format!("6{}.5", std::process::id());
    let script = format!("(setsid sleep {marker} </dev/null >/dev/null 2>&1 &); sleep 1000");
    let request = container.exec_request(&["sh", "-c", &script], 2);
    let error = node.cri.exec_sync(request).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    corten_tests::shim::eventually("nothing of it is left", || {
        processes_with(&marker).is_empty().then_some(())
    });
    assert_eq!(container.exec_sh("echo alive"), "alive\n");
}

#[test]
fn output_larger_than_a_reply_is_cut_off() {
    let node = Node::start();
    let pod = node.pod("large");
    let container = pod.sh("main", "sleep 1000");
    let script = "dd if=/dev/zero bs=1M count=20 2>/dev/null; dd if=/dev/zero bs=1M count=20 >&2 2>/dev/null; exit 3";
    let reply = container.exec(&["sh", "-c", script]);
    assert_eq!(reply.exit_code, 3, "the command is not disturbed");
    assert!(
        reply.stdout.len() > 1 << 20 && reply.stderr.len() > 1 << 20,
        "both streams have a share"
    );
    assert!(
        reply.stdout.len() + reply.stderr.len() < 16 << 20,
        "what kubelet's client accepts"
    );
}

#[test]
fn a_background_process_does_not_hold_the_answer_up() {
    let node = Node::start();
    let pod = node.pod("orphan");
    let container = pod.sh("main", "sleep 1000");
    let began = Instant::now();
    let reply = container.exec(&["sh", "-c", "sleep 300 & echo done"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!((reply.stdout.as_slice(), reply.exit_code), (&b"done\n"[..], 0));
}

#[test]
fn many_at_once() {
    let node = Node::start();
    let pod = node.pod("many");
    let container = pod.sh("main", "sleep 1000");
    thread::scope(|scope| {
        for worker in 0..8 {
            let container = &container;
            scope.spawn(move || {
                for round in 0..4 {
                    let text = format!("{worker}-{round}");
                    assert_eq!(container.exec_sh(&format!("echo {text}")), format!("{text}\n"));
                }
            });
        }
    });
}

#[test]
fn a_command_that_cannot_run_is_an_error_that_names_it() {
    let node = Node::start();
    let pod = node.pod("absent");
    let container = pod.sh("main", "sleep 1000");
    let error = node
        .cri
        .exec_sync(container.exec_request(&["/no/such/command"], 0))
        .unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    let error = node.cri.exec_sync(container.exec_request(&[], 0)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("cmd"), "{error}");
    container.stop(0);
    let error = node.cri.exec_sync(container.exec_request(&["true"], 0)).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains(&container.id), "{error}");
}
