//! The cgroups of a container: where they are, making them, putting processes in, taking them away.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Result, bail};
use corten_proto::id::ContainerId;
use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a container's cgroups are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupPaths {
    /// One directory per v1 hierarchy; the key is the hierarchy as /proc/PID/cgroup names it (`cpu,cpuacct`).
    V1(BTreeMap<String, PathBuf>),
    /// The one directory of the unified hierarchy.
    V2(PathBuf),
}

/// The cgroups of one container.
#[derive(Debug)]
pub struct Cgroup {
    paths: CgroupPaths,
}

/// Directories just made; dropping it removes them again.
#[must_use]
pub struct Created<'a>(&'a Cgroup);

impl Created<'_> {
    /// Keeps the directories.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Cgroup {
    /// Where the container's cgroups are to be; no side effect.
    pub fn plan(path: Option<&Path>, id: &ContainerId) -> Result<Cgroup> {
        bail!("cgroup {path:?} of {id}")
    }
    /// The cgroups that `paths` names, from a saved state.
    pub fn open(paths: CgroupPaths) -> Cgroup {
        Cgroup { paths }
    }
    /// The cgroups that a process is in.
    pub fn of_process(pid: i32) -> Result<Cgroup> {
        bail!("cgroup of {pid}")
    }
    /// Where they are, to be saved.
    pub fn paths(&self) -> &CgroupPaths {
        &self.paths
    }
    /// Makes the directories.
    pub fn create(&self) -> Result<Created<'_>> {
        Ok(Created(self))
    }
    /// Sets the limits and the device rules.
    pub fn apply(&self, linux: &Linux) -> Result<()> {
        bail!("{linux:?}")
    }
    /// Moves a process in.
    pub fn add(&self, pid: i32) -> Result<()> {
        bail!("{pid}")
    }
    /// v2 only: the directory, for `CLONE_INTO_CGROUP`.
    pub fn clone_fd(&self) -> Option<OwnedFd> {
        None
    }
    /// Every process in the container's cgroup and below it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        bail!("processes")
    }
    /// Stops every process until [`Cgroup::thaw`].
    pub fn freeze(&self) -> Result<()> {
        bail!("freeze")
    }
    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        bail!("thaw")
    }
    /// Sends a signal to every process.
    pub fn kill(&self, signal: i32) -> Result<()> {
        bail!("kill {signal}")
    }
    /// Kills what is left and removes the directories.
    pub fn delete(&self) -> Result<()> {
        bail!("delete")
    }
    /// How many processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        bail!("oom")
    }
}
