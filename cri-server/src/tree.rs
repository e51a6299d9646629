//! Removal of directory trees that somebody else has filled: layers, containers' files.
//!
//! Whoever made them chose how deep they are, and mkdir and chdir can make them deeper than any path is long. A removal
//! that goes down level by level needs a descriptor and a stack frame for each, so one tree could take all descriptors
//! of the server, or end it. Here what is not empty moves up first:
//!
//! ```text
//! top/a/b/c   -->   top/.removing/0 (a), which holds b   -->   top/.removing/1 (b), which holds c   -->  ...
//! ```
//! Every directory moves at most once, four descriptors are open however deep the tree is, and the memory needed is that
//! of a counter. No link is followed and nothing that is mounted is entered: a mount point is an error.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes a directory and all that it holds; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removing = || format!("remove {}", path.display());
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.with_context(removing)?,
    };
    empty(&top).with_context(removing)?;
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed.with_context(removing),
    }
}

/// Removes all that a directory holds.
fn empty(top: &OwnedFd) -> Result<()> {
    let mut removal = Removal {
        top: top.as_fd(),
        staging: None,
        end: 0,
    };
    // Seldom more than this: what has no directory that is not empty is done.
    removal.clear(top.as_fd(), true)?;
    let mut next = 0;
    while next < removal.end {
        removal.remove_moved(next)?;
        next += 1;
    }
    let Some((name, _)) = removal.staging else {
        return Ok(());
    };
    rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR).context("unlinkat of the directory of what has moved")
}

/// A removal on its way.
struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// The directory that directories move to, and its name in the top; none until the first has to.
    staging: Option<(String, OwnedFd)>,
    /// How many have moved. Each has the number of those before it for a name.
    end: u64,
}

impl Removal<'_> {
    fn staging(&mut self) -> Result<BorrowedFd<'_>> {
        let staging = match self.staging.take() {
            Some(made) => made,
            None => make_staging(self.top)?,
        };
        Ok(self.staging.insert(staging).1.as_fd())
    }

    fn remove_moved(&mut self, number: u64) -> Result<()> {
        let name = number.to_string();
        let dir = open(self.staging()?, name.as_str()).context("openat of a directory that has moved")?;
        self.clear(dir.as_fd(), false)?;
        rustix::fs::unlinkat(self.staging()?, name, AtFlags::REMOVEDIR)
            .context("unlinkat of a directory that has moved")
    }

    /// Removes what `dir` holds; its directories that are not empty move.
    fn clear(&mut self, dir: BorrowedFd<'_>, is_top: bool) -> Result<()> {
        // Until nothing is found: a filesystem may leave an entry out of a list whose entries vanish meanwhile.
        loop {
            let mut found = false;
            for entry in Dir::read_from(dir).context("read a directory")? {
                let entry = entry.context("read a directory")?;
                let name = entry.file_name();
                let stays = matches!(name.to_bytes(), b"." | b"..") || (is_top && self.is_staging(name));
                if !stays {
                    let removed = self.remove_entry(dir, name, entry.file_type());
                    removed.with_context(|| format!("entry {:?}", name.to_string_lossy()))?;
                    found = true;
                }
            }
            if !found {
                return Ok(());
            }
        }
    }

    fn is_staging(&self, name: &CStr) -> bool {
        let staging = self.staging.as_ref();
        staging.is_some_and(|(known, _)| known.as_bytes() == name.to_bytes())
    }

    fn remove_entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<()> {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                // A filesystem that tells no types.
                Err(Errno::ISDIR) => {}
                removed => return removed.context("unlinkat"),
            }
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // POSIX allows either.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => return removed.context("unlinkat of a directory"),
        }
        let number = self.end.to_string();
        rustix::fs::renameat(dir, name, self.staging()?, number).context("renameat to the top")?;
        self.end += 1;
        Ok(())
    }
}

/// Makes a directory of a name that `top` does not have.
fn make_staging(top: BorrowedFd<'_>) -> Result<(String, OwnedFd)> {
    let mut name = ".removing".to_owned();
    loop {
        match rustix::fs::mkdirat(top, name.as_str(), Mode::RWXU) {
            // The tree's own, or an earlier removal's that was not finished.
            Err(Errno::EXIST) => name.push('_'),
            made => break made.context("mkdirat of the directory of what moves")?,
        }
    }
    let opened = open(top, name.as_str()).context("openat of the directory of what moves")?;
    Ok((name, opened))
}

fn open(dir: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Makes `levels` directories, each in the one before, with a file in each.
    fn dig(top: &Path, levels: usize) {
        fs::create_dir(top).unwrap();
        let mut dir = open(CWD, top).unwrap();
        for _ in 0..levels {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, "file", flags, Mode::RUSR).unwrap();
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = open(&dir, "d").unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_stack_reach_is_removed() {
        let outer = tempfile::tempdir().unwrap();
        let top = outer.path().join("top");
        dig(&top, 10_000);
        // A stack on which a frame for each level has no room.
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || remove(&top).unwrap()).unwrap().join().unwrap();
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_links_lead_to_stays_and_names_may_collide() {
        let outer = tempfile::tempdir().unwrap();
        let (top, kept) = (outer.path().join("top"), outer.path().join("kept"));
        fs::create_dir_all(kept.join("d")).unwrap();
        // The names that a removal uses itself, also where the tree has them at the top and below.
        for dir in [".removing/0/1", ".removing_/0", "0/.removing/0/0", "a/b/c", "a/0"] {
            fs::create_dir_all(top.join(dir)).unwrap();
            fs::write(top.join(dir).join("file"), "x").unwrap();
        }
        symlink(&kept, top.join("link")).unwrap();
        symlink(&kept, top.join("a/b/link")).unwrap();
        remove(&top).unwrap();
        remove(&top).expect("nothing to remove is no error");
        assert!(kept.join("d").is_dir());
        symlink(&kept, &top).unwrap();
        assert!(remove(&top).is_err(), "a link is no directory");
        assert!(kept.join("d").is_dir() && top.is_symlink());
    }
}
