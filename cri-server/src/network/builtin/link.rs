//! Links, addresses and routes, as messages (rtnetlink(7)).
//!
//! ```text
//! node                                     pod
//!   corten0 (bridge, gateway addresses)
//!     └─ veth0123456789a ───────────────── eth0 (the pod's addresses, default routes by the gateways)
//! ```
//! The pair is made with its end already in the pod's namespace: nothing is moved or renamed. A link's alias says whose
//! it is, which is how what nobody owns is found.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use corten_proto::id::SandboxId;
use nix::errno::Errno;
use nix::libc;

use super::netlink::{Batch, CREATE, Message, REPLACE, Socket, attribute, attributes, is_refusal, text, u32_at};
use super::prefix::{Prefix, octets};
use super::sysctl;

/// The pod's interface.
pub(super) const INTERFACE: &str = "eth0";
/// The characters of a sandbox's id in a link's name: with them it has the 15 that a name may have.
const ID_IN_NAME: usize = 11;

/// What libc lacks of linux/if_link.h, linux/veth.h, linux/if_addr.h and linux/if_bridge.h.
mod abi {
    pub(super) const VETH_INFO_PEER: u16 = 1;
    pub(super) const IFLA_BRPORT_MODE: u16 = 4;
    pub(super) const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    pub(super) const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
    pub(super) const RTPROT_RA: u8 = 9;
    pub(super) const IFA_FLAGS: u16 = 8;
    /// Length of struct ifinfomsg.
    pub(super) const IFINFOMSG: usize = 16;
    /// Length of struct rtmsg.
    pub(super) const RTMSG: usize = 12;
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// What kind it is; empty for hardware.
    pub(super) kind: String,
    /// Largest packet, in bytes.
    pub(super) mtu: u32,
    /// Index of the bridge it is a port of; 0 for none.
    pub(super) master: u32,
    /// Whether it is up, as far as that is the node's decision.
    pub(super) is_up: bool,
    /// What was noted on it: of ours, the bridge and the sandbox it belongs to; of the bridge itself, whose it is.
    pub(super) alias: String,
}

impl Link {
    /// The sandbox it belongs to, if it was made for one on this bridge.
    pub(super) fn owner(&self, bridge: &str) -> Option<SandboxId> {
        let id = self.alias.strip_prefix(bridge)?.strip_prefix(':')?;
        id.parse().ok()
    }
}

/// What is noted on a link of a sandbox.
fn alias_of(id: &SandboxId, bridge: &str) -> String {
    format!("{bridge}:{id}")
}

/// The name of a pod's link on the node.
pub(super) fn name_of(id: &SandboxId) -> String {
    let id: String = id
        .as_str()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(ID_IN_NAME)
        .collect();
    format!("veth{id}")
}

/// Every link of the socket's namespace.
pub(super) fn list(socket: &Socket) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    let header = |message: &mut Message| message.raw(&interface(0, 0));
    socket.dump(libc::RTM_GETLINK, "list the links", header, |body| {
        links.extend(parse(body))
    })?;
    Ok(links)
}

/// The link of this name, if there is one.
pub(super) fn find(socket: &Socket, name: &str) -> Result<Option<Link>> {
    let body = socket.get(libc::RTM_GETLINK, &format!("look for link {name}"), |message| {
        message.raw(&interface(0, 0));
        message.text(libc::IFLA_IFNAME, name);
    })?;
    Ok(body.as_deref().and_then(parse))
}

fn parse(body: &[u8]) -> Option<Link> {
    let list = body.get(abi::IFINFOMSG..)?;
    let number = |kind| attribute(list, kind).and_then(|value| u32_at(value, 0));
    let info = attribute(list, libc::IFLA_LINKINFO).unwrap_or_default();
    Some(Link {
        index: u32_at(body, 4)?,
        name: text(attribute(list, libc::IFLA_IFNAME)?),
        kind: attribute(info, libc::IFLA_INFO_KIND).map(text).unwrap_or_default(),
        mtu: number(libc::IFLA_MTU)?,
        master: number(libc::IFLA_MASTER).unwrap_or(0),
        is_up: u32_at(body, 8)? & UP != 0,
        alias: attribute(list, libc::IFLA_IFALIAS).map(text).unwrap_or_default(),
    })
}

