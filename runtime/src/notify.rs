//! sd_notify(3) for a container: its service says that it is ready on a socket of its own, and the runtime passes that on
//! to the service manager that the runtime itself was started by.
//!
//! ```text
//!   service manager                runtime                          container
//!   $NOTIFY_SOCKET  <-- READY=1 -- ROOT/ID/notify/notify.sock <-- /run/notify/notify.sock ($NOTIFY_SOCKET)
//!                       MAINPID=N  (the directory is bound, read-only)
//! ```
//! The directory is made and bound by create; the socket is bound when the container is started, by whoever stays to
//! read it: `run` until the container ends, `start` and `run --detach` until it is ready.
//!
//! None of it is in config.json, nor in the copy of it that is kept: whether a container has it is told by the directory
//! ([`made`]). A checkpoint finds the mount by that, and a restore makes the directory anew where the images have the mount;
//! without the socket, as the container was ready long ago.
//!
//! Nothing else that a container says is passed on: the manager would take the rest (its main process, its watchdog,
//! descriptors to keep) for the word of the unit it trusts. runc does the same.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags};

/// Where the service manager listens, in its service's environment and in the container's.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// The directory with the socket, as the container sees it.
pub const SHOWN_AT: &str = "/run/notify";
/// The socket in it.
const SOCKET: &str = "notify.sock";
/// The directory with the socket, in the container's directory.
const DIRECTORY: &str = "notify";

/// The longest message that is looked at, in bytes.
const MAX_MESSAGE: usize = 4096;

/// How many messages are read in a row: a container that never stops talking shall not keep the runtime from its signals.
const MAX_MESSAGES: usize = 64;

/// The service manager's socket, if this process was started by one that wants to know.
pub fn manager() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty())
}

/// The directory of the socket, in a container's.
pub fn directory(container: &Path) -> PathBuf {
    container.join(DIRECTORY)
}

/// Whether a container has one.
pub fn made(container: &Path) -> bool {
    directory(container).is_dir()
}

/// Makes that directory, which any user of the container may search.
pub fn make_directory(container: &Path) -> Result<()> {
    let path = directory(container);
    fs::create_dir(&path)
        .and_then(|()| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .with_context(|| format!("make {}", path.display()))
}

/// Shows the container that directory, and its program where in it the socket is.
pub fn show(spec: &mut Spec, container: &Path) {
    let mut mount = Mount::default();
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    mount
        .set_destination(SHOWN_AT.into())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(directory(container)))
        .set_options(Some(options.to_vec()));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(mut process) = spec.process().clone() {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
        env.push(format!("{VARIABLE}={SHOWN_AT}/{SOCKET}"));
        process.set_env(Some(env));
        spec.set_process(Some(process));
    }
}

/// The container's socket, and the manager's.
#[derive(Debug)]
pub struct Notify {
    listener: OwnedFd,
    manager: OsString,
    /// The manager knows.
    told: bool,
}

