//! `linux.resources` of the spec as writes to control files: pure, one table for v1 and one for v2.
//!
//! A value of 0 stands for "not set" in every limit, as runc reads it: Go programs cannot leave a number out. A negative
//! limit is "no limit".
//!
//! Not here: devices (`devices.rs`). Not built, and refused by `validate.rs`: blockIO, network, rdma.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

/// One write to one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The controller that the file belongs to.
    pub(super) controller: Cow<'static, str>,
    /// The file's name.
    pub(super) file: Cow<'static, str>,
    /// What to write.
    pub(super) value: String,
    /// A kernel without this file does what is asked anyway.
    pub(super) optional: bool,
}

/// The writes in their order.
///
/// Each controller's stand in the order that takes a new cgroup to its limits. For one that has limits the kernel may
/// refuse that order with EINVAL (a period under which the old quota is too large, a memory limit above the old one with
/// swap); whoever writes them puts such a write off until after the others.
#[derive(Debug, Default)]
struct Writes(Vec<Write>);

impl Writes {
    fn push(&mut self, controller: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) {
        let write = Write {
            controller: controller.into(),
            file: file.into(),
            value: value.to_string(),
            optional: false,
        };
        self.0.push(write);
    }

    fn push_optional(&mut self, controller: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) {
        self.push(controller, file, value);
        self.0.last_mut().expect("one has just been pushed").optional = true;
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
        check_cpu(cpu)?;
        cpuset(&mut writes, cpu);
        cpu_v1(&mut writes, cpu);
    }
    if let Some(memory) = resources.memory() {
        check_memory(memory)?;
        memory_v1(&mut writes, memory);
    }
    pids(&mut writes, resources.pids());
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit)?;
        let size = limit.page_size();
        writes.push("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), limit.limit());
        // Reservations have a limit of their own since 5.7; without it a reservation could exceed the other one.
        writes.push_optional("hugetlb", format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit.limit());
    }
    Ok(writes.0)
}

/// What the spec's limits are as files of a v2 cgroup.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Writes::default();
    if let Some(cpu) = resources.cpu() {
        check_cpu(cpu)?;
        cpuset(&mut writes, cpu);
        cpu_v2(&mut writes, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        check_memory(memory)?;
        memory_v2(&mut writes, memory)?;
    }
    pids(&mut writes, resources.pids());
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit)?;
        let size = limit.page_size();
        writes.push("hugetlb", format!("hugetlb.{size}.max"), limit.limit());
        writes.push_optional("hugetlb", format!("hugetlb.{size}.rsvd.max"), limit.limit());
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    // Hash order would make two runs differ.
    unified.sort();
    for (file, value) in unified {
        let controller = unified_controller(file)?.to_owned().into();
        writes.0.push(Write {
            controller,
            file: file.clone().into(),
            value: value.clone(),
            optional: false,
        });
    }
    Ok(writes.0)
}

/// The controller in a file name of `unified`. `cgroup.*` are the runtime's own: a cgroup.procs or cgroup.freeze from the
/// spec would undo what it does.
fn unified_controller(file: &str) -> Result<&str> {
    match file.split_once('.') {
        Some((controller, rest))
            if !controller.is_empty() && !rest.is_empty() && controller != "cgroup" && !file.contains(['/', '\0']) =>
        {
            Ok(controller)
        }
        _ => bail!("linux.resources.unified: {file:?}: not CONTROLLER.FILE of a cgroup v2 controller"),
    }
}

/// A limit that is set: 0 is not.
fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// A limit as v2 writes it.
fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn cpuset(writes: &mut Writes, cpu: &LinuxCpu) {
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            writes.push("cpuset", file, value);
        }
    }
}

fn check_cpu(cpu: &LinuxCpu) -> Result<()> {
    if let Some(idle) = cpu.idle() {
        ensure!(
            idle == 0 || idle == 1,
            "linux.resources.cpu.idle: {idle}: must be 0 or 1"
        );
    }
    Ok(())
}

