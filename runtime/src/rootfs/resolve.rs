//! Paths in a container's root, resolved in the kernel with the root as their `/`.
//!
//! The tree belongs to the container and may change under our feet: another container that shares a volume can exchange
//! a directory for a link between any two calls. So nothing is ever checked by path and then used by path:
//! `openat2(RESOLVE_IN_ROOT)` answers with a descriptor, and whatever follows is done to that descriptor. A link leads
//! at most to another place of the same root; magic links (`/proc/self/fd/N`), which lead anywhere, are refused.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// The root of a container: a descriptor of its directory.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root that `directory` is.
    pub fn new(directory: OwnedFd) -> Root {
        Root(directory)
    }

    /// Opens what is at `path`, following links within the root; `None` where nothing is.
    pub fn find(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.open(path, OFlags::PATH, ResolveFlags::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("openat2({}, IN_ROOT)", path.display()))
            }
        }
    }

    /// Opens a file for reading, without waiting for a fifo's writer; `None` where there is none.
    pub fn read(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.open(
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            ResolveFlags::empty(),
        ) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("openat2({}, IN_ROOT)", path.display()))
            }
        }
    }

    /// The directory at `path`, made (0755) with its parents where it is missing. With `links` false no component may
    /// be a link: what /proc, /sys and /dev demand, on which the security of the rest depends (CVE-2019-19921).
    pub fn directory(&self, path: &Path, links: bool) -> Result<OwnedFd> {
        let resolve = if links {
            ResolveFlags::empty()
        } else {
            ResolveFlags::NO_SYMLINKS
        };
        let what = || format!("the directory {} in the root", path.display());
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY, resolve) {
            Err(Errno::NOENT) => {}
            result => return result.with_context(what),
        }
        let mut parent = self.0.try_clone().context("dup the root")?;
        let mut prefix = PathBuf::new();
        for name in names(path) {
            prefix.push(name);
            parent = match self.open(&prefix, OFlags::PATH | OFlags::DIRECTORY, resolve) {
                Err(Errno::NOENT) => self
                    .make_directory(&parent, name, &prefix, resolve)
                    .with_context(what)?,
                result => result.with_context(what)?,
            };
        }
        Ok(parent)
    }

    /// Makes one directory. Another process may have made it at the same time; a dangling link stays an error.
    fn make_directory(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        prefix: &Path,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("mkdirat({})", prefix.display()));
            }
        }
        self.open(prefix, OFlags::PATH | OFlags::DIRECTORY, resolve)
            .with_context(|| format!("openat2({}, IN_ROOT)", prefix.display()))
    }

    /// What is at `path`, where nothing is an empty file made for the purpose, with its parent directories.
    pub fn file(&self, path: &Path) -> Result<OwnedFd> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("create the file {} in the root", path.display()));
            }
        }
        // Anew from the name and without following it: a link put there meanwhile is an error.
        openat(
            &parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open the file {} in the root", path.display()))
    }

    /// The directory above `path`, made where it is missing, and the last name.
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let Some(name) = path.file_name() else {
            bail!("{}: not the name of a file", path.display())
        };
        let above = path.parent().unwrap_or(Path::new("/"));
        Ok((self.directory(above, true)?, name))
    }

    fn open(
        &self,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something was renamed during the look-up and the kernel could not tell whether ".." stayed inside.
        loop {
            match openat2(
                &self.0,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The names of a path below the root; `..` goes up one name, at the root nowhere.
fn names(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    /// A scratch directory with a root in it and something outside to hit.
    fn scratch(name: &str) -> (PathBuf, Root) {
        let base =
            std::env::temp_dir().join(format!("corten-resolve-{name}-{}", std::process::id()));
        fs::create_dir_all(base.join("root")).unwrap();
        fs::create_dir_all(base.join("outside")).unwrap();
        let root = Root::new(File::open(base.join("root")).unwrap().into());
        (base, root)
    }

    #[test]
    fn links_stay_inside() {
        let (base, root) = scratch("links");
        symlink(base.join("outside"), base.join("root/absolute")).unwrap();
        symlink("../../outside", base.join("root/relative")).unwrap();
        symlink("loop", base.join("root/loop")).unwrap();
        // Both lead to places that do not exist inside, and whose parents can be made there.
        assert!(root.find(Path::new("/absolute")).unwrap().is_none());
        assert!(root.directory(Path::new("/absolute/x"), true).is_err());
        assert!(root.directory(Path::new("/relative"), true).is_err());
        assert!(root.find(Path::new("/loop")).is_err());
        assert!(root.file(Path::new("/relative/file")).is_err());
        assert!(fs::read_dir(base.join("outside")).unwrap().next().is_none());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn missing_parents_are_made() {
        let (base, root) = scratch("make");
        symlink("real", base.join("root/link")).unwrap();
        fs::create_dir(base.join("root/real")).unwrap();
        root.directory(Path::new("/a/b/../c"), true).unwrap();
        root.directory(Path::new("/link/d"), true).unwrap();
        root.file(Path::new("/e/f")).unwrap();
        root.file(Path::new("/e/f")).unwrap();
        for made in ["root/a/c", "root/real/d", "root/e/f"] {
            assert!(base.join(made).exists(), "{made}");
        }
        assert!(root.directory(Path::new("/link/d"), false).is_err());
        assert!(root.directory(Path::new("/e/f"), true).is_err());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn names_of_paths() {
        for (path, wanted) in [
            ("/", ""),
            ("/a/./b", "a/b"),
            ("../../a", "a"),
            ("/a/../../b", "b"),
        ] {
            assert_eq!(
                names(Path::new(path)).iter().collect::<PathBuf>(),
                Path::new(wanted),
                "{path}"
            );
        }
    }
}
