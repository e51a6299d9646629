//! Capability sets: from the names of the spec to the five sets of a process.
//!
//! Names become sets in the parent, where warnings can be told; the child only applies. The order there matters:
//! 1. [`Capabilities::apply_bounding`], while CAP_SETPCAP is effective;
//! 2. [`Capabilities::keep_across_setuid`], for a user that is not root: leaving user 0 clears the permitted set;
//! 3. setgroups, setgid, setuid: the caller's;
//! 4. [`Capabilities::apply`]: one capset for three sets, then the ambient ones, which must be permitted and inheritable.
//!
//! A capability that cannot be granted is a warning and not an error (config.md, capabilities). Names that nobody knows
//! do not get here: `validate.rs` takes them out of the document, with a warning.
//!
//! Through rustix instead of the caps crate: that one sets effective, permitted and inheritable one after the other, each
//! with a capget and a capset.

use std::collections::HashSet;

use anyhow::{Context, Result};
use oci_spec::runtime::{Capability, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};

/// The five sets a container's process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What no execve can exceed.
    pub bounding: CapabilitySet,
    /// What the kernel checks.
    pub effective: CapabilitySet,
    /// What the process may make effective.
    pub permitted: CapabilitySet,
    /// Kept across an execve of a file that has them inheritable too.
    pub inheritable: CapabilitySet,
    /// Kept across an execve by a user that is not root.
    pub ambient: CapabilitySet,
}

impl Capabilities {
    /// The sets that the spec asks for, less what cannot be: what `grantable` lacks, effective ones that are not permitted,
    /// ambient ones that are not both permitted and inheritable. What is left out is a warning.
    ///
    /// A spec without capabilities gets none, as with runc.
    pub fn from_spec(spec: Option<&LinuxCapabilities>, grantable: CapabilitySet) -> (Capabilities, Vec<String>) {
        let mut warnings = Vec::new();
        let asked = |of: fn(&LinuxCapabilities) -> &Option<HashSet<Capability>>| {
            let set = spec.and_then(|spec| of(spec).as_ref());
            set.map_or(CapabilitySet::empty(), bits)
        };
        let mut within = |name: &str, asked: CapabilitySet, limit: CapabilitySet, why: &str| {
            warnings.extend(left_out(name, asked - limit, why));
            asked & limit
        };
        use LinuxCapabilities as L;
        let lacking = "this runtime or this kernel does not have it";
        let bounding = within("bounding", asked(L::bounding), grantable, lacking);
        let permitted = within("permitted", asked(L::permitted), grantable, lacking);
        let inheritable = within("inheritable", asked(L::inheritable), grantable, lacking);
        let effective = within("effective", asked(L::effective), permitted, "not permitted");
        let (both, why) = (permitted & inheritable, "not permitted and inheritable");
        let ambient = within("ambient", asked(L::ambient), both, why);
        let sets = Capabilities {
            bounding,
            effective,
            permitted,
            inheritable,
            ambient,
        };
        (sets, warnings)
    }

    /// Drops from the bounding set what the container is not to have: first, while CAP_SETPCAP is effective.
    ///
    /// The kernel takes one capability per call.
    pub fn apply_bounding(&self) -> Result<()> {
        for number in 0..CAPABILITY_LIMIT {
            let one = nth(number);
            if self.bounding.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // The first number this kernel does not know.
                Err(Errno::INVAL) => break,
                Err(error) => {
                    return Err(error).with_context(|| format!("prctl(PR_CAPBSET_DROP, {number})"));
                }
            }
        }
        Ok(())
    }

    /// Keeps the permitted set across the coming setuid; before the user id changes. The kernel forgets it at execve.
    pub fn keep_across_setuid(&self) -> Result<()> {
        set_keep_capabilities(true).context("prctl(PR_SET_KEEPCAPS, 1)")
    }

    /// Sets the other four; after the user id has changed. `beyond` stays effective until [`Capabilities::settle`].
    pub fn apply(&self, beyond: CapabilitySet) -> Result<()> {
        self.set(beyond)?;
        // The runtime's own ambient set; what is no longer inheritable has left it by itself.
        if !self.inheritable.is_empty() {
            clear_ambient_capability_set().context("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)")?;
        }
        for one in each(self.ambient) {
            configure_capability_in_ambient_set(one, true)
                .with_context(|| format!("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, {one:?})"))?;
        }
        Ok(())
    }

    /// Gives up what was left beyond these sets.
    pub fn settle(&self) -> Result<()> {
        self.set(CapabilitySet::empty())
    }

    fn set(&self, beyond: CapabilitySet) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.effective | beyond,
            permitted: self.permitted | beyond,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).with_context(|| format!("capset({sets:?})"))
    }
}