fn cpu_v1(writes: &mut Writes, cpu: &LinuxCpu) {
    if let Some(shares) = set(cpu.shares()) {
        writes.push("cpu", "cpu.shares", shares);
    }
    if let Some(period) = set(cpu.period()) {
        writes.push("cpu", "cpu.cfs_period_us", period);
    }
    if let Some(quota) = set(cpu.quota()) {
        writes.push("cpu", "cpu.cfs_quota_us", quota.max(-1));
    }
    if let Some(burst) = cpu.burst() {
        writes.push("cpu", "cpu.cfs_burst_us", burst);
    }
    if let Some(period) = set(cpu.realtime_period()) {
        writes.push("cpu", "cpu.rt_period_us", period);
    }
    if let Some(runtime) = set(cpu.realtime_runtime()) {
        writes.push("cpu", "cpu.rt_runtime_us", runtime);
    }
    // After the shares, which an idle group refuses.
    if let Some(idle) = cpu.idle() {
        writes.push("cpu", "cpu.idle", idle);
    }
}

/// The kernel's own default, cpu.cfs_period_us.
const DEFAULT_PERIOD_US: u64 = 100_000;

fn cpu_v2(writes: &mut Writes, cpu: &LinuxCpu) -> Result<()> {
    for (field, is_set) in [
        ("realtimePeriod", set(cpu.realtime_period()).is_some()),
        ("realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
    ] {
        ensure!(
            !is_set,
            "linux.resources.cpu.{field}: cgroup v2 has no limit for real-time processes"
        );
    }
    if let Some(shares) = set(cpu.shares()) {
        writes.push("cpu", "cpu.weight", cpu_weight(shares));
    }
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), or_max);
        writes.push(
            "cpu",
            "cpu.max",
            format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US)),
        );
    }
    if let Some(burst) = cpu.burst() {
        writes.push("cpu", "cpu.max.burst", burst);
    }
    if let Some(idle) = cpu.idle() {
        writes.push("cpu", "cpu.idle", idle);
    }
    Ok(())
}

