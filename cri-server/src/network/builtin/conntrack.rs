//! Connections as the kernel tracks them (linux/netfilter/nfnetlink_conntrack.h).
//!
//! A datagram of a known connection goes where the first one went, whatever the table says by now. So when a UDP port comes
//! to a pod or leaves it, what is known of it is forgotten. TCP and SCTP find out by themselves: their peer is gone.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use super::netlink::{Batch, Message, Socket, attribute, is_refusal};
use super::nft;
use super::port::HostPort;

/// Numbers of messages and attributes, which libc lacks.
mod abi {
    pub(super) const GET: i32 = 1;
    pub(super) const DELETE: i32 = 2;
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const ID: u16 = 12;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_DST_PORT: u16 = 3;
    /// Length of struct nfgenmsg.
    pub(super) const NFGENMSG: usize = 4;
}

/// Has the kernel forget the UDP connections to these ports of the node.
pub(super) fn forget_udp(ports: &[HostPort]) -> Result<()> {
    let is_udp = |port: &&HostPort| i32::from(port.listen.protocol) == libc::IPPROTO_UDP;
    let ports: Vec<u16> = ports.iter().filter(is_udp).map(|port| port.listen.port).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let socket = Socket::netfilter()?;
    let mut found = Vec::new();
    let every = |message: &mut Message| message.raw(&nft::header(libc::AF_UNSPEC, 0));
    socket.dump(kind(abi::GET), "list the connections", every, |body| {
        found.extend(Connection::to(&ports, body));
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
    /// A UDP connection whose first packet was to one of the ports.
    fn to(ports: &[u16], body: &[u8]) -> Option<Connection> {
        let list = body.get(abi::NFGENMSG..)?;
        let tuple = attribute(list, abi::TUPLE_ORIG)?;
        let protocol = attribute(tuple, abi::TUPLE_PROTO)?;
        let number = attribute(protocol, abi::PROTO_NUM)?.first()?;
        let port = attribute(protocol, abi::PROTO_DST_PORT)?.try_into().ok()?;
        let is_one = i32::from(*number) == libc::IPPROTO_UDP && ports.contains(&u16::from_be_bytes(port));
        is_one.then_some(Connection {
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

    #[test]
    fn connections_are_found_by_protocol_and_port() {
        let body = |protocol: u8, port: u16| {
            let number = attribute(abi::PROTO_NUM, &[protocol]);
            let port = attribute(abi::PROTO_DST_PORT, &port.to_be_bytes());
            let tuple = attribute(abi::TUPLE_PROTO, &[number, port].concat());
            let list = [attribute(abi::TUPLE_ORIG, &tuple), attribute(abi::ID, &[0, 0, 0, 7])].concat();
            [vec![2, 0, 0, 0], list].concat()
        };
        for (protocol, port, found) in [(17, 53, true), (6, 53, false), (17, 54, false)] {
            assert_eq!(Connection::to(&[53], &body(protocol, port)).is_some(), found);
        }
        assert!(Connection::to(&[53], &body(17, 53)[..20]).is_none(), "cut off");
    }
}
