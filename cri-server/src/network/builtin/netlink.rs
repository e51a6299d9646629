//! Netlink as it is spoken here: requests written by hand into one buffer, sent at once, each answered by the kernel.
//!
//! ```text
//! Batch  nlmsghdr, the family's header, attributes, each padded to 4 bytes; then the next message (netlink(7))
//! Socket sends a batch with one system call and reads the answers, which are there when the call returns
//! ```
//!
//! A socket belongs to the network namespace of the thread that opens it, whoever uses it later. Numbers are in the
//! machine's byte order but for those of netfilter, which are big-endian.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// Length of struct nlmsghdr.
const HEADER: usize = 16;
/// Length of an attribute's own header.
const ATTRIBUTE: usize = 4;
/// The kernel fills no larger one for a dump (NLMSG_GOODSIZE and its growth).
const RECEIVE: usize = 32 << 10;
/// Answers are waiting when sendto returns; a kernel that keeps one back must not keep a thread.
const PATIENCE_S: libc::time_t = 5;

/// Flags of a request that makes something, which must not be there.
pub(super) const CREATE: u16 = flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL);
/// Flags of a request that makes something or puts it in the place of what is there.
pub(super) const REPLACE: u16 = flags(libc::NLM_F_CREATE | libc::NLM_F_REPLACE);

/// Flags of a message header; all that there are fit.
#[expect(clippy::cast_possible_truncation, reason = "flags have 16 bits")]
const fn flags(value: libc::c_int) -> u16 {
    value as u16
}

/// The kernel refused a request.
#[derive(Debug)]
pub(super) struct Refused {
    /// What was asked for.
    pub(super) what: String,
    /// Why not.
    pub(super) errno: Errno,
}

impl Refused {
    fn new(what: &str, errno: i32) -> Refused {
        Refused {
            what: what.to_owned(),
            errno: Errno::from_raw(errno),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.errno)
    }
}

impl std::error::Error for Refused {}

/// Whether an error is the kernel's refusal with this number.
pub(super) fn is_refusal(error: &anyhow::Error, errno: Errno) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.errno == errno)
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Every message's number, and what it is about; it is acknowledged unless the text is empty.
    subjects: Vec<(u32, String)>,
}

/// The next message's number: no two of this process are alike, so that a late answer is not taken for another's.
static SEQUENCE: AtomicU32 = AtomicU32::new(1);

impl Batch {
    /// Adds a message that the kernel is to acknowledge; `what` names it in an error.
    pub(super) fn add(&mut self, kind: u16, extra: u16, what: impl Into<String>, build: impl FnOnce(&mut Message)) {
        let flags = flags(libc::NLM_F_REQUEST | libc::NLM_F_ACK) | extra;
        self.push(kind, flags, what.into(), build);
    }

    /// Adds a message that the kernel answers only if it fails.
    pub(super) fn add_silent(&mut self, kind: u16, build: impl FnOnce(&mut Message)) {
        self.push(kind, flags(libc::NLM_F_REQUEST), String::new(), build);
    }

