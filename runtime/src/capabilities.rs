//! Capability sets: from the names of the spec to the five sets of a process.

use anyhow::{Result, bail};
use oci_spec::runtime::LinuxCapabilities;
use rustix::thread::CapabilitySet;

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
    /// The sets that the spec asks for, less what `grantable` lacks; each capability left out is a warning.
    pub fn from_spec(spec: Option<&LinuxCapabilities>, grantable: CapabilitySet) -> (Capabilities, Vec<String>) {
        let none = CapabilitySet::empty();
        let _ = (spec, grantable);
        (Capabilities { bounding: none, effective: none, permitted: none, inheritable: none, ambient: none }, Vec::new())
    }
    /// Drops from the bounding set what the container is not to have: first, while CAP_SETPCAP is effective.
    pub fn apply_bounding(&self) -> Result<()> {
        bail!("bounding")
    }
    /// Keeps the permitted set across the coming setuid; before the user id changes.
    pub fn keep_across_setuid(&self) -> Result<()> {
        bail!("keep")
    }
    /// Sets the other four; after the user id has changed.
    pub fn apply(&self) -> Result<()> {
        bail!("apply")
    }
}

/// What this process can pass on to a container: its own permitted set; in a user namespace of its own, all the kernel knows.
pub fn grantable(own_user_namespace: bool) -> Result<CapabilitySet> {
    bail!("{own_user_namespace}")
}
