//! Limits: checked against this machine before anything is made, and written to a container's cgroups.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{Linux, LinuxMemory, LinuxResources};
use rustix::io::Errno;

use super::devices::Policy;
use super::directory::Directory;
use super::layout::{self, Layout, layout};
use super::resources::{self, Absent, Write};
use super::{Cgroup, CgroupPaths, keyed_value};
use crate::rootless;

/// Every check of `linux.resources` against this machine, without a side effect: limits that contradict each other or
/// that no mounted controller can set. Answers with warnings.
pub fn check(linux: &Linux) -> Result<Vec<String>> {
    let layout = layout()?;
    let available = available_controllers(layout)?;
    let mut warnings = Vec::new();
    if let Some(resources) = linux.resources() {
        check_controllers(resources, layout, &available)?;
        warnings = resources::warnings(resources);
    }
    let confined = !policy(linux)?.allows_all();
    let can_confine = matches!(layout, Layout::V2(_)) || available.iter().any(|name| name == "devices");
    ensure!(
        can_confine || !confined,
        "linux.resources.devices: this machine has no devices cgroup controller"
    );
    Ok(warnings)
}

/// Refuses a limit that none of these controllers can set.
fn check_controllers(resources: &LinuxResources, layout: &Layout, available: &[String]) -> Result<()> {
    let v2 = matches!(layout, Layout::V2(_));
    let writes = writes(resources, v2)?;
    for write in writes.iter().filter(|write| write.absent != Absent::Skip) {
        ensure!(
            available.iter().any(|name| name == write.controller()),
            "linux.resources.{}: {} = {}: this machine has no {} cgroup controller",
            write.field,
            write.file,
            write.value,
            write.controller()
        );
    }
    Ok(())
}

fn available_controllers(layout: &Layout) -> Result<Vec<String>> {
    let split = |text: &str, separator: char| text.trim().split(separator).map(str::to_owned).collect::<Vec<_>>();
    match layout {
        Layout::V1(all) => Ok(all.iter().flat_map(|hierarchy| split(&hierarchy.name, ',')).collect()),
        Layout::V2(one) => Ok(split(
            &Directory::existing(&one.mount_point)?.read("cgroup.controllers")?,
            ' ',
        )),
    }
}

pub(super) fn writes(resources: &LinuxResources, v2: bool) -> Result<Vec<Write>> {
    if v2 {
        resources::v2(resources)
    } else {
        resources::v1(resources)
    }
}

pub(super) fn policy(linux: &Linux) -> Result<Policy> {
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().as_deref());
    Policy::new(rules.unwrap_or_default())
}

impl Cgroup {
    /// None at all, for a container of a user who may make none; refused where there are limits to be set. Rules for
    /// devices need no cgroup there: such a user makes no device, and has the right to use those of the host that the
    /// host gives.
    pub fn none(linux: &Linux) -> Result<Cgroup> {
        let limits = linux.resources().as_ref().map(|resources| writes(resources, false));
        let limits = limits.transpose()?.unwrap_or_default();
        if let Some(limit) = limits.iter().find(|write| write.absent != Absent::Skip) {
            bail!(
                "linux.resources.{}: {} = {}: needs a cgroup",
                limit.field,
                limit.file,
                limit.value
            );
        }
        Ok(Cgroup::open(CgroupPaths::V1(BTreeMap::new())))
    }

