//! Limits of what a pod receives and sends: token buckets in the kernel's traffic control (tc-tbf(8)).
//!
//! ```text
//! to the pod     node ──> its link, whose root is a bucket ──> eth0
//! from the pod   eth0 ──> its link, at whose ingress all is redirected to ──> an ifb, whose root is a bucket ──> node
//! ```
//! Both are outside the pod, which has no say in them. What arrives at a link cannot wait there, hence the ifb.

use anyhow::{Context, Result};
use corten_proto::id::SandboxId;
use nix::libc;

use super::link::{self, Link};
use super::netlink::{Batch, Message, REPLACE, Socket};
use crate::network::Bandwidth;

/// What libc lacks of linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h.
mod abi {
    pub(super) const TCA_OPTIONS: u16 = 2;
    pub(super) const TBF_PARMS: u16 = 1;
    pub(super) const TBF_RATE64: u16 = 4;
    pub(super) const TBF_BURST: u16 = 6;
    pub(super) const ROOT: u32 = 0xffff_ffff;
    pub(super) const INGRESS: u32 = 0xffff_fff1;
    pub(super) const INGRESS_HANDLE: u32 = 0xffff_0000;
    pub(super) const U32_SEL: u16 = 5;
    pub(super) const U32_ACT: u16 = 7;
    pub(super) const U32_TERMINAL: u8 = 1;
    pub(super) const ACT_KIND: u16 = 1;
    pub(super) const ACT_OPTIONS: u16 = 2;
    pub(super) const MIRRED_PARMS: u16 = 2;
    pub(super) const ACT_STOLEN: u32 = 4;
    pub(super) const EGRESS_REDIRECT: u32 = 1;
    pub(super) const LINKLAYER_ETHERNET: u8 = 1;
    pub(super) const ETH_P_ALL: u16 = 3;
}

/// What may pass at once is that of so many milliseconds,
const BURST_MS: u64 = 10;
/// but at least two of the largest packets that the kernel handles as one;
const MIN_BURST: u64 = 128 << 10;
/// and so much may wait.
const QUEUE_MS: u64 = 50;

/// The name of what holds back what a pod sends.
pub(super) fn ifb_of(id: &SandboxId) -> String {
    link::name_of(id).replacen("veth", "ifb-", 1)
}

/// Limits a pod that is connected; also one that is limited already.
pub(super) fn limit(id: &SandboxId, bridge: &Link, bandwidth: Bandwidth) -> Result<()> {
    if bandwidth == Bandwidth::default() {
        return Ok(());
    }
    let socket = Socket::route()?;
    let name = link::name_of(id);
    let port = link::find(&socket, &name)?.with_context(|| format!("link {name} is not there"))?;
    if bandwidth.ingress > 0 {
        let mut batch = Batch::default();
        add_bucket(&mut batch, &port, bandwidth.ingress);
        socket.run(&batch).context("kubernetes.io/ingress-bandwidth")?;
    }
    if bandwidth.egress > 0 {
        limit_egress(&socket, id, &port, bridge, bandwidth.egress).context("kubernetes.io/egress-bandwidth")?;
    }
    Ok(())
}

fn limit_egress(socket: &Socket, id: &SandboxId, port: &Link, bridge: &Link, rate: u64) -> Result<()> {
    let name = ifb_of(id);
    if link::find(socket, &name)?.is_none() {
        link::make_ifb(socket, &name, id, bridge)?;
    }
    let ifb = link::find(socket, &name)?.with_context(|| format!("link {name} is not there"))?;
    let mut batch = Batch::default();
    link::bring_up(&mut batch, ifb.index, &name);
    add_bucket(&mut batch, &ifb, rate);
    batch.add(
        libc::RTM_NEWQDISC,
        REPLACE,
        format!("look at what arrives at {}", port.name),
        |message| {
            message.raw(&header(port, abi::INGRESS_HANDLE, abi::INGRESS, 0));
            message.text(libc::TCA_KIND, "ingress");
        },
    );
    add_redirect(&mut batch, port, &ifb);
    socket.run(&batch)
}

