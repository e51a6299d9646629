//! CRIU's protocol: protobuf messages over a SOCK_SEQPACKET pair, spoken by `criu swrk FD`.
//!
//! ```text
//!   corten                    criu
//!   Request            -->
//!                      <--    Response NOTIFY(script)    any number, with a descriptor for `orphan-pts-master`
//!   Request NOTIFY     -->
//!                      <--    Response of the request's kind, and criu ends
//! ```
//! The protocol, not the command line: it names each stage as it is reached, so that hooks run and the tasks are looked
//! at while they cannot run yet; it hands over the terminal of a restored container; and descriptors of directories take
//! the place of paths. Field numbers are those of criu/images/rpc.proto; what is not sent or looked at is left out.

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair};
use prost::Message;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::interrupt::{self, Interrupt};

/// The oldest CRIU that has all that is used: the security label of restored tasks by name is of 3.16.
const OLDEST: (i32, i32) = (3, 16);

/// Longest message of CRIU's, in bytes; it sends none beyond a few hundred.
const MAX_MESSAGE: usize = 64 << 10;

/// The descriptor CRIU finds the socket at.
const SOCKET: RawFd = 3;

/// Where `criu` is looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kinds of request and response.
pub mod kind {
    /// Freeze and write the tasks.
    pub const DUMP: i32 = 1;
    /// Read and make them.
    pub const RESTORE: i32 = 2;
    /// Write their memory only, and let them run on.
    pub const PRE_DUMP: i32 = 4;
    /// A stage has been reached.
    pub const NOTIFY: i32 = 6;
    /// Which CRIU is this?
    pub const VERSION: i32 = 10;
}

/// `criu_page_server_info`.
#[derive(Clone, PartialEq, Message)]
pub struct PageServer {
    /// IP address.
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    /// TCP port.
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
}

