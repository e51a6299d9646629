//! Terminals: made inside the container, handed out over the console socket.

use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use corten_tests::bundle::{Bundle, Report, Runtime, wait_for};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

each_runtime! {
    the_master_comes_over_the_console_socket,
    the_console_has_the_size_asked_for,
    exec_can_have_a_terminal,
    a_terminal_needs_a_console_socket,
    a_console_socket_needs_a_terminal,
    a_console_socket_nobody_listens_on_is_an_error,
}

rootless! {
    the_master_comes_over_the_console_socket,
    the_console_has_the_size_asked_for,
    exec_can_have_a_terminal,
}

/// Where a runtime is told to send the terminal.
struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    fn new(bundle: &Bundle<'_>) -> ConsoleSocket {
        let path = bundle.path().join("console.sock");
        let listener = UnixListener::bind(&path).expect("bind a socket of the test");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        ConsoleSocket { path, listener }
    }

    /// The terminal's master. The runtime has connected and sent before it returned, so this does not wait.
    fn master(&self) -> File {
        master_of(&self.listener)
    }
}

/// The terminal's master, from whoever has connected.
pub(crate) fn master_of(listener: &UnixListener) -> File {
    let (stream, _) = listener.accept().expect("the runtime connected");
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("the runtime sent a message");
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    let master = fds.next().expect("the message carries a descriptor");
    assert!(fds.next().is_none(), "the terminal's master and nothing else");
    File::from(master)
}

/// Everything the terminal prints, until no process has it open.
fn read_all(mut master: &File) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // A master whose last slave has been closed answers EIO: that is its end of file.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Creates a container with a terminal, starts it, and returns what it printed there.
fn print_on_terminal(bundle: &mut Bundle<'_>) -> Report {
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.probe(&["report", "/dev/console", "/dev/tty"]);
    let socket = ConsoleSocket::new(bundle);
    let path = socket.path.to_string_lossy().into_owned();
    let _container = bundle.launch("create", &["--console-socket", &path]);
    let master = socket.master();
    let _started = bundle.call("start", &[]).success();
    Report::parse(&read_all(&master))
}

fn the_master_comes_over_the_console_socket(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = print_on_terminal(&mut bundle);
    assert!(report["terminal"].is_object(), "{report:?}");
    for fd in ["0", "1", "2"] {
        let target = report["fds"][fd].as_str().unwrap_or_default();
        assert!(["/dev/pts/0", "/dev/console"].contains(&target), "{fd}: {target}");
    }
    assert_eq!(report["fds"].as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(report.path("/dev/console")["type"], "character");
    assert_eq!(
        report.path("/dev/console")["device"],
        json!([136, 0]),
        "the console is the terminal"
    );
    assert_eq!(
        report.path("/dev/tty")["read"],
        json!(null),
        "it is the controlling terminal"
    );
}

fn the_console_has_the_size_asked_for(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["consoleSize"] = json!({ "height": 43, "width": 101 });
    let report = print_on_terminal(&mut bundle);
    assert_eq!(report["terminal"], json!({ "rows": 43, "columns": 101 }));
}

fn exec_can_have_a_terminal(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    let socket = ConsoleSocket::new(&bundle);
    let path = socket.path.to_string_lossy();
    let pid = bundle.exec_detached(&["--tty", "--console-socket", &path], &["/probe", "report"]);
    let report = Report::parse(&read_all(&socket.master()));
    assert!(report["terminal"].is_object(), "{report:?}");
    let namespace = std::fs::read_link(format!("/proc/{}/ns/mnt", container.pid)).expect("init runs");
    assert_eq!(report.namespace("mnt"), namespace.to_string_lossy());
    assert_eq!(wait_for(pid), 0);
}

fn a_terminal_needs_a_console_socket(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.call("create", &[]).failure();
    bundle.assert_nothing_left();
}

fn a_console_socket_needs_a_terminal(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let socket = ConsoleSocket::new(&bundle);
    bundle
        .call("create", &["--console-socket", &socket.path.to_string_lossy()])
        .failure();
    bundle.assert_nothing_left();
}

fn a_console_socket_nobody_listens_on_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["terminal"] = json!(true);
    bundle
        .call("create", &["--console-socket", "/no/such/socket"])
        .failure();
    bundle.assert_nothing_left();
}
