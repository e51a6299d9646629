//! The process's inheritance: environment variables and descriptors, taken before there is anything else.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Reads a variable and removes it, so that no child has it.
///
/// Only before the process has a second thread.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: called by `main` first of all, while no other thread exists that could read the environment.
    unsafe { std::env::remove_var(name) };
    Some(value)
}

/// Takes over a descriptor that the process was started with.
///
/// Once for each, and only for those that whoever started the process says it has passed: they are nobody else's.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: by the contract of LISTEN_FDS descriptors 3 and up were opened for this process, nothing in it has taken them
    // over before, and one that is not open fails in the fcntl that the caller begins with.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