/// Makes the bridge; its hardware address is fixed, where otherwise it would change with its ports.
pub(super) fn make_bridge(socket: &Socket, name: &str, hardware: [u8; 6]) -> Result<()> {
    let mut batch = Batch::default();
    batch.add(libc::RTM_NEWLINK, CREATE, format!("make bridge {name}"), |message| {
        message.raw(&interface(0, 0));
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_ADDRESS, &hardware);
        message.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "bridge"));
    });
    match socket.run(&batch) {
        // Another one was faster.
        Err(error) if is_refusal(&error, Errno::EEXIST) => Ok(()),
        made => made,
    }
}

/// Has the bridge be `mark`'s, with an MTU that stays.
///
/// One that is given when the bridge is made lasts only until its last port goes: the kernel then falls back to its own.
pub(super) fn set_bridge(socket: &Socket, bridge: &Link, mark: &str, mtu: u32) -> Result<()> {
    let mut batch = Batch::default();
    let what = format!("set alias and MTU {mtu} of bridge {}", bridge.name);
    batch.add(libc::RTM_NEWLINK, 0, what, |message| {
        message.raw(&interface(bridge.index, 0));
        message.text(libc::IFLA_IFALIAS, mark);
        message.u32(libc::IFLA_MTU, mtu);
    });
    socket.run(&batch)
}

/// Makes a link that everything redirected to it passes through, for a sandbox.
pub(super) fn make_ifb(socket: &Socket, name: &str, id: &SandboxId, bridge: &Link) -> Result<()> {
    let mut batch = Batch::default();
    batch.add(
        libc::RTM_NEWLINK,
        CREATE,
        format!("make link {name} of kind ifb"),
        |message| {
            message.raw(&interface(0, 0));
            message.text(libc::IFLA_IFNAME, name);
            message.u32(libc::IFLA_MTU, bridge.mtu);
            message.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "ifb"));
        },
    );
    batch.add(libc::RTM_NEWLINK, 0, format!("note whose link {name} is"), |message| {
        message.raw(&interface(0, 0));
        message.text(libc::IFLA_IFNAME, name);
        message.text(libc::IFLA_IFALIAS, &alias_of(id, &bridge.name));
    });
    socket.run(&batch)
}

/// Adds to `batch` that a link is up.
pub(super) fn bring_up(batch: &mut Batch, index: u32, name: &str) {
    batch.add(libc::RTM_NEWLINK, 0, format!("bring up {name}"), |message| {
        message.raw(&interface(index, UP));
    });
}

/// Brings up the loopback of the calling thread's namespace, in which the kernel makes it first.
pub(in crate::network) fn bring_up_loopback() -> Result<()> {
    let mut batch = Batch::default();
    bring_up(&mut batch, 1, "lo");
    Socket::route()?.run(&batch)
}

/// Makes the pair of a pod, up on the node's side: `name` there, a port of the bridge, and [`INTERFACE`] in `netns`.
pub(super) fn make_pair(socket: &Socket, id: &SandboxId, netns: BorrowedFd, bridge: &Link) -> Result<()> {
    let name = name_of(id);
    let mut batch = Batch::default();
    let netns = u32::try_from(netns.as_raw_fd()).context("a descriptor is no negative number")?;
    batch.add(
        libc::RTM_NEWLINK,
        CREATE,
        format!("make the pair {name}, {INTERFACE}"),
        |message| {
            message.raw(&interface(0, 0));
            message.text(libc::IFLA_IFNAME, &name);
            message.u32(libc::IFLA_MTU, bridge.mtu);
            message.nest(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth");
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest(abi::VETH_INFO_PEER, |peer| {
                        peer.raw(&interface(0, 0));
                        peer.text(libc::IFLA_IFNAME, INTERFACE);
                        peer.u32(libc::IFLA_MTU, bridge.mtu);
                        peer.u32(libc::IFLA_NET_NS_FD, netns);
                    });
                });
            });
        },
    );
    // Where the pair cannot be made, the link of this name is another's: nothing must happen to it.
    socket.run(&batch)?;
    join_bridge(socket, id, bridge)
}

