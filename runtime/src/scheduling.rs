//! When and on which CPUs a process runs: `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`.
//!
//! All of it is done by the parent, from outside: inside a user namespace nobody may raise a priority. The process is in
//! its cgroup by then. On cgroup v1 a kernel with CONFIG_RT_GROUP_SCHED refuses real-time policies (EPERM) in a cgroup
//! without linux.resources.cpu.realtimeRuntime.
//!
//! Affinity is for exec alone (config.md, "process"): `initial` is the runtime's own, from before it makes the process;
//! `final` is set when the process is in the container's cgroup. Between the two, and without `final`, the kernel decides:
//! entering a cpuset replaces or narrows the mask.

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy,
    Process, Scheduler,
};
use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::sys::sched::{SchedulingAttributes, ioprio_set, sched_setattr};

/// The shortest runtime the kernel takes for SCHED_DEADLINE, in nanoseconds (sched(7)).
const MIN_RUNTIME: u64 = 1024;

/// The checks of the three fields.
pub fn check(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        check_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        let level = priority.priority();
        ensure!(
            (0..=7).contains(&level),
            "process.ioPriority.priority: {level}: must be 0 to 7"
        );
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        for (field, list) in [
            ("initial", affinity.initial()),
            ("final", affinity.cpu_affinity_final()),
        ] {
            cpus(list.as_deref()).with_context(|| format!("process.execCPUAffinity.{field}"))?;
        }
    }
    Ok(())
}

fn check_scheduler(scheduler: &Scheduler) -> Result<()> {
    let (policy, at) = (*scheduler.policy(), "process.scheduler");
    ensure!(
        policy != Policy::SchedIso,
        "{at}.policy: {policy}: Linux has no such policy"
    );
    let nice = scheduler.nice().unwrap_or(0);
    ensure!((-20..=19).contains(&nice), "{at}.nice: {nice}: must be -20 to 19");
    let priority = scheduler.priority().unwrap_or(0);
    match policy {
        Policy::SchedFifo | Policy::SchedRr => {
            ensure!(
                (1..=99).contains(&priority),
                "{at}.priority: {priority}: must be 1 to 99 for {policy}"
            );
        }
        _ => ensure!(
            priority == 0,
            "{at}.priority: {priority}: is for SCHED_FIFO and SCHED_RR, not {policy}"
        ),
    }
    let [runtime, deadline, period] = times(scheduler);
    if policy != Policy::SchedDeadline {
        for (field, time) in [("runtime", runtime), ("deadline", deadline), ("period", period)] {
            ensure!(time == 0, "{at}.{field}: {time}: is for SCHED_DEADLINE, not {policy}");
        }
        return Ok(());
    }
    ensure!(
        runtime >= MIN_RUNTIME,
        "{at}.runtime: {runtime}: must be at least {MIN_RUNTIME} ns"
    );
    ensure!(
        deadline >= runtime,
        "{at}.deadline: {deadline}: must not be shorter than the runtime, {runtime}"
    );
    ensure!(
        period == 0 || period >= deadline,
        "{at}.period: {period}: must not be shorter than the deadline, {deadline}"
    );
    Ok(())
}

fn times(scheduler: &Scheduler) -> [u64; 3] {
    [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or(0))
}

/// Sets the scheduling and the IO priority of a process that is in its cgroup.
pub fn set(process: &Process, pid: i32) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        let attributes = attributes(scheduler);
        sched_setattr(pid, &attributes)
            .with_context(|| format!("process.scheduler: sched_setattr({pid}, {attributes:?})"))?;
    }
    if let Some(priority) = process.io_priority() {
        set_io_priority(priority, pid)?;
    }
    Ok(())
}

fn attributes(scheduler: &Scheduler) -> SchedulingAttributes {
    let policy = match scheduler.policy() {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        // Reserved by Linux and never implemented; `check` refuses it.
        Policy::SchedIso => 4,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let [runtime, deadline, period] = times(scheduler);
    SchedulingAttributes {
        policy: policy.cast_unsigned(),
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .fold(0, |flags, flag| flags | bit(*flag)),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        runtime,
        deadline,
        period,
        ..SchedulingAttributes::default()
    }
}

/// `SCHED_FLAG_*` of linux/sched.h.
fn bit(flag: Flag) -> u64 {
    match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    }
}

