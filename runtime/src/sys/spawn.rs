//! What a child does between fork and exec when it is started with [`Command`].
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program gets descriptors 0 to 2 and no other, also none that we inherited without close-on-exec.
pub fn close_on_exec_from_3(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing, so that it is sound in the
    // child of a process with threads.
    unsafe { command.pre_exec(|| super::fd::cloexec_from(3)) };
}
