//! Descriptors sent over unix sockets: to those that a caller names on the command line, and between our own processes.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

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

/// Receives a descriptor from a process of ours; `None` where none came with the next message, or there is no other end.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut text = [0u8; 64];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags).context("recvmsg")?;
    for message in message.cmsgs().context("decode the control message")? {
        if let ControlMessageOwned::ScmRights(descriptors) = message
            && let [descriptor] = descriptors[..]
        {
            return Ok(Some(crate::sys::fd::own(descriptor)));
        }
    }
    Ok(None)
}
