//! The packet filter's rules: one table of our own, named after the bridge, and nothing outside it is ever touched.
//!
//! ```text
//! table inet corten0 {
//!   map ports4            protocol . port : address . port                   ports6 likewise
//!   map addressed_ports4  node's address . protocol . port : address . port
//!   chain guard        prerouting, raw   from elsewhere than lo, from or to 127.0.0.0/8: drop
//!   chain prerouting   nat               to an address of the node: host_ports
//!   chain output       nat               the same for what the node sends itself, but not to ::1
//!   chain host_ports                     dnat by the maps, those with an address first
//!   chain postrouting  nat               to the bridge: hairpin; else leave
//!   chain hairpin                        from 127.0.0.0/8, or from a subnet and redirected by a map: masquerade
//!   chain leave                          to a subnet or a group: accept; from a subnet: masquerade
//! }
//! ```
//!
//! The whole is put in place in one transaction, with all that pods have. A pod that comes or goes changes elements of
//! the maps alone; one without host ports changes nothing.
//!
//! A packet that is not for the node itself is never sent elsewhere (CVE-2025-67499). Another table that drops what is
//! forwarded cannot be overruled from here; [`dropping_chains`] finds such.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use super::netlink::{Batch, Message, Socket, attribute, is_refusal, text};
use super::nft::{Header, Register, Rule, abi, header, kind, transaction};
use super::port::{HostPort, Listen};
use super::prefix::{Prefix, octets};

/// Elements in one message, which has 64 KiB at most.
const ELEMENTS_AT_ONCE: usize = 200;

/// The maps: name, number in a transaction, version, whether keys begin with an address.
const MAPS: [(&str, u32, bool, bool); 4] = [
    ("ports4", 1, true, false),
    ("addressed_ports4", 2, true, true),
    ("ports6", 3, false, false),
    ("addressed_ports6", 4, false, true),
];

/// What a table is made of.
pub(super) struct Ruleset<'a> {
    /// The bridge's name, and the table's.
    pub(super) bridge: &'a str,
    /// All subnets that pods have addresses of.
    pub(super) subnets: &'a [Prefix],
    /// All ports that lead to pods.
    pub(super) ports: &'a [HostPort],
}

