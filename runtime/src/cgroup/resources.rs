//! `linux.resources` of the spec as writes to control files: pure, one table for v1 and one for v2.
//!
//! A value of 0 stands for "not set" in every limit, as runc reads it: Go programs cannot leave a number out. A negative
//! limit is "no limit". What a version of cgroups has no file for at all is refused here; what this kernel lacks is seen
//! when the file is not there.
//!
//! `cpu.rs`, `memory.rs` and `block_io.rs` hold a controller each. Not here: devices (`../devices.rs`).

mod block_io;
mod cpu;
mod memory;
#[cfg(test)]
mod tests;

pub(super) use cpu::{MAX_CPUS, MAX_LIST};

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxPids, LinuxRdma, LinuxResources};

/// One write to one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The field below `linux.resources` that asks for it: `memory.limit`.
    pub(super) field: &'static str,
    /// The file's name. Its first part is the controller's.
    pub(super) file: Cow<'static, str>,
    /// What to write.
    pub(super) value: String,
    /// What to do where the kernel has no such file.
    pub(super) absent: Absent,
}

/// What a missing control file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// What is asked cannot be had.
    Fail,
    /// Without this file the kernel does what is asked anyway.
    Skip,
    /// Another file does the same with this value.
    Instead(&'static str, String),
}

impl Write {
    /// The controller that the file belongs to.
    pub(super) fn controller(&self) -> &str {
        self.file
            .split_once('.')
            .map_or(&*self.file, |(controller, _)| controller)
    }
}

/// The writes in their order.
///
/// Each controller's stand in the order that takes a new cgroup to its limits. For one that has limits the kernel may
/// refuse that order with EINVAL (a period under which the old quota is too large, a memory limit above the old one with
/// swap); whoever writes them puts such a write off until after the others.
#[derive(Debug, Default)]
struct Writes(Vec<Write>);

impl Writes {
    fn push(&mut self, field: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) {
        self.push_or(field, file, value, Absent::Fail);
    }

    fn push_optional(&mut self, field: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) {
        self.push_or(field, file, value, Absent::Skip);
    }

    fn push_or(
        &mut self,
        field: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
        absent: Absent,
    ) {
        let write = Write {
            field,
            file: file.into(),
            value: value.to_string(),
            absent,
        };
        self.0.push(write);
    }
}

/// What the spec's limits are as files of v1 hierarchies.
pub(super) fn v1(resources: &LinuxResources) -> Result<Vec<Write>> {
    if let Some(unified) = resources.unified().as_ref().filter(|unified| !unified.is_empty()) {
        bail!(
            "linux.resources.unified: {unified:?}: these are files of cgroup v2, this machine's controllers are on v1"
        );
    }
    let mut writes = Writes::default();
    if let Some(cpu) = resources.cpu() {
        cpu::check(cpu)?;
        cpu::v1(&mut writes, cpu);
    }
    if let Some(memory) = resources.memory() {
        memory::check(memory)?;
        memory::v1(&mut writes, memory);
    }
    pids(&mut writes, resources.pids());
    if let Some(block_io) = resources.block_io() {
        block_io::check(block_io)?;
        block_io::v1(&mut writes, block_io);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit)?;
        let size = limit.page_size();
        let field = "hugepageLimits";
        writes.push(field, format!("hugetlb.{size}.limit_in_bytes"), limit.limit());
        // Reservations have a limit of their own since 5.7; without it a reservation could exceed the other one.
        writes.push_optional(field, format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit.limit());
    }
    resources
        .network()
        .as_ref()
        .map_or(Ok(()), |network| network_v1(&mut writes, network))?;
    rdma(&mut writes, resources.rdma().iter().flatten())?;
    Ok(writes.0)
}