impl Notify {
    /// Listens for a container that was created with the directory; none where it was not, or where there is no manager.
    pub fn listen(container: &Path) -> Result<Option<Notify>> {
        let Some(manager) = manager() else {
            return Ok(None);
        };
        let path = directory(container);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            directory => directory.with_context(|| format!("open {}", path.display()))?,
        };
        let what = || format!("bind {}/{SOCKET}", path.display());
        // Through the descriptor: the path may be longer than an address can be.
        let name = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::Datagram, flags, None).context("socket(AF_UNIX)")?;
        // A start before this one may have been killed.
        let _none = fs::remove_file(path.join(SOCKET));
        let address = UnixAddr::new(name.as_str()).with_context(what)?;
        bind(listener.as_raw_fd(), &address).with_context(what)?;
        // The service may be any user; the directories above are for nobody but the container and us.
        fs::set_permissions(path.join(SOCKET), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .with_context(what)?;
        Ok(Some(Notify {
            listener,
            manager,
            told: false,
        }))
    }

    /// Reads what the container has said so far, or some of it; if it is ready, tells the manager, once, that the unit is, and that
    /// `main` is its process.
    pub fn pass_on(&mut self, main: i32) -> Result<()> {
        let mut message = [0u8; MAX_MESSAGE];
        for _ in 0..MAX_MESSAGES {
            match recv(self.listener.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) if is_ready(&message[..length]) && !self.told => {
                    self.tell(main)?;
                    self.told = true;
                }
                // Descriptors that came along are closed by not being taken, which is what a barrier waits for
                // (sd_notify_barrier(3)).
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("receive from the container's notify socket"),
            }
        }
        Ok(())
    }

    /// Waits until the manager has been told, or the container's `init` has ended.
    pub fn wait(mut self, init: BorrowedFd<'_>, main: i32) -> Result<()> {
        while !self.told {
            let mut descriptors = [
                PollFd::new(init, PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.context("poll")?,
            };
            let ended = descriptors[0].any() == Some(true);
            self.pass_on(main)?;
            if ended {
                break;
            }
        }
        Ok(())
    }

    fn tell(&self, main: i32) -> Result<()> {
        let what = || format!("tell the service manager at {VARIABLE}={}", self.manager.display());
        let address = address(&self.manager).with_context(what)?;
        let socket =
            socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("socket(AF_UNIX)")?;
        let message = format!("READY=1\nMAINPID={main}\n");
        sendto(socket.as_raw_fd(), message.as_bytes(), &address, MsgFlags::MSG_NOSIGNAL).with_context(what)?;
        Ok(())
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A path, or with an @ before it an abstract name (sd_notify(3)).
fn address(socket: &OsStr) -> Result<UnixAddr> {
    let bytes = socket.as_bytes();
    if let Some(name) = bytes.strip_prefix(b"@") {
        return Ok(UnixAddr::new_abstract(name)?);
    }
    ensure!(bytes.starts_with(b"/"), "neither an absolute path nor an abstract name");
    Ok(UnixAddr::new(socket)?)
}

/// One of the lines of a message says so.
fn is_ready(message: &[u8]) -> bool {
    message.split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{send, socketpair};

    use super::*;

    #[test]
    fn readiness() {
        for (message, ready) in [
            ("READY=1", true),
            ("READY=1\n", true),
            ("STATUS=almost\nREADY=1\nX=2", true),
            ("READY=0", false),
            ("READY=10", false),
            ("STATUS=READY=1", false),
            ("MAINPID=1\nRELOADING=1", false),
            ("", false),
        ] {
            assert_eq!(is_ready(message.as_bytes()), ready, "{message:?}");
        }
    }

    #[test]
    fn addresses() {
        for (socket, good) in [
            ("/run/systemd/notify", true),
            ("@abstract", true),
            ("run/notify", false),
            ("vsock:2:1234", false),
        ] {
            assert_eq!(address(OsStr::new(socket)).is_ok(), good, "{socket}");
        }
        assert!(address(OsStr::new(&"/x".repeat(100))).is_err());
    }

    #[test]
    fn who_never_stops_talking_is_heard_by_and_by() {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (listener, service) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).unwrap();
        for _ in 0..=MAX_MESSAGES {
            send(service.as_raw_fd(), b"STATUS=x", MsgFlags::empty()).unwrap();
        }
        let mut notify = Notify {
            listener,
            manager: OsString::new(),
            told: false,
        };
        let left = |notify: &Notify| poll(&mut [PollFd::new(notify.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO);
        notify.pass_on(1).unwrap();
        assert_eq!(left(&notify), Ok(1));
        notify.pass_on(1).unwrap();
        assert_eq!(left(&notify), Ok(0));
    }

    #[test]
    fn the_container_is_shown_its_socket() {
        let mut spec = Spec::default();
        let mut process = oci_spec::runtime::Process::default();
        process.set_env(Some(vec!["A=1".to_owned(), "NOTIFY_SOCKET=/host".to_owned()]));
        spec.set_process(Some(process)).set_mounts(None);
        show(&mut spec, Path::new("/c"));
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(env, ["A=1", "NOTIFY_SOCKET=/run/notify/notify.sock"]);
        let mount = &spec.mounts().as_ref().unwrap()[0];
        assert_eq!(mount.source().as_deref(), Some(Path::new("/c/notify")));
    }
}