impl Ruleset<'_> {
    /// Puts the table in place of the one that is there, if there is one.
    pub(super) fn install(&self) -> Result<()> {
        let batch = transaction(|batch| {
            add_table(batch, self.bridge);
            delete_table(batch, self.bridge);
            add_table(batch, self.bridge);
            MAPS.iter().for_each(|map| self.add_map(batch, *map));
            for (name, hook) in CHAINS {
                self.add_chain(batch, name, hook);
            }
            self.add_rules(batch);
            change_elements(batch, libc::NFT_MSG_NEWSETELEM, self.bridge, self.ports);
        });
        let installed = Socket::netfilter()?.run(&batch);
        installed.with_context(|| format!("install table inet {}", self.bridge))
    }

    fn add_map(&self, batch: &mut Batch, (name, id, is_ipv4, addressed): (&str, u32, bool, bool)) {
        let (address, words) = if is_ipv4 { (types::IPV4, 1) } else { (types::IPV6, 4) };
        let port = types::PROTOCOL << types::BITS | types::SERVICE;
        let (key, key_words) = if addressed {
            (address << (2 * types::BITS) | port, words + 2)
        } else {
            (port, 2)
        };
        batch.add(
            kind(libc::NFT_MSG_NEWSET),
            CREATE,
            format!("add map {name}"),
            |message| {
                message.raw(&header(libc::NFPROTO_INET, 0));
                message.text(abi::SET_TABLE, self.bridge);
                message.text(abi::SET_NAME, name);
                message.be32(abi::SET_ID, id);
                message.be32(abi::SET_FLAGS, libc::NFT_SET_MAP.cast_unsigned());
                message.be32(abi::SET_KEY_TYPE, key);
                message.be32(abi::SET_KEY_LENGTH, key_words * 4);
                message.be32(abi::SET_DATA_TYPE, address << types::BITS | types::SERVICE);
                message.be32(abi::SET_DATA_LENGTH, (words + 1) * 4);
            },
        );
    }

    fn add_chain(&self, batch: &mut Batch, name: &str, hook: Option<Hook>) {
        batch.add(
            kind(libc::NFT_MSG_NEWCHAIN),
            CREATE,
            format!("add chain {name}"),
            |message| {
                message.raw(&header(libc::NFPROTO_INET, 0));
                message.text(abi::CHAIN_TABLE, self.bridge);
                message.text(abi::CHAIN_NAME, name);
                if let Some((number, priority, kind)) = hook {
                    message.text(abi::CHAIN_TYPE, kind);
                    message.nest(abi::CHAIN_HOOK, |hook| {
                        hook.be32(abi::HOOK_NUMBER, number.cast_unsigned());
                        hook.be32(abi::HOOK_PRIORITY, priority.cast_unsigned());
                    });
                }
            },
        );
    }

    fn add_rules(&self, batch: &mut Batch) {
        let bridge = name(self.bridge);
        let jump = |rule: &mut Rule, chain| rule.verdict(libc::NFT_JUMP, Some(chain));
        // With route_localnet and the maps, the loopback would be open to pods (CVE-2020-8558), and 127.0.0.1's host ports
        // to whatever machine routes 127.0.0.1 by this node: they are redirected before the kernel looks where from.
        for side in [Side::Destination, Side::Source] {
            self.rule(batch, "guard", |rule| {
                rule.meta(libc::NFT_META_IIFNAME, Register(0))
                    .differs(Register(0), &name("lo"));
                in_loopback(rule, side).verdict(libc::NF_DROP, None);
            });
        }
        // Nothing that has come from ::1 can leave the loopback: what the node has there itself stays to be reached.
        self.rule(batch, "output", |rule| {
            let loopback = "::1/128".parse().expect("a range");
            inside(rule, Side::Destination, loopback).verdict(libc::NFT_RETURN, None);
        });
        for chain in ["prerouting", "output"] {
            self.rule(batch, chain, |rule| jump(rule.for_the_node(), "host_ports"));
        }
        self.rule(batch, "postrouting", |rule| {
            rule.meta(libc::NFT_META_OIFNAME, Register(0))
                .equals(Register(0), &bridge);
            rule.verdict(libc::NFT_GOTO, Some("hairpin"));
        });
        self.rule(batch, "postrouting", |rule| jump(rule, "leave"));
        // Those with an address first: in reverse, as they come after the others of their version.
        for (map, id, is_ipv4, addressed) in MAPS.into_iter().rev() {
            self.rule(batch, "host_ports", |rule| {
                version(rule, is_ipv4);
                let key = load_key(rule, is_ipv4, addressed, KeyOf::Packet);
                let port = Register(if is_ipv4 { 1 } else { 4 });
                rule.map(map, id, key, Register(0));
                rule.dnat(family(is_ipv4), Register(0), port);
            });
        }
        self.rule(batch, "hairpin", |rule| in_loopback(rule, Side::Source).masquerade());
        for subnet in self.subnets {
            self.add_rules_of(batch, *subnet);
        }
        for group in ["224.0.0.0/4", "ff00::/8"] {
            let group = group.parse().expect("a range");
            self.rule(batch, "leave", |rule| {
                inside(rule, Side::Destination, group).verdict(libc::NF_ACCEPT, None);
            });
        }
        for subnet in self.subnets {
            self.rule(batch, "leave", |rule| inside(rule, Side::Source, *subnet).masquerade());
        }
    }

    /// What a subnet has in the chains behind postrouting, all before anything leaves.
    fn add_rules_of(&self, batch: &mut Batch, subnet: Prefix) {
        let is_ipv4 = subnet.address.is_ipv4();
        // A pod that has come through a host port: the answer must come back the same way, not along the bridge.
        for (map, id, _, addressed) in MAPS.into_iter().filter(|map| map.2 == is_ipv4) {
            self.rule(batch, "hairpin", |rule| {
                inside(rule, Side::Source, subnet).is_redirected();
                let key = load_key(rule, is_ipv4, addressed, KeyOf::Connection);
                rule.is_in(map, id, key).masquerade();
            });
        }
        self.rule(batch, "leave", |rule| {
            inside(rule, Side::Destination, subnet).verdict(libc::NF_ACCEPT, None);
        });
    }

    fn rule(&self, batch: &mut Batch, chain: &str, build: impl FnOnce(&mut Rule)) {
        let flags = CREATE | u16::try_from(libc::NLM_F_APPEND).expect("a flag");
        batch.add(
            kind(libc::NFT_MSG_NEWRULE),
            flags,
            format!("add a rule to chain {chain}"),
            |message| {
                message.raw(&header(libc::NFPROTO_INET, 0));
                message.text(abi::RULE_TABLE, self.bridge);
                message.text(abi::RULE_CHAIN, chain);
                message.nest(abi::RULE_EXPRESSIONS, |list| build(&mut Rule::new(list)));
            },
        );
    }
}

