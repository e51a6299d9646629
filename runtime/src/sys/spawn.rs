//! What a child does between fork and exec when it is started with [`Command`].
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program gets descriptors 0 to 2 and no other, also none that we inherited without close-on-exec.
pub fn close_on_exec_from_3(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing, so that it is sound in the
    // child of a process with threads.
    unsafe { command.pre_exec(|| super::fd::cloexec_from(3)) };
}

/// The program gets these descriptors as 3, 4 and so on, and 0 to 2; no other.
pub fn pass_from_3(command: &mut Command, descriptors: &[&OwnedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    // Room to copy them to first: one may have the number that another is to get.
    let spare = numbers
        .iter()
        .copied()
        .max()
        .unwrap_or(0)
        .max(3 + RawFd::try_from(numbers.len()).unwrap_or(0))
        + 1;
    // SAFETY: between fork and exec the closure makes system calls only and allocates nothing; the numbers are open, as
    // their owners outlive the call that starts the program.
    unsafe {
        command.pre_exec(move || {
            super::fd::cloexec_from(3)?;
            for (&number, copy) in numbers.iter().zip(spare..) {
                super::fd::duplicate(number, copy, true)?;
            }
            for ((_, copy), target) in numbers.iter().zip(spare..).zip(3..) {
                super::fd::duplicate(copy, target, false)?;
            }
            Ok(())
        })
    };
}
