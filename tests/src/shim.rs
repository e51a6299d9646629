//! A `corten-shim` under test, a blocking client of its protocol, and the bundles its containers are made of.
//!
//! Containers run Debian's static busybox, so that a test's container is one line of shell. Everything a [`Shim`] makes
//! carries its [`marker`](Shim::marker); dropping it kills what is left, so that a failing test spoils no other.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corten_proto::exit::ExitRecord;
use corten_proto::shim::{
    self, Connect, Create, Delete, Event, Exit, Kill, Message, Request, Start, event, message, reply, request::Call,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv,
    sendmsg, socket,
};
use prost::Message as _;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything a test waits for on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running shim with a directory of its own.
pub struct Shim {
    process: Child,
    dir: TempDir,
    runtime: PathBuf,
    marker: String,
}

impl Shim {
    /// Starts a shim that uses the OCI runtime at `runtime`.
    ///
    /// # Panics
    /// Where the shim cannot be started.
    pub fn start(runtime: &Path) -> Shim {
        Shim::start_with(runtime, &[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    /// Where the shim cannot be started.
    pub fn start_with(runtime: &Path, args: &[&str]) -> Shim {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let marker = format!(
            "shimtest-{}-{}-",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = tempfile::Builder::new()
            .prefix(&marker)
            .tempdir()
            .expect("temporary directory");
        let log = File::create(dir.path().join("shim.log")).expect("shim.log");
        let listener = listener(&dir.path().join("shim.sock"));
        // The shell moves the socket to descriptor 3; doing it here would need unsafe code between fork and exec.
        let process = Command::new("/bin/sh")
            .args(["-c", "exec \"$@\" 3<&0 </dev/null", "sh"])
            .arg(crate::binary("corten-shim"))
            .args(["--id", &format!("{marker}sandbox"), "--runtime"])
            .arg(runtime)
            .arg("--runtime-root")
            .arg(dir.path().join("runtime"))
            .arg("--pause-rootfs")
            .arg(dir.path().join("pause"))
            .args(args)
            .stdin(Stdio::from(listener))
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("spawn corten-shim");
        Shim {
            process,
            dir,
            runtime: runtime.to_owned(),
            marker,
        }
    }

    /// What everything of this shim carries in its name.
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// The shim's own directory; a test may put files there.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The shim's pid.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A new connection.
    ///
    /// # Panics
    /// Where the shim does not answer.
    pub fn connect(&self) -> Client {
        Client::connect(&self.dir().join("shim.sock"))
    }

    /// What the shim has logged of itself.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("shim.log")).expect("shim.log")
    }

    /// A bundle whose process is this line of shell; `change` may alter its `config.json`.
    ///
    /// # Panics
    /// Where files cannot be made.
    pub fn bundle(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Bundle {
        let id = format!("{}{name}", self.marker);
        let path = self.dir().join(name);
        let mut config = config(&id, &["/bin/busybox", "sh", "-c", script]);
        change(&mut config);
        make_rootfs(&path.join("rootfs"));
        fs::write(path.join("config.json"), config.to_string()).expect("config.json");
        Bundle {
            id,
            path,
            logs: self.dir().join("logs"),
        }
    }

    /// Waits until the shim has ended, and returns whether it ended well.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(&mut self) -> bool {
        eventually("the shim ends", || {
            self.process.try_wait().expect("wait").map(|status| status.success())
        })
    }

    /// Ends the shim as a server does, and checks that it goes.
    ///
    /// # Panics
    /// If it refuses, or does not go.
    pub fn shut_down(mut self) {
        let mut client = self.connect();
        client.call(Call::Shutdown(shim::Shutdown {})).expect("shutdown");
        assert!(self.wait(), "{}", self.log());
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            drop(self.process.kill());
            drop(self.process.wait());
        }
        let containers = fs::read_dir(self.dir().join("runtime")).into_iter().flatten().flatten();
        for container in containers {
            let mut delete = Command::new(&self.runtime);
            delete.arg("--root").arg(self.dir().join("runtime"));
            drop(delete.args(["delete", "--force"]).arg(container.file_name()).output());
        }
    }
}

/// A bundle and where its container's log and exit record go.
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// The bundle directory.
    pub path: PathBuf,
    logs: PathBuf,
}

impl Bundle {
    /// The request that creates its container.
    pub fn create(&self) -> Create {
        Create {
            id: self.id.clone(),
            bundle: self.path.display().to_string(),
            log_directory: self.logs.display().to_string(),
            log_path: format!("{}/0.log", self.id),
            exit_record: self.path.join("exit.json").display().to_string(),
            ..Create::default()
        }
    }

    /// The container's log file.
    pub fn log_path(&self) -> PathBuf {
        self.logs.join(&self.id).join("0.log")
    }