/// `cgroup_root`: what a hierarchy's root in the images stands for.
#[derive(Clone, PartialEq, Message)]
pub struct CgroupRoot {
    /// The hierarchy; none on v2.
    #[prost(string, optional, tag = "1")]
    pub controllers: Option<String>,
    /// The cgroup within it.
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// `inherit_fd`.
#[derive(Clone, PartialEq, Message)]
pub struct InheritFd {
    /// What the images call it.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Its number in CRIU.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `join_namespace`.
#[derive(Clone, PartialEq, Message)]
pub struct JoinNamespace {
    /// Kind, as /proc/PID/ns names it.
    #[prost(string, required, tag = "1")]
    pub kind: String,
    /// A path that is the namespace.
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// The images: a descriptor of ours, which CRIU opens anew by /proc.
    #[prost(int32, required, tag = "1")]
    pub images: i32,
    /// Whom to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Let the tasks run on after a dump.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Sockets whose other end is outside.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sockets: Option<bool>,
    /// Open TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// A device is taken by whatever path it has.
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    /// A session or terminal of outside.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// File locks.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 0 to 4.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// A name in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Where memory goes, or comes from, over the network.
    #[prost(message, optional, tag = "11")]
    pub page_server: Option<PageServer>,
    /// Tell of every stage.
    #[prost(bool, optional, tag = "12")]
    pub notify: Option<bool>,
    /// The root of restored tasks: a mount point.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// An earlier dump, relative to the images.
    #[prost(string, optional, tag = "14")]
    pub parent: Option<String>,
    /// Remember what is written to from here on.
    #[prost(bool, optional, tag = "15")]
    pub track_memory: Option<bool>,
    /// Take memory that a later dump has out of earlier ones.
    #[prost(bool, optional, tag = "16")]
    pub auto_dedup: Option<bool>,
    /// Where the log goes: a descriptor of ours.
    #[prost(int32, optional, tag = "17")]
    pub work: Option<i32>,
    /// Files that are open and deleted get a name for the time being.
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Look at cgroups at all; for versions that do not know the mode.
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    /// What the images' cgroup roots are here.
    #[prost(message, repeated, tag = "25")]
    pub cgroup_roots: Vec<CgroupRoot>,
    /// The restored init is a child of CRIU's parent.
    #[prost(bool, optional, tag = "26")]
    pub sibling: Option<bool>,
    /// Descriptors of CRIU's own that take the place of what the images name.
    #[prost(message, repeated, tag = "27")]
    pub inherit_fds: Vec<InheritFd>,
    /// What becomes of cgroups.
    #[prost(int32, optional, tag = "34")]
    pub cgroups_mode: Option<i32>,
    /// What is not in the images but found outside: `mnt[PLACE]:NAME`, `net[INODE]:NAME`.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Namespaces that are restored empty, as CLONE_ flags.
    #[prost(uint32, optional, tag = "38")]
    pub empty_namespaces: Option<u32>,
    /// Namespaces that are joined instead of made.
    #[prost(message, repeated, tag = "39")]
    pub join_namespaces: Vec<JoinNamespace>,
    /// The cgroup to freeze the tasks by.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// Connections that are not yet accepted are let go.
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    /// Memory is fetched as it is used.
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    /// Gets a NUL when the page server listens: a descriptor of ours.
    #[prost(int32, optional, tag = "49")]
    pub status_fd: Option<i32>,
    /// Terminals whose outer end is elsewhere: it is made anew and sent here.
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    /// The security label of restored tasks, instead of the images'.
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    /// The SELinux context of restored mounts.
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// One of [`kind`].
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    /// How.
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    /// The answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, Message)]
pub struct Restored {
    /// The restored init, as we see it.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
pub struct Notification {
    /// The stage.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Init, where the stage is about it.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// `criu_version`.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    /// 4 of 4.1.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// 1 of 4.1.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// One of [`kind`].
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    /// Whether it could be done.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// Of a restore.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    /// Of a stage.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notification>,
    /// Why not, as a number.
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    /// Why not, in words.
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
    /// Of a question for the version.
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

/// What CRIU is started with.
#[derive(Debug, Default)]
pub struct Surroundings<'a> {
    /// Our standard streams are its own, for the tasks that inherit them.
    pub stdio: bool,
    /// Descriptors it gets, from 4 on, in this order.
    pub descriptors: Vec<&'a OwnedFd>,
}

impl Surroundings<'_> {
    /// The number that CRIU will have for the descriptor at `index`.
    pub fn number(index: usize) -> Result<i32> {
        Ok(SOCKET + 1 + i32::try_from(index).context("too many descriptors")?)
    }
}

/// A CRIU that serves one request. Dropping it kills it.
#[derive(Debug)]
pub struct Criu {
    child: Child,
    socket: OwnedFd,
    interrupt: Option<Interrupt>,
}

/// One message of CRIU's, with what came along.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub response: Response,
    /// A terminal, with `orphan-pts-master`.
    pub descriptor: Option<OwnedFd>,
}

impl Criu {
    /// Starts one: no environment but PATH, working directory `/`, and no descriptor beyond those named.
    pub fn start(program: &Path, surroundings: &Surroundings<'_>) -> Result<Criu> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .context("socketpair(AF_UNIX, SOCK_SEQPACKET)")?;
        let mut command = Command::new(program);
        command.arg("swrk").arg(SOCKET.to_string());
        // PATH alone: CRIU runs iptables and tar.
        command.env_clear().env("PATH", search_path()).current_dir("/");
        if !surroundings.stdio {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(&theirs)
            .chain(surroundings.descriptors.iter().copied())
            .map(AsFd::as_fd)
            .collect();
        let child = crate::sys::spawn::spawn_passing(&mut command, SOCKET, &descriptors)
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Criu {
            child,
            socket,
            interrupt: Interrupt::watch()?,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a request.
    pub fn send(&self, request: &Request) -> Result<()> {
        let bytes = request.encode_to_vec();
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).context("send to criu")?;
        Ok(())
    }

    /// The next message.
    pub fn receive(&mut self) -> Result<Received> {
        self.wait_for_message()?;
        let mut buffer = vec![0u8; MAX_MESSAGE];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_TRUNC;
        let message = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut buffers, Some(&mut control), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                result => break result.context("receive from criu")?,
            }
        };
        let mut descriptor = None;
        for message in message.cmsgs().context("decode the control message")? {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                descriptor = descriptors.into_iter().map(crate::sys::fd::own).next_back();
            }
        }
        let length = message.bytes;
        if length == 0 {
            return Err(self.ended());
        }
        ensure!(
            length <= MAX_MESSAGE,
            "a message of {length} bytes from criu is longer than {MAX_MESSAGE}"
        );
        let response = Response::decode(&buffer[..length]).context("decode criu's message")?;
        Ok(Received { response, descriptor })
    }

