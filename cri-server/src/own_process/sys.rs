//! What the C library's allocator has no safe wrappers for, and what a child does before it becomes its program.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

/// Has the child set this limit of descriptors, and with `unprotect` an ordinary score for the OOM killer, before it executes
/// the program: after that it may have children of its own already.
pub(super) fn before_exec(command: &mut Command, descriptors: Option<Rlimit>, unprotect: bool) {
    if descriptors.is_none() && !unprotect {
        return;
    }
    let step = move || {
        // First, as it takes a descriptor. Raising the score needs no capability; where there is no /proc it stays.
        if unprotect {
            let file = rustix::fs::open(
                c"/proc/self/oom_score_adj",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let _stays = file.and_then(|file| rustix::io::write(&file, b"0"));
        }
        if let Some(limit) = descriptors {
            rustix::process::setrlimit(Resource::Nofile, limit)?;
        }
        Ok(())
    };
    // SAFETY: between fork and execve the closure makes system calls alone, by rustix, which has no locks and allocates
    // nothing for them; what it captures are numbers.
    unsafe { command.pre_exec(step) };
}

/// Allocations of at least so many bytes are mappings of their own, which go back to the kernel when they are freed. By
/// itself glibc raises its threshold to what has been freed last, up to 32 MiB: after some answers of that size their memory
/// would stay with this process, in holes that nothing fits into.
#[cfg(target_env = "gnu")]
pub(super) fn return_large_allocations(bytes: i32) {
    // SAFETY: mallopt changes numbers of the allocator alone, and this is called before there is a second thread. It fails
    // for values that the allocator does not take, and then everything stays as it was.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

/// Other allocators have no such threshold.
#[cfg(not(target_env = "gnu"))]
pub(super) fn return_large_allocations(_bytes: i32) {}

/// Gives the kernel back what is free between allocations that are not.
#[cfg(target_env = "gnu")]
pub(super) fn return_holes() {
    // SAFETY: malloc_trim takes the allocator's own locks, and nothing that is allocated moves.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators are not asked.
#[cfg(not(target_env = "gnu"))]
pub(super) fn return_holes() {}
