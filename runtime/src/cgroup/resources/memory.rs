//! The memory controller.
//!
//! `swap` of the spec is memory and swap together, as v1 counts it; v2 limits swap alone, which is the difference.

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::LinuxMemory;

use super::{Writes, or_max, set};

pub(super) fn check(memory: &LinuxMemory) -> Result<()> {
    let (limit, swap) = (set(memory.limit()), set(memory.swap()));
    if let Some(swap) = swap.filter(|&swap| swap > 0) {
        let Some(limit) = limit.filter(|&limit| limit > 0) else {
            bail!("linux.resources.memory.swap: {swap}: is memory and swap together, and needs memory.limit");
        };
        ensure!(
            swap >= limit,
            "linux.resources.memory.swap: {swap}: is memory and swap together, less than memory.limit {limit}"
        );
    }
    if let Some(swappiness) = memory.swappiness() {
        ensure!(
            swappiness <= 100,
            "linux.resources.memory.swappiness: {swappiness}: must be 0 to 100"
        );
    }
    if memory.use_hierarchy() == Some(false) {
        bail!("linux.resources.memory.useHierarchy: false: every memory cgroup is hierarchical since Linux 5.11");
    }
    Ok(())
}

/// A limit of kernel memory is passed over, as runc does: callers of old still send it, Linux has none since 5.16 (a write
/// to v1's file is taken without effect, v2 never had one), and what it was to limit is part of `memory.limit`.
pub(super) fn warning(memory: &LinuxMemory) -> Option<String> {
    let limit = memory.kernel().filter(|&limit| limit > 0)?;
    Some(format!(
        "linux.resources.memory.kernel: {limit}: left out: Linux has no limit of its own for kernel memory, memory.limit counts it"
    ))
}

/// The limit of memory and swap together. No limit on memory alone means none with swap either, else the kernel would
/// refuse it: the old swap limit would be the lower one.
fn total_limit(memory: &LinuxMemory) -> Option<i64> {
    set(memory.swap()).or_else(|| set(memory.limit()).filter(|&limit| limit < 0))
}

pub(super) fn v1(writes: &mut Writes, memory: &LinuxMemory) {
    if let Some(limit) = set(memory.limit()) {
        writes.push("memory.limit", "memory.limit_in_bytes", limit.max(-1));
    }
    // After the limit: the kernel demands at every moment that this is not the lower one.
    if let Some(total) = total_limit(memory) {
        let file = "memory.memsw.limit_in_bytes";
        // Without swap accounting there is no limit to lift.
        if total < 0 {
            writes.push_optional("memory.swap", file, -1);
        } else {
            writes.push("memory.swap", file, total);
        }
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push("memory.reservation", "memory.soft_limit_in_bytes", reservation.max(-1));
    }
    if let Some(limit) = set(memory.kernel_tcp()) {
        writes.push("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", limit.max(-1));
    }
    if let Some(swappiness) = memory.swappiness() {
        writes.push("memory.swappiness", "memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push("memory.disableOOMKiller", "memory.oom_control", 1);
    }
}

pub(super) fn v2(writes: &mut Writes, memory: &LinuxMemory) -> Result<()> {
    for (field, is_set) in [
        ("kernelTCP", set(memory.kernel_tcp()).is_some()),
        ("swappiness", memory.swappiness().is_some()),
        ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
    ] {
        ensure!(!is_set, "linux.resources.memory.{field}: cgroup v2 has no such control");
    }
    // Without swap in the kernel there is no file, and no swap to limit.
    match total_limit(memory) {
        Some(total) if total < 0 => writes.push_optional("memory.swap", "memory.swap.max", "max"),
        Some(total) => {
            let swap = total - memory.limit().unwrap_or_default();
            if swap == 0 {
                writes.push_optional("memory.swap", "memory.swap.max", 0);
            } else {
                writes.push("memory.swap", "memory.swap.max", swap);
            }
        }
        None => {}
    }
    if let Some(limit) = set(memory.limit()) {
        writes.push("memory.limit", "memory.max", or_max(limit));
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push("memory.reservation", "memory.low", or_max(reservation));
    }
    Ok(())
}