/// Adds ports to the table.
pub(super) fn add_ports(table: &str, ports: &[HostPort]) -> Result<()> {
    change(libc::NFT_MSG_NEWSETELEM, table, ports).context("add host ports")
}

/// Takes ports out of the table.
pub(super) fn remove_ports(table: &str, ports: &[HostPort]) -> Result<()> {
    change(libc::NFT_MSG_DELSETELEM, table, ports).context("remove host ports")
}

fn change(message: libc::c_int, table: &str, ports: &[HostPort]) -> Result<()> {
    let batch = transaction(|batch| change_elements(batch, message, table, ports));
    Socket::netfilter()?.run(&batch)
}

/// Removes the table; one that is not there is fine.
pub(super) fn remove(table: &str) -> Result<()> {
    let batch = transaction(|batch| {
        add_table(batch, table);
        delete_table(batch, table);
    });
    Socket::netfilter()?
        .run(&batch)
        .with_context(|| format!("remove table inet {table}"))
}

/// Whether the table is there, with what ports are put in.
pub(super) fn is_installed(table: &str) -> Result<bool> {
    let found = Socket::netfilter()?.get(kind(libc::NFT_MSG_GETSET), "look for the table", |message| {
        message.raw(&header(libc::NFPROTO_INET, 0));
        message.text(abi::SET_TABLE, table);
        message.text(abi::SET_NAME, MAPS[0].0);
    });
    match found {
        Err(error) if is_refusal(&error, Errno::ENOENT) => Ok(false),
        found => found.map(|table| table.is_some()),
    }
}

/// Chains of anyone that drop what is forwarded and not accepted there, as family, table and chain.
pub(super) fn dropping_chains() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let every = |message: &mut Message| message.raw(&header(libc::AF_UNSPEC, 0));
    Socket::netfilter()?.dump(kind(libc::NFT_MSG_GETCHAIN), "list the chains", every, |body| {
        found.extend(dropping(body));
    })?;
    Ok(found)
}

fn dropping(body: &[u8]) -> Option<String> {
    let family = match i32::from(*body.first()?) {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        _ => return None,
    };
    let list = body.get(abi::NFGENMSG..)?;
    let number =
        |list, kind| attribute(list, kind).and_then(|value: &[u8]| value.try_into().ok().map(i32::from_be_bytes));
    let hook = number(attribute(list, abi::CHAIN_HOOK)?, abi::HOOK_NUMBER)?;
    let drops = hook == libc::NF_INET_FORWARD && number(list, abi::CHAIN_POLICY)? == libc::NF_DROP;
    let name = |kind| attribute(list, kind).map(text);
    drops.then_some(format!(
        "{family} {} {}",
        name(abi::CHAIN_TABLE)?,
        name(abi::CHAIN_NAME)?
    ))
}

