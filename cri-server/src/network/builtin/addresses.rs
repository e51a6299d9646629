//! Which addresses are whose. In memory only: the pods' records say the same, and are read at the start.
//!
//! Addresses are given in turn, so that one that was freed just now is the last to be given again: peers may have
//! connections to it, and its old hardware address in mind.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use anyhow::{Result, bail};
use corten_proto::id::SandboxId;

use super::prefix::Prefix;

/// The addresses that pods have.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    taken: BTreeMap<IpAddr, SandboxId>,
    /// The offset in a subnet that was given last.
    last: BTreeMap<Prefix, u128>,
}

impl Addresses {
    /// Gives the pod an address of the subnet.
    pub(super) fn take(&mut self, subnet: Prefix, owner: &SandboxId) -> Result<Prefix> {
        let pods = subnet.pods();
        let (first, last) = (*pods.start(), *pods.end());
        let mut offset = self.last.get(&subnet).copied().unwrap_or(last);
        // One more than are taken: one of them is free, or all of them are taken.
        for _ in 0..=self.taken.len() {
            offset = if offset >= last { first } else { offset + 1 };
            let address = subnet.nth(offset);
            if let Entry::Vacant(free) = self.taken.entry(address) {
                free.insert(owner.clone());
                self.last.insert(subnet, offset);
                let length = subnet.length;
                return Ok(Prefix { address, length });
            }
        }
        bail!(
            "subnet {subnet}: all {} addresses for pods are in use",
            (last + 1).saturating_sub(first)
        );
    }

    /// Notes that a pod has an address, as its record says. An address that is another's stays the other's.
    pub(super) fn adopt(&mut self, prefix: Prefix, owner: &SandboxId) {
        let subnet = prefix.network();
        self.last.insert(subnet, subnet.offset(prefix.address));
        self.taken.entry(prefix.address).or_insert_with(|| owner.clone());
    }

    /// Frees everything that the pod has.
    pub(super) fn release(&mut self, owner: &SandboxId) {
        self.taken.retain(|_, of| of != owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_turn_and_never_twice() {
        let mut addresses = Addresses::default();
        let subnet: Prefix = "10.87.0.0/29".parse().unwrap();
        let owner = |name: &str| name.parse::<SandboxId>().unwrap();
        let take = |addresses: &mut Addresses, name: &str| {
            addresses.take(subnet, &owner(name)).map(|prefix| prefix.to_string())
        };
        for (name, expected) in [("a", 2), ("b", 3), ("c", 4)] {
            assert_eq!(take(&mut addresses, name).unwrap(), format!("10.87.0.{expected}/29"));
        }
        addresses.release(&owner("a"));
        for (name, expected) in [("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(take(&mut addresses, name).unwrap(), format!("10.87.0.{expected}/29"));
        }
        let error = take(&mut addresses, "g").unwrap_err().to_string();
        assert_eq!(error, "subnet 10.87.0.0/29: all 5 addresses for pods are in use");
        addresses.release(&owner("c"));
        assert_eq!(take(&mut addresses, "g").unwrap(), "10.87.0.4/29");
    }

    #[test]
    fn what_records_say_is_taken_and_the_turn_goes_on_after_it() {
        let mut addresses = Addresses::default();
        let subnet: Prefix = "fd00::/64".parse().unwrap();
        let (one, other): (SandboxId, SandboxId) = ("one".parse().unwrap(), "other".parse().unwrap());
        addresses.adopt("fd00::7/64".parse().unwrap(), &one);
        addresses.adopt("fd00::7/64".parse().unwrap(), &other);
        addresses.release(&other);
        assert_eq!(addresses.taken.len(), 1, "the first one keeps it");
        assert_eq!(addresses.take(subnet, &other).unwrap().to_string(), "fd00::8/64");
    }
}