    /// The records of the log.
    ///
    /// # Panics
    /// On a line that is no record.
    pub fn records(&self) -> Vec<Record> {
        records(&self.log_path())
    }

    /// What the container has written to one stream, put together from its log.
    pub fn output(&self, stream: &str) -> Vec<u8> {
        let records = self.records().into_iter().filter(|record| record.stream == stream);
        records.flat_map(|record| record.text()).collect()
    }

    /// The exit record on disk.
    ///
    /// # Panics
    /// Where there is none.
    pub fn exit_record(&self) -> ExitRecord {
        let text = fs::read(self.path.join("exit.json")).expect("exit.json");
        serde_json::from_slice(&text).expect("exit record")
    }

    /// What lies in the bundle besides what the test put there.
    pub fn extra_files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).expect("bundle").flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !["config.json", "rootfs", "exit.json"].contains(&name.as_str()))
            .collect()
    }
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line ends here (`F`), or goes on (`P`).
    pub full: bool,
    /// Without the line break.
    pub content: Vec<u8>,
}

impl Record {
    /// What the container wrote: the content, and its line break if it had one.
    pub fn text(mut self) -> Vec<u8> {
        if self.full {
            self.content.push(b'\n');
        }
        self.content
    }
}

/// The records of a log file.
///
/// # Panics
/// On a line that is no record.
pub fn records(path: &Path) -> Vec<Record> {
    let log = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        log.is_empty() || log.ends_with(b"\n"),
        "the last record of {} is torn",
        path.display()
    );
    log.split_inclusive(|b| *b == b'\n')
        .map(|line| record(&line[..line.len() - 1]))
        .collect()
}

