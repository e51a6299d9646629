//! Messages of nf_tables: a transaction, and the expressions that our rules are made of (linux/netfilter/nf_tables.h).
//!
//! A transaction is taken as a whole or not at all. A rule is a list of expressions: each loads something into a register,
//! compares a register, or does something; the first that does not hold ends the rule. Registers are counted in words of
//! four bytes, and a key of several parts lies in as many in a row.

use nix::libc;

use super::netlink::{Batch, Message};

/// The numbers of attributes and results, which libc lacks.
pub(super) mod abi {
    pub(in crate::network::builtin) const TABLE_NAME: u16 = 1;
    pub(in crate::network::builtin) const CHAIN_TABLE: u16 = 1;
    pub(in crate::network::builtin) const CHAIN_NAME: u16 = 3;
    pub(in crate::network::builtin) const CHAIN_HOOK: u16 = 4;
    pub(in crate::network::builtin) const CHAIN_POLICY: u16 = 5;
    pub(in crate::network::builtin) const CHAIN_TYPE: u16 = 7;
    pub(in crate::network::builtin) const HOOK_NUMBER: u16 = 1;
    pub(in crate::network::builtin) const HOOK_PRIORITY: u16 = 2;
    pub(in crate::network::builtin) const RULE_TABLE: u16 = 1;
    pub(in crate::network::builtin) const RULE_CHAIN: u16 = 2;
    pub(in crate::network::builtin) const RULE_EXPRESSIONS: u16 = 4;
    pub(in crate::network::builtin) const LIST_ELEMENT: u16 = 1;
    pub(in crate::network::builtin) const EXPRESSION_NAME: u16 = 1;
    pub(in crate::network::builtin) const EXPRESSION_DATA: u16 = 2;
    pub(in crate::network::builtin) const SET_TABLE: u16 = 1;
    pub(in crate::network::builtin) const SET_NAME: u16 = 2;
    pub(in crate::network::builtin) const SET_FLAGS: u16 = 3;
    pub(in crate::network::builtin) const SET_KEY_TYPE: u16 = 4;
    pub(in crate::network::builtin) const SET_KEY_LENGTH: u16 = 5;
    pub(in crate::network::builtin) const SET_DATA_TYPE: u16 = 6;
    pub(in crate::network::builtin) const SET_DATA_LENGTH: u16 = 7;
    pub(in crate::network::builtin) const SET_ID: u16 = 10;
    pub(in crate::network::builtin) const ELEMENTS_TABLE: u16 = 1;
    pub(in crate::network::builtin) const ELEMENTS_SET: u16 = 2;
    pub(in crate::network::builtin) const ELEMENTS: u16 = 3;
    pub(in crate::network::builtin) const ELEMENT_KEY: u16 = 1;
    pub(in crate::network::builtin) const ELEMENT_DATA: u16 = 2;
    pub(in crate::network::builtin) const DATA_VALUE: u16 = 1;
    pub(in crate::network::builtin) const DATA_VERDICT: u16 = 2;
    pub(in crate::network::builtin) const VERDICT_CODE: u16 = 1;
    pub(in crate::network::builtin) const VERDICT_CHAIN: u16 = 2;
    pub(in crate::network::builtin) const FIB_RESULT_ADDRTYPE: u32 = 3;
    pub(in crate::network::builtin) const FIB_DADDR: u32 = 2;
    pub(in crate::network::builtin) const CT_STATUS_DNAT: u32 = 1 << 5;
    pub(in crate::network::builtin) const NAT_RANDOM_FULLY: u32 = 16;
    /// Length of struct nfgenmsg.
    pub(in crate::network::builtin) const NFGENMSG: usize = 4;
}

/// Words that a rule may use; their numbers begin at 8 (NFT_REG32_00).
#[derive(Clone, Copy, Debug)]
pub(super) struct Register(pub(super) u32);

impl Register {
    fn number(self) -> u32 {
        self.0 + 8
    }
}

/// Where a part of a packet begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Header {
    /// At its network header.
    Network = 1,
    /// At its transport header.
    Transport = 2,
}

/// The number of a message of nf_tables.
pub(super) fn kind(message: libc::c_int) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | message).expect("a subsystem and a message are a byte each")
}

/// struct nfgenmsg: family, version, a number that only transactions use.
pub(super) fn header(family: libc::c_int, resource: u16) -> [u8; abi::NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    let family = u8::try_from(family).expect("families are small numbers");
    [family, 0, high, low]
}

/// A transaction of what `fill` adds.
pub(super) fn transaction(fill: impl FnOnce(&mut Batch)) -> Batch {
    let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).expect("10");
    let mark = |batch: &mut Batch, kind: libc::c_int| {
        let kind = u16::try_from(kind).expect("16 and 17");
        batch.add_silent(kind, |message| message.raw(&header(libc::AF_UNSPEC, subsystem)));
    };
    let mut batch = Batch::default();
    mark(&mut batch, libc::NFNL_MSG_BATCH_BEGIN);
    fill(&mut batch);
    mark(&mut batch, libc::NFNL_MSG_BATCH_END);
    batch
}