/// Flags of what is added: whatever is there may be.
const CREATE: u16 = 0x400;

/// The numbers of nft's types, for whoever lists the table with it.
mod types {
    pub(super) const BITS: u32 = 6;
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const SERVICE: u32 = 13;
}

/// Number, priority, type.
type Hook = (libc::c_int, libc::c_int, &'static str);

const CHAINS: [(&str, Option<Hook>); 7] = [
    (
        "guard",
        Some((libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_RAW, "filter")),
    ),
    ("host_ports", None),
    ("hairpin", None),
    ("leave", None),
    (
        "prerouting",
        Some((libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_NAT_DST, "nat")),
    ),
    (
        "output",
        Some((libc::NF_INET_LOCAL_OUT, libc::NF_IP_PRI_NAT_DST, "nat")),
    ),
    (
        "postrouting",
        Some((libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC, "nat")),
    ),
];

fn add_table(batch: &mut Batch, table: &str) {
    batch.add(
        kind(libc::NFT_MSG_NEWTABLE),
        CREATE,
        format!("add table {table}"),
        |message| {
            message.raw(&header(libc::NFPROTO_INET, 0));
            message.text(abi::TABLE_NAME, table);
        },
    );
}

fn delete_table(batch: &mut Batch, table: &str) {
    batch.add(
        kind(libc::NFT_MSG_DELTABLE),
        0,
        format!("delete table {table}"),
        |message| {
            message.raw(&header(libc::NFPROTO_INET, 0));
            message.text(abi::TABLE_NAME, table);
        },
    );
}

fn change_elements(batch: &mut Batch, message: libc::c_int, table: &str, ports: &[HostPort]) {
    let mut by_map: BTreeMap<&str, Vec<&HostPort>> = BTreeMap::new();
    for port in ports {
        by_map.entry(map_of(&port.listen)).or_default().push(port);
    }
    let adds = message == libc::NFT_MSG_NEWSETELEM;
    let flags = if adds { CREATE } else { 0 };
    for (map, ports) in by_map {
        for ports in ports.chunks(ELEMENTS_AT_ONCE) {
            batch.add(kind(message), flags, format!("change map {map}"), |message| {
                message.raw(&header(libc::NFPROTO_INET, 0));
                message.text(abi::ELEMENTS_TABLE, table);
                message.text(abi::ELEMENTS_SET, map);
                message.nest(abi::ELEMENTS, |list| {
                    ports.iter().for_each(|port| element(list, port, adds));
                });
            });
        }
    }
}

fn element(list: &mut Message, port: &HostPort, with_data: bool) {
    list.nest(abi::LIST_ELEMENT, |element| {
        element.nest(abi::ELEMENT_KEY, |key| {
            key.attribute(abi::DATA_VALUE, &port.listen.key())
        });
        if with_data {
            element.nest(abi::ELEMENT_DATA, |data| data.attribute(abi::DATA_VALUE, &port.data()));
        }
    });
}

fn map_of(listen: &Listen) -> &'static str {
    let is_in = |map: &&(&str, u32, bool, bool)| map.2 == listen.is_ipv4 && map.3 == listen.address.is_some();
    MAPS.iter().find(is_in).expect("there is one for each").0
}

/// Whose address and port a key is made of.
enum KeyOf {
    /// The packet's destination.
    Packet,
    /// The destination of the connection's first packet, before it was changed.
    Connection,
}

