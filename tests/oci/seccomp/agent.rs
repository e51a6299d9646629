//! The agent that is asked about system calls: the filter's listener, over a socket.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use corten_tests::bundle::{Bundle, Runtime, wait_until};
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::{GETSID, docker, under};

/// An agent on a socket of its own: takes one listener, and answers as often as it is asked to.
pub(super) struct Agent {
    pub(super) path: PathBuf,
    thread: JoinHandle<Value>,
}

impl Agent {
    /// Answers `answers` notifications, each with an errno or (positive) with a value.
    pub(super) fn start(bundle: &Bundle<'_>, answers: Vec<i64>) -> Agent {
        let path = bundle.path().join("agent.sock");
        let _stale = fs::remove_file(&path);
        let socket = UnixListener::bind(&path).expect("bind a socket of the test");
        socket.set_nonblocking(true).expect("make a socket nonblocking");
        let thread = thread::spawn(move || {
            let accepted = wait_until(|| socket.accept().ok());
            let (mut connection, _) = accepted.expect("the runtime connects");
            connection.set_nonblocking(false).expect("make a socket blocking");
            let (text, listener) = receive(&mut connection);
            for answer in answers {
                respond(&listener, answer);
            }
            serde_json::from_slice(&text).expect("the state is JSON")
        });
        Agent { path, thread }
    }

    /// The container process state it got.
    pub(super) fn state(self) -> Value {
        self.thread.join().expect("the agent has what it wants")
    }
}

fn receive(connection: &mut UnixStream) -> (Vec<u8>, OwnedFd) {
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set a timeout");
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut text)];
    let message = recvmsg(&*connection, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let [listener] = descriptors
        .flatten()
        .collect::<Vec<OwnedFd>>()
        .try_into()
        .expect("one descriptor");
    text.truncate(message.bytes);
    // Not to the end: runc keeps the connection of an exec as long as it runs.
    while serde_json::from_slice::<Value>(&text).is_err() {
        let mut more = [0; 4096];
        let length = connection.read(&mut more).expect("read the rest");
        assert!(length > 0, "the end, in the middle of the state");
        text.extend_from_slice(&more[..length]);
    }
    (text, listener)
}

fn respond(listener: &OwnedFd, answer: i64) {
    let mut asked = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut asked, PollTimeout::from(30_000_u16)), Ok(1), "nobody asks");
    let request = ScmpNotifReq::receive(listener.as_raw_fd()).expect("receive a notification");
    let (value, error) = if answer < 0 { (0, answer) } else { (answer, 0) };
    let error = i32::try_from(error).expect("an errno");
    let response = ScmpNotifResp::new(request.id, value, error, ScmpNotifRespFlags::empty().bits());
    response.respond(listener.as_raw_fd()).expect("answer a notification");
}

pub(super) fn notifying(path: &std::path::Path) -> Value {
    let mut profile = docker();
    profile["syscalls"]
        .as_array_mut()
        .expect("a list")
        .insert(0, json!({ "names": ["getsid"], "action": "SCMP_ACT_NOTIFY" }));
    profile["syscalls"][1]["names"]
        .as_array_mut()
        .expect("a list")
        .retain(|name| name != "getsid");
    profile["listenerPath"] = json!(path);
    profile["listenerMetadata"] = json!("for the agent");
    profile
}

fn check_state(state: &Value, bundle: &Bundle<'_>, status: &str) {
    assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
    assert_eq!(state["metadata"], "for the agent");
    assert_eq!(state["state"]["id"], bundle.id.as_str());
    assert_eq!(state["state"]["bundle"], json!(bundle.path()));
    assert_eq!(state["state"]["status"], status);
    assert!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
}

pub(super) fn an_agent_answers(runtime: &Runtime) {
    for no_new_privileges in [true, false] {
        let mut bundle = under(runtime, Value::Null);
        let agent = Agent::start(&bundle, vec![-i64::from(libc::EXDEV), 4711]);
        bundle.spec["linux"]["seccomp"] = notifying(&agent.path);
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let number = GETSID.to_string();
        bundle.spec["process"]["args"] = json!(["/syscall", "call", number, ",", number]);
        let container = bundle.start();
        assert_eq!(container.wait(), 0);
        assert_eq!(container.stdout(), "EXDEV\n4711\n");
        let state = agent.state();
        check_state(&state, &bundle, "creating");
        assert_eq!(state["pid"], container.pid.as_raw());
    }
}

pub(super) fn an_agent_is_asked_about_an_exec(runtime: &Runtime) {
    let mut bundle = under(runtime, Value::Null);
    let agent = Agent::start(&bundle, vec![]);
    bundle.spec["linux"]["seccomp"] = notifying(&agent.path);
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    check_state(&agent.state(), &bundle, "creating");
    let agent = Agent::start(&bundle, vec![12]);
    let output = bundle.exec(&[], &["/syscall", "call", &GETSID.to_string()]);
    assert_eq!(output.success().stdout, "12\n");
    let state = agent.state();
    check_state(&state, &bundle, "running");
    assert_ne!(state["pid"], container.pid.as_raw());
    assert_eq!(state["state"]["pid"], container.pid.as_raw());
}

pub(super) fn a_missing_agent_is_an_error(runtime: &Runtime) {
    let mut bundle = under(runtime, Value::Null);
    let path = bundle.path().join("nobody.sock");
    bundle.spec["linux"]["seccomp"] = notifying(&path);
    let error = bundle.call("create", &[]).failure();
    assert!(error.contains("nobody.sock"), "{error}");
    bundle.assert_nothing_left();
}
