//! The directory that entries are being made in: archives list a directory's entries one after the other.
//!
//! Whatever is made in a directory changes its time of modification, so that is noted when the directory is entered and
//! given back when it is left. A list of all times until the end would grow with the archive.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec};
use rustix::io::Errno;

use super::WHITEOUT;
use super::at::{Present, missing, modified, present, resolve, set_own_times};
use super::entry::{ensure_valid, split};
use super::implied::Implied;

/// How deep a layer's directories may be. Images stay far below 100, but links can lead an archive on past every length
/// of a name, and what copies or counts a layer later takes its levels one by one.
pub(super) const MAX_DEPTH: usize = 512;

/// An open directory of the layer.
pub(super) struct Parent {
    root: Rc<OwnedFd>,
    /// Device and inode of the root.
    root_id: (u64, u64),
    path: Vec<u8>,
    pub(super) fd: Rc<OwnedFd>,
    /// What its time shall be.
    pub(super) modified: Timespec,
    /// What was made on the way.
    pub(super) implied: Implied,
}

impl Parent {
    /// The root of a layer.
    pub(super) fn root(root: OwnedFd) -> Result<Self> {
        let root = Rc::new(root);
        let stat = rustix::fs::fstat(&root).context("fstat of the layer's root")?;
        Ok(Parent {
            root_id: (stat.st_dev, stat.st_ino),
            modified: modified(root.as_fd())?,
            path: Vec::new(),
            implied: Implied::default(),
            fd: Rc::clone(&root),
            root,
        })
    }

    /// Leaves the directory and enters `dir`, which is made if it is missing, as are those that lead to it. Returns how
    /// many were made.
    pub(super) fn enter(&mut self, dir: &[u8]) -> Result<u64> {
        if self.path == dir {
            return Ok(0);
        }
        match resolve(self.root.as_fd(), dir) {
            Err(Errno::NOENT) => self.make(dir),
            found => {
                let found = found.or_else(|errno| missing(errno, format!("its directory: {errno}")))?;
                self.switch(dir, found)?;
                Ok(0)
            }
        }
    }

    /// Gives the directory the time it shall have.
    pub(super) fn leave(&self) -> Result<()> {
        set_own_times(self.fd.as_fd(), self.modified)
    }

    /// Refuses a directory that would be deeper than a layer's may be.
    ///
    /// So many levels up from the deepest that may be is the root; from any other it is above the root. A name would
    /// not tell: with links in it, it is shorter than the way it leads.
    pub(super) fn check_depth(&self) -> Result<()> {
        let up = "../".repeat(MAX_DEPTH);
        let above = rustix::fs::statat(&self.fd, up, AtFlags::empty()).context("statat of what is above")?;
        let holds = (above.st_dev, above.st_ino) != self.root_id;
        ensure_valid(holds, "directories of more than 512 levels")
    }

    fn switch(&mut self, path: &[u8], fd: OwnedFd) -> Result<()> {
        self.leave()?;
        self.modified = modified(fd.as_fd())?;
        self.path = path.to_vec();
        self.fd = Rc::new(fd);
        Ok(())
    }

    /// Makes the directories that lead to an entry and have none of their own (yet), and enters the last.
    fn make(&mut self, dir: &[u8]) -> Result<u64> {
        let slashes = dir.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(place, _)| place).chain([dir.len()]).collect();
        // If one is there, so are those above it. Looked for by halving, because a name may have 2,000 components.
        let is_there = |end: &usize| !matches!(resolve(self.root.as_fd(), &dir[..*end]), Err(Errno::NOENT));
        let there = ends.partition_point(is_there);
        self.enter(&dir[..there.checked_sub(1).map_or(0, |last| ends[last])])?;
        for end in &ends[there..] {
            self.make_one(&dir[..*end])?;
        }
        Ok((ends.len() - there) as u64)
    }

    /// Makes and enters a directory of the present one.
    fn make_one(&mut self, path: &[u8]) -> Result<()> {
        let name = OsStr::from_bytes(split(path).1);
        // No layer of ours could be told as an archive again, and other readers would take it for what it is named like.
        let is_whiteout = name.as_bytes().starts_with(WHITEOUT);
        ensure_valid(!is_whiteout, "its directory is named like a whiteout")?;
        let before = present(self.fd.as_fd(), name.as_bytes())?;
        ensure_valid(before == Present::Nothing, "its directory is a link that leads nowhere")?;
        self.check_depth()?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).context("mkdirat of a parent")?;
        // After mkdirat, because the umask is the process's.
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::chmodat(&self.fd, name, mode, AtFlags::empty()).context("chmodat of a parent")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).context("openat of a parent")?;
        self.implied.add(self.root.as_fd(), made.as_fd());
        self.switch(path, made)
    }
}
