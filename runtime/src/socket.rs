//! Descriptors sent over unix sockets that a caller names on the command line.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Connects to the socket that this option names. Before anything is made: a wrong path is then an error without
/// consequence.
pub fn connect(option: &str, path: &Path) -> Result<OwnedFd> {
    let stream = UnixStream::connect(path).with_context(|| format!("--{option}: connect to {}", path.display()))?;
    Ok(stream.into())
}

/// Sends a descriptor. Receivers demand some text with it; it says what the descriptor is.
pub fn send(socket: BorrowedFd<'_>, text: &str, descriptor: impl AsFd) -> Result<()> {
    let descriptors = [descriptor.as_fd().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &text, &message, MsgFlags::MSG_NOSIGNAL, None).context("sendmsg")?;
    Ok(())
}
