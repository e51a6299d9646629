//! The copy of layers, for where overlayfs cannot be mounted: each layer over those below, as overlayfs would show them.
//!
//! Files share their blocks with the layer where the filesystem can (reflink: XFS, Btrfs, on one disk), else they are
//! copied by the kernel; holes stay holes. Names are resolved by descriptor, one directory at a time, following no link:
//! a layer may have a link where the one above has a directory. Owner, mode, times, xattrs and hard links within a layer
//! are kept.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::tree;

/// Deepest directory: two descriptors are open per level.
const MAX_DEPTH: usize = 256;
/// What overlayfs writes of its own: it ends here.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Puts the files of `layer` over those in `target`. The directory itself has its owner and mode already.
pub(super) fn copy(layer: &Path, target: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (from, to) = (open(layer)?, open(target)?);
    let mut copy = Copy {
        to: to.try_clone().context("duplicate a descriptor")?.into(),
        linked: HashMap::new(),
        path: PathBuf::new(),
    };
    copy.directory(from.as_fd(), to.as_fd())?;
    let stat = rustix::fs::fstat(&from).context("fstat of the layer")?;
    let to = to.as_fd();
    set_attributes(from.as_fd(), to, c".", &stat)
}

struct Copy {
    /// The root of the copy.
    to: OwnedFd,
    /// Where files of several names were put, by their inode.
    linked: HashMap<u64, PathBuf>,
    /// The directory at hand.
    path: PathBuf,
}

impl Copy {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        ensure!(
            self.path.components().count() < MAX_DEPTH,
            "{}: deeper than {MAX_DEPTH} directories",
            self.path.display()
        );
        let entries = rustix::fs::Dir::read_from(from).context("list a directory of the layer")?;
        for entry in entries {
            let entry = entry.context("list a directory of the layer")?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            let copied = self.entry(from, to, name);
            copied.with_context(|| format!("copy {}", self.path.display()))?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).context("statat")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let below = match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno).context("statat of the copy"),
        };
        if kind == FileType::Directory {
            return self.subdirectory(from, to, name, &stat, below);
        }
        clear(to, name, below)?;
        // A whiteout: what was below is deleted, and nothing comes in its place.
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(());
        }
        if stat.st_nlink > 1
            && let Some(first) = self.linked.get(&stat.st_ino)
        {
            return rustix::fs::linkat(&self.to, first, to, name, AtFlags::empty()).context("linkat");
        }
        match kind {
            FileType::RegularFile => copy_file(from, to, name, &stat)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).context("readlinkat")?;
                rustix::fs::symlinkat(target, to, name).context("symlinkat")?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket => {
                rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev).context("mknodat")?;
            }
            other => bail!("a file of type {other:?}"),
        }
        if stat.st_nlink > 1 {
            self.linked.insert(stat.st_ino, self.path.clone());
        }
        set_attributes(from, to, name, &stat)
    }

    fn subdirectory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        below: Option<FileType>,
    ) -> Result<()> {
        let (inner_from, is_below) = (open_directory(from, name)?, below == Some(FileType::Directory));
        if !is_below || is_opaque(inner_from.as_fd())? {
            clear(to, name, below)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU).context("mkdirat")?;
        }
        let inner_to = open_directory(to, name)?;
        self.directory(inner_from.as_fd(), inner_to.as_fd())?;
        // After its content, which changes its times.
        set_attributes(from, to, name, stat)
    }
}

/// Whether a directory of a layer hides what is in the same directory below.
pub(super) fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    let opaque = xattr(&proc_path(dir, c"."), c"trusted.overlay.opaque")?;
    Ok(opaque.as_deref() == Some(b"y"))
}

fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).context("openat of a directory")
}

/// Removes what a layer below has put there.
fn clear(to: BorrowedFd<'_>, name: &CStr, below: Option<FileType>) -> Result<()> {
    match below {
        None => Ok(()),
        // By the descriptor's path, and from there on by descriptors, following no link.
        Some(FileType::Directory) => tree::remove(&proc_path(to, name)).context("remove a directory"),
        Some(_) => rustix::fs::unlinkat(to, name, AtFlags::empty()).context("unlinkat"),
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut source: File = rustix::fs::openat(from, name, read, Mode::empty())
        .context("openat")?
        .into();
    let owner = Mode::RUSR | Mode::WUSR;
    let mut target: File = rustix::fs::openat(to, name, write, owner)
        .context("openat of the copy")?
        .into();
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = u64::try_from(stat.st_size).context("the size of a file")?;
    copy_data(&mut source, &mut target, length).context("copy the content")
}

/// Copies what is not a hole.
fn copy_data(source: &mut File, target: &mut File, length: u64) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            // Where a filesystem does not know of holes, all is data.
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        let hole = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(data)).unwrap_or(length);
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        // std uses copy_file_range between files.
        io::copy(&mut io::Read::take(&mut *source, hole - data), target)?;
        at = hole;
    }
    target.set_len(length)
}

/// Owner, mode, xattrs and times, in this order: a change of owner clears set-id bits and file capabilities.
pub(super) fn set_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let uid = rustix::fs::Uid::from_raw(stat.st_uid);
    let gid = rustix::fs::Gid::from_raw(stat.st_gid);
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("fchownat")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // Follows links, but this one is none, and nobody else sees the copy yet.
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty()).context("fchmodat")?;
    }
    copy_xattrs(&proc_path(from, name), &proc_path(to, name))?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or(0),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW).context("utimensat")
}

fn copy_xattrs(from: &Path, to: &Path) -> Result<()> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(from, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(errno).context("llistxattr"),
    };
    for name in list[..length].split_inclusive(|&byte| byte == 0) {
        let name = CStr::from_bytes_with_nul(name).context("the name of an xattr")?;
        if name.to_bytes().starts_with(OVERLAY_XATTRS) {
            continue;
        }
        if let Some(value) = xattr(from, name)? {
            rustix::fs::lsetxattr(to, name, &value, XattrFlags::empty())
                .with_context(|| format!("lsetxattr {name:?}"))?;
        }
    }
    Ok(())
}

fn xattr(path: &Path, name: &CStr) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64 << 10];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("lgetxattr {name:?}")),
    }
}

/// `name` below an open directory, for the calls that take no descriptor.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.to_bytes()))
}
