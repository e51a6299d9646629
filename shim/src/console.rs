//! The console socket: how a runtime hands over the master of a container's terminal.
//!
//! The runtime connects to a unix stream socket and sends one message with the master as SCM_RIGHTS, before it exits.
//! So nothing has to wait here: after a successful `create` the message lies in the socket.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags};

use crate::report::report;

/// A listening console socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Console {
    listener: OwnedFd,
    path: PathBuf,
}

impl Console {
    /// Listens at `path`, which must fit the 107 bytes of a unix socket address.
    pub(crate) fn listen(path: PathBuf) -> Result<Console> {
        let address = UnixAddr::new(&path).with_context(|| format!("console socket {}", path.display()))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .context("socket(AF_UNIX, SOCK_STREAM) for the console")?;
        bind(listener.as_raw_fd(), &address).with_context(|| format!("bind({})", path.display()))?;
        let console = Console { listener, path };
        listen(&console.listener, Backlog::new(1).context("listen backlog")?)
            .context("listen on the console socket")?;
        Ok(console)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master that the runtime has sent.
    pub(crate) fn master(&self) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let peer = rustix::net::accept_with(&self.listener, flags)
            .context("accept on the console socket: the runtime did not connect")?;
        let mut name = [0u8; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&peer, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .context("recvmsg on the console socket")?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(master) = fds.next()
            {
                rustix::io::ioctl_fionbio(&master, true).context("ioctl(terminal, FIONBIO)")?;
                return Ok(master);
            }
        }
        bail!("the runtime sent no terminal through the console socket")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            report!("unlink({}): {error}", self.path.display());
        }
    }
}
