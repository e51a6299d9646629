//! The system calls of unpacking, each relative to an open directory of the layer.
//!
//! No function here follows a link out of the layer, and none follows one in the last component of a name.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::archive::Kind;
use super::entry::{Node, Xattr, ensure_valid, invalid};

/// What already has a name in the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Present {
    Nothing,
    Directory,
    Whiteout,
    Other,
    /// Anything else that has another name besides.
    Linked,
}

/// A failed look-up inside the layer: the layer's fault where it is about names, else the node's.
pub(super) fn missing<T>(errno: Errno, message: String) -> Result<T> {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NAMETOOLONG => {
            Err(invalid(message))
        }
        _ => Err(anyhow::Error::new(errno).context(message)),
    }
}

/// Opens directory `path` of the tree for reading; links in it are followed as if `root` were `/`.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), within) {
            // A rename or mount anywhere on the system while a `..` was crossed (openat2(2)): not a fault, try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

pub(super) fn present(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Present> {
    match rustix::fs::statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Present::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Present::Whiteout,
            _ if stat.st_nlink > 1 => Present::Linked,
            _ => Present::Other,
        }),
        Err(Errno::NOENT) => Ok(Present::Nothing),
        Err(errno) => missing(errno, format!("statat: {errno}")),
    }
}

pub(super) fn special(parent: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<()> {
    let (major, minor) = node.device;
    let (kind, device) = match node.kind {
        Kind::Char => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Kind::Block => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        _ => (FileType::Fifo, 0),
    };
    ensure_valid(
        kind != FileType::CharacterDevice || device != 0,
        "character device 0:0 means a deleted file to overlayfs",
    )?;
    rustix::fs::mknodat(parent, OsStr::from_bytes(name), kind, node.mode, device)
        .with_context(|| format!("mknodat of {kind:?} {major}:{minor}"))?;
    set_attributes_at(parent, name, node)
}

/// Owner, mode and xattrs, in this order: a change of owner clears set-id bits and file capabilities.
pub(super) fn set_attributes(fd: BorrowedFd<'_>, node: &Node) -> Result<()> {
    rustix::fs::fchown(fd, Some(node.uid), Some(node.gid)).context("fchown")?;
    rustix::fs::fchmod(fd, node.mode).context("fchmod")?;
    for xattr @ (name, value) in &node.xattrs {
        let set = rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty());
        checked(set, "fsetxattr", xattr)?;
    }
    Ok(())
}

/// A value that the kernel checks and does not take, such as a malformed capability, is the layer's fault.
fn checked(set: Result<(), Errno>, call: &str, (name, _): &Xattr) -> Result<()> {
    match set {
        Err(Errno::INVAL) => Err(invalid(format!("xattr {name:?}: not a valid value"))),
        set => set.with_context(|| format!("{call} {name:?}")),
    }
}

/// The same for what cannot be opened without side effects: links, devices, fifos.
pub(super) fn set_attributes_at(parent: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<()> {
    let (uid, gid) = (Some(node.uid), Some(node.gid));
    rustix::fs::chownat(parent, OsStr::from_bytes(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW).context("fchownat")?;
    if node.kind != Kind::Symlink {
        // Follows links, but this name was made a line ago as something else, and the tree is private.
        rustix::fs::chmodat(parent, OsStr::from_bytes(name), node.mode, AtFlags::empty()).context("fchmodat")?;
    }
    for xattr @ (key, value) in &node.xattrs {
        let path = proc_path(parent, name);
        let set = rustix::fs::lsetxattr(&path, key.as_c_str(), value, XattrFlags::empty());
        checked(set, "lsetxattr", xattr)?;
    }
    set_times(parent, name, node.modified)
}

pub(super) fn set_times(parent: BorrowedFd<'_>, name: &[u8], modified: Timespec) -> Result<()> {
    let (name, times) = (OsStr::from_bytes(name), times(modified));
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).context("utimensat")
}

/// The same for an open file or directory.
pub(super) fn set_own_times(fd: BorrowedFd<'_>, modified: Timespec) -> Result<()> {
    rustix::fs::futimens(fd, &times(modified)).context("futimens")
}

/// When an open directory was last modified.
pub(super) fn modified(fd: BorrowedFd<'_>) -> Result<Timespec> {
    let stat = rustix::fs::fstat(fd).context("fstat of a directory")?;
    Ok(Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.cast_signed(),
    })
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: modified,
    }
}

pub(super) fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    rustix::fs::setxattr(
        proc_path(parent, name),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .context("setxattr trusted.overlay.opaque")
}

/// `name` below an open directory, for the calls that take no descriptor: xattrs of what cannot be opened.
pub(super) fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(OsStr::from_bytes(name))
}
