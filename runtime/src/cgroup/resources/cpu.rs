//! The cpu and cpuset controllers.

use anyhow::{Result, ensure};
use oci_spec::runtime::LinuxCpu;

use super::{Writes, or_max, set};
use crate::sys::sched::MAX_NODES;

/// How many processors the kernel can be built for at most (CONFIG_NR_CPUS of x86).
pub(in crate::cgroup) const MAX_CPUS: usize = 8192;

/// The longest list of processors, in bytes.
pub(in crate::cgroup) const MAX_LIST: usize = longest(MAX_CPUS);

/// How much the cpuset controller takes at once of a list of as many numbers as this, in bytes (`max_write_len` in
/// kernel/cgroup/cpuset.c). Other cgroup files take a page.
const fn longest(numbers: usize) -> usize {
    100 + 6 * numbers
}

pub(super) fn check(cpu: &LinuxCpu) -> Result<()> {
    if let Some(idle) = cpu.idle() {
        ensure!(
            idle == 0 || idle == 1,
            "linux.resources.cpu.idle: {idle}: must be 0 or 1"
        );
    }
    check_list("cpus", cpu.cpus().as_deref(), MAX_CPUS)?;
    check_list("mems", cpu.mems().as_deref(), MAX_NODES)
}

/// Whether a list is one the kernel could take at all: its form is for the kernel to judge, which knows more of it than
/// `0-3,7` (cpuset(7), "List format"), but neither the kernel nor systemd shall be bothered with billions.
fn check_list(field: &str, list: Option<&str>, limit: usize) -> Result<()> {
    let list = list.unwrap_or_default();
    let at = || format!("linux.resources.cpu.{field}");
    let longest = longest(limit);
    ensure!(
        list.len() <= longest,
        "{}: {} characters: must be at most {longest}",
        at(),
        list.len()
    );
    let mut numbers = list
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    let beyond = numbers.find(|digits| digits.parse().map_or(true, |number: usize| number >= limit));
    ensure!(
        beyond.is_none(),
        "{}: {list:?}: {} must be below {limit}",
        at(),
        beyond.unwrap_or_default()
    );
    Ok(())
}

fn cpuset(writes: &mut Writes, cpu: &LinuxCpu) {
    for (field, file, value) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            writes.push(field, file, value);
        }
    }
}

pub(super) fn v1(writes: &mut Writes, cpu: &LinuxCpu) {
    cpuset(writes, cpu);
    if let Some(shares) = set(cpu.shares()) {
        writes.push("cpu.shares", "cpu.shares", shares);
    }
    if let Some(period) = set(cpu.period()) {
        writes.push("cpu.period", "cpu.cfs_period_us", period);
    }
    if let Some(quota) = set(cpu.quota()) {
        writes.push("cpu.quota", "cpu.cfs_quota_us", quota.max(-1));
    }
    if let Some(burst) = cpu.burst() {
        writes.push("cpu.burst", "cpu.cfs_burst_us", burst);
    }
    if let Some(period) = set(cpu.realtime_period()) {
        writes.push("cpu.realtimePeriod", "cpu.rt_period_us", period);
    }
    if let Some(runtime) = set(cpu.realtime_runtime()) {
        writes.push("cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime);
    }
    // After the shares, which an idle group refuses.
    if let Some(idle) = cpu.idle() {
        writes.push("cpu.idle", "cpu.idle", idle);
    }
}

/// The kernel's own default, cpu.cfs_period_us.
const DEFAULT_PERIOD_US: u64 = 100_000;

pub(super) fn v2(writes: &mut Writes, cpu: &LinuxCpu) -> Result<()> {
    for (field, is_set) in [
        ("realtimePeriod", set(cpu.realtime_period()).is_some()),
        ("realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
    ] {
        ensure!(
            !is_set,
            "linux.resources.cpu.{field}: cgroup v2 has no limit for real-time processes"
        );
    }
    cpuset(writes, cpu);
    if let Some(shares) = set(cpu.shares()) {
        writes.push("cpu.shares", "cpu.weight", weight(shares));
    }
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), or_max);
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US));
        writes.push("cpu.quota", "cpu.max", value);
    }
    if let Some(burst) = cpu.burst() {
        writes.push("cpu.burst", "cpu.max.burst", burst);
    }
    if let Some(idle) = cpu.idle() {
        writes.push("cpu.idle", "cpu.idle", idle);
    }
    Ok(())
}

/// v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100).
///
/// The formula that runc and crun took up in 2025: quadratic in log2, through (2, 1), (1024, 100), (262144, 10000).
/// The older linear one made 39 of the default 1024, so that a container that asks for one CPU lost against any
/// process outside containers, which have 100. Between containers both agree closely enough.
pub(super) fn weight(shares: u64) -> u64 {
    const MIN: u64 = 2;
    const MAX: u64 = 262_144;
    match shares {
        ..=MIN => 1,
        MAX.. => 10_000,
        _ => {
            let l = f64::from(u32::try_from(shares).expect("below MAX")).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // Rounded at the ninth digit first, lest 100.00000000000001 become 101.
            let weight = (10f64.powf(exponent) * 1e9).round() / 1e9;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10000"
            )]
            let weight = weight.ceil() as u64;
            weight
        }
    }
}
