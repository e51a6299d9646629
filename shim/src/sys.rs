//! The shim's only unsafe code: taking over the descriptor it was started with, and giving back memory.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::report::report;

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

/// Gives back the pages of the executable's own code and constants; what is used again is mapped again when it is.
///
/// Start-up and each call of the runtime touch most of the statically linked libc, and the kernel maps 64 KiB around
/// every fault, so without this all of it would stay mapped: 1.42 MB PSS for a pod whose container logs ten lines a
/// second, against 0.79 MB with it. Mapping again costs some microseconds of minor faults, a small part of what a call
/// of the runtime costs anyway.
pub(crate) fn release_code() {
    unsafe extern "C" {
        // Defined by the linker: the first byte of the image, and the first byte after its code.
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 64 * 1024; // the largest page size of the architectures built for
    let start = &raw const __executable_start;
    let length = (&raw const etext).addr().saturating_sub(start.addr()) / PAGE * PAGE;
    // SAFETY: the range is this executable's mapped read-only segments, with nothing of anybody else's in between. The
    // image is linked without text relocations, so no page of it differs from the file it is read again from.
    let result = unsafe { nix::libc::madvise(start.cast_mut().cast(), length, nix::libc::MADV_DONTNEED) };
    if result != 0 {
        // Memory is all that is lost by it.
        report!("madvise({length}, MADV_DONTNEED): {}", std::io::Error::last_os_error());
    }
}
