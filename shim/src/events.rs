//! The connected clients: their requests, and the replies and events sent to them.
//!
//! Invariant: no client can hold up the loop. What cannot be sent at once is queued up to a bound; a client that does
//! not read until then is dropped. It loses nothing by that: it connects again, and `connect` gives it every state.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use corten_proto::shim::{self, Event, Message, Reply, event, message, reply};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, accept_with, sendmsg,
};

use crate::poll::{Poll, Source, Token};
use crate::report::report;

/// Most clients at once. One server is the rule; a second is there while the first is being replaced.
const MAX_CLIENTS: usize = 16;

/// Most bytes that wait for a client that does not read.
const MAX_QUEUED: usize = 512 * 1024;

/// Most descriptors a packet may carry: the three of an exec.
const MAX_FDS: usize = 3;

/// Who waits for an answer, and to what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) client: u64,
    pub(crate) seq: u64,
}

/// A result of a request, or why there is none.
pub(crate) type Outcome = Result<reply::Result, shim::Error>;

/// What came in from a client.
pub(crate) enum Received {
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// A packet that breaks a limit; it is gone, and this is the rule.
    Refused(String),
    /// Nothing, after all.
    Nothing,
    /// The client has gone.
    Gone,
}

/// A packet that waits to be sent, and the descriptor on it.
type Outgoing = (Vec<u8>, Option<OwnedFd>);

struct Client {
    socket: OwnedFd,
    token: Token,
    queue: VecDeque<Outgoing>,
    /// Bytes in `queue`.
    queued: usize,
    /// The loop waits for room to send.
    blocked: bool,
    subscribed: bool,
}

/// All connected clients.
pub(crate) struct Clients {
    by_id: BTreeMap<u64, Client>,
    next: u64,
    /// Those that have gone since this was asked last.
    gone: Vec<u64>,
    /// Given up for a moment to turn a connection away when no other descriptor is left.
    reserve: Option<OwnedFd>,
}

