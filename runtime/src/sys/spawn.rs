//! What a child does between fork and exec when it is started with [`Command`].
//!
//! Whatever signals this process keeps back, a program that it starts gets all of them: the mask is inherited, and one
//! with SIGTERM blocked could not be ended by those who mean it well.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;

/// The program gets descriptors 0 to 2 and no other, also none that we inherited without close-on-exec.
pub fn close_on_exec_from_3(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes system calls and allocates nothing, so that it is sound in the
    // child of a process with threads.
    unsafe {
        command.pre_exec(|| {
            unblock_signals()?;
            super::fd::cloexec_from(3)
        })
    };
}

/// Starts the program with these descriptors as `first` (3 or more), the next number and so on, and 0 to 2; no other. It is
/// killed when the thread that calls this ends.
///
/// The child has one more descriptor, by which the standard library tells the parent that there is no such program. Its
/// number is not known, only that it is made by the spawn: so the numbers that are given away are taken before that, and
/// the copies that are made on the way go where nothing is.
///
/// No other thread may close a descriptor meanwhile, whose number the spawn would then get.
pub fn spawn_passing(command: &mut Command, first: RawFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let end = first + RawFd::try_from(numbers.len()).map_err(io::Error::other)?;
    let taken = take(first, end, descriptors)?;
    let mut copies = numbers.clone();
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec the closure makes system calls only and allocates nothing; the numbers are open, as
    // what they are borrowed from outlives this call, which starts the program.
    unsafe {
        command.pre_exec(move || {
            unblock_signals()?;
            end_with(parent)?;
            super::fd::cloexec_from(3)?;
            // One may have the number that another is to get.
            for (copy, &number) in copies.iter_mut().zip(&numbers) {
                *copy = super::fd::duplicate_above(number, end)?;
            }
            for (&copy, target) in copies.iter().zip(first..) {
                super::fd::duplicate(copy, target, false)?;
            }
            Ok(())
        })
    };
    let child = command.spawn();
    drop(taken);
    child
}

/// Opens something under each number from `first` up to `end` that is free.
fn take(first: RawFd, end: RawFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    let Some(any) = descriptors.first() else {
        return Ok(taken);
    };
    loop {
        let number = super::fd::duplicate_above(any.as_raw_fd(), first)?;
        // SAFETY: the number was made just now, and nobody else knows it.
        let copy = unsafe { OwnedFd::from_raw_fd(number) };
        if number >= end {
            return Ok(taken);
        }
        taken.push(copy);
    }
}

/// Has this process killed when its parent ends.
fn end_with(parent: Pid) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    match nix::unistd::getppid() == parent {
        true => Ok(()),
        // It has ended before that.
        false => Err(nix::errno::Errno::ESRCH.into()),
    }
}

fn unblock_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    /// Numbers that no other test of this process has.
    const FIRST: RawFd = 300;

    /// Files, of which the one at `index` holds its index.
    fn files(count: u8) -> Vec<OwnedFd> {
        let file = |index: u8| {
            let memory = rustix::fs::memfd_create("corten-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let mut file = File::from(memory);
            write!(file, "{index}").unwrap();
            // Next to each other, where the copies and the spawn's own would be.
            let number = super::super::fd::duplicate_above(file.as_raw_fd(), FIRST + 2).unwrap();
            // SAFETY: as in `take`.
            unsafe { OwnedFd::from_raw_fd(number) }
        };
        (0..count).map(file).collect()
    }

    #[test]
    fn descriptors_are_passed_and_a_missing_program_is_told() {
        for count in [1, 2, 3, 7, 40] {
            let mut files = files(count);
            // Most of them have a number that another is to get.
            files.reverse();
            let passed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            let mut missing = Command::new("/no/such/program");
            let spawned = spawn_passing(&mut missing, FIRST, &passed);
            let error = spawned.map(|mut child| child.wait()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{count}");

            let script = "n=300; for i in $(seq $1 -1 0); do
                test \"$(cat /proc/self/fd/$n)\" = $i || exit 3; n=$((n+1)); done; test ! -e /proc/self/fd/$n";
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", script, "sh", &(count - 1).to_string()]);
            let status = spawn_passing(&mut shell, FIRST, &passed).unwrap().wait().unwrap();
            assert!(status.success(), "{count}: {status}");
        }
    }
}