/// v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100).
///
/// The formula that runc and crun took up in 2025: quadratic in log2, through (2, 1), (1024, 100), (262144, 10000).
/// The older linear one made 39 of the default 1024, so that a container that asks for one CPU lost against any
/// process outside containers, which have 100. Between containers both agree closely enough.
fn cpu_weight(shares: u64) -> u64 {
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

fn check_memory(memory: &LinuxMemory) -> Result<()> {
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

/// The limit of memory and swap together. No limit on memory alone means none with swap either, else the kernel would
/// refuse it: the old swap limit would be the lower one.
fn total_limit(memory: &LinuxMemory) -> Option<i64> {
    set(memory.swap()).or_else(|| set(memory.limit()).filter(|&limit| limit < 0))
}

fn memory_v1(writes: &mut Writes, memory: &LinuxMemory) {
    if let Some(limit) = set(memory.limit()) {
        writes.push("memory", "memory.limit_in_bytes", limit.max(-1));
    }
    // After the limit: the kernel demands at every moment that this is not the lower one.
    if let Some(total) = total_limit(memory) {
        let file = "memory.memsw.limit_in_bytes";
        // Without swap accounting there is no limit to lift.
        if total < 0 {
            writes.push_optional("memory", file, -1)
        } else {
            writes.push("memory", file, total)
        }
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push("memory", "memory.soft_limit_in_bytes", reservation.max(-1));
    }
    if let Some(limit) = set(memory.kernel_tcp()) {
        writes.push("memory", "memory.kmem.tcp.limit_in_bytes", limit.max(-1));
    }
    if let Some(swappiness) = memory.swappiness() {
        writes.push("memory", "memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push("memory", "memory.oom_control", 1);
    }
}

fn memory_v2(writes: &mut Writes, memory: &LinuxMemory) -> Result<()> {
    for (field, is_set) in [
        ("kernelTCP", set(memory.kernel_tcp()).is_some()),
        ("swappiness", memory.swappiness().is_some()),
        ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
    ] {
        ensure!(!is_set, "linux.resources.memory.{field}: cgroup v2 has no such control");
    }
    // v2 limits swap alone. Without swap in the kernel there is no file, and no swap to limit.
    match total_limit(memory) {
        Some(total) if total < 0 => writes.push_optional("memory", "memory.swap.max", "max"),
        Some(total) => {
            let swap = total - memory.limit().unwrap_or_default();
            if swap == 0 {
                writes.push_optional("memory", "memory.swap.max", 0);
            } else {
                writes.push("memory", "memory.swap.max", swap);
            }
        }
        None => {}
    }
    if let Some(limit) = set(memory.limit()) {
        writes.push("memory", "memory.max", or_max(limit));
    }
    if let Some(reservation) = set(memory.reservation()) {
        writes.push("memory", "memory.low", or_max(reservation));
    }
    Ok(())
}

fn pids(writes: &mut Writes, pids: &Option<LinuxPids>) {
    if let Some(limit) = pids.as_ref().map(LinuxPids::limit).filter(|&limit| limit != 0) {
        writes.push("pids", "pids.max", or_max(limit));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(resources: &serde_json::Value) -> LinuxResources {
        serde_json::from_value(resources.clone()).unwrap()
    }

    /// `file=value` of each write, `?` at the end where it is optional.
    fn lines(writes: Result<Vec<Write>>) -> Result<String, String> {
        let line = |w: Write| {
            assert_eq!(w.file.split('.').next(), Some(&*w.controller), "{w:?}");
            let optional = if w.optional { "?" } else { "" };
            format!("{}={}{optional}", w.file, w.value)
        };
        let all = |writes: Vec<Write>| writes.into_iter().map(line).collect::<Vec<_>>().join(", ");
        writes.map(all).map_err(|error| error.to_string())
    }

    /// Resources, the writes on v1, and those on v2.
    const LIMITS: &str = r#"
        {} | |
        {"cpu": {"shares": 1024}} | cpu.shares=1024 | cpu.weight=100
        {"cpu": {"quota": 50000, "period": 200000}} | cpu.cfs_period_us=200000, cpu.cfs_quota_us=50000 | cpu.max=50000 200000
        {"cpu": {"quota": 50000, "burst": 1000}} | cpu.cfs_quota_us=50000, cpu.cfs_burst_us=1000 | cpu.max=50000 100000, cpu.max.burst=1000
        {"cpu": {"period": 50000}} | cpu.cfs_period_us=50000 | cpu.max=max 50000
        {"cpu": {"quota": -7}} | cpu.cfs_quota_us=-1 | cpu.max=max 100000
        {"cpu": {"quota": 0, "period": 0, "shares": 0}} | |
        {"cpu": {"shares": 2, "idle": 1}} | cpu.shares=2, cpu.idle=1 | cpu.weight=1, cpu.idle=1
        {"cpu": {"cpus": "0-1", "mems": "0"}} | cpuset.cpus=0-1, cpuset.mems=0 | cpuset.cpus=0-1, cpuset.mems=0
        {"cpu": {"cpus": "", "mems": ""}} | |
        {"memory": {"limit": 9, "reservation": 5}} | memory.limit_in_bytes=9, memory.soft_limit_in_bytes=5 | memory.max=9, memory.low=5
        {"memory": {"limit": 9, "swap": 12}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=12 | memory.swap.max=3, memory.max=9
        {"memory": {"limit": 9, "swap": 9}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=9 | memory.swap.max=0?, memory.max=9
        {"memory": {"limit": 9, "swap": -1}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=-1? | memory.swap.max=max?, memory.max=9
        {"memory": {"limit": -1}} | memory.limit_in_bytes=-1, memory.memsw.limit_in_bytes=-1? | memory.swap.max=max?, memory.max=max
        {"memory": {"limit": 9, "swap": 0}} | memory.limit_in_bytes=9 | memory.max=9
        {"memory": {"disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true}} | |
        {"pids": {"limit": 9}} | pids.max=9 | pids.max=9
        {"pids": {"limit": -1}} | pids.max=max | pids.max=max
        {"pids": {"limit": 0}} | |
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]} | hugetlb.2MB.limit_in_bytes=0, hugetlb.2MB.rsvd.limit_in_bytes=0? | hugetlb.2MB.max=0, hugetlb.2MB.rsvd.max=0?
        {"unified": {}} | |
    "#;

    #[test]
    fn limits_as_files() {
        for row in LIMITS.trim().lines() {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let resources: LinuxResources = serde_json::from_str(cells[0]).unwrap();
            assert_eq!(lines(v1(&resources)).as_deref(), Ok(cells[1]), "v1 of {row}");
            assert_eq!(lines(v2(&resources)).as_deref(), Ok(cells[2]), "v2 of {row}");
        }
    }

    #[test]
    fn controls_of_one_version_alone() {
        for (resources, on_v1, on_v2) in [
            (
                json!({"memory": {"swappiness": 60}}),
                Ok("memory.swappiness=60"),
                Err("swappiness"),
            ),
            (
                json!({"memory": {"disableOOMKiller": true}}),
                Ok("memory.oom_control=1"),
                Err("disableOOMKiller"),
            ),
            (
                json!({"memory": {"kernelTCP": 5}}),
                Ok("memory.kmem.tcp.limit_in_bytes=5"),
                Err("kernelTCP"),
            ),
            (
                json!({"cpu": {"realtimePeriod": 5}}),
                Ok("cpu.rt_period_us=5"),
                Err("realtimePeriod"),
            ),
            (
                json!({"cpu": {"realtimeRuntime": 5}}),
                Ok("cpu.rt_runtime_us=5"),
                Err("realtimeRuntime"),
            ),
            (
                json!({"unified": {"memory.oom.group": "1"}}),
                Err("unified"),
                Ok("memory.oom.group=1"),
            ),
        ] {
            for (is, should) in [
                (lines(v1(&parse(&resources))), on_v1),
                (lines(v2(&parse(&resources))), on_v2),
            ] {
                match should {
                    Ok(line) => assert_eq!(is.as_deref(), Ok(line), "{resources}"),
                    Err(word) => assert!(is.clone().unwrap_err().contains(word), "{resources}: {is:?}"),
                }
            }
        }
    }

    #[test]
    fn unified_in_order_and_by_controller() {
        let resources = parse(&json!({"unified": {"pids.max": "3", "io.weight": "default 5", "memory.high": "9"}}));
        let order: Vec<_> = v2(&resources)
            .unwrap()
            .into_iter()
            .map(|w| w.controller.into_owned())
            .collect();
        assert_eq!(order, ["io", "memory", "pids"]);
        for file in [
            "",
            "x",
            ".x",
            "x.",
            "cgroup.procs",
            "memory.max/../../x",
            "a/b.c",
            "memory.\0",
        ] {
            assert!(unified_controller(file).is_err(), "{file:?}");
        }
    }

    #[test]
    fn limits_that_make_no_sense() {
        for (resources, word) in [
            (json!({"memory": {"swap": 5}}), "needs memory.limit"),
            (json!({"memory": {"limit": -1, "swap": 5}}), "needs memory.limit"),
            (json!({"memory": {"limit": 6, "swap": 5}}), "less than"),
            (json!({"memory": {"useHierarchy": false}}), "useHierarchy"),
            (json!({"memory": {"swappiness": 101}}), "0 to 100"),
            (json!({"cpu": {"idle": 2}}), "idle"),
            (
                json!({"hugepageLimits": [{"pageSize": "../x", "limit": 0}]}),
                "pageSize",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "+2MB", "limit": 0}]}),
                "pageSize",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -2}]}),
                "negative",
            ),
        ] {
            for result in [v1(&parse(&resources)), v2(&parse(&resources))] {
                let error = result.unwrap_err().to_string();
                assert!(
                    error.starts_with("linux.resources.") && error.contains(word),
                    "{resources}: {error}"
                );
            }
        }
    }

    #[test]
    fn shares_as_weight() {
        for (shares, weight) in [
            (0, 1),
            (1, 1),
            (2, 1),
            (102, 17),
            (1024, 100),
            (512, 59),
            (2048, 174),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        let all: Vec<u64> = (2..=262_144).step_by(97).map(cpu_weight).collect();
        assert!(all.is_sorted());
    }
}