impl Clients {
    pub(crate) fn new() -> Result<Clients> {
        Ok(Clients {
            by_id: BTreeMap::new(),
            next: 0,
            gone: Vec::new(),
            reserve: Some(reserve()?),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Takes the next connection, if it comes from the user the shim runs as.
    pub(crate) fn accept(&mut self, listener: impl AsFd, poll: &mut Poll) -> Result<()> {
        let socket = match accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => return Ok(()),
            Err(errno @ (rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)) => {
                self.turn_away(listener)?;
                return Err(errno).context("connection refused: accept4");
            }
            Err(errno) => return Err(errno).context("accept4"),
        };
        let peer = getsockopt(&socket, PeerCredentials).context("getsockopt(SO_PEERCRED)")?;
        let own = nix::unistd::geteuid().as_raw();
        ensure!(
            peer.uid() == own,
            "connection refused: user {} is not {own}",
            peer.uid()
        );
        ensure!(
            self.by_id.len() < MAX_CLIENTS,
            "connection refused: {MAX_CLIENTS} clients are connected"
        );
        let id = self.next;
        let token = poll.add(&socket, Source::Client(id))?;
        self.next += 1;
        let client = Client {
            socket,
            token,
            queue: VecDeque::new(),
            queued: 0,
            blocked: false,
            subscribed: false,
        };
        self.by_id.insert(id, client);
        Ok(())
    }

    /// Closes the next connection. Left in the queue, it would wake the loop over and over.
    fn turn_away(&mut self, listener: impl AsFd) -> Result<()> {
        drop(self.reserve.take());
        drop(accept_with(listener, SocketFlags::CLOEXEC));
        self.reserve = Some(reserve()?);
        Ok(())
    }

    /// Takes the next packet of a client.
    pub(crate) fn receive(&self, id: u64) -> Received {
        let Some(client) = self.by_id.get(&id) else {
            return Received::Nothing;
        };
        match receive(&client.socket) {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Received::Nothing,
            Err(_) => Received::Gone,
        }
    }

    /// This client wants events from now on.
    pub(crate) fn subscribe(&mut self, id: u64) {
        if let Some(client) = self.by_id.get_mut(&id) {
            client.subscribed = true;
        }
    }

    /// Answers a request. The client may have gone; then nobody waits any more.
    pub(crate) fn reply(&mut self, to: Requester, outcome: Outcome, poll: &mut Poll) {
        self.reply_with(to, outcome, None, poll);
    }

    /// The same with a descriptor, which is closed here once it is sent.
    pub(crate) fn reply_with(&mut self, to: Requester, outcome: Outcome, fd: Option<OwnedFd>, poll: &mut Poll) {
        let result = outcome.unwrap_or_else(reply::Result::Error);
        let reply = Reply {
            seq: to.seq,
            result: Some(result),
        };
        let message = Message {
            kind: Some(message::Kind::Reply(reply)),
        };
        self.send(to.client, message.encode_to_vec(), fd, poll);
    }

    /// Sends an event to everyone who has subscribed.
    pub(crate) fn broadcast(&mut self, kind: event::Kind, poll: &mut Poll) {
        let message = Message {
            kind: Some(message::Kind::Event(Event { kind: Some(kind) })),
        };
        let packet = message.encode_to_vec();
        let subscribers = self.by_id.iter().filter(|(_, client)| client.subscribed);
        for id in subscribers.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send(id, packet.clone(), None, poll);
        }
    }

    fn send(&mut self, id: u64, packet: Vec<u8>, fd: Option<OwnedFd>, poll: &mut Poll) {
        let Some(client) = self.by_id.get_mut(&id) else {
            return;
        };
        client.queued += packet.len();
        client.queue.push_back((packet, fd));
        self.flush(id, poll);
    }

    /// Sends what waits for a client, as far as it reads.
    pub(crate) fn flush(&mut self, id: u64, poll: &mut Poll) {
        let Some(client) = self.by_id.get_mut(&id) else {
            return;
        };
        let sent = client.flush().and_then(|()| client.watch_writable(poll));
        let fits = client.queued <= MAX_QUEUED;
        if let Err(error) = sent {
            report!("client dropped: {error:#}");
            self.remove(id, poll);
        } else if !fits {
            report!("client dropped: it does not read its events");
            self.remove(id, poll);
        }
    }

    /// Ends a connection.
    pub(crate) fn remove(&mut self, id: u64, poll: &mut Poll) {
        if let Some(client) = self.by_id.remove(&id) {
            poll.remove(client.token, &client.socket);
            self.gone.push(id);
        }
    }

    /// Who has gone since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }
}

impl Client {
    /// Waits for room to send as long as something waits to be sent.
    fn watch_writable(&mut self, poll: &Poll) -> Result<()> {
        let blocked = !self.queue.is_empty();
        if blocked != self.blocked {
            poll.set_writable(self.token, &self.socket, blocked)?;
            self.blocked = blocked;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        while let Some((packet, fd)) = self.queue.front() {
            match send(&self.socket, packet, fd.as_ref()) {
                Ok(_) => {
                    self.queued -= packet.len();
                    self.queue.pop_front();
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())).context("send"),
            }
        }
        Ok(())
    }
}

fn reserve() -> Result<OwnedFd> {
    let file = std::fs::File::open("/dev/null").context("open(/dev/null)")?;
    Ok(file.into())
}

/// Sends one packet, with a descriptor or without.
fn send(socket: &OwnedFd, packet: &[u8], fd: Option<&OwnedFd>) -> Result<usize, rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let rights = fd.map(AsFd::as_fd);
    if !rights.as_slice().is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(rights.as_slice()));
        assert!(fits, "there is room for one descriptor");
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Receives one packet. Its length is asked for first, so that memory is taken for what came and not for the limit.
fn receive(socket: &OwnedFd) -> Result<Received, rustix::io::Errno> {
    let (_, length) = rustix::net::recv(socket, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    let mut packet = vec![0; length.min(shim::MAX_PACKET)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut packet)];
    let message = rustix::net::recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    // Collected before any refusal: a descriptor left in the buffer would stay open.
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if length == 0 {
        return Ok(Received::Gone);
    }
    if length > shim::MAX_PACKET {
        return Ok(Received::Refused(format!(
            "packet of {length} bytes: the limit is {}",
            shim::MAX_PACKET
        )));
    }
    // Alignment may leave room for one more than was asked for.
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        return Ok(Received::Refused(format!(
            "packet with more than {MAX_FDS} descriptors"
        )));
    }
    Ok(Received::Packet(packet, fds))
}
