//! A `SOCK_SEQPACKET` connection to a shim: whole packets, descriptors riding on them.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use corten_proto::shim::MAX_PACKET;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    recv, sendmsg, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Name of the socket in a sandbox's state directory.
const NAME: &str = "shim.sock";
/// Connections that may wait to be accepted: the server's, and a debugging tool's.
const BACKLOG: i32 = 8;

/// A connected socket.
///
/// Tokio has no type for `SOCK_SEQPACKET`. Its datagram type is used for its registration alone: what is sent and
/// received are whole packets there too, and the calls are our own.
pub(super) struct Socket(UnixDatagram);

impl Socket {
    /// Connects to the shim whose socket lies in `directory`. Never blocks: the kernel completes the connection
    /// before the shim accepts it.
    pub(super) fn connect(directory: &Path) -> Result<Self> {
        let fd = new_socket()?;
        with_address(directory, |address| Ok(connect(fd.as_raw_fd(), address)?))?;
        check_peer(&fd)?;
        Ok(Socket(UnixDatagram::from_std(fd.into())?))
    }

    /// Sends one packet.
    pub(super) async fn send(&self, packet: &[u8], fds: &[OwnedFd]) -> Result<()> {
        if packet.len() > MAX_PACKET {
            let text = format!("a request of {} bytes, more than {MAX_PACKET}", packet.len());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let fd = self.0.as_raw_fd();
        let send = || {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<UnixAddr>(fd, &[IoSlice::new(packet)], control, flags, None)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Receives one packet, with the one descriptor it may carry; an empty one at the end of the connection.
    pub(super) async fn receive(&self) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let fd = self.0.as_raw_fd();
        // First its length: packets are a few dozen bytes, and one task per pod waits here.
        let peek = || {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            Ok(recv(fd, &mut [0; 1], flags)?)
        };
        let length = self.0.async_io(Interest::READABLE, peek).await?;
        if length > MAX_PACKET {
            let text = format!("a packet of {length} bytes, more than {MAX_PACKET}");
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
        let mut packet = vec![0; length];
        let take = || take(&self.0, &mut packet);
        let (received, rights) = self.0.async_io(Interest::READABLE, take).await?;
        packet.truncate(received);
        Ok((packet, rights))
    }
}

/// Refuses a listener of another user, as the shim refuses clients of another: what is said to it runs as this user.
fn check_peer(socket: &OwnedFd) -> Result<()> {
    let (peer, own) = (getsockopt(socket, PeerCredentials)?.uid(), geteuid().as_raw());
    if peer == own {
        return Ok(());
    }
    let text = format!("user {peer}, not {own}, listens at the shim's socket");
    Err(Error::new(ErrorKind::PermissionDenied, text))
}

/// Takes one packet without waiting: its length and the first descriptor on it. The kernel installs no more than there is
/// room for, and what is left over of that is closed here.
fn take(socket: &UnixDatagram, packet: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut ancillary, flags)?;
    let mut first = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for right in rights {
                first.get_or_insert(right);
            }
        }
    }
    Ok((received.bytes, first))
}

/// The listening socket that a new shim inherits, mode 0600.
pub(super) fn listener(directory: &Path) -> Result<OwnedFd> {
    let fd = new_socket()?;
    with_address(directory, |address| Ok(bind(fd.as_raw_fd(), address)?))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(directory.join(NAME), mode)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

fn new_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// Runs `f` with the address of the socket in `directory`, by way of a descriptor: a socket address holds 107 bytes
/// only, which a state directory deep in the tree together with a 64-digit id exceeds.
fn with_address(directory: &Path, f: impl FnOnce(&UnixAddr) -> Result<()>) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let anchor = open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{NAME}", anchor.as_raw_fd());
    f(&UnixAddr::new(path.as_str())?)
}