/// The expressions of a rule, in order.
pub(super) struct Rule<'a, 'b>(&'a mut Message<'b>);

impl<'a, 'b> Rule<'a, 'b> {
    /// Writes into the list of expressions.
    pub(super) fn new(list: &'a mut Message<'b>) -> Self {
        Rule(list)
    }

    fn expression(&mut self, name: &str, build: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(abi::LIST_ELEMENT, |element| {
            element.text(abi::EXPRESSION_NAME, name);
            element.nest(abi::EXPRESSION_DATA, build);
        });
        self
    }

    /// Loads what is known about the packet (NFT_META_*).
    pub(super) fn meta(&mut self, key: libc::c_int, into: Register) -> &mut Self {
        self.expression("meta", |data| {
            data.be32(1, into.number());
            data.be32(2, key.cast_unsigned());
        })
    }

    /// Loads a part of the packet.
    pub(super) fn payload(&mut self, header: Header, offset: u32, length: u32, into: Register) -> &mut Self {
        self.expression("payload", |data| {
            data.be32(1, into.number());
            data.be32(2, header as u32);
            data.be32(3, offset);
            data.be32(4, length);
        })
    }

    /// Loads what is known about the first packet of the connection, as it came (NFT_CT_*).
    pub(super) fn original(&mut self, key: libc::c_int, into: Register) -> &mut Self {
        self.expression("ct", |data| {
            data.be32(1, into.number());
            data.be32(2, key.cast_unsigned());
            data.attribute(3, &[0]);
        })
    }

    /// Only connections whose destination was changed, by whatever table.
    pub(super) fn is_redirected(&mut self) -> &mut Self {
        self.expression("ct", |data| {
            data.be32(1, Register(0).number());
            data.be32(2, libc::NFT_CT_STATUS.cast_unsigned());
        })
        .mask(Register(0), &abi::CT_STATUS_DNAT.to_ne_bytes())
        .equals(Register(0), &abi::CT_STATUS_DNAT.to_ne_bytes())
    }

    /// Only packets to an address of the node.
    pub(super) fn for_the_node(&mut self) -> &mut Self {
        self.expression("fib", |data| {
            data.be32(1, Register(0).number());
            data.be32(2, abi::FIB_RESULT_ADDRTYPE);
            data.be32(3, abi::FIB_DADDR);
        })
        .equals(Register(0), &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Keeps of a register what the mask has.
    pub(super) fn mask(&mut self, register: Register, mask: &[u8]) -> &mut Self {
        let length = u32::try_from(mask.len()).expect("an address");
        self.expression("bitwise", |data| {
            data.be32(1, register.number());
            data.be32(2, register.number());
            data.be32(3, length);
            data.nest(4, |value| value.attribute(abi::DATA_VALUE, mask));
            data.nest(5, |value| value.attribute(abi::DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    /// Only where a register has this value.
    pub(super) fn equals(&mut self, register: Register, value: &[u8]) -> &mut Self {
        self.compare(libc::NFT_CMP_EQ, register, value)
    }

    /// Only where a register has another value.
    pub(super) fn differs(&mut self, register: Register, value: &[u8]) -> &mut Self {
        self.compare(libc::NFT_CMP_NEQ, register, value)
    }

    fn compare(&mut self, how: libc::c_int, register: Register, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.be32(1, register.number());
            data.be32(2, how.cast_unsigned());
            data.nest(3, |data| data.attribute(abi::DATA_VALUE, value));
        })
    }

    /// Only where the set has the key that begins in `from`.
    pub(super) fn is_in(&mut self, set: &str, id: u32, from: Register) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, set);
            data.be32(2, from.number());
            data.be32(4, id);
        })
    }

    /// Loads what the map has for the key that begins in `from`; only where it has something.
    pub(super) fn map(&mut self, map: &str, id: u32, from: Register, into: Register) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, map);
            data.be32(2, from.number());
            data.be32(3, into.number());
            data.be32(4, id);
        })
    }

    /// Sends the packet to the address and port in registers.
    pub(super) fn dnat(&mut self, family: libc::c_int, address: Register, port: Register) {
        self.expression("nat", |data| {
            data.be32(1, libc::NFT_NAT_DNAT.cast_unsigned());
            data.be32(2, family.cast_unsigned());
            data.be32(3, address.number());
            data.be32(5, port.number());
        });
    }

    /// Has the packet come from the node, by a port that cannot be guessed and is rarely taken.
    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |data| data.be32(1, abi::NAT_RANDOM_FULLY));
    }

    /// Ends the rule with a verdict; with a chain where it goes to one.
    pub(super) fn verdict(&mut self, code: libc::c_int, chain: Option<&str>) {
        self.expression("immediate", |data| {
            data.be32(1, libc::NFT_REG_VERDICT.cast_unsigned());
            data.nest(2, |value| {
                value.nest(abi::DATA_VERDICT, |verdict| {
                    verdict.be32(abi::VERDICT_CODE, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.text(abi::VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }
}