/// What the spec's limits are as files of a v2 cgroup.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Writes::default();
    if let Some(cpu) = resources.cpu() {
        cpu::check(cpu)?;
        cpu::v2(&mut writes, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        memory::check(memory)?;
        memory::v2(&mut writes, memory)?;
    }
    pids(&mut writes, resources.pids());
    if let Some(block_io) = resources.block_io() {
        block_io::check(block_io)?;
        block_io::v2(&mut writes, block_io);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit)?;
        let size = limit.page_size();
        writes.push("hugepageLimits", format!("hugetlb.{size}.max"), limit.limit());
        writes.push_optional("hugepageLimits", format!("hugetlb.{size}.rsvd.max"), limit.limit());
    }
    let network = resources.network().as_ref();
    let asks = network.is_some_and(|network| {
        set(network.class_id()).is_some() || network.priorities().iter().flatten().next().is_some()
    });
    ensure!(
        !asks,
        "linux.resources.network: cgroup v2 has neither classes nor priorities of packets"
    );
    rdma(&mut writes, resources.rdma().iter().flatten())?;
    unified(&mut writes, resources)?;
    Ok(writes.0)
}

/// What is passed over, as text to be logged.
pub(super) fn warnings(resources: &LinuxResources) -> Vec<String> {
    resources
        .memory()
        .as_ref()
        .and_then(memory::warning)
        .into_iter()
        .collect()
}

fn unified(writes: &mut Writes, resources: &LinuxResources) -> Result<()> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    // Hash order would make two runs differ.
    unified.sort();
    for (file, value) in unified {
        check_unified(file)?;
        writes.push("unified", file.clone(), value);
    }
    Ok(())
}

/// A file name of `unified`. `cgroup.*` are the runtime's own: a cgroup.procs or cgroup.freeze from the spec would undo
/// what it does.
fn check_unified(file: &str) -> Result<()> {
    let parts = file.split_once('.');
    let valid = parts.is_some_and(|(controller, rest)| {
        !controller.is_empty() && !rest.is_empty() && controller != "cgroup" && !file.contains(['/', '\0'])
    });
    ensure!(
        valid,
        "linux.resources.unified: {file:?}: not CONTROLLER.FILE of a cgroup v2 controller"
    );
    Ok(())
}

/// A limit that is set: 0 is not.
fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// A limit as v2 writes it.
fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn pids(writes: &mut Writes, pids: &Option<LinuxPids>) {
    if let Some(limit) = pids.as_ref().map(LinuxPids::limit).filter(|&limit| limit != 0) {
        writes.push("pids.limit", "pids.max", or_max(limit));
    }
}

/// `2MB`, `1GB`: how the kernel names the files. Anything else could name another file.
fn check_page_size(limit: &LinuxHugepageLimit) -> Result<()> {
    let size = limit.page_size();
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    let valid = number.is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 0) && n.bytes().all(|b| b.is_ascii_digit()));
    ensure!(
        valid,
        "linux.resources.hugepageLimits: pageSize {size:?}: not a number and KB, MB or GB"
    );
    ensure!(
        limit.limit() >= 0,
        "linux.resources.hugepageLimits: limit {} is negative",
        limit.limit()
    );
    Ok(())
}

/// A name that stands between blanks in what is written: one word.
fn check_word(field: &str, name: &str) -> Result<()> {
    let valid = !name.is_empty() && !name.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control());
    ensure!(valid, "linux.resources.{field}: {name:?}: not the name of a device");
    Ok(())
}

fn network_v1(writes: &mut Writes, network: &LinuxNetwork) -> Result<()> {
    if let Some(class) = set(network.class_id()) {
        writes.push("network.classID", "net_cls.classid", class);
    }
    for priority in network.priorities().iter().flatten() {
        check_word("network.priorities", priority.name())?;
        let value = format!("{} {}", priority.name(), priority.priority());
        writes.push("network.priorities", "net_prio.ifpriomap", value);
    }
    Ok(())
}

/// The same file and form in both versions.
fn rdma<'a>(writes: &mut Writes, limits: impl Iterator<Item = (&'a String, &'a LinuxRdma)>) -> Result<()> {
    let mut limits: Vec<_> = limits.collect();
    limits.sort_by_key(|(name, _)| *name);
    for (name, limit) in limits {
        check_word("rdma", name)?;
        let mut value = name.clone();
        for (key, number) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        if value.len() > name.len() {
            writes.push("rdma", "rdma.max", value);
        }
    }
    Ok(())
}
