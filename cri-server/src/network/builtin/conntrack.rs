//! Connections as the kernel tracks them (linux/netfilter/nfnetlink_conntrack.h).
//!
//! A datagram of a known connection goes where the first one went, whatever the table says by now. So when a UDP port comes
//! to a pod or leaves it, what is known of it is forgotten. TCP and SCTP find out by themselves: their peer is gone.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use super::netlink::{Batch, Message, Socket, attribute, is_refusal};
use super::port::HostPort;
use super::{link, nft};

/// Numbers of messages and attributes, which libc lacks.
mod abi {
    pub(super) const GET: i32 = 1;
    pub(super) const DELETE: i32 = 2;
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const ID: u16 = 12;
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const IP_V4_SRC: u16 = 1;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_SRC: u16 = 3;
    pub(super) const IP_V6_DST: u16 = 4;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_SRC_PORT: u16 = 2;
    pub(super) const PROTO_DST_PORT: u16 = 3;
    /// Length of struct nfgenmsg.
    pub(super) const NFGENMSG: usize = 4;
}

/// What has happened to ports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// They lead to a pod now: what is known of the node's side is stale.
    Opened,
    /// They do not any more: what is known of the pod's side is stale.
    Closed,
}

/// Has the kernel forget the UDP connections that such a change makes stale, and no others.
pub(super) fn forget_udp(ports: &[HostPort], change: Change) -> Result<()> {
    let is_udp = |port: &&HostPort| i32::from(port.listen.protocol) == libc::IPPROTO_UDP;
    let ports: Vec<HostPort> = ports.iter().filter(is_udp).copied().collect();
    if ports.is_empty() {
        return Ok(());
    }
    let own = match change {
        Change::Opened => link::addresses(&Socket::route()?)?,
        Change::Closed => Vec::new(),
    };
    let own: Vec<IpAddr> = own.into_iter().map(|(_, prefix)| prefix.address).collect();
    let is_stale = |original: SocketAddr, reply: SocketAddr| match change {
        Change::Opened => ports.iter().any(|port| is_to(port, original, &own)),
        Change::Closed => ports.iter().any(|port| port.target == reply),
    };
    let socket = Socket::netfilter()?;
    let mut found = Vec::new();
    let every = |message: &mut Message| message.raw(&nft::header(libc::AF_UNSPEC, 0));
    socket.dump(kind(abi::GET), "list the connections", every, |body| {
        found.extend(Connection::among(&is_stale, body));
    })?;
    found.iter().try_for_each(|connection| connection.forget(&socket))
}

/// A tracked connection.
struct Connection {
    family: u8,
    /// Its addresses and ports, as the kernel has told them.
    tuple: Vec<u8>,
    id: Vec<u8>,
}

impl Connection {
    /// A UDP connection that is stale by the destination of its first packet and the source of the answers.
    fn among(is_stale: &impl Fn(SocketAddr, SocketAddr) -> bool, body: &[u8]) -> Option<Connection> {
        let list = body.get(abi::NFGENMSG..)?;
        let tuple = attribute(list, abi::TUPLE_ORIG)?;
        let original = end(tuple, [abi::IP_V4_DST, abi::IP_V6_DST], abi::PROTO_DST_PORT)?;
        let reply = attribute(list, abi::TUPLE_REPLY)?;
        let reply = end(reply, [abi::IP_V4_SRC, abi::IP_V6_SRC], abi::PROTO_SRC_PORT)?;
        is_stale(original, reply).then_some(Connection {
            family: body[0],
            tuple: tuple.to_vec(),
            id: attribute(list, abi::ID)?.to_vec(),
        })
    }

    fn forget(&self, socket: &Socket) -> Result<()> {
        let mut batch = Batch::default();
        batch.add(kind(abi::DELETE), 0, "forget a connection", |message| {
            message.raw(&nft::header(self.family.into(), 0));
            message.nest(abi::TUPLE_ORIG, |tuple| tuple.raw(&self.tuple));
            message.attribute(abi::ID, &self.id);
        });
        match socket.run(&batch) {
            // It has ended by itself.
            Err(error) if is_refusal(&error, Errno::ENOENT) => Ok(()),
            forgotten => forgotten.context("forget the connections of a UDP port"),
        }
    }
}

