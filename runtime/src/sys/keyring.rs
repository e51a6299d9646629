//! The session keyring (`keyctl`).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING`, linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Replaces the session keyring by a new one of this name, so that the caller's keys stay with the caller.
pub fn join_session(name: &CStr) -> io::Result<()> {
    // SAFETY: the operation reads one NUL-terminated string, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
