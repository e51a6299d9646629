//! How and where a process runs: scheduling, IO priority, memory policy, execution domain.
#![allow(unsafe_code)]

use std::io;

/// `struct sched_attr` of linux/sched/types.h, in its form since Linux 5.3. Times are in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulingAttributes {
    /// The size of this struct; [`sched_setattr`] fills it in.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Of SCHED_OTHER and SCHED_BATCH, -20 to 19.
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR, 1 to 99.
    pub priority: u32,
    /// Of SCHED_DEADLINE.
    pub runtime: u64,
    /// Of SCHED_DEADLINE.
    pub deadline: u64,
    /// Of SCHED_DEADLINE.
    pub period: u64,
    /// For `SCHED_FLAG_UTIL_CLAMP_MIN`, 0 to 1024.
    pub utilization_min: u32,
    /// For `SCHED_FLAG_UTIL_CLAMP_MAX`, 0 to 1024.
    pub utilization_max: u32,
}

/// Sets how a process is scheduled. Linux 3.14.
pub fn sched_setattr(pid: i32, attributes: &SchedulingAttributes) -> io::Result<()> {
    let size = u32::try_from(size_of::<SchedulingAttributes>()).expect("the struct is small");
    let attributes = SchedulingAttributes { size, ..*attributes };
    // SAFETY: `attributes` is a whole sched_attr of the size it says, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `IOPRIO_WHO_PROCESS`, linux/ioprio.h.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Where a class stands in an IO priority, `IOPRIO_CLASS_SHIFT`.
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// Sets a process's IO priority: a class (`IOPRIO_CLASS_*`) and a level of it, 0 (first) to 7.
pub fn ioprio_set(pid: i32, class: u32, level: u32) -> io::Result<()> {
    let priority = class << IOPRIO_CLASS_SHIFT | level;
    // SAFETY: the call takes three integers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, priority) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many nodes a mask of [`set_mempolicy`] has room for: what the kernel can be built for at most.
pub const MAX_NODES: usize = 1024;

/// Sets this thread's memory policy, which children and execve keep. `mode` is one of `MPOL_*`, with flags of `MPOL_F_*`.
pub fn set_mempolicy(mode: u32, nodes: &[usize]) -> io::Result<()> {
    const BITS: usize = u64::BITS as usize;
    let mut mask = [0u64; MAX_NODES / BITS];
    for &node in nodes {
        mask[node / BITS] |= 1 << (node % BITS);
    }
    // The kernel takes one bit less than it is told; an empty mask it wants to be none.
    let (mask, length) = match nodes {
        [] => (std::ptr::null(), 0),
        _ => (mask.as_ptr(), MAX_NODES + 1),
    };
    // SAFETY: `mask` is null, or points to MAX_NODES bits that outlive the call, which only reads them.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets this process's execution domain, `PER_*`, which children and execve keep.
pub fn personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the call takes an integer.
    let result = unsafe { libc::personality(domain) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