/// What this process can pass on to a container: its own permitted set, or in another user namespace all that the kernel
/// knows, because whoever enters one has every capability there.
pub fn grantable(other_user_namespace: bool) -> Result<CapabilitySet> {
    if other_user_namespace {
        return known_to_kernel();
    }
    Ok(capabilities(None).context("capget")?.permitted)
}

/// Whether this process can make use of a capability.
pub fn effective(one: CapabilitySet) -> Result<bool> {
    Ok(capabilities(None).context("capget")?.effective.contains(one))
}

/// One more than the highest capability that a name exists for: CAP_CHECKPOINT_RESTORE, Linux 5.9.
const CAPABILITY_LIMIT: u32 = CapabilitySet::CHECKPOINT_RESTORE.bits().trailing_zeros() + 1;

fn known_to_kernel() -> Result<CapabilitySet> {
    // Mostly the kernel knows them all: asked from the highest down, one call suffices.
    for number in (0..CAPABILITY_LIMIT).rev() {
        match capability_is_in_bounding_set(nth(number)) {
            Ok(_) => return Ok(CapabilitySet::from_bits_retain((1 << (number + 1)) - 1)),
            Err(Errno::INVAL) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("prctl(PR_CAPBSET_READ, {number})"));
            }
        }
    }
    Ok(CapabilitySet::empty())
}

fn left_out(name: &str, missing: CapabilitySet, why: &str) -> Option<String> {
    let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
    let names = (!names.is_empty()).then(|| names.join(", "))?;
    Some(format!("process.capabilities.{name}: {names}: {why}: left out"))
}

fn nth(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(nth).filter(move |&one| set.contains(one))
}

fn bits(capabilities: &HashSet<Capability>) -> CapabilitySet {
    capabilities.iter().map(bit).collect()
}

fn bit(capability: &Capability) -> CapabilitySet {
    // Display is the kernel's name without CAP_, which is rustix's name for the bit; the test holds them together.
    CapabilitySet::from_name(&capability.to_string()).expect("both crates name every capability of Linux")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(sets: serde_json::Value) -> LinuxCapabilities {
        serde_json::from_value(sets).unwrap()
    }

    #[test]
    fn every_name_has_its_bit() {
        for number in 0..CAPABILITY_LIMIT {
            let (name, _) = nth(number).iter_names().next().unwrap();
            let capability: Capability = serde_json::from_value(json!(format!("CAP_{name}"))).unwrap();
            assert_eq!(bit(&capability), nth(number), "{name}");
        }
    }

    #[test]
    fn sets_within_their_limits() {
        let all = CapabilitySet::from_bits_retain((1 << CAPABILITY_LIMIT) - 1);
        let (chown, kill) = (CapabilitySet::CHOWN, CapabilitySet::KILL);
        let none = CapabilitySet::empty();
        let same = json!(["CAP_CHOWN", "CAP_KILL"]);
        for (sets, grantable, expected, warnings) in [
            (json!({}), all, [none; 5], vec![]),
            (
                json!({"bounding": same, "permitted": same, "effective": same}),
                all,
                [chown | kill, chown | kill, chown | kill, none, none],
                vec![],
            ),
            (
                json!({"bounding": same, "permitted": same, "effective": ["CAP_KILL"], "inheritable": same}),
                chown,
                [chown, none, chown, chown, none],
                vec![
                    "bounding: KILL",
                    "permitted: KILL",
                    "inheritable: KILL",
                    "effective: KILL",
                ],
            ),
            (
                json!({"permitted": ["CAP_CHOWN"], "inheritable": same, "ambient": same}),
                all,
                [none, none, chown, chown | kill, chown],
                vec!["ambient: KILL"],
            ),
        ] {
            let (got, told) = Capabilities::from_spec(Some(&spec(sets.clone())), grantable);
            let got = [got.bounding, got.effective, got.permitted, got.inheritable, got.ambient];
            assert_eq!(got, expected, "{sets}");
            assert_eq!(told.len(), warnings.len(), "{sets}: {told:?}");
            assert!(
                told.iter().zip(&warnings).all(|(told, word)| told.contains(word)),
                "{sets}: {told:?}"
            );
        }
        assert_eq!(Capabilities::from_spec(None, all).0.permitted, none);
    }

    #[test]
    fn what_can_be_granted() {
        let own = grantable(false).unwrap();
        let kernel = grantable(true).unwrap();
        assert!(kernel.contains(own), "{own:?} {kernel:?}");
        assert!(kernel.contains(CapabilitySet::AUDIT_READ));
    }
}
