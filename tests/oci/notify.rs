//! What comes with a container from whoever started the runtime: readiness told to a service manager (sd_notify(3)),
//! sockets passed on (sd_listen_fds(3)), and a pidfd sent to a socket.

use std::ffi::OsStr;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_tests::bundle::{Bundle, Report, Running, Runtime, finish, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde_json::json;

each_runtime! {
    start_passes_readiness_on,
    start_returns_when_a_container_ends_unready,
    run_passes_readiness_on_with_its_own_pid,
    a_detached_run_waits_for_readiness,
    nothing_is_shown_without_a_manager,
    sockets_are_passed_on,
    sockets_come_before_preserved_descriptors,
    sockets_of_another_process_are_not_passed_on,
}

corten_only! {
    the_container_is_not_the_manager_s_unit: "runc 1.1 shows the directory with other options",
    an_abstract_manager_is_told: "runc 1.1 was not written with one in mind",
    names_of_sockets_are_passed_on: "runc 1.1 drops LISTEN_FDNAMES, and says that every LISTEN_PID is 1",
    a_pidfd_of_init_is_sent: "runc has --pidfd-socket since 1.2",
    a_pidfd_of_an_exec_is_sent: "runc has --pidfd-socket since 1.2",
    a_pidfd_socket_nobody_listens_on_is_an_error: "runc has --pidfd-socket since 1.2",
}

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` says.
    name: PathBuf,
}

impl Manager {
    fn listen(bundle: &Bundle<'_>) -> Manager {
        let name = bundle.path().join("manager");
        let socket = UnixDatagram::bind(&name).expect("bind a socket of the test");
        Manager::new(socket, name)
    }

    fn new(socket: UnixDatagram, name: PathBuf) -> Manager {
        let patience = Some(Duration::from_secs(30));
        socket.set_read_timeout(patience).expect("set a timeout");
        Manager { socket, name }
    }

    /// Waits for both lines of readiness; there are no others.
    #[track_caller]
    fn assert_ready(&self, pid: i32) {
        let mut lines: Vec<String> = Vec::new();
        while lines.len() < 2 {
            let mut buffer = [0u8; 4096];
            let length = self.socket.recv(&mut buffer).expect("the manager is told");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            // A barrier waits for the end of the descriptor that comes with it, which not taking it is.
            lines.extend(text.lines().filter(|line| *line != "BARRIER=1").map(str::to_owned));
        }
        lines.sort();
        assert_eq!(lines, [format!("MAINPID={pid}"), "READY=1".to_owned()]);
    }
}

/// A bundle whose program says this to its manager, and sleeps.
fn notifying<'r>(runtime: &'r Runtime, message: &str) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    bundle.probe(&["notify", message]);
    bundle
}

/// Creates the container as a service of this manager; its init's pid.
fn create(bundle: &Bundle<'_>, manager: &Manager) -> Pid {
    let mut command = bundle.command("create");
    let _created = finish(command.env("NOTIFY_SOCKET", &manager.name).arg(&bundle.id)).success();
    pid(bundle)
}

fn start(bundle: &Bundle<'_>, manager: &Manager) {
    let mut command = bundle.command("start");
    let _started = finish(command.env("NOTIFY_SOCKET", &manager.name).arg(&bundle.id)).success();
}

fn pid(bundle: &Bundle<'_>) -> Pid {
    let pid = bundle.state()["pid"].as_i64().expect("a pid is a number");
    Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"))
}

fn end(bundle: &Bundle<'_>, init: Pid) {
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(wait_for(init), 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

fn start_passes_readiness_on(runtime: &Runtime) {
    let bundle = notifying(runtime, "READY=1");
    let manager = Manager::listen(&bundle);
    let init = create(&bundle, &manager);
    start(&bundle, &manager);
    manager.assert_ready(init.as_raw());
    end(&bundle, init);
}

fn start_returns_when_a_container_ends_unready(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "3"]);
    let manager = Manager::listen(&bundle);
    let init = create(&bundle, &manager);
    let mut command = bundle.command("start");
    let running = Running::start(command.env("NOTIFY_SOCKET", &manager.name).arg(&bundle.id));
    assert_eq!(wait_for(init), 3);
    let _started = running.wait().success();
    let _deleted = bundle.call("delete", &[]).success();
}

fn run_passes_readiness_on_with_its_own_pid(runtime: &Runtime) {
    let bundle = notifying(runtime, "READY=1");
    let manager = Manager::listen(&bundle);
    let mut command = bundle.command("run");
    let running = Running::start(command.env("NOTIFY_SOCKET", &manager.name).arg(&bundle.id));
    manager.assert_ready(running.pid().as_raw());
    let _killed = finish(bundle.command("kill").arg(&bundle.id).arg("KILL")).success();
    assert_eq!(running.wait().code, 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

fn a_detached_run_waits_for_readiness(runtime: &Runtime) {
    let bundle = notifying(runtime, "READY=1");
    let manager = Manager::listen(&bundle);
    let mut command = bundle.command("run");
    command
        .arg("--detach")
        .env("NOTIFY_SOCKET", &manager.name)
        .arg(&bundle.id);
    let _started = finish(&mut command).success();
    let init = pid(&bundle);
    manager.assert_ready(init.as_raw());
    end(&bundle, init);
}

fn nothing_is_shown_without_a_manager(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = bundle.report(&["/run/notify"]);
    assert_eq!(report.path("/run/notify")["error"], "ENOENT");
    let env = report["env"].as_array().expect("env is a list");
    let notify = |entry: &&serde_json::Value| entry.as_str().is_some_and(|entry| entry.starts_with("NOTIFY"));
    assert_eq!(env.iter().find(notify), None);
}

/// What the manager takes for the word of its unit is the runtime's alone to say.
fn the_container_is_not_the_manager_s_unit(runtime: &Runtime) {
    let bundle = notifying(runtime, "MAINPID=1\nREADY=1\nSTOPPING=1\nFDSTORE=1");
    let manager = Manager::listen(&bundle);
    let init = create(&bundle, &manager);
    start(&bundle, &manager);
    manager.assert_ready(init.as_raw());
    let report = bundle.exec_report(&[]);
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            report.has_option("/run/notify", option),
            "{}",
            report.mount("/run/notify")
        );
    }
    end(&bundle, init);
}

fn an_abstract_manager_is_told(runtime: &Runtime) {
    let bundle = notifying(runtime, "READY=1");
    let address = SocketAddr::from_abstract_name(&bundle.id).expect("it is short");
    let socket = UnixDatagram::bind_addr(&address).expect("bind a socket of the test");
    let manager = Manager::new(socket, format!("@{}", bundle.id).into());
    let init = create(&bundle, &manager);
    start(&bundle, &manager);
    manager.assert_ready(init.as_raw());
    end(&bundle, init);
}

/// `run`s the report as a service manager starts a service: by a shell that opens descriptors, files here.
fn listening(runtime: &Runtime, script: &str, flags: &[&str], prepare: fn(&mut Bundle<'_>)) -> Report {
    let mut bundle = runtime.bundle();
    bundle.probe(&["report"]);
    prepare(&mut bundle);
    let run = bundle.command("run");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{script}; exec \"$@\"")).arg("sh");
    command
        .arg(run.get_program())
        .args(run.get_args())
        .args(flags)
        .arg(&bundle.id);
    for (name, file) in [("FIRST", "first"), ("SECOND", "second")] {
        let path = bundle.path().join(file);
        fs::write(&path, name).expect("write a file of the test");
        command.env(name, path);
    }
    Report::parse(&finish(command.stdin(std::process::Stdio::null())).success().stdout)
}

/// The name of the file that is open in the container at this number.
fn open_at<'a>(report: &'a Report, number: &str) -> Option<&'a OsStr> {
    Path::new(report["fds"][number].as_str()?).file_name()
}

#[track_caller]
fn assert_variable(report: &Report, entry: &str) {
    let env = report["env"].as_array().expect("env is a list");
    assert!(env.contains(&json!(entry)), "{entry}: {env:?}");
}

fn sockets_are_passed_on(runtime: &Runtime) {
    let script = "export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<$FIRST 4<$SECOND";
    let report = listening(runtime, script, &[], |_| ());
    assert_eq!(open_at(&report, "3"), Some(OsStr::new("first")));
    assert_eq!(open_at(&report, "4"), None);
    assert_variable(&report, "LISTEN_FDS=1");
    assert_variable(&report, "LISTEN_PID=1");
}

fn sockets_come_before_preserved_descriptors(runtime: &Runtime) {
    let script = "export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<$FIRST 4<$SECOND 5<$SECOND";
    let report = listening(runtime, script, &["--preserve-fds", "1"], |_| ());
    assert_eq!(open_at(&report, "3"), Some(OsStr::new("first")));
    assert_eq!(open_at(&report, "4"), Some(OsStr::new("second")));
    assert_eq!(open_at(&report, "5"), None);
    assert_variable(&report, "LISTEN_FDS=1");
}

fn sockets_of_another_process_are_not_passed_on(runtime: &Runtime) {
    let script = "export LISTEN_FDS=1 LISTEN_PID=1; exec 3<$FIRST";
    let report = listening(runtime, script, &[], |_| ());
    assert_eq!(open_at(&report, "3"), None);
    assert!(!report["env"].to_string().contains("LISTEN_"), "{}", report["env"]);
}

fn names_of_sockets_are_passed_on(runtime: &Runtime) {
    let script = "export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=web; exec 3<$FIRST";
    // Its pid is that of the namespace it shares.
    let report = listening(runtime, script, &[], |bundle| bundle.remove_namespace("pid"));
    assert_variable(&report, "LISTEN_FDNAMES=web");
    assert_variable(&report, &format!("LISTEN_PID={}", report["pid"]));
}

/// Receives one descriptor; what the kernel says of it as a pidfd.
fn received_pid(listener: &UnixListener) -> i32 {
    let (stream, _) = listener.accept().expect("somebody has connected");
    let mut text = [0u8; 64];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut control), flags).expect("a message");
    let mut messages = message.cmsgs().expect("a control message");
    let Some(ControlMessageOwned::ScmRights(descriptors)) = messages.next() else {
        panic!("no descriptor");
    };
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptors[0])).expect("it is open");
    nix::unistd::close(descriptors[0]).expect("close a descriptor of this test");
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.expect("it is a pidfd").trim().parse().expect("a pid")
}

fn a_pidfd_of_init_is_sent(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let path = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&path).expect("bind a socket of the test");
    let socket = path.to_string_lossy().into_owned();
    for (command, flags) in [("create", &[][..]), ("run", &["--detach"])] {
        let container = bundle.launch(command, &[flags, &["--pidfd-socket", &socket]].concat());
        assert_eq!(received_pid(&listener), container.pid.as_raw(), "{command}");
        let _deleted = bundle.call("delete", &["--force"]).success();
        assert_eq!(container.wait(), 128 + libc::SIGKILL);
    }
}

fn a_pidfd_of_an_exec_is_sent(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let path = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&path).expect("bind a socket of the test");
    let socket = path.to_string_lossy().into_owned();
    let pid = bundle.exec_detached(&["--pidfd-socket", &socket], &["/probe", "sleep"]);
    assert_eq!(received_pid(&listener), pid.as_raw());
    kill(pid, Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(wait_for(pid), 128 + libc::SIGKILL);
}

fn a_pidfd_socket_nobody_listens_on_is_an_error(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let error = bundle.call("create", &["--pidfd-socket", "/no/such/socket"]).failure();
    assert!(
        error.contains("--pidfd-socket") && error.contains("/no/such/socket"),
        "{error}"
    );
    bundle.assert_nothing_left();
}