    /// Sets the limits of `linux.resources` and confines devices to its rules and those every container has. A limit that
    /// is not named stays as it is.
    pub fn apply(&self, linux: &Linux) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        if let Some(resources) = linux.resources() {
            self.set_limits(resources)?;
        }
        match self.confine_devices(&policy(linux)?) {
            // Such a user makes no device either: see `Cgroup::none`.
            Err(error) if rootless::is_expected(&error) => {
                crate::log::debug(format_args!("linux.resources.devices: {error:#}"));
                Ok(())
            }
            confined => confined.context("linux.resources.devices"),
        }
    }

    /// Changes limits of a container that runs; device rules are none. What no controller here can set is refused before
    /// anything is written.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let layout = layout()?;
        check_controllers(resources, layout, &available_controllers(layout)?)?;
        resources::warnings(resources).iter().for_each(crate::log::warn);
        // First, since it may be refused; and systemd writes files as well, less exactly than we do.
        if let Some(scope) = self.scope() {
            scope.update(resources, self.is_v2())?;
        }
        self.set_limits(resources)
    }

    fn set_limits(&self, resources: &LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory() {
            self.check_usage(memory)?;
        }
        let writes = writes(resources, self.is_v2())?;
        let mut put_off = Vec::new();
        for write in &writes {
            match self.write(write)? {
                Err(Errno::INVAL) => put_off.push(write),
                result => result.with_context(|| describe(write))?,
            }
        }
        // What the kernel refused in this order, because of a limit that has been changed since.
        for write in put_off {
            self.write(write)?.with_context(|| describe(write))?;
        }
        Ok(())
    }

    /// `memory.checkBeforeUpdate`: a limit below what is in use would have the kernel kill for it.
    fn check_usage(&self, memory: &LinuxMemory) -> Result<()> {
        let limit = memory.limit().and_then(|limit| u64::try_from(limit).ok());
        let (Some(limit @ 1..), Some(true)) = (limit, memory.check_before_update()) else {
            return Ok(());
        };
        let file = if self.is_v2() {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let directory = self.controller("memory")?;
        let directory = directory.ok_or_else(|| anyhow!("read {file}: there is no memory cgroup"))?;
        let usage = directory.read(file)?;
        let usage: u64 = usage.trim().parse().with_context(|| format!("{file}: {usage:?}"))?;
        ensure!(
            usage <= limit,
            "linux.resources.memory.limit: {limit}: is less than the {usage} bytes in use (memory.checkBeforeUpdate)"
        );
        Ok(())
    }

    /// Writes one limit; the inner result is the kernel's answer.
    fn write(&self, write: &Write) -> Result<Result<(), Errno>> {
        let Some(directory) = self.controller(write.controller())? else {
            ensure!(
                write.absent == Absent::Skip,
                "{}: there is no {} cgroup",
                describe(write),
                write.controller()
            );
            return Ok(Ok(()));
        };
        let result = match (directory.try_write(&write.file, &write.value), &write.absent) {
            (Err(Errno::NOENT), Absent::Skip) => Ok(()),
            (Err(Errno::NOENT), Absent::Instead(file, value)) => directory.try_write(file, value),
            (result, _) => result,
        };
        if result == Err(Errno::NOENT) {
            bail!(
                "{}: no such file in {}: the kernel lacks it, or the controller is not enabled there",
                describe(write),
                directory.path.display()
            );
        }
        Ok(result)
    }

    fn confine_devices(&self, policy: &Policy) -> Result<()> {
        if self.is_v2() {
            if policy.allows_all() {
                return Ok(());
            }
            let program =
                crate::sys::bpf::load_device_program(&policy.program()).context("bpf(BPF_PROG_LOAD, CGROUP_DEVICE)")?;
            let directory = self
                .controller("")?
                .ok_or_else(|| anyhow!("the container has no cgroup"))?;
            return crate::sys::bpf::attach_device_program(directory.as_fd(), program.as_fd())
                .with_context(|| format!("bpf(BPF_PROG_ATTACH, {})", directory.path.display()));
        }
        let Some(directory) = self.controller("devices")? else {
            ensure!(policy.allows_all(), "confine devices: there is no devices cgroup");
            return Ok(());
        };
        let (default, exceptions, lines) = policy.v1_lines();
        directory.write(default, "a")?;
        directory.write_lines(exceptions, &lines)
    }

    /// How many processes of this cgroup and those below it the kernel has killed for want of memory. 0 without a memory
    /// controller; to be read before the cgroup is deleted.
    ///
    /// On v2 from memory.events, not memory.events.local: that one misses a victim in a cgroup that the container made
    /// for itself, though the limit it died of was the container's.
    pub fn oom_kills(&self) -> Result<u64> {
        let Some(directory) = self.controller("memory")? else {
            return Ok(0);
        };
        let file = if self.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        match directory.try_read(file) {
            Ok(text) => Ok(keyed_value(&text, "oom_kill").unwrap_or(0)),
            // The latter: removed since it was opened.
            Err(Errno::NOENT) if self.is_v2() => Ok(0),
            Err(Errno::NODEV) => Ok(0),
            Err(error) => Err(error).with_context(|| format!("read {}/{file}", directory.path.display())),
        }
    }

    /// The directory with this controller's files; on v2 always the same.
    pub(super) fn controller(&self, controller: &str) -> Result<Option<&Directory>> {
        let has = |hierarchy: &str| self.is_v2() || layout::has_controller(hierarchy, controller);
        Ok(self
            .directories()?
            .iter()
            .find(|(hierarchy, _)| has(hierarchy))
            .map(|(_, directory)| directory))
    }
}

fn describe(write: &Write) -> String {
    format!(
        "linux.resources.{}: write {:?} to {}",
        write.field, write.value, write.file
    )
}