/// Loads a key of a map; where it begins.
fn load_key(rule: &mut Rule, is_ipv4: bool, addressed: bool, of: KeyOf) -> Register {
    let start = Register(0);
    let address_words = match (addressed, is_ipv4) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 4,
    };
    let (protocol, port) = (Register(address_words), Register(address_words + 1));
    rule.meta(libc::NFT_META_L4PROTO, protocol);
    match of {
        KeyOf::Packet => {
            if addressed {
                let (offset, length) = place(Side::Destination, is_ipv4);
                rule.payload(Header::Network, offset, length, start);
            }
            rule.payload(Header::Transport, 2, 2, port);
        }
        KeyOf::Connection => {
            if addressed {
                // Of a size that does not depend on the table, Linux 4.17.
                let key = if is_ipv4 {
                    libc::NFT_CT_DST_IP
                } else {
                    libc::NFT_CT_DST_IP6
                };
                rule.original(key, start);
            }
            rule.original(libc::NFT_CT_PROTO_DST, port);
        }
    }
    start
}

/// Which address of a packet.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Where an address is in its header, and how long it is.
fn place(side: Side, is_ipv4: bool) -> (u32, u32) {
    match (is_ipv4, side) {
        (true, Side::Source) => (12, 4),
        (true, Side::Destination) => (16, 4),
        (false, Side::Source) => (8, 16),
        (false, Side::Destination) => (24, 16),
    }
}

fn family(is_ipv4: bool) -> libc::c_int {
    if is_ipv4 {
        libc::NFPROTO_IPV4
    } else {
        libc::NFPROTO_IPV6
    }
}

fn version<'r, 'a, 'b>(rule: &'r mut Rule<'a, 'b>, is_ipv4: bool) -> &'r mut Rule<'a, 'b> {
    let family = u8::try_from(family(is_ipv4)).expect("2 and 10");
    rule.meta(libc::NFT_META_NFPROTO, Register(0))
        .equals(Register(0), &[family])
}

/// Only packets whose address is in a range.
fn inside<'r, 'a, 'b>(rule: &'r mut Rule<'a, 'b>, side: Side, range: Prefix) -> &'r mut Rule<'a, 'b> {
    let is_ipv4 = range.address.is_ipv4();
    let (offset, length) = place(side, is_ipv4);
    let network = octets(range.network().address);
    version(rule, is_ipv4)
        .payload(Header::Network, offset, length, Register(0))
        .mask(Register(0), &mask_of(range))
        .equals(Register(0), &network)
}

fn mask_of(range: Prefix) -> Vec<u8> {
    let ones: IpAddr = if range.address.is_ipv4() {
        [255u8; 4].into()
    } else {
        [255u8; 16].into()
    };
    octets(Prefix { address: ones, ..range }.network().address)
}

fn in_loopback<'r, 'a, 'b>(rule: &'r mut Rule<'a, 'b>, side: Side) -> &'r mut Rule<'a, 'b> {
    inside(rule, side, "127.0.0.0/8".parse().expect("a range"))
}

/// An interface's name as rules compare it.
fn name(interface: &str) -> [u8; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    let length = interface.len().min(name.len() - 1);
    name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_names() {
        for (range, mask) in [
            ("10.0.0.0/8", &[255, 0, 0, 0][..]),
            ("10.87.0.0/30", &[255, 255, 255, 252]),
        ] {
            assert_eq!(mask_of(range.parse().unwrap()), mask);
        }
        assert_eq!(mask_of("fd00::/64".parse().unwrap())[..], [[255; 8], [0; 8]].concat());
        assert_eq!(&name("corten0")[..8], b"corten0\0");
    }

    #[test]
    fn every_port_has_its_map() {
        for (is_ipv4, address, map) in [
            (true, None, "ports4"),
            (true, Some([127, 0, 0, 1].into()), "addressed_ports4"),
            (false, None, "ports6"),
            (false, Some([0u8; 16].into()), "addressed_ports6"),
        ] {
            let listen = Listen {
                is_ipv4,
                protocol: 6,
                port: 80,
                address,
            };
            assert_eq!(map_of(&listen), map);
        }
    }
}