    fn push(&mut self, kind: u16, flags: u16, what: String, build: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        build(&mut Message { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).expect("a message is short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.subjects.push((sequence, what));
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }
}

/// One message, or one nest of attributes, while it is written.
pub(super) struct Message<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Message<'_> {
    /// A fixed part: the family's header. Its length is a multiple of four.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// An attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("an attribute is short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A text, which ends with a NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// A number in the machine's byte order.
    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// A big-endian number.
    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Attributes inside an attribute.
    pub(super) fn nest(&mut self, kind: u16, build: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | flags(libc::NLA_F_NESTED)).to_ne_bytes());
        build(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a nest is short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// A netlink socket of one network namespace.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A socket for links, addresses and routes of the calling thread's namespace.
    pub(super) fn route() -> Result<Socket> {
        Socket::open(SockProtocol::NetlinkRoute)
    }

    /// A socket for packet filters and connections of the calling thread's namespace.
    pub(super) fn netfilter() -> Result<Socket> {
        Socket::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        let fd = fd.with_context(|| format!("socket AF_NETLINK {protocol:?}"))?;
        let limit = TimeVal::new(PATIENCE_S, 0);
        setsockopt(&fd, ReceiveTimeout, &limit).context("setsockopt SO_RCVTIMEO")?;
        Ok(Socket { fd })
    }

    /// Sends a batch; returns when every message has been acknowledged.
    ///
    /// # Errors
    /// [`Refused`] with the first message that the kernel did not take. The others may have been.
    pub(super) fn run(&self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.send(&batch.bytes)?;
        let mut open = batch.subjects.iter().filter(|(_, what)| !what.is_empty()).count();
        let mut outcome = Ok(());
        while open > 0 {
            self.receive(|answer| {
                let subject = batch.subjects.iter().find(|(number, _)| *number == answer.sequence);
                let (Some((_, what)), Some(errno)) = (subject, answer.error()) else {
                    return true;
                };
                // A message without a subject that failed has taken the rest of its transaction along.
                open = if what.is_empty() { 0 } else { open.saturating_sub(1) };
                if errno != 0 && outcome.is_ok() {
                    let what = if what.is_empty() { "begin a transaction" } else { what };
                    outcome = Err(Refused::new(what, errno));
                }
                true
            })?;
        }
        outcome.map_err(anyhow::Error::from)
    }

    /// Asks for a list; `each` gets the body of every entry, its family's header first.
    pub(super) fn dump(
        &self,
        kind: u16,
        what: &str,
        build: impl FnOnce(&mut Message),
        mut each: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut request = Batch::default();
        let flags = flags(libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        request.push(kind, flags, what.to_owned(), build);
        self.ask(&request, |answer| each(answer.body))
    }

    /// Asks for one thing: the body of the answer; none if it is not there.
    pub(super) fn get(&self, kind: u16, what: &str, build: impl FnOnce(&mut Message)) -> Result<Option<Vec<u8>>> {
        let mut request = Batch::default();
        request.add(kind, 0, what, build);
        let mut found = None;
        match self.ask(&request, |answer| found = Some(answer.body.to_vec())) {
            Ok(()) => Ok(found),
            Err(error) if is_refusal(&error, Errno::ENODEV) || is_refusal(&error, Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one message and reads up to its end: an acknowledgement, or the end of a list.
    fn ask(&self, request: &Batch, mut each: impl FnMut(&Answer)) -> Result<()> {
        self.send(&request.bytes)?;
        let (number, what) = &request.subjects[0];
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|answer| {
                match answer.error() {
                    _ if answer.sequence != *number => {}
                    Some(errno) => outcome = Some(errno),
                    None => each(answer),
                }
                outcome.is_none()
            })?;
        }
        match outcome {
            None | Some(0) => Ok(()),
            Some(errno) => Err(Refused::new(what, errno).into()),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())
            .map(drop)
            .context("send to the kernel by netlink")
    }

    /// Reads one datagram; `each` sees its messages until it has had enough.
    fn receive(&self, mut each: impl FnMut(&Answer) -> bool) -> Result<()> {
        let mut buffer = vec![0u8; RECEIVE];
        let length =
            recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC).context("receive the kernel's answer")?;
        let Some(mut left) = buffer.get(..length) else {
            bail!("the kernel's answer has {length} bytes, more than there is room for");
        };
        while let Some((answer, rest)) = Answer::first(left) {
            left = rest;
            if !each(&answer) {
                break;
            }
        }
        Ok(())
    }
}

/// One message from the kernel.
struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The first message of a datagram, and the rest.
    fn first(bytes: &'a [u8]) -> Option<(Answer<'a>, &'a [u8])> {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let answer = Answer {
            kind: u16_at(bytes, 4)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((answer, rest))
    }

    /// The number of an error, 0 for an acknowledgement and the end of a list; none for an entry.
    fn error(&self) -> Option<i32> {
        match i32::from(self.kind) {
            libc::NLMSG_ERROR => {
                let code = u32_at(self.body, 0).map_or(-libc::EPROTO, u32::cast_signed);
                Some(code.saturating_neg())
            }
            NLMSG_DONE => Some(0),
            _ => None,
        }
    }
}

/// The end of a list (linux/netlink.h).
const NLMSG_DONE: i32 = 3;

/// The attributes of a message or of a nest: kind without its flags, value. What is cut off ends the list.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(left, 0)?);
        let kind = u16_at(left, 2)? & 0x3fff;
        let value = left.get(ATTRIBUTE..length)?;
        left = left.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(it, _)| *it == kind).map(|(_, value)| value)
}

/// A text attribute without its NUL.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The number at an offset, in the machine's byte order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The same of two bytes.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_as_the_kernel_reads_it() {
        let mut batch = Batch::default();
        batch.add(16, CREATE, "make it", |message| {
            message.raw(&[1, 2, 3, 4]);
            message.text(3, "ab");
            message.nest(18, |nest| nest.u32(5, 7));
        });
        let mut expected = vec![];
        expected.extend(40u32.to_ne_bytes());
        expected.extend(16u16.to_ne_bytes());
        expected.extend(0x605u16.to_ne_bytes());
        expected.extend(batch.subjects[0].0.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend([1, 2, 3, 4]);
        expected.extend([7u16.to_ne_bytes(), 3u16.to_ne_bytes()].concat());
        expected.extend(*b"ab\0\0");
        expected.extend([12u16.to_ne_bytes(), (18u16 | 0x8000).to_ne_bytes()].concat());
        expected.extend([8u16.to_ne_bytes(), 5u16.to_ne_bytes()].concat());
        expected.extend(7u32.to_ne_bytes());
        assert_eq!(batch.bytes, expected);
        let read: Vec<_> = attributes(&batch.bytes[20..]).collect();
        assert_eq!(read[0], (3, &b"ab\0"[..]));
        assert_eq!(attribute(read[1].1, 5), Some(&7u32.to_ne_bytes()[..]));
    }

    #[test]
    fn answers_that_are_cut_off_are_none() {
        let mut bytes = vec![0u8; 20];
        bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&2u16.to_ne_bytes());
        bytes[16..].copy_from_slice(&(-17i32).to_ne_bytes());
        let (answer, rest) = Answer::first(&bytes).unwrap();
        assert_eq!((answer.error(), rest.len()), (Some(17), 0));
        assert!(Answer::first(&bytes[..19]).is_none());
        assert_eq!(attributes(&[5, 0, 1]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 1]).count(), 0);
    }

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::route().unwrap();
        let mut links = 0;
        let header = |message: &mut Message| message.raw(&[0; 16]);
        socket
            .dump(libc::RTM_GETLINK, "list links", header, |_| links += 1)
            .unwrap();
        assert!(links > 0, "every namespace has a loopback");
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let none = socket
            .get(libc::RTM_GETLINK, "a link", |message| message.raw(&header))
            .unwrap();
        assert_eq!(none, None);
    }
}