/// Whether a packet to this address of the node is meant for the port.
fn is_to(port: &HostPort, destination: SocketAddr, own: &[IpAddr]) -> bool {
    let ip = destination.ip();
    let is_there = match port.listen.address {
        Some(address) => address == ip,
        None => ip.is_ipv4() == port.listen.is_ipv4 && (ip.is_loopback() || own.contains(&ip)),
    };
    is_there && destination.port() == port.listen.port
}

/// One end of a tuple of UDP; none of another protocol.
fn end(tuple: &[u8], addresses: [u16; 2], port: u16) -> Option<SocketAddr> {
    let protocol = attribute(tuple, abi::TUPLE_PROTO)?;
    let number = attribute(protocol, abi::PROTO_NUM)?.first()?;
    if i32::from(*number) != libc::IPPROTO_UDP {
        return None;
    }
    let port = attribute(protocol, port)?.try_into().ok()?;
    let list = attribute(tuple, abi::TUPLE_IP)?;
    let address = addresses.into_iter().find_map(|kind| attribute(list, kind))?;
    Some(SocketAddr::new(link::ip(address)?, u16::from_be_bytes(port)))
}

fn kind(message: libc::c_int) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8 | message).expect("a subsystem and a message are a byte each")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attribute with its header.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A tuple of version 4.
    fn tuple(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let octets = super::super::prefix::octets;
        let ip = [
            attribute(abi::IP_V4_SRC, &octets(source.ip())),
            attribute(abi::IP_V4_DST, &octets(destination.ip())),
        ];
        let proto = [
            attribute(abi::PROTO_NUM, &[protocol]),
            attribute(abi::PROTO_SRC_PORT, &source.port().to_be_bytes()),
            attribute(abi::PROTO_DST_PORT, &destination.port().to_be_bytes()),
        ];
        [
            attribute(abi::TUPLE_IP, &ip.concat()),
            attribute(abi::TUPLE_PROTO, &proto.concat()),
        ]
        .concat()
    }

    #[test]
    fn ends_of_connections_and_who_is_asked() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let body = |protocol: u8| {
            let original = tuple(protocol, at("192.0.2.2:4000"), at("192.0.2.1:53"));
            let reply = tuple(protocol, at("10.87.0.2:5353"), at("192.0.2.2:4000"));
            let list = [
                attribute(abi::TUPLE_ORIG, &original),
                attribute(abi::TUPLE_REPLY, &reply),
                attribute(abi::ID, &[0, 0, 0, 7]),
            ];
            [vec![2, 0, 0, 0], list.concat()].concat()
        };
        let is_it =
            |original: SocketAddr, reply: SocketAddr| (original, reply) == (at("192.0.2.1:53"), at("10.87.0.2:5353"));
        assert!(Connection::among(&is_it, &body(17)).is_some());
        assert!(Connection::among(&|_, _| false, &body(17)).is_none());
        assert!(Connection::among(&is_it, &body(6)).is_none(), "TCP");
        assert!(Connection::among(&is_it, &body(17)[..20]).is_none(), "cut off");
    }

    #[test]
    fn what_a_port_is_asked_by() {
        let own: [IpAddr; 1] = ["192.0.2.1".parse().unwrap()];
        for (address, destination, meant) in [
            (None, "192.0.2.1:53", true),
            (None, "127.0.0.1:53", true),
            (None, "192.0.2.9:53", false),
            (None, "192.0.2.1:54", false),
            (None, "[::1]:53", false),
            (Some("192.0.2.1"), "192.0.2.1:53", true),
            (Some("192.0.2.1"), "127.0.0.1:53", false),
        ] {
            let listen = super::super::port::Listen {
                is_ipv4: true,
                protocol: 17,
                port: 53,
                address: address.map(|it: &str| it.parse().unwrap()),
            };
            let target = "10.87.0.2:5353".parse().unwrap();
            let port = HostPort { listen, target };
            assert_eq!(is_to(&port, destination.parse().unwrap(), &own), meant, "{destination}");
        }
    }
}
