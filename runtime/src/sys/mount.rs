//! `mount_setattr`: the attributes of a mount, by descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What `mount_setattr` changes of a mount; the masks are `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear, before `set` is applied.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave the propagation as it is.
    pub propagation: u64,
}

impl Attributes {
    /// Nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Attributes::default()
    }
}

/// Changes the mount that `mount` is the root of, with `recursive` every mount beneath it too, or none of them.
/// Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: &Attributes) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    set(mount, recursive, &attr)
}

/// Maps the ids of a detached mount's files by a user namespace: what the disk has as an id in there is seen as the id
/// that it has outside. With `recursive` of every mount beneath it too, or of none of them. Linux 5.12.
pub fn map_ids(mount: BorrowedFd<'_>, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user_namespace.as_raw_fd().cast_unsigned()),
    };
    set(mount, recursive, &attr)
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attr: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty NUL-terminated string and `attr` a whole mount_attr; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
