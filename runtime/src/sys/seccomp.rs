//! `seccomp(2)`: putting the calling thread under a filter.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::{sock_filter, sock_fprog};

/// The most instructions a filter may have, `BPF_MAXINSNS` of linux/bpf_common.h.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// The load answers with a descriptor for the notifications. Linux 5.0.
pub const NEW_LISTENER: u64 = 1 << 3;
/// A failed TSYNC is ESRCH and not a thread's id, so that it goes together with `NEW_LISTENER`. Linux 5.7.
pub const TSYNC_ESRCH: u64 = 1 << 4;
/// A process that waits for an answer can still be killed, and only killed. Linux 5.19.
pub const WAIT_KILLABLE_RECV: u64 = 1 << 5;

/// Loads a filter, for good; it is kept across execve. The caller has `no_new_privs` set, or CAP_SYS_ADMIN in its user
/// namespace. Answers with the listener where the flags ask for one; it is close-on-exec.
pub fn load(program: &[sock_filter], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` names `length` instructions that outlive the call; the kernel copies and never writes them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 if flags & NEW_LISTENER == 0 => Ok(None),
        fd if flags & NEW_LISTENER != 0 => {
            let fd = i32::try_from(fd).expect("a descriptor is an int");
            // SAFETY: with this flag the answer is a descriptor the kernel made just now; nobody else owns it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        thread => Err(io::Error::other(format!("thread {thread} is under another filter"))),
    }
}

/// Whether this kernel knows all of these flags: it looks at them before it looks for a program.
pub fn knows_flags(flags: u64) -> bool {
    let nothing = std::ptr::null::<sock_fprog>();
    // SAFETY: the null pointer is answered with EFAULT; no filter is loaded.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, nothing) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
