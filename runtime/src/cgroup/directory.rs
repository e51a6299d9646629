//! One cgroup's directory, held open: its control files are read and written relative to it, so that no path is
//! resolved twice and a directory that is replaced meanwhile is not mistaken for ours.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// A cgroup directory.
#[derive(Debug)]
pub(super) struct Directory {
    /// Where it was opened; for error messages and for its removal.
    pub(super) path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Opens the cgroup at `path`; `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Directory>> {
        Directory::open_at(rustix::fs::CWD, path, path.to_owned())
    }

    /// Opens `name` below `parent`, which is `path`.
    fn open_at(parent: BorrowedFd<'_>, name: impl Arg, path: PathBuf) -> Result<Option<Directory>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Directory { path, fd })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open cgroup {}", path.display())),
        }
    }

    /// Opens a cgroup that must be there.
    pub(super) fn existing(path: &Path) -> Result<Directory> {
        Directory::open(path)?.ok_or_else(|| anyhow!("cgroup {} does not exist", path.display()))
    }

    /// Another descriptor of the directory.
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        self.fd
            .try_clone()
            .with_context(|| format!("duplicate the descriptor of {}", self.path.display()))
    }

    /// The whole of a control file; the bare errno for those who tell one from another.
    pub(super) fn try_read(&self, file: &str) -> Result<String, Errno> {
        let fd = openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::with_capacity(4096);
        while rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text))? > 0 {
            text.reserve(4096);
        }
        // The kernel writes ASCII here but for names of devices and cgroups, which nobody reads through this.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The whole of a control file.
    pub(super) fn read(&self, file: &str) -> Result<String> {
        self.try_read(file)
            .with_context(|| format!("read {}/{file}", self.path.display()))
    }

    /// Writes a control file in one call, as the kernel parses it; the bare errno for those who tell one from another.
    pub(super) fn try_write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let fd = openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::retry_on_intr(|| rustix::io::write(&fd, value.as_bytes()))?;
        Ok(())
    }

    /// Writes a control file in one call.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        self.try_write(file, value)
            .with_context(|| format!("write {value:?} to {}/{file}", self.path.display()))
    }

    /// Writes lines to a control file that takes one line per call.
    pub(super) fn write_lines(&self, file: &str, lines: &[String]) -> Result<()> {
        let path = || format!("{}/{file}", self.path.display());
        let fd = openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("open {}", path()))?;
        for line in lines {
            rustix::io::retry_on_intr(|| rustix::io::write(&fd, line.as_bytes()))
                .with_context(|| format!("write {line:?} to {}", path()))?;
        }
        Ok(())
    }

    /// The cgroups directly below this one. One that goes meanwhile is left out.
    pub(super) fn children(&self) -> Result<Vec<Directory>> {
        // A directory's link count is two and one for each directory in it: mostly there is none, and no need to look.
        let links = fstat(&self.fd)
            .with_context(|| format!("fstat {}", self.path.display()))?
            .st_nlink;
        if links <= 2 {
            return Ok(Vec::new());
        }
        let entries = Dir::read_from(&self.fd).with_context(|| format!("list {}", self.path.display()))?;
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", self.path.display()))?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
                children.extend(Directory::open_at(self.fd.as_fd(), name, path)?);
            }
        }
        Ok(children)
    }

    /// The names of the control files.
    pub(super) fn files(&self) -> Result<Vec<String>> {
        let what = || format!("list {}", self.path.display());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).with_context(what)? {
            names.push(entry.with_context(what)?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// The processes of this cgroup and of those below it.
    pub(super) fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        self.collect_processes(&mut pids)?;
        Ok(pids)
    }

    fn collect_processes(&self, pids: &mut Vec<i32>) -> Result<()> {
        let text = match self.try_read("cgroup.procs") {
            Ok(text) => text,
            // Removed since it was opened; and a threaded v2 cgroup lists its processes in its domain's root.
            Err(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}/cgroup.procs", self.path.display()));
            }
        };
        // 0 stands for a process that our pid namespace does not show.
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|&pid| pid > 0),
        );
        for child in self.children()? {
            child.collect_processes(pids)?;
        }
        Ok(())
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// rmdir; a cgroup that is gone is fine.
pub(super) fn remove(path: &Path) -> Result<(), Errno> {
    match unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
