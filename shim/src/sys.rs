//! The shim's only unsafe code: taking over the descriptor it was started with.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The listening socket, by contract with whoever starts the shim.
const LISTENER: RawFd = 3;

/// Takes over the inherited listening socket; it is closed on exec from now on.
///
/// Called once, before anything else opens a descriptor: later, 3 could be somebody else's.
pub(crate) fn inherited_listener() -> Result<OwnedFd> {
    // SAFETY: by contract descriptor 3 was opened for this process alone, and this first and only call owns it; if it
    // is not open at all, the fcntl below fails and the process ends.
    let listener = unsafe { OwnedFd::from_raw_fd(LISTENER) };
    let flags = FdFlag::FD_CLOEXEC;
    fcntl(&listener, FcntlArg::F_SETFD(flags)).with_context(|| {
        format!(
            "fcntl({}, F_SETFD, FD_CLOEXEC): descriptor 3 must be the listening socket",
            listener.as_raw_fd()
        )
    })?;
    Ok(listener)
}