fn record(line: &[u8]) -> Record {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let mut field = || {
        fields
            .next()
            .unwrap_or_else(|| panic!("torn: {}", String::from_utf8_lossy(line)))
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (time, stream, kind, content) = (text(field()), text(field()), field(), field());
    assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
    assert!(["stdout", "stderr"].contains(&stream.as_str()), "{stream}");
    assert!(kind == b"F" || kind == b"P", "{kind:?}");
    Record {
        time,
        stream,
        full: kind == b"F",
        content: content.to_vec(),
    }
}

/// A connection to a shim.
pub struct Client {
    socket: OwnedFd,
    seq: u64,
    replies: Vec<(shim::Reply, Option<OwnedFd>)>,
    events: VecDeque<event::Kind>,
    /// The starts that were told, apart: most tests wait for exits.
    pub starts: Vec<shim::ContainerStarted>,
}

/// What a call comes to.
pub type Outcome = Result<reply::Result, shim::Error>;

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Panics
    /// Where nobody listens.
    pub fn connect(path: &Path) -> Client {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("socket");
        connect(socket.as_raw_fd(), &UnixAddr::new(path).expect("short path")).expect("connect");
        Client {
            socket,
            seq: 0,
            replies: Vec::new(),
            events: VecDeque::new(),
            starts: Vec::new(),
        }
    }

    /// Subscribes to events and returns the containers the shim holds.
    ///
    /// # Panics
    /// On any other answer.
    pub fn subscribe(&mut self) -> Vec<shim::Container> {
        match self.call(Call::Connect(Connect {})) {
            Ok(reply::Result::Connected(connected)) => connected.containers,
            other => panic!("connect: {other:?}"),
        }
    }

    /// Sends a request, does not wait, and returns its number.
    pub fn send(&mut self, call: Call) -> u64 {
        self.send_fds(call, &[])
    }

    /// The same with descriptors.
    pub fn send_fds(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> u64 {
        self.seq += 1;
        let request = Request {
            seq: self.seq,
            call: Some(call),
        };
        self.send_raw(&request.encode_to_vec(), fds);
        self.seq
    }

    /// Sends any packet.
    ///
    /// # Panics
    /// Where it cannot be sent.
    pub fn send_raw(&mut self, packet: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[] } else { &rights[..] };
        let data = [IoSlice::new(packet)];
        sendmsg::<()>(self.socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None).expect("sendmsg");
    }

    /// The answer to request `seq`.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait(&mut self, seq: u64) -> Outcome {
        self.wait_fd(seq).map(|(result, _none)| result)
    }

    /// The answer to request `seq`, with the descriptor on it.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_fd(&mut self, seq: u64) -> Result<(reply::Result, Option<OwnedFd>), shim::Error> {
        loop {
            if let Some(index) = self.replies.iter().position(|(reply, _)| reply.seq == seq) {
                let (reply, fd) = self.replies.swap_remove(index);
                return match reply.result.expect("a reply has a result") {
                    reply::Result::Error(error) => Err(error),
                    result => Ok((result, fd)),
                };
            }
            assert!(self.receive(PATIENCE), "no answer to request {seq}");
        }
    }

    /// Sends a request and waits for its answer.
    pub fn call(&mut self, call: Call) -> Outcome {
        let seq = self.send(call);
        self.wait(seq)
    }

    /// The next event, if one comes in time.
    pub fn event(&mut self, timeout: Duration) -> Option<event::Kind> {
        let end = Instant::now() + timeout;
        while self.events.is_empty() {
            if !self.receive(end.saturating_duration_since(Instant::now())) {
                return None;
            }
        }
        self.events.pop_front()
    }

    /// The exit of container `id`, which must be the next one to exit; exits of execs are passed over.
    ///
    /// # Panics
    /// If it does not come.
    pub fn exit(&mut self, id: &str) -> Exit {
        loop {
            match self.event(PATIENCE).expect("an exit in time") {
                event::Kind::ContainerExited(exited) => {
                    assert_eq!(exited.id, id);
                    return exited.exit.expect("an exit");
                }
                event::Kind::ExecExited(_) | event::Kind::ContainerStarted(_) => {}
            }
        }
    }

    /// Whether the shim has closed the connection.
    ///
    /// # Panics
    /// If it does not within the patience of a test.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0u8; 1];
        let flags = MsgFlags::MSG_PEEK;
        self.readable(PATIENCE) && recv(self.socket.as_raw_fd(), &mut byte, flags).unwrap_or(0) == 0
    }

    /// Creates a container and returns its pid.
    ///
    /// # Panics
    /// If it is refused.
    pub fn create(&mut self, create: Create) -> i32 {
        match self.call(Call::Create(create)) {
            Ok(reply::Result::Created(created)) => created.pid,
            other => panic!("create: {other:?}"),
        }
    }

    /// Starts a container and returns when it did.
    ///
    /// # Panics
    /// If it is refused.
    pub fn start(&mut self, id: &str) -> i64 {
        match self.call(Call::Start(Start { id: id.into() })) {
            Ok(reply::Result::Started(started)) => started.started_at,
            other => panic!("start: {other:?}"),
        }
    }

    /// Sends a signal to a container's init.
    pub fn kill(&mut self, id: &str, signal: i32) -> Outcome {
        self.call(Call::Kill(Kill {
            id: id.into(),
            signal,
            all: false,
            reason: "a test".into(),
        }))
    }

    /// Deletes a container.
    pub fn delete(&mut self, id: &str) -> Outcome {
        self.call(Call::Delete(Delete { id: id.into() }))
    }

    /// Creates, starts, waits for the exit and deletes.
    ///
    /// # Panics
    /// If a step fails.
    pub fn run(&mut self, bundle: &Bundle) -> Exit {
        self.create(bundle.create());
        self.start(&bundle.id);
        let exit = self.exit(&bundle.id);
        self.delete(&bundle.id).expect("delete");
        exit
    }

    fn readable(&self, timeout: Duration) -> bool {
        let fd = std::os::fd::AsFd::as_fd(&self.socket);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, timeout).expect("poll") > 0
    }

    fn take(&self, packet: &mut [u8]) -> (usize, Option<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let data = &mut [IoSliceMut::new(packet)];
        let received = recvmsg(&self.socket, data, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (received.bytes, fds.last())
    }

    /// Takes one packet. False if none comes in time.
    fn receive(&mut self, timeout: Duration) -> bool {
        if !self.readable(timeout) {
            return false;
        }
        let mut packet = vec![0; shim::MAX_PACKET];
        let (length, fd) = self.take(&mut packet);
        assert!(length > 0, "the shim has closed the connection");
        let message = Message::decode(&packet[..length]).expect("a message");
        match message.kind.expect("a known kind of message") {
            message::Kind::Reply(reply) => self.replies.push((reply, fd)),
            message::Kind::Event(Event { kind }) => match kind.expect("a known event") {
                event::Kind::ContainerStarted(started) => self.starts.push(started),
                kind => self.events.push_back(kind),
            },
        }
        true
    }
}

/// Polls `probe` until it gives something.
///
/// # Panics
/// If it gives nothing for too long; `what` says what was waited for.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Host pids of processes that have this argument.
pub fn processes_with(argument: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
    })
    .collect()
}

fn listener(path: &Path) -> OwnedFd {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(path).expect("short path")).expect("bind");
    listen(&listener, Backlog::new(16).expect("valid backlog")).expect("listen");
    listener
}

/// A root filesystem with busybox and nothing else.
fn make_rootfs(rootfs: &Path) {
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(directory)).expect("mkdir");
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    fs::set_permissions(rootfs.join("bin/busybox"), Permissions::from_mode(0o755)).expect("chmod");
    symlink("busybox", rootfs.join("bin/sh")).expect("symlink");
}

/// The specification of a small container with namespaces and a cgroup of its own.
pub fn config(id: &str, args: &[&str]) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "oomScoreAdj": 100,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" },
            ],
        },
    })
}
