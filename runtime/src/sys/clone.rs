//! `clone3`, used as a fork that also makes namespaces.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sched::CloneFlags;

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The old one.
    Parent {
        /// The child's pid in the caller's pid namespace.
        pid: i32,
        /// A descriptor for the child.
        pidfd: OwnedFd,
    },
}

/// Kernel flag of `clone3` (Linux 5.7); wider than `CloneFlags`, which is a C int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks, with the namespaces in `flags` new in the child. With `cgroup` (a cgroup v2 directory) the child begins life in
/// it, which spares the migration of a running process.
///
/// With `CLONE_PARENT` the child is its parent's sibling; the kernel then demands that no exit signal is named, and
/// the child takes over the one its new parent's other child has. Linux 5.3; `cgroup` 5.7.
///
/// The caller must have one thread: of other threads only the memory would live on in the child, locks and all.
pub fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut bits = u64::from(flags.bits().cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    if cgroup.is_some() {
        bits |= CLONE_INTO_CGROUP;
    }
    let sibling = flags.contains(CloneFlags::CLONE_PARENT);
    let args = libc::clone_args {
        flags: bits,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: if sibling {
            0
        } else {
            u64::from(libc::SIGCHLD.cast_unsigned())
        },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    // SAFETY: `args` is a whole clone_args and `pidfd` outlives the call. Without CLONE_VM the child has a copy of the
    // memory and stack, so that returning twice is sound as it is for fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: on success CLONE_PIDFD has stored a new descriptor here, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).expect("a pid is an int");
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Ends this process at once: no destructor, no exit handler, nothing flushed. What a forked child must use, because
/// the destructors on its stack are its parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and does not return.
    unsafe { libc::_exit(code) }
}