/// A bucket as the link's root; `rate` in bits per second.
fn add_bucket(batch: &mut Batch, link: &Link, rate: u64) {
    let bucket = Bucket::of(rate);
    batch.add(
        libc::RTM_NEWQDISC,
        REPLACE,
        format!("limit {} to {rate} bit/s", link.name),
        |message| {
            message.raw(&header(link, 1 << 16, abi::ROOT, 0));
            message.text(libc::TCA_KIND, "tbf");
            message.nest(abi::TCA_OPTIONS, |options| {
                options.attribute(abi::TBF_PARMS, &bucket.parameters());
                options.u32(abi::TBF_BURST, bucket.burst);
                if u32::try_from(bucket.rate).is_err() {
                    options.attribute(abi::TBF_RATE64, &bucket.rate.to_ne_bytes());
                }
            });
        },
    );
}

/// Sends everything that arrives at `from` to `to`.
fn add_redirect(batch: &mut Batch, from: &Link, to: &Link) {
    let priority_and_protocol = 1 << 16 | u32::from(abi::ETH_P_ALL.to_be());
    batch.add(
        libc::RTM_NEWTFILTER,
        REPLACE,
        format!("redirect {} to {}", from.name, to.name),
        |message| {
            // A fixed handle: what is there already is replaced, not joined by another.
            message.raw(&header(from, 0x8000_0800, abi::INGRESS_HANDLE, priority_and_protocol));
            message.text(libc::TCA_KIND, "u32");
            message.nest(abi::TCA_OPTIONS, |options| {
                // struct tc_u32_sel with one key that every packet has.
                let mut selector = [0u8; 32];
                (selector[0], selector[2]) = (abi::U32_TERMINAL, 1);
                options.attribute(abi::U32_SEL, &selector);
                options.nest(abi::U32_ACT, |actions| {
                    actions.nest(1, |action| mirred(action, to.index))
                });
            });
        },
    );
}

fn mirred(action: &mut Message, to: u32) {
    action.text(abi::ACT_KIND, "mirred");
    action.nest(abi::ACT_OPTIONS, |options| {
        // struct tc_mirred: index, capabilities, action, two counters, what is done, where.
        let words = [0, 0, abi::ACT_STOLEN, 0, 0, abi::EGRESS_REDIRECT, to];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        options.attribute(abi::MIRRED_PARMS, &bytes);
    });
}

/// struct tcmsg.
fn header(link: &Link, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let words = [0, link.index, handle, parent, info];
    words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

/// A token bucket, in bytes.
#[derive(Debug, PartialEq)]
struct Bucket {
    /// Per second.
    rate: u64,
    /// That may pass at once.
    burst: u32,
    /// That may wait.
    limit: u32,
}

impl Bucket {
    /// The bucket of a rate in bits per second.
    fn of(rate: u64) -> Bucket {
        let rate = (rate / 8).max(1);
        let during = |ms: u64| rate.saturating_mul(ms) / 1000;
        let burst = during(BURST_MS).max(MIN_BURST);
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Bucket {
            rate,
            burst: word(burst),
            limit: word(burst.saturating_add(during(QUEUE_MS))),
        }
    }

    /// struct tc_tbf_qopt: the rate, no peak rate, limit, and a burst in ticks, which TBF_BURST is instead of.
    fn parameters(&self) -> [u8; 36] {
        let mut parameters = [0; 36];
        // struct tc_ratespec: with a link layer the kernel computes by itself what it else needs tables for.
        parameters[1] = abi::LINKLAYER_ETHERNET;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        for (rate, burst, limit) in [
            (1_000, MIN_BURST, MIN_BURST + 6),
            (10_000_000, MIN_BURST, MIN_BURST + 62_500),
            (1_000_000_000, 1_250_000, 7_500_000),
            (1_000_000_000_000_000, u64::from(u32::MAX), u64::from(u32::MAX)),
        ] {
            let bucket = Bucket::of(rate);
            let found = (bucket.rate, u64::from(bucket.burst), u64::from(bucket.limit));
            assert_eq!(found, (rate / 8, burst, limit));
        }
    }

    #[test]
    fn names_of_both_links_differ() {
        let id: SandboxId = "0123456789abcdef".parse().unwrap();
        assert_eq!(ifb_of(&id), "ifb-0123456789a");
    }
}