/// Has the pod's link be a port of the bridge, up; also one that is so already.
pub(super) fn join_bridge(socket: &Socket, id: &SandboxId, bridge: &Link) -> Result<()> {
    let name = name_of(id);
    let mut batch = Batch::default();
    batch.add(
        libc::RTM_NEWLINK,
        0,
        format!("make {name} a port of {}", bridge.name),
        |message| {
            message.raw(&interface(0, 0));
            message.text(libc::IFLA_IFNAME, &name);
            message.text(libc::IFLA_IFALIAS, &alias_of(id, &bridge.name));
            message.u32(libc::IFLA_MASTER, bridge.index);
            // A port has no address of its own, and none to be looked for by anyone.
            // A kernel without IPv6 takes no word about it (EAFNOSUPPORT), and gives no address by itself.
            if sysctl::has_ipv6() {
                message.nest(libc::IFLA_AF_SPEC, |families| {
                    families.nest(family(libc::AF_INET6).into(), |family| {
                        family.attribute(abi::IFLA_INET6_ADDR_GEN_MODE, &[abi::IN6_ADDR_GEN_MODE_NONE]);
                    });
                });
            }
        },
    );
    // What a port is like can be said once it is one.
    batch.add(
        libc::RTM_NEWLINK,
        0,
        format!("bring up {name} in hairpin mode"),
        |message| {
            message.raw(&interface(0, UP));
            message.text(libc::IFLA_IFNAME, &name);
            message.nest(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_SLAVE_KIND, "bridge");
                info.nest(libc::IFLA_INFO_SLAVE_DATA, |port| {
                    port.attribute(abi::IFLA_BRPORT_MODE, &[1])
                });
            });
        },
    );
    socket.run(&batch)
}

/// Removes a link by its name; one that is gone is fine. A pair goes with either end.
pub(super) fn remove(socket: &Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    batch.add(libc::RTM_DELLINK, 0, format!("remove link {name}"), |message| {
        message.raw(&interface(0, 0));
        message.text(libc::IFLA_IFNAME, name);
    });
    match socket.run(&batch) {
        Err(error) if is_refusal(&error, Errno::ENODEV) => Ok(()),
        removed => removed,
    }
}

/// Adds to `batch` that a link has an address; also one that it has.
pub(super) fn add_address(batch: &mut Batch, index: u32, prefix: Prefix) {
    batch.add(libc::RTM_NEWADDR, REPLACE, format!("add address {prefix}"), |message| {
        message.raw(&address(index, prefix));
        message.attribute(libc::IFA_LOCAL, &octets(prefix.address));
        message.attribute(libc::IFA_ADDRESS, &octets(prefix.address));
        if prefix.address.is_ipv6() {
            // Nobody else gives addresses of this subnet: looking for a second owner would take a second.
            message.u32(abi::IFA_FLAGS, libc::IFA_F_NODAD);
        }
    });
}

/// Adds to `batch` that a link loses an address.
pub(super) fn remove_address(batch: &mut Batch, index: u32, prefix: Prefix) {
    batch.add(libc::RTM_DELADDR, 0, format!("remove address {prefix}"), |message| {
        message.raw(&address(index, prefix));
        message.attribute(libc::IFA_LOCAL, &octets(prefix.address));
    });
}

/// The addresses that are of any use beyond their link, each with its link's index.
pub(super) fn addresses(socket: &Socket) -> Result<Vec<(u32, Prefix)>> {
    let mut found = Vec::new();
    let header = |message: &mut Message| message.raw(&[0; 8]);
    socket.dump(libc::RTM_GETADDR, "list the addresses", header, |body| {
        // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
        if let Some(index) = u32_at(body, 4)
            && body[3] == libc::RT_SCOPE_UNIVERSE
        {
            let list = body.get(8..).unwrap_or_default();
            let local = attribute(list, libc::IFA_LOCAL).or_else(|| attribute(list, libc::IFA_ADDRESS));
            let address = local.and_then(ip);
            let length = body[1];
            found.extend(address.map(|address| (index, Prefix { address, length })));
        }
    })?;
    Ok(found)
}

/// Adds to `batch` a default route by the gateway; also one that is there.
pub(super) fn add_default_route(batch: &mut Batch, index: u32, gateway: IpAddr) {
    batch.add(
        libc::RTM_NEWROUTE,
        REPLACE,
        format!("add a default route by {gateway}"),
        |message| {
            let mut header = [0u8; abi::RTMSG];
            header[0] = family_of(gateway);
            // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
            header[4..8].copy_from_slice(&[
                libc::RT_TABLE_MAIN,
                libc::RTPROT_STATIC,
                libc::RT_SCOPE_UNIVERSE,
                libc::RTN_UNICAST,
            ]);
            message.raw(&header);
            message.attribute(libc::RTA_GATEWAY, &octets(gateway));
            message.u32(libc::RTA_OIF, index);
        },
    );
}

