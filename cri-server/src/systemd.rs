//! Life as a service of systemd: what it passes at the start, and what it is told.
//!
//! ```text
//! LISTEN_PID, LISTEN_FDS         sockets it listens at for us, from descriptor 3 on     sd_listen_fds(3)
//! NOTIFY_SOCKET        <--       READY=1 once calls are served and pods are recovered   sd_notify(3)
//!                      <--       RELOADING=1, MONOTONIC_USEC; then READY=1
//!                      <--       STOPPING=1
//!                      <--       WATCHDOG=1, every half of WATCHDOG_USEC
//! ```
//! The variables are taken out of the environment before there is any thread: no shim, runtime or plugin has them, so none
//! can speak for the server. Without them, nothing here does anything.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::time::{ClockId, clock_gettime};

use crate::sys;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// Most of them: each must become a valid number of a descriptor.
const MAX_PASSED: i32 = 64;
/// How long systemd may take to read a message; it reads them all the time.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// The variables as they were.
#[derive(Debug, Default)]
pub struct Variables {
    notify_socket: Option<OsString>,
    watchdog_usec: Option<OsString>,
    watchdog_pid: Option<OsString>,
    listen_pid: Option<OsString>,
    listen_fds: Option<OsString>,
}

impl Variables {
    /// Takes them out of the environment. The first thing that a process does.
    #[must_use]
    pub fn take() -> Variables {
        let variables = Variables {
            notify_socket: sys::take_variable("NOTIFY_SOCKET"),
            watchdog_usec: sys::take_variable("WATCHDOG_USEC"),
            watchdog_pid: sys::take_variable("WATCHDOG_PID"),
            listen_pid: sys::take_variable("LISTEN_PID"),
            listen_fds: sys::take_variable("LISTEN_FDS"),
        };
        drop(sys::take_variable("LISTEN_FDNAMES"));
        variables
    }
}

/// What systemd gave, and where it listens.
#[derive(Debug)]
pub struct Systemd {
    notify: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    passed: Vec<OwnedFd>,
}

impl Systemd {
    /// Makes sense of the variables; those that are for another process are not for us.
    pub fn new(variables: &Variables) -> Result<Systemd> {
        let pid = std::process::id();
        Ok(Systemd {
            notify: notify_socket(variables)?,
            watchdog: watchdog(variables, pid)?,
            passed: passed(variables, pid)?,
        })
    }

    /// How often systemd wants to hear that the server lives; `None`: not at all.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The socket at `path` that systemd listens at already.
    pub(crate) fn take_listener(&mut self, path: &Path) -> Result<Option<UnixListener>> {
        let passed = std::mem::take(&mut self.passed);
        if passed.is_empty() {
            return Ok(None);
        }
        for fd in passed {
            let listens = getsockopt(&fd, sockopt::AcceptConn);
            ensure!(
                listens == Ok(true),
                "LISTEN_FDS: what was passed is no listening socket"
            );
            let listener = UnixListener::from(fd);
            let address = listener
                .local_addr()
                .context("LISTEN_FDS: ask for the socket's address")?;
            if address.as_pathname() == Some(path) {
                return Ok(Some(listener));
            }
        }
        bail!(
            "LISTEN_FDS: none of the sockets is {}, where `listen` has the server listen",
            path.display()
        );
    }

    /// Calls are served.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// The configuration is read again; ends with [`Systemd::ready`].
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS=reading the configuration\n"
        ));
    }

    /// The server ends.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=ending; pods go on\n");
    }

    /// What the server does, for `systemctl status`.
    pub(crate) fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}\n"));
    }

    /// The server lives.
    pub(crate) fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    fn tell(&self, message: &str) {
        let Some((socket, address)) = &self.notify else {
            return;
        };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!("tell systemd {:?}: {error}", message.lines().next().unwrap_or_default());
        }
    }
}

fn notify_socket(variables: &Variables) -> Result<Option<(UnixDatagram, SocketAddr)>> {
    let Some(name) = &variables.notify_socket else {
        return Ok(None);
    };
    let name = name.as_bytes();
    let address = match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(name))),
        _ => bail!("NOTIFY_SOCKET: must be an absolute path, or begin with @"),
    };
    let address = address.context("NOTIFY_SOCKET")?;
    let socket = UnixDatagram::unbound().context("make a socket to systemd")?;
    socket
        .set_write_timeout(Some(SEND_LIMIT))
        .context("set a limit to messages to systemd")?;
    Ok(Some((socket, address)))
}

fn watchdog(variables: &Variables, pid: u32) -> Result<Option<Duration>> {
    if number(&variables.watchdog_pid, "WATCHDOG_PID")?.is_some_and(|it| it != u64::from(pid)) {
        return Ok(None);
    }
    let usec = number(&variables.watchdog_usec, "WATCHDOG_USEC")?.filter(|&usec| usec > 0);
    Ok(usec.map(Duration::from_micros))
}

fn passed(variables: &Variables, pid: u32) -> Result<Vec<OwnedFd>> {
    if number(&variables.listen_pid, "LISTEN_PID")? != Some(pid.into()) {
        return Ok(Vec::new());
    }
    let count = number(&variables.listen_fds, "LISTEN_FDS")?.unwrap_or(0);
    let count = i32::try_from(count).ok().filter(|&count| count <= MAX_PASSED);
    let count = count.with_context(|| format!("LISTEN_FDS: must be at most {MAX_PASSED}"))?;
    let take = |fd| {
        let fd = sys::inherited(fd);
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("LISTEN_FDS: the descriptor is not open")?;
        Ok(fd)
    };
    (FIRST..FIRST + count).map(take).collect()
}

fn number(value: &Option<OsString>, name: &str) -> Result<Option<u64>> {
    let Some(value) = value else {
        return Ok(None);
    };
    let text = value.to_str().with_context(|| format!("{name}: must be a number"))?;
    let number = text
        .parse()
        .with_context(|| format!("{name}: {text:?} must be a number"))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_for_another_process_are_not_for_us() {
        let of = |pid: &str, usec: &str| Variables {
            watchdog_pid: Some(pid.into()),
            watchdog_usec: Some(usec.into()),
            listen_pid: Some(pid.into()),
            listen_fds: Some("9".into()),
            ..Variables::default()
        };
        assert_eq!(watchdog(&of("7", "3000000"), 7).unwrap(), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(&of("8", "3000000"), 7).unwrap(), None);
        assert_eq!(watchdog(&of("7", "0"), 7).unwrap(), None);
        assert!(watchdog(&of("7", "x"), 7).is_err());
        assert!(passed(&of("8", "1"), 7).unwrap().is_empty());
    }

    #[test]
    fn messages_reach_paths_and_abstract_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("corten-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
        ];
        for (socket, name) in sockets {
            let variables = Variables {
                notify_socket: Some(name.into()),
                ..Variables::default()
            };
            Systemd::new(&variables).unwrap().ready("serving");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving\n");
        }
        let variables = Variables {
            notify_socket: Some("relative".into()),
            ..Variables::default()
        };
        assert!(Systemd::new(&variables).is_err());
    }
}