    /// Waits until there is a message, or CRIU has ended: processes it has made may hold its socket, which then has no end.
    fn wait_for_message(&mut self) -> Result<()> {
        let process = self.process()?;
        let files = [Some(self.socket.as_fd()), Some(process.as_fd())];
        let ready = interrupt::wait(files, self.interrupt.as_ref(), None).context("wait for criu")?;
        let [message, ended] = ready.unwrap_or_default();
        // poll looks at one after the other: what it said last may have come between the two looks.
        if message || !ended || is_readable(&self.socket)? {
            return Ok(());
        }
        Err(self.ended())
    }

    fn process(&self) -> Result<OwnedFd> {
        let pid = rustix::process::Pid::from_child(&self.child);
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("pidfd_open({pid:?})"))
    }

    /// How it ended, as an error.
    fn ended(&mut self) -> anyhow::Error {
        match self.child.wait() {
            Ok(status) => {
                let how = status
                    .signal()
                    .map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                anyhow!("criu ended without an answer: {how}")
            }
            Err(error) => anyhow!(error).context("wait for criu"),
        }
    }

    /// Answers a notification.
    pub fn acknowledge(&self) -> Result<()> {
        self.send(&Request {
            kind: kind::NOTIFY,
            options: None,
            notify_success: Some(true),
        })
    }

    /// Waits for its end after its last word.
    pub fn finish(mut self) -> Result<()> {
        // It waits for the next request until the socket is closed.
        nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both).context("shutdown")?;
        let process = self.process()?;
        interrupt::wait([Some(process.as_fd())], self.interrupt.as_ref(), None).context("wait for criu")?;
        self.child.wait().context("wait for criu")?;
        Ok(())
    }
}

fn is_readable(socket: &OwnedFd) -> Result<bool> {
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).context("poll")?;
    Ok(descriptors[0].any() == Some(true))
}

impl Drop for Criu {
    fn drop(&mut self) {
        // One that has ended is no longer there to be killed, which is not worth a word.
        if let Ok(None) = self.child.try_wait() {
            crate::log::best_effort("kill criu", self.child.kill().map_err(Into::into));
            crate::log::best_effort("wait for criu", self.child.wait().map_err(Into::into));
        }
    }
}

/// The CRIU at `given`, or the one in PATH, if it is new enough.
pub fn program(given: Option<&Path>) -> Result<PathBuf> {
    let program = match given {
        // As execvp has it: a name alone is looked for.
        Some(path) if path.components().count() > 1 || path.is_absolute() => std::path::absolute(path)?,
        Some(name) => find(name, &search_path())?,
        None => find(Path::new("criu"), &search_path())?,
    };
    let mut criu = Criu::start(&program, &Surroundings::default())?;
    criu.send(&Request {
        kind: kind::VERSION,
        options: None,
        notify_success: None,
    })?;
    let version = criu
        .receive()?
        .response
        .version
        .context("criu did not tell its version")?;
    criu.finish()?;
    let found = (version.major, version.minor);
    ensure!(
        found >= OLDEST,
        "criu {}.{} is too old: {}.{} or later is needed",
        found.0,
        found.1,
        OLDEST.0,
        OLDEST.1
    );
    Ok(program)
}

fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())
}

/// The program, in the absolute directories of `path`: one that is relative would be the caller's working directory.
fn find(name: &Path, path: &str) -> Result<PathBuf> {
    let directories = path
        .split(':')
        .map(Path::new)
        .filter(|directory| directory.is_absolute());
    directories
        .map(|directory| directory.join(name))
        .find(|candidate| rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok() && candidate.is_file())
        .ok_or_else(|| anyhow!("{} is not installed: there is none in PATH ({path})", name.display()))
}

/// The last lines of a log that say what went wrong.
pub fn last_errors(log: &Path) -> String {
    let mut text = Vec::new();
    // The end of it: a log of level 4 can be long.
    let read = std::fs::File::open(log).and_then(|mut file| {
        use std::io::{Seek, SeekFrom};
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_MESSAGE as u64)))?;
        file.read_to_end(&mut text)
    });
    if let Err(error) = read {
        return format!("no log {}: {error}", log.display());
    }
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("Error "))
        .map(str::trim)
        .collect();
    let kept = lines.split_off(lines.len().saturating_sub(4));
    if kept.is_empty() {
        return format!("see {}", log.display());
    }
    format!("see {}: {}", log.display(), kept.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_by_number() {
        let request = Request {
            kind: kind::DUMP,
            options: Some(Options {
                images: 5,
                external: vec!["mnt[/a]:/a".into()],
                ..Options::default()
            }),
            notify_success: None,
        };
        let bytes = request.encode_to_vec();
        // 1: varint 1; 2: length-delimited; in it 1: varint 5; 37: a string.
        let mut expected = vec![0x08, 1, 0x12, 2 + 2 + 1 + 10, 0x08, 5, 0xaa, 0x02, 10];
        expected.extend_from_slice(b"mnt[/a]:/a");
        assert_eq!(bytes, expected);
        let answer = Response::decode(&[0x08, 6, 0x10, 1, 0x2a, 4, 0x0a, 2, b'h', b'i'][..]).unwrap();
        assert_eq!(answer.kind, kind::NOTIFY);
        assert_eq!(answer.notify.unwrap().script.as_deref(), Some("hi"));
    }

    #[test]
    fn an_end_without_an_answer_is_seen() {
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        // As by a process that CRIU has made and left.
        let (socket, _held) = pair();
        let child = Command::new("/bin/sh").args(["-c", "exit 3"]).spawn().unwrap();
        let criu = |child, socket| Criu {
            child,
            socket,
            interrupt: None,
        };
        let error = criu(child, socket).receive().unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        // What it has said before counts.
        let (socket, held) = pair();
        send(held.as_raw_fd(), &[0x08, 6, 0x10, 1], MsgFlags::empty()).unwrap();
        let child = Command::new("/bin/true").spawn().unwrap();
        assert_eq!(criu(child, socket).receive().unwrap().response.kind, kind::NOTIFY);
    }

    #[test]
    fn the_program_is_looked_for_in_absolute_directories() {
        let error = find(Path::new("criu"), ".:relative:/nonexistent")
            .unwrap_err()
            .to_string();
        assert!(error.contains("criu is not installed"), "{error}");
    }

    #[test]
    fn the_end_of_a_log() {
        let log = std::env::temp_dir().join(format!("corten-criu-log-{}", std::process::id()));
        let mut text: String = (0..9)
            .map(|n| format!("(00.{n}) Error (criu/x.c:1): number {n}\n"))
            .collect();
        text.push_str("(00.9) Warn  (criu/y.c:2): nothing\n");
        std::fs::write(&log, text).unwrap();
        let told = last_errors(&log);
        assert!(told.contains("number 8") && told.contains("number 5"), "{told}");
        assert!(!told.contains("number 4") && !told.contains("nothing"), "{told}");
        std::fs::remove_file(&log).unwrap();
        assert!(last_errors(&log).contains("no log"));
    }
}