/// A route of the node's main table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Route {
    /// Where it leads; of length 0 for a default route.
    pub(super) to: Prefix,
    /// The link it leaves by.
    pub(super) link: u32,
    /// The machine it leads by, if not straight to its destinations.
    pub(super) gateway: Option<IpAddr>,
    /// Whether a router's advertisement made it.
    pub(super) is_learned: bool,
}

/// The routes of the main table, local ones aside.
pub(super) fn routes(socket: &Socket) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    let header = |message: &mut Message| message.raw(&[0; abi::RTMSG]);
    socket.dump(libc::RTM_GETROUTE, "list the routes", header, |body| {
        found.extend(parse_route(body))
    })?;
    Ok(found)
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let header = body.get(..abi::RTMSG)?;
    if header[4] != libc::RT_TABLE_MAIN || header[7] != libc::RTN_UNICAST {
        return None;
    }
    let mut to = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::from([0u8; 4]),
        libc::AF_INET6 => IpAddr::from([0u8; 16]),
        _ => return None,
    };
    let (mut link, mut gateway) = (None, None);
    for (kind, value) in attributes(&body[abi::RTMSG..]) {
        match kind {
            libc::RTA_DST => to = ip(value)?,
            libc::RTA_OIF => link = u32_at(value, 0),
            libc::RTA_GATEWAY => gateway = ip(value),
            _ => {}
        }
    }
    Some(Route {
        to: Prefix {
            address: to,
            length: header[1],
        },
        link: link?,
        gateway,
        is_learned: header[5] == abi::RTPROT_RA,
    })
}

/// An address as it travels.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// IFF_UP, as flags of struct ifinfomsg.
const UP: u32 = libc::IFF_UP.cast_unsigned();

/// struct ifinfomsg of a link, with flags that are to be set.
fn interface(index: u32, up: u32) -> [u8; abi::IFINFOMSG] {
    let mut header = [0; abi::IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..16].copy_from_slice(&up.to_ne_bytes());
    header
}

/// struct ifaddrmsg.
fn address(index: u32, prefix: Prefix) -> [u8; 8] {
    let mut header = [family_of(prefix.address), prefix.length, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn family_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => family(libc::AF_INET),
        IpAddr::V6(_) => family(libc::AF_INET6),
    }
}

/// An address family as headers have it.
const fn family(family: libc::c_int) -> u8 {
    assert!(family >= 0 && family < 256, "families are small numbers");
    #[expect(clippy::cast_possible_truncation, reason = "it was looked at")]
    {
        family as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_of_the_id() {
        for (id, name) in [("0123456789abcdef0123", "veth0123456789a"), ("a-b.c", "vethabc")] {
            assert_eq!(name_of(&id.parse().unwrap()), name);
        }
    }

    #[test]
    fn whose_a_link_is() {
        let id: SandboxId = "0123".parse().unwrap();
        for (alias, bridge, owner) in [
            (alias_of(&id, "corten0"), "corten0", Some(id.clone())),
            (alias_of(&id, "corten01"), "corten0", None),
            ("corten0".to_owned(), "corten0", None),
            (String::new(), "corten0", None),
        ] {
            let link = Link {
                index: 1,
                name: "veth0123".to_owned(),
                kind: "veth".to_owned(),
                mtu: 1500,
                master: 0,
                is_up: true,
                alias,
            };
            assert_eq!(link.owner(bridge), owner, "{}", link.alias);
        }
    }

    #[test]
    fn the_loopback_is_found_and_has_its_address() {
        let socket = Socket::route().unwrap();
        let link = find(&socket, "lo").unwrap().unwrap();
        assert_eq!((link.index, link.master, link.owner("corten0")), (1, 0, None));
        assert!(list(&socket).unwrap().contains(&link));
        assert_eq!(find(&socket, "none-of-this").unwrap(), None);
        addresses(&socket).unwrap();
        routes(&socket).unwrap();
    }
}
