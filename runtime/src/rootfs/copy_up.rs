//! `tmpcopyup`: what the image has in a directory is copied into the tmpfs that is to cover it.
//!
//! The image is not trusted, and may be changing: every entry is opened from the descriptor of its directory, without
//! following a link or crossing into another mount, and what was opened decides what is copied. The copy goes into a
//! tmpfs that is mounted nowhere yet, so that nobody can interfere with paths in there.
//!
//! Copied are directories, files, links, fifos, sockets and device nodes with owner, mode, times and extended
//! attributes; hard links stay what they are. Mounts below are left out: they are not the image's. How much is copied is
//! for the tmpfs to limit, with its `size` and `nr_inodes`; how deep, [`MAX_DEPTH`].
//!
//! In a user namespace device nodes are left out, which nobody could make or, on a tmpfs of that namespace, open; and
//! what belongs to an id that it does not have comes to belong to its root.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat,
    openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// How deep a tree is copied. Each level holds four descriptors.
const MAX_DEPTH: usize = 128;

/// The longest value of an extended attribute, in bytes: the kernel's XATTR_SIZE_MAX, and XATTR_LIST_MAX for their names.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Copies what is in the directory `from` into `to`; with `itself` the directory's own attributes too.
pub fn copy_up(from: &OwnedFd, to: &OwnedFd, itself: bool, user_namespace: bool) -> Result<()> {
    let mut copy = Copy {
        to,
        user_namespace,
        links: HashMap::new(),
        path: PathBuf::new(),
        names: vec![0; MAX_ATTRIBUTE],
        value: vec![0; MAX_ATTRIBUTE],
    };
    // The descriptor of a place cannot be read.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, ".", flags, Mode::empty()).context("openat(., O_DIRECTORY)")?;
    let directory = openat(to, ".", flags, Mode::empty()).context("openat(., O_DIRECTORY)")?;
    copy.directory(&from, &directory, 0)
        .with_context(|| format!("copy up {}", copy.path.display()))?;
    if itself {
        let stat = fstat(&from).context("fstat")?;
        copy.attributes(from.as_fd(), directory.as_fd(), &stat)?;
    }
    Ok(())
}

struct Copy<'a> {
    to: &'a OwnedFd,
    user_namespace: bool,
    /// Files of several names, by device and inode, and the name they were first copied by.
    links: HashMap<(u64, u64), PathBuf>,
    /// What is being copied: from the directory on. Where a copy fails, what it failed at.
    path: PathBuf,
    /// Room for the names of extended attributes, and for the value of one.
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Copy<'_> {
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
        ensure!(depth < MAX_DEPTH, "more than {MAX_DEPTH} directories deep");
        for entry in Dir::read_from(from).context("getdents64")? {
            let entry = entry.context("getdents64")?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).context("fstatat")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.below(from, to, name, depth),
            FileType::RegularFile => self.file(from, to, name),
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new()).context("readlinkat")?;
                symlinkat(target, to, name).context("symlinkat")?;
                self.node_attributes(to, name, &stat)
            }
            FileType::CharacterDevice | FileType::BlockDevice if self.user_namespace => Ok(()),
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(to, name, kind, mode, stat.st_rdev).context("mknodat")?;
                self.node_attributes(to, name, &stat)?;
                // Less the umask, and a change of owner clears the set-id bits.
                chmodat(to, name, mode, AtFlags::empty()).context("fchmodat")
            }
        }
    }

    fn below(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
        mkdirat(to, name, Mode::from_raw_mode(0o700)).context("mkdirat")?;
        let Some(from) = open(from, name, OFlags::DIRECTORY)? else {
            return Ok(());
        };
        let to = openat(to, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("openat")?;
        self.directory(&from, &to, depth + 1)?;
        // Last: what is put into a directory changes its times.
        let stat = fstat(&from).context("fstat")?;
        self.attributes(from.as_fd(), to.as_fd(), &stat)
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
        // Without waiting, should it have become a fifo.
        let Some(from) = open(from, name, OFlags::NONBLOCK | OFlags::NOCTTY)? else {
            return Ok(());
        };
        let stat = fstat(&from).context("fstat")?;
        ensure!(
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            "it has become something else while it was copied"
        );
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return linkat(self.to, first, to, name, AtFlags::empty()).context("linkat");
            }
            self.links.insert((stat.st_dev, stat.st_ino), self.path.clone());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = openat(to, name, flags, Mode::from_raw_mode(0o600)).context("openat(O_CREAT | O_EXCL)")?;
        let (mut source, mut copy) = (File::from(from), File::from(to));
        std::io::copy(&mut source, &mut copy).context("copy the content")?;
        self.attributes(source.as_fd(), copy.as_fd(), &stat)
    }

    /// Owner, mode, extended attributes, times, in this order: each of them changes those before it or is cleared by them.
    fn attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        let (uid, gid) = owner(stat);
        self.owned(fchown(to, uid, gid)).context("fchown")?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).context("fchmod")?;
        self.extended_attributes(from, to)?;
        futimens(to, &times(stat)).context("futimens")
    }

    /// Copies what a tmpfs can hold of them: `user.` ones it knows from Linux 6.6 on. Of the `security.` ones only the
    /// capabilities; the others are labels, which say what the new filesystem is and not what the old one was.
    fn extended_attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let length = match flistxattr(from, &mut self.names[..]) {
            Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(()),
            length => length.context("flistxattr")?,
        };
        for name in self.names[..length].split_inclusive(|&byte| byte == 0) {
            let name = CStr::from_bytes_with_nul(name).context("the name of an extended attribute")?;
            let bytes = name.to_bytes();
            if bytes.starts_with(b"security.") && bytes != b"security.capability" {
                continue;
            }
            let length = match fgetxattr(from, name, &mut self.value[..]) {
                Err(Errno::NODATA) => continue,
                length => length.with_context(|| format!("fgetxattr({name:?})"))?,
            };
            match fsetxattr(to, name, &self.value[..length], XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error).with_context(|| format!("fsetxattr({name:?})")),
            }
        }
        Ok(())
    }

    fn node_attributes(&self, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
        let (uid, gid) = owner(stat);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.owned(chownat(to, name, uid, gid, flags)).context("fchownat")?;
        utimensat(to, name, &times(stat), flags).context("utimensat")
    }

    /// EINVAL is what a user namespace says to an id that it does not have.
    fn owned(&self, changed: rustix::io::Result<()>) -> rustix::io::Result<()> {
        match changed {
            Err(Errno::INVAL) if self.user_namespace => Ok(()),
            changed => changed,
        }
    }
}

/// Opens an entry for reading; `None` for a mount, which is not the image's.
fn open(directory: &OwnedFd, name: &CStr, flags: OFlags) -> Result<Option<OwnedFd>> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    loop {
        match openat2(directory, name, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::XDEV) => return Ok(None),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("openat2(BENEATH | NO_XDEV | NO_SYMLINKS)"),
        }
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
