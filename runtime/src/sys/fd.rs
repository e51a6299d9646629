//! Descriptors by number: the few places where a number is all there is.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::SealFlags;

/// Marks every descriptor from `first` on close-on-exec. Linux 5.11.
pub fn cloexec_from(first: RawFd) -> io::Result<()> {
    close_range(first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed())
}

/// Closes every descriptor from `first` on but those in `keep`. Linux 5.9.
///
/// For a child that is about to become another program: an `OwnedFd` that is still held elsewhere in it is closed
/// under its owner, so the caller must not use (or drop) one afterwards.
pub fn close_from_except(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd >= first).collect();
    keep.sort_unstable();
    let mut next = first;
    for fd in keep {
        if fd > next {
            close_range(next, fd - 1, 0)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, RawFd::MAX, 0)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_int) -> io::Result<()> {
    let (first, last) = (first.cast_unsigned(), last.cast_unsigned());
    // SAFETY: the call takes three integers; what closing means for descriptors owned elsewhere is for the caller,
    // see `close_from_except`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a descriptor of this number is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag and answers EBADF for a number that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1
}

/// Lets descriptor `target` refer to what `fd` refers to, whatever it was before; `close` sets close-on-exec.
///
/// For a child that is about to become another program, and numbers above those of the standard streams.
pub(crate) fn duplicate(fd: RawFd, target: RawFd, close: bool) -> io::Result<()> {
    let flags = if close { libc::O_CLOEXEC } else { 0 };
    // SAFETY: the call takes three integers; what `target` was before is closed, which is the purpose.
    match unsafe { libc::dup3(fd, target, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// One more descriptor, close-on-exec, for what `fd` refers to; its number is the first from `least` on that is free.
pub(crate) fn duplicate_above(fd: RawFd, least: RawFd) -> io::Result<RawFd> {
    // SAFETY: the call takes three integers and changes no descriptor there is.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) } {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}

/// Lets descriptors 0 to 2 refer to what `fd` refers to.
pub fn redirect_stdio(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(fd)?;
    rustix::stdio::dup2_stdout(fd)?;
    rustix::stdio::dup2_stderr(fd)?;
    Ok(())
}

/// A memory file of these seals: nobody can change it any more, through whatever path they reach it.
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(all))
}

/// Takes a descriptor that was received with SCM_RIGHTS just now.
pub(crate) fn own(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this number for the control message it came in; nothing else in the process knows it.
    unsafe { OwnedFd::from_raw_fd(received) }
}
