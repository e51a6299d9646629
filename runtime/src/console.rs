//! The terminal of a container: made in the container's own devpts, handed to whoever listens on the console socket.
//!
//! The peer end is got from the multiplexer's descriptor (TIOCGPTPEER, Linux 4.13), never by the path
//! `/dev/pts/N`, which the container could have put something else at (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use oci_spec::runtime::Process;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::rootfs::mount;
use crate::rootfs::resolve::Root;
use crate::socket;

/// A pseudoterminal.
#[derive(Debug)]
pub struct Terminal {
    /// The end a human, or a log, is at.
    pub master: OwnedFd,
    /// The container's end.
    pub slave: OwnedFd,
}

/// A console socket of our own: the end to receive on, and the end for the container's process.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).context("socketpair")
}

impl Terminal {
    /// A new terminal in the devpts at /dev/pts of `root`.
    pub fn open(root: &Root, process: &Process) -> Result<Terminal> {
        let pts = root
            .find(Path::new("/dev/pts"))?
            .context("process.terminal: the container has no /dev/pts")?;
        let kind = rustix::fs::fstatfs(&pts).context("fstatfs(/dev/pts)")?.f_type;
        ensure!(
            i128::from(kind) == i128::from(libc::DEVPTS_SUPER_MAGIC),
            "process.terminal: /dev/pts is not a devpts filesystem"
        );
        // In that very filesystem the name is the kernel's.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), resolve).context("open /dev/pts/ptmx")?;
        rustix::pty::unlockpt(&master).context("ioctl(TIOCSPTLCK)")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context("ioctl(TIOCGPTPEER)")?;
        if let Some(size) = process.console_size() {
            let cells = |value: u64| u16::try_from(value).with_context(|| format!("process.consoleSize: {value}"));
            let size = Winsize {
                ws_row: cells(size.height())?,
                ws_col: cells(size.width())?,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&slave, size).context("ioctl(TIOCSWINSZ)")?;
        }
        Ok(Terminal { master, slave })
    }

    /// Shows the container's end at /dev/console.
    pub fn bind(&self, root: &Root) -> Result<()> {
        let what = "bind the terminal on /dev/console";
        let dev = root.directory(Path::new("/dev"), false).context(what)?;
        // A link here is an image's attempt to have a file made elsewhere (CVE-2026-88264); EXCL does not follow one.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(&dev, "console", flags, Mode::from_raw_mode(0o620)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(what),
        }
        let place = rustix::fs::openat(
            &dev,
            "console",
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(what)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&place).context(what)?.st_mode);
        ensure!(kind != FileType::Symlink, "{what}: a link is there");
        mount::attach(mount::copy(&self.slave).context(what)?, place).context(what)
    }

    /// Hands the outer end to the listener.
    pub fn send(&self, socket: BorrowedFd<'_>) -> Result<()> {
        send(self.master.as_fd(), socket)
    }

    /// Makes the container's end the controlling terminal and the standard streams. The caller leads a session.
    pub fn take(self) -> Result<()> {
        rustix::process::ioctl_tiocsctty(&self.slave).context("ioctl(TIOCSCTTY)")?;
        crate::sys::fd::redirect_stdio(self.slave.as_fd()).context("dup2 the terminal")
    }
}

/// Hands the outer end of a terminal to the listener.
pub fn send(master: BorrowedFd<'_>, peer: BorrowedFd<'_>) -> Result<()> {
    // The text is the name that runc sends along.
    socket::send(peer, "/dev/ptmx", master).context("send the terminal to the console socket")
}

/// Receives a terminal from the other end of [`pair`].
pub fn receive(socket: &OwnedFd) -> Result<OwnedFd> {
    let terminal = socket::receive(socket.as_fd()).context("receive the terminal")?;
    terminal.context("the container's process sent no terminal")
}