fn set_io_priority(priority: &LinuxIOPriority, pid: i32) -> Result<()> {
    // IOPRIO_CLASS_* of linux/ioprio.h.
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).context("process.ioPriority.priority")?;
    ioprio_set(pid, class, level)
        .with_context(|| format!("process.ioPriority: ioprio_set({pid}, {} {level})", priority.class()))
}

/// Puts the runtime itself on the CPUs on which an exec is to begin.
pub fn set_initial_affinity(process: &Process) -> Result<()> {
    set_affinity(process, "initial", ExecCPUAffinity::initial, None)
}

/// Puts an exec's process, which is in the container's cgroup, on the CPUs it is to stay on.
pub fn set_final_affinity(process: &Process, pid: i32) -> Result<()> {
    set_affinity(
        process,
        "final",
        ExecCPUAffinity::cpu_affinity_final,
        Pid::from_raw(pid),
    )
}

fn set_affinity(
    process: &Process,
    field: &str,
    list: fn(&ExecCPUAffinity) -> &Option<String>,
    target: Option<Pid>,
) -> Result<()> {
    let list = process
        .exec_cpu_affinity()
        .as_ref()
        .and_then(|affinity| list(affinity).as_deref());
    let Some(cpus) = cpus(list)? else {
        return Ok(());
    };
    rustix::thread::sched_setaffinity(target, &cpus).with_context(|| {
        format!(
            "process.execCPUAffinity.{field}: sched_setaffinity({target:?}, {})",
            list.unwrap_or_default()
        )
    })
}

/// The CPUs of a list; none where nothing is asked for.
fn cpus(list: Option<&str>) -> Result<Option<CpuSet>> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let mut cpus = CpuSet::new();
    for cpu in numbers(list, CpuSet::MAX_CPU)? {
        cpus.set(cpu);
    }
    Ok(Some(cpus))
}

/// The numbers of a list such as `0-3,7`, each once and in order, all of them below `limit`: however long a list, there
/// are no more of them than that.
pub(crate) fn numbers(list: &str, limit: usize) -> Result<Vec<usize>> {
    let refuse = || anyhow!("{list:?}: must be numbers below {limit} and ranges of them, as in 0-3,7");
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|&number: &usize| digits && number < limit);
        number.ok_or_else(refuse)
    };
    let mut named = vec![false; limit];
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            bail!(refuse());
        }
        named[first..=last].fill(true);
    }
    Ok((0..limit).filter(|&number| named[number]).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists() {
        for (list, expected) in [
            ("0", vec![0]),
            ("0-2,7", vec![0, 1, 2, 7]),
            ("7,0-1,1", vec![0, 1, 7]),
            ("0-7,".repeat(100_000).trim_end_matches(','), (0..8).collect()),
        ] {
            assert_eq!(numbers(list, 8).unwrap(), expected, "{list}");
        }
        for bad in [
            "",
            "a",
            "8",
            "0-8",
            "3-1",
            "-1",
            "1-",
            "1,",
            " 1",
            "0x1",
            "+1",
            "1--2",
            "99999999999999999999",
            "0-4294967295",
        ] {
            let error = numbers(bad, 8).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad:?}: ")), "{error}");
        }
        assert!(cpus(None).unwrap().is_none() && cpus(Some("")).unwrap().is_none());
        let set = cpus(Some("1,3")).unwrap().unwrap();
        assert!(set.is_set(1) && set.is_set(3) && set.count() == 2);
    }

    #[test]
    fn schedulers() {
        let scheduler: Scheduler = serde_json::from_value(json!({"policy": "SCHED_BATCH", "nice": -5})).unwrap();
        let expected = SchedulingAttributes {
            policy: 3,
            nice: -5,
            ..SchedulingAttributes::default()
        };
        assert_eq!(attributes(&scheduler), expected);
        let scheduler = json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 6000, "period": 7000,
            "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_KEEP_PARAMS"]});
        let expected = SchedulingAttributes {
            policy: 6,
            flags: 0x12,
            runtime: 5000,
            deadline: 6000,
            period: 7000,
            ..SchedulingAttributes::default()
        };
        assert_eq!(attributes(&serde_json::from_value(scheduler).unwrap()), expected);
    }
}
