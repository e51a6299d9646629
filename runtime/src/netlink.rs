//! The little of rtnetlink that moving a network device takes. See rtnetlink(7) and netlink(7) for the formats.
//!
//! A socket belongs to the network namespace it is made in, wherever its process goes afterwards: [`Socket::inside`]
//! makes one in another namespace. One request at a time, each answered to its end.
//!
//! Our own and not a crate: netlink-packet-route with netlink-sys are some 15,000 lines of formats and five crates for the
//! five requests that are made here.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use serde::{Deserialize, Serialize};

/// Room for one datagram, in bytes; the kernel sends at most 32 KiB at once.
const MAX_DATAGRAM: usize = 64 << 10;

/// Length of `struct nlmsghdr`, `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtattr`, in bytes.
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP` and `NLM_F_CREATE | NLM_F_REPLACE`, in the type of the header's field.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_OR_REPLACE: u16 = 0x500;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: i32,
    /// It is administratively up.
    pub up: bool,
    /// Which virtual device it is, `veth` for one; empty for a physical device.
    pub kind: String,
}

/// An address of a network device, as the kernel's attributes have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// How many bits of it are the network's.
    pub prefix: u8,
    /// `IFA_LOCAL`, `IFA_ADDRESS`, `IFA_BROADCAST`, and which `IFA_F_*` flags are kept: number and value.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

/// A connection with the routing of one network namespace.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket of the caller's network namespace.
    pub fn open() -> Result<Socket> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)
            .context("socket(AF_NETLINK, NETLINK_ROUTE)")?;
        // From here on the kernel alone can send to it: in a container's namespace there are others who would.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("connect to rtnetlink")?;
        Ok(Socket(socket))
    }

    /// A socket of another network namespace. `own` is the caller's, to which it returns.
    pub fn inside(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<Socket> {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("setns(CLONE_NEWNET)")?;
        let socket = Socket::open();
        setns(own, CloneFlags::CLONE_NEWNET).context("return: setns(CLONE_NEWNET)")?;
        socket
    }

    /// The device of this name; `None` where there is none.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        self.find_link(&[(libc::IFLA_IFNAME, terminated(name))], 0)
            .with_context(|| format!("RTM_GETLINK({name})"))
    }

    /// The device of this number; `None` where there is none.
    pub fn link_by_index(&self, index: i32) -> Result<Option<Link>> {
        self.find_link(&[], index)
            .with_context(|| format!("RTM_GETLINK({index})"))
    }

    fn find_link(&self, attributes: &[(u16, Vec<u8>)], index: i32) -> Result<Option<Link>> {
        let request = message(libc::RTM_GETLINK, 0, &link_body(index, 0, 0), attributes);
        let answers = match self.ask(&request) {
            Err(error) if error.downcast_ref() == Some(&nix::errno::Errno::ENODEV) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.iter().find_map(|answer| parse_link(answer)))
    }

    /// The addresses of a device that were given to it for good and are meant for the world: what it is to keep. Those
    /// of another scope the kernel makes itself, and others end (IFA_F_PERMANENT).
    pub fn addresses(&self, index: i32) -> Result<Vec<Address>> {
        let request = message(libc::RTM_GETADDR, DUMP, &[0; ADDRESS], &[]);
        let answers = self.ask(&request).context("RTM_GETADDR")?;
        Ok(answers
            .iter()
            .filter_map(|answer| parse_address(answer, index))
            .collect())
    }

    /// Moves a device to another namespace, where it gets this name.
    pub fn move_link(&self, index: i32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let attributes = [
            (libc::IFLA_NET_NS_FD, namespace.as_raw_fd().to_ne_bytes().to_vec()),
            (libc::IFLA_IFNAME, terminated(name)),
        ];
        let request = message(libc::RTM_SETLINK, 0, &link_body(index, 0, 0), &attributes);
        self.ask(&request)
            .map(drop)
            .with_context(|| format!("RTM_SETLINK({index}, IFLA_NET_NS_FD, IFLA_IFNAME={name})"))
    }

    /// Sets a device up.
    pub fn set_up(&self, index: i32) -> Result<()> {
        let up = libc::IFF_UP.cast_unsigned();
        let request = message(libc::RTM_SETLINK, 0, &link_body(index, up, up), &[]);
        self.ask(&request)
            .map(drop)
            .with_context(|| format!("RTM_SETLINK({index}, IFF_UP)"))
    }

    /// Gives a device an address.
    pub fn add_address(&self, index: i32, address: &Address) -> Result<()> {
        let mut body = vec![address.family, address.prefix, 0, libc::RT_SCOPE_UNIVERSE];
        body.extend_from_slice(&index.to_ne_bytes());
        let request = message(libc::RTM_NEWADDR, CREATE_OR_REPLACE, &body, &address.attributes);
        self.ask(&request)
            .map(drop)
            .with_context(|| format!("RTM_NEWADDR({index}, {address:?})"))
    }

    /// Sends one request and reads its answers, up to the acknowledgement or the end of the dump.
    fn ask(&self, request: &[u8]) -> Result<Vec<Vec<u8>>> {
        send(self.0.as_raw_fd(), request, MsgFlags::empty()).context("send to rtnetlink")?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; MAX_DATAGRAM];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(nix::errno::Errno::EINTR) => continue,
                length => length.context("receive from rtnetlink")?,
            };
            ensure!(length <= MAX_DATAGRAM, "an answer of {length} bytes");
            for (kind, body) in Messages(&buffer[..length]) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(take(body, 0).context("an error without a code")?);
                        return if code == 0 {
                            Ok(answers)
                        } else {
                            Err(nix::errno::Errno::from_raw(-code).into())
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
            if length == 0 {
                bail!("rtnetlink has ended");
            }
        }
    }
}

/// A text as netlink has it: with a NUL.
fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A `struct ifinfomsg`.
fn link_body(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0u8; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

/// A request: header, body, attributes. All but dumps are to be acknowledged.
fn message(kind: u16, flags: u16, body: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    // The bits of a dump mean something else with other requests.
    let dump = flags == DUMP;
    let own = if dump { REQUEST } else { REQUEST | ACKNOWLEDGE };
    let mut bytes = vec![0u8; 4];
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | own).to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(body);
    for (number, value) in attributes {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("values are names, addresses and numbers");
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&number.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(aligned(bytes.len()), 0);
    }
    let length = u32::try_from(bytes.len()).expect("a few short attributes");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// `N` bytes at `offset`; `None` past the end.
fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// The messages of a datagram: type and body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::try_from(u32::from_ne_bytes(take(self.0, 0)?)).ok()?;
        let kind = u16::from_ne_bytes(take(self.0, 4)?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// The attributes of a message: number and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(take(self.0, 0)?));
        let number = u16::from_ne_bytes(take(self.0, 2)?);
        let value = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((number, value))
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = u32::from_ne_bytes(take(body, 8)?);
    let find = |bytes, wanted| Attributes(bytes).find_map(|(number, value)| (number == wanted).then_some(value));
    let kind = find(body.get(LINK..)?, libc::IFLA_LINKINFO).and_then(|info| find(info, libc::IFLA_INFO_KIND));
    let kind = String::from_utf8_lossy(kind.unwrap_or_default());
    Some(Link {
        index: i32::from_ne_bytes(take(body, 4)?),
        up: flags & libc::IFF_UP.cast_unsigned() != 0,
        kind: kind.trim_end_matches('\0').to_owned(),
    })
}

/// The address in a `struct ifaddrmsg`, if it is one of this device that is to be kept.
fn parse_address(body: &[u8], index: i32) -> Option<Address> {
    let [family, prefix, old_flags, scope] = take(body, 0)?;
    if i32::from_ne_bytes(take(body, 4)?) != index || scope != libc::RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut flags = u32::from(old_flags);
    let mut attributes = Vec::new();
    for (number, value) in Attributes(body.get(ADDRESS..)?) {
        match number {
            libc::IFA_FLAGS => flags = u32::from_ne_bytes(take(value, 0)?),
            libc::IFA_LOCAL | libc::IFA_ADDRESS | libc::IFA_BROADCAST => attributes.push((number, value.to_vec())),
            _ => {}
        }
    }
    if flags & libc::IFA_F_PERMANENT == 0 {
        return None;
    }
    let kept = flags & libc::IFA_F_NOPREFIXROUTE;
    if kept != 0 {
        attributes.push((libc::IFA_FLAGS, kept.to_ne_bytes().to_vec()));
    }
    Some(Address {
        family,
        prefix,
        attributes,
    })
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockname, sendto};

    use super::*;

    #[test]
    fn messages_are_written_as_they_are_read() {
        let attributes = [(libc::IFLA_IFNAME, terminated("eth0")), (7, vec![1, 2, 3, 4])];
        let first = message(libc::RTM_SETLINK, 0, &link_body(5, 1, 1), &attributes);
        assert_eq!(first.len() % 4, 0);
        let second = message(libc::RTM_GETADDR, DUMP, &[0; ADDRESS], &[]);
        let both = [first, second].concat();
        let read: Vec<_> = Messages(&both).collect();
        assert_eq!(
            read.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [libc::RTM_SETLINK, libc::RTM_GETADDR]
        );
        let link = |kind: &str| {
            Some(Link {
                index: 5,
                up: true,
                kind: kind.to_owned(),
            })
        };
        assert_eq!(parse_link(read[0].1), link(""));
        let veth = message(0, 0, &[], &[(libc::IFLA_INFO_KIND, terminated("veth"))])[HEADER..].to_vec();
        let virtual_link = message(0, 0, &link_body(5, 1, 1), &[(libc::IFLA_LINKINFO, veth)]);
        assert_eq!(parse_link(&virtual_link[HEADER..]), link("veth"));
        let back: Vec<_> = Attributes(&read[0].1[LINK..])
            .map(|(number, value)| (number, value.to_vec()))
            .collect();
        assert_eq!(back, attributes);
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let whole = message(libc::RTM_SETLINK, 0, &link_body(5, 0, 0), &[]);
        for end in 0..whole.len() {
            assert_eq!(Messages(&whole[..end]).count(), 0, "{end}");
        }
        assert_eq!(Attributes(&[2, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(parse_link(&[0; 12]), None);
        assert_eq!(parse_address(&[0; 4], 1), None);
    }

    #[test]
    fn which_addresses_are_kept() {
        let body = |scope: u8, index: i32, flags: u32| {
            let mut body = vec![2, 24, 0, scope];
            body.extend_from_slice(&index.to_ne_bytes());
            let attributes = [
                (libc::IFA_LOCAL, vec![192, 0, 2, 1]),
                (libc::IFA_LABEL, terminated("eth0")),
                (libc::IFA_FLAGS, flags.to_ne_bytes().to_vec()),
            ];
            message(0, 0, &body, &attributes)[HEADER..].to_vec()
        };
        let permanent = libc::IFA_F_PERMANENT;
        let address = parse_address(&body(0, 3, permanent), 3).unwrap();
        assert_eq!((address.family, address.prefix), (2, 24));
        assert_eq!(
            address.attributes,
            [(libc::IFA_LOCAL, vec![192, 0, 2, 1])],
            "no label: the name may change"
        );
        let flagged = parse_address(&body(0, 3, permanent | libc::IFA_F_NOPREFIXROUTE), 3).unwrap();
        assert_eq!(flagged.attributes.len(), 2);
        for (scope, index, flags) in [(0, 4, permanent), (libc::RT_SCOPE_LINK, 3, permanent), (0, 3, 0)] {
            assert_eq!(parse_address(&body(scope, index, flags), 3), None);
        }
    }

    #[test]
    fn the_kernel_alone_is_heard() {
        let ours = Socket::open().unwrap();
        let own: NetlinkAddr = getsockname(ours.0.as_raw_fd()).unwrap();
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let other = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute).unwrap();
        let to = NetlinkAddr::new(own.pid(), 0);
        assert!(sendto(other.as_raw_fd(), b"x", &to, MsgFlags::empty()).is_err());
        assert!(ours.link("lo").unwrap().is_some());
    }

    #[test]
    fn the_loopback_device_is_found() {
        let socket = Socket::open().unwrap();
        assert_eq!(socket.link("lo").unwrap().map(|link| link.index), Some(1));
        assert_eq!(socket.link_by_index(1).unwrap(), socket.link("lo").unwrap());
        assert_eq!(socket.link("no-such-dev").unwrap(), None);
        // Its address is of the host's scope.
        assert_eq!(socket.addresses(1).unwrap(), []);
    }
}
