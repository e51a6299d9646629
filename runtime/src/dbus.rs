//! A client of the D-Bus message bus: as much of it as asking systemd for a unit takes.
//!
//! One connection does one thing at a time and has one deadline for all of it; `wire.rs` has the messages. Both ends are
//! of one machine, so that a message in another byte order is an error. Follows the D-Bus specification, "Authentication
//! Protocol".
//!
//! Left out on purpose: everything a service needs, and passing descriptors.

mod wire;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

pub use wire::{Body, Message, Method, Value};
use wire::{ENDIAN, ERROR, REPLY, Reader, SIGNAL, marshal};

/// The longest message that is read, in bytes; systemd's answers to what is asked here have some hundreds.
const MAX_MESSAGE: usize = 1 << 20;

/// An error that the other side has answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `org.freedesktop.systemd1.UnitExists`, say.
    pub name: String,
    /// In words.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.name)
    }
}

impl std::error::Error for Refusal {}

/// A connection to a bus.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    serial: u32,
    deadline: Instant,
    timeout: Duration,
    /// Signals that came while a reply was waited for.
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects to the first of these addresses (`unix:path=/run/dbus/system_bus_socket;...`) that answers. Everything
    /// on this connection has to be done within `timeout`.
    pub fn open(addresses: &str, timeout: Duration) -> Result<Connection> {
        let deadline = Instant::now() + timeout;
        let mut failure = anyhow!("{addresses:?}: no address of a unix socket");
        for address in addresses.split(';') {
            let Some(address) = parse_address(address) else {
                continue;
            };
            match address
                .map_err(Into::into)
                .and_then(|address| connect(&address, deadline))
            {
                Ok(socket) => return Connection::begin(socket, deadline, timeout).context(addresses.to_owned()),
                Err(error) => failure = error.context(addresses.to_owned()),
            }
        }
        Err(failure)
    }

    fn begin(socket: UnixStream, deadline: Instant, timeout: Duration) -> Result<Connection> {
        let mut connection = Connection {
            socket,
            serial: 0,
            deadline,
            timeout,
            signals: VecDeque::new(),
        };
        // Without naming a user: the bus takes the one the kernel says, also from within a user namespace.
        connection.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut line = String::new();
        while !line.starts_with("OK ") {
            line = connection.line().context("authenticate")?;
            ensure!(
                line.starts_with("OK ") || line.trim_end() == "DATA",
                "authenticate: the bus answers {line:?}"
            );
        }
        let bus = Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
        };
        connection.call(bus, Body::default())?;
        Ok(connection)
    }

    /// Asks the bus for the signals that match this rule.
    pub fn subscribe(&mut self, rule: &str) -> Result<()> {
        let add_match = Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "AddMatch",
        };
        self.call(add_match, Body::default().text(rule)).map(drop)
    }

    /// Calls a method and waits for its reply; an error that the other side answers with is a [`Refusal`].
    pub fn call(&mut self, method: Method<'_>, body: Body) -> Result<Message> {
        self.serial += 1;
        let message = marshal(self.serial, method, &body);
        let what = || format!("{}.{}", method.interface, method.member);
        self.send(&message).with_context(what)?;
        loop {
            let message = self.receive().with_context(what)?;
            match message.kind {
                REPLY if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let message_text = message.arguments().unwrap_or_default().into_iter().next();
                    let refusal = Refusal {
                        name: message.error,
                        message: message_text.unwrap_or_default(),
                    };
                    return Err(refusal).with_context(what);
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub fn signal(&mut self) -> Result<Message> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.receive()?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write_all(bytes).context("write to the message bus")
    }

    /// The time that is left, never zero.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer from the message bus in {:?}", self.timeout);
        Ok(left)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let left = self.left()?;
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut buffer[done..]) {
                Ok(0) => bail!("the message bus has hung up"),
                Ok(length) => done += length,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error).context("read from the message bus"),
            }
        }
        Ok(())
    }

    /// A line of the authentication, byte by byte: what follows it is no line.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
            ensure!(line.len() < 1024, "the bus answers with a line without end");
        }
        String::from_utf8(line).context("the bus answers with no text")
    }

    fn receive(&mut self) -> Result<Message> {
        let mut start = [0; 16];
        self.read(&mut start)?;
        ensure!(start[0] == ENDIAN, "a message in another byte order");
        let word = |at: usize| u32::from_ne_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]) as usize;
        let (body_length, fields_length) = (word(4), word(12));
        let header = fields_length.next_multiple_of(8);
        let length = header.checked_add(body_length).filter(|&length| length <= MAX_MESSAGE);
        let mut rest = vec![0; length.context("a message too long")?];
        self.read(&mut rest)?;
        let body = rest.split_off(header);
        let mut message = Message::default();
        (message.kind, message.body) = (start[1], body);
        // The fields' alignment counts from the message's start, which is 16 bytes before: a multiple of 8.
        Reader::new(&rest[..fields_length]).fields(&mut message)?;
        Ok(message)
    }
}

/// Connects before the deadline. A bus that accepts nobody lets whoever connects wait once its queue is full, for as long as
/// a write may take (socket(7), SO_SNDTIMEO).
fn connect(address: &UnixAddr, deadline: Instant) -> Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).context("socket(AF_UNIX)")?;
    let socket = UnixStream::from(socket);
    let left = deadline.saturating_duration_since(Instant::now());
    // Zero would be without end.
    socket.set_write_timeout(Some(left.max(Duration::from_millis(1))))?;
    nix::sys::socket::connect(socket.as_raw_fd(), address).context("connect")?;
    Ok(socket)
}

/// A `unix:` address; `None` for another transport's.
fn parse_address(address: &str) -> Option<nix::Result<UnixAddr>> {
    let mut pairs = address
        .strip_prefix("unix:")?
        .split(',')
        .filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| match key {
        "path" => Some(UnixAddr::new(unescape(value).as_str())),
        "abstract" => Some(UnixAddr::new_abstract(unescape(value).as_bytes())),
        _ => None,
    })
}

/// Undoes the `%XX` of an address.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let code = (byte == b'%').then(|| {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
        });
        out.extend(code.unwrap_or(Some(byte)));
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, path) in [
            (
                "unix:path=/run/dbus/system_bus_socket",
                Some("/run/dbus/system_bus_socket"),
            ),
            ("unix:guid=1,path=/a%20b", Some("/a b")),
            ("tcp:host=x", None),
            ("unix:tmpdir=/tmp", None),
            ("", None),
        ] {
            let parsed = parse_address(address).map(|address| address.unwrap());
            let parsed = parsed.as_ref().and_then(|address| address.path());
            assert_eq!(parsed, path.map(std::path::Path::new), "{address}");
        }
        let address = parse_address("unix:abstract=/tmp/dbus-x,guid=y").unwrap().unwrap();
        assert_eq!(address.as_abstract(), Some(&b"/tmp/dbus-x"[..]));
    }

    #[test]
    fn a_bus_that_accepts_nobody_is_not_waited_for() {
        use nix::sys::socket::{Backlog, bind, listen};

        let name = format!("corten-test-bus-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let bus = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(bus.as_raw_fd(), &address).unwrap();
        listen(&bus, Backlog::new(0).unwrap()).unwrap();
        let short = Duration::from_millis(50);
        let _first = connect(&address, Instant::now() + short).unwrap();
        let began = Instant::now();
        let addresses = format!("unix:abstract={name};unix:abstract={name}");
        let error = Connection::open(&addresses, short).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(5), "{error:#}");
        assert!(format!("{error:#}").contains("connect"), "{error:#}");
    }
}
