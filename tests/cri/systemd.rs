//! Life as a service: what systemd is told and when, its watchdog, and the socket that it passes. systemd is a socket here;
//! the real one is in `tests/vm/service.sh`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::cri::Cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for a message.
const MESSAGE: Duration = Duration::from_secs(20);

/// A server without a network and pods, started as systemd starts one.
struct Service {
    server: Child,
    notify: UnixDatagram,
    dir: TempDir,
}

impl Service {
    /// `command` runs in a shell, where `$SERVER` is the server with its arguments.
    fn start(command: &str, stdin: Stdio, dir: TempDir, variables: &[(&str, &str)]) -> Service {
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(MESSAGE)).unwrap();
        let config = config(dir.path());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let server = Command::new("/bin/sh")
            .args(["-c", command])
            .env(
                "SERVER",
                format!("{} --config {}", binary("corten-cri").display(), config.display()),
            )
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .envs(variables.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Service { server, notify, dir }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.server.id().try_into().unwrap()), signal).unwrap();
    }

    /// The next message, as its lines.
    fn message(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self
            .notify
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next message that does not begin so.
    fn message_but(&self, beginning: &str) -> Vec<String> {
        loop {
            let message = self.message();
            if !message[0].starts_with(beginning) {
                return message;
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("corten.sock")
    }

    fn answers(&self) -> bool {
        let cri = Cri::new(&self.socket()).unwrap();
        cri.version(cri::VersionRequest::default()).is_ok()
    }

    /// Ends it as systemd does, and whatever is left of it.
    fn stop(mut self) -> TempDir {
        self.signal(Signal::SIGTERM);
        assert_eq!(
            self.message_but("WATCHDOG=1"),
            ["STOPPING=1", "STATUS=ending; pods go on"]
        );
        let ended = self.server.wait().unwrap();
        assert!(ended.success(), "{ended}: {}", self.log());
        let empty = TempDir::new().unwrap();
        std::mem::replace(&mut self.dir, empty)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After `stop` it has ended, and there is nobody to be killed.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn config(dir: &Path) -> PathBuf {
    let file = dir.join("config.toml");
    let dir = dir.display();
    let text =
        format!("root = '{dir}/lib'\nstate = '{dir}/run'\nlisten = '{dir}/corten.sock'\ncgroup_driver = 'cgroupfs'\n");
    fs::write(&file, text).unwrap();
    file
}

fn dir() -> TempDir {
    tempfile::Builder::new().prefix("ct-").tempdir_in("/tmp").unwrap()
}

#[test]
fn systemd_is_told_in_order() {
    let service = Service::start("exec $SERVER", Stdio::null(), dir(), &[]);
    assert_eq!(service.message(), ["STATUS=recovering the pods"]);
    let status = format!("STATUS=serving at {}", service.socket().display());
    assert_eq!(service.message(), ["READY=1", status.as_str()]);
    assert!(service.answers());

    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    service.signal(Signal::SIGHUP);
    let message = service.message();
    assert_eq!(message[0], "RELOADING=1");
    let usec: i64 = message[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    let began = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    assert!((began..began + 20_000_000).contains(&usec), "{usec} after {began}");
    assert_eq!(service.message(), ["READY=1", status.as_str()]);

    // A bad file is no end of the service.
    fs::write(service.dir.path().join("config.toml"), "root = 1\n").unwrap();
    service.signal(Signal::SIGHUP);
    assert_eq!(service.message()[0], "RELOADING=1");
    assert_eq!(service.message()[0], "READY=1");
    assert!(service.answers());
    let socket = service.socket();
    let _dir = service.stop();
    assert!(!socket.exists(), "the socket was ours");
}

#[test]
fn the_watchdog_hears_of_a_server_that_lives_and_of_no_other() {
    let period = [("WATCHDOG_USEC", "1000000")];
    let service = Service::start("exec $SERVER", Stdio::null(), dir(), &period);
    assert_eq!(service.message_but("STATUS")[0], "READY=1");
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(service.message(), ["WATCHDOG=1"]);
    }
    // Once at the beginning, then every half of the period.
    let elapsed = began.elapsed();
    assert!((1200..4000).contains(&elapsed.as_millis()), "{elapsed:?}");

    service.signal(Signal::SIGSTOP);
    service.notify.set_nonblocking(true).unwrap();
    while service.notify.recv(&mut [0; 64]).is_ok() {}
    std::thread::sleep(Duration::from_millis(1500));
    assert!(service.notify.recv(&mut [0; 64]).is_err(), "it does not live");
    service.notify.set_nonblocking(false).unwrap();
    service.signal(Signal::SIGCONT);
    assert_eq!(service.message(), ["WATCHDOG=1"]);
    service.stop();
}

#[test]
fn a_watchdog_for_another_process_is_not_for_the_server() {
    let variables = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")];
    let service = Service::start("exec $SERVER", Stdio::null(), dir(), &variables);
    assert_eq!(service.message_but("STATUS")[0], "READY=1");
    std::thread::sleep(Duration::from_millis(500));
    service.stop();
}

#[test]
fn a_socket_that_systemd_listens_at_is_taken_over_and_stays() {
    let dir = dir();
    let path = dir.path().join("corten.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Descriptor 3 of the process whose number is LISTEN_PID: what systemd does between fork and exec.
    let command = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec $SERVER";
    // A client that comes before the server waits, and is answered.
    let early = {
        let path = path.clone();
        std::thread::spawn(move || Cri::new(&path).unwrap().version(cri::VersionRequest::default()).is_ok())
    };
    let passed = OwnedFd::from(listener.try_clone().unwrap());
    let service = Service::start(command, Stdio::from(passed), dir, &[]);
    assert_eq!(service.message_but("STATUS")[0], "READY=1");
    assert!(early.join().unwrap());
    assert!(service.answers());
    let _dir = service.stop();
    assert!(path.exists(), "the socket is systemd's");

    let elsewhere = self::dir();
    let other = UnixListener::bind(elsewhere.path().join("other.sock")).unwrap();
    let mut service = Service::start(command, Stdio::from(OwnedFd::from(other)), elsewhere, &[]);
    assert!(!service.server.wait().unwrap().success());
    assert!(
        service.log().contains("LISTEN_FDS: none of the sockets is"),
        "{}",
        service.log()
    );
}
