//! The two questions to the kernel for which no crate has a safe call.
#![allow(unsafe_code)]

use std::io;

/// Whether the kernel takes its clock for synchronised: adjtimex(2) without a change.
pub(super) fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is integers only, for which zero is a value; modes 0 asks for nothing to be changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex` that lives through the call, which fills it in.
    match unsafe { libc::adjtimex(&raw mut state) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(state.status & libc::STA_UNSYNC == 0),
    }
}

/// Whether clone3(2) is there (Linux 5.3), and not refused by a filter: with arguments of no size the kernel itself says
/// EINVAL, and makes no process.
pub(super) fn has_clone3() -> bool {
    // SAFETY: a size of 0 is refused before the pointer is looked at.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::c_void>(), 0usize) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        assert!(has_clone3());
        clock_is_synchronised().unwrap();
    }
}
