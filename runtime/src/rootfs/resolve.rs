//! Paths in a container's root, resolved in the kernel with the root as their `/`.
//!
//! The tree belongs to the container and may change under our feet: another container that shares a volume can exchange
//! a directory for a link between any two calls. So nothing is ever checked by path and then used by path:
//! `openat2(RESOLVE_IN_ROOT)` answers with a descriptor, and whatever follows is done to that descriptor. A link leads
//! at most to another place of the same root; magic links (`/proc/self/fd/N`), which lead anywhere, are refused.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// How many links a path may have that leads to what does not exist yet; the kernel's limit for one that does.
const MAX_LINKS: usize = 40;

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
            Err(error) => Err(error).with_context(|| format!("openat2({}, IN_ROOT)", path.display())),
        }
    }

    /// Opens what is at `path`; `None` where nothing is, or a link leads the way.
    pub fn find_plain(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.open(path, OFlags::PATH, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("openat2({}, IN_ROOT | NO_SYMLINKS)", path.display())),
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
            Err(error) => Err(error).with_context(|| format!("openat2({}, IN_ROOT)", path.display())),
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
        self.make_directories(path, links)
            .map(|(directory, _)| directory)
            .with_context(what)
    }

    /// Goes down `path` name by name and makes what is missing; a link is replaced by where it leads, so that what
    /// an image's dangling link means is made inside. Answers with the directory and its path without links.
    fn make_directories(&self, path: &Path, links: bool) -> Result<(OwnedFd, PathBuf)> {
        let mut left = MAX_LINKS;
        let mut names = reversed_names(path);
        let mut at = PathBuf::from(".");
        let mut here = self.open_directory(&at)?;
        while let Some(name) = names.pop() {
            if name == ".." {
                // Above the root is the root.
                at.pop();
                here = self.open_directory(&at)?;
                continue;
            }
            if let Some(target) = link_target(&here, &name) {
                ensure!(links, "{}: a symbolic link", at.join(name).display());
                ensure!(left > 0, "{}: too many links", path.display());
                left -= 1;
                if target.is_absolute() {
                    at = PathBuf::from(".");
                    here = self.open_directory(&at)?;
                }
                names.extend(reversed_names(&target));
                continue;
            }
            at.push(&name);
            match mkdirat(&here, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("mkdirat({})", at.display()));
                }
            }
            here = self.open_directory(&at)?;
        }
        Ok((here, at))
    }

    /// Opens a directory by a path that had no link in it a moment ago; one that was put there since is an error.
    fn open_directory(&self, at: &Path) -> Result<OwnedFd> {
        let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        self.open(at, flags, ResolveFlags::NO_SYMLINKS)
            .with_context(|| format!("openat2({}, IN_ROOT)", at.display()))
    }

    /// What is at `path`, where nothing is an empty file made for the purpose, with its parent directories.
    pub fn file(&self, path: &Path) -> Result<OwnedFd> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        self.make_file(path)
            .with_context(|| format!("create the file {} in the root", path.display()))
    }

    fn make_file(&self, path: &Path) -> Result<OwnedFd> {
        let mut target = path.to_owned();
        for _ in 0..MAX_LINKS {
            let name = target.file_name().context("not the name of a file")?;
            let above = target.parent().unwrap_or(Path::new("/"));
            let (parent, at) = self.make_directories(above, true)?;
            // An image's dangling link: the file is made where it leads, inside.
            if let Some(link) = link_target(&parent, name) {
                target = at.join(link);
                continue;
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context("openat(O_CREAT | O_EXCL)"),
            }
            // Anew from the name and without following it: a link put there meanwhile is an error.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&parent, name, flags, Mode::empty()).context("openat(O_PATH | O_NOFOLLOW)")?;
            let kind = FileType::from_raw_mode(fstat(&file).context("fstat")?.st_mode);
            ensure!(kind != FileType::Symlink, "a link has been put there");
            return Ok(file);
        }
        bail!("too many links")
    }

    /// The directory above `path`, made where it is missing, and the last name.
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let Some(name) = path.file_name() else {
            bail!("{}: not the name of a file", path.display())
        };
        let above = path.parent().unwrap_or(Path::new("/"));
        Ok((self.directory(above, true)?, name))
    }

    fn open(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something was renamed during the look-up and the kernel could not tell whether ".." stayed inside.
        loop {
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
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

/// Where a link leads; `None` for anything but a link.
fn link_target(directory: &OwnedFd, name: &OsStr) -> Option<PathBuf> {
    let target = readlinkat(directory, name, Vec::new()).ok()?;
    Some(OsString::from_vec(target.into_bytes()).into())
}

/// The names of a path, the first one last; `..` is one of them.
fn reversed_names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    /// A scratch directory with a root in it and something outside to hit.
    fn scratch(name: &str) -> (PathBuf, Root) {
        let base = std::env::temp_dir().join(format!("corten-resolve-{name}-{}", std::process::id()));
        fs::create_dir_all(base.join("root")).unwrap();
        fs::create_dir_all(base.join("outside")).unwrap();
        let root = Root::new(File::open(base.join("root")).unwrap().into());
        (base, root)
    }

    #[test]
    fn links_stay_inside() {
        let (base, root) = scratch("links");
        symlink(base.join("outside"), base.join("root/absolute")).unwrap();
        symlink("../../../outside", base.join("root/relative")).unwrap();
        symlink("loop", base.join("root/loop")).unwrap();
        // Both lead to places that do not exist inside; those are made.
        assert!(root.find(Path::new("/absolute")).unwrap().is_none());
        root.directory(Path::new("/absolute/x"), true).unwrap();
        root.file(Path::new("/relative/file")).unwrap();
        let inside = base.join("root").join(base.strip_prefix("/").unwrap());
        assert!(inside.join("outside/x").is_dir());
        assert!(base.join("root/outside/file").is_file());
        assert!(fs::read_dir(base.join("outside")).unwrap().next().is_none());
        assert!(root.find(Path::new("/loop")).is_err());
        assert!(root.directory(Path::new("/loop/x"), true).is_err());
        assert!(root.file(Path::new("/loop")).is_err());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_file_is_made_where_its_link_leads() {
        let (base, root) = scratch("file");
        fs::create_dir(base.join("root/real")).unwrap();
        symlink("real", base.join("root/link")).unwrap();
        symlink("../made", base.join("root/real/dangling")).unwrap();
        root.file(Path::new("/link/dangling")).unwrap();
        assert!(base.join("root/made").is_file());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn missing_parents_are_made() {
        let (base, root) = scratch("make");
        symlink("real", base.join("root/link")).unwrap();
        fs::create_dir(base.join("root/real")).unwrap();
        root.directory(Path::new("/a/b/../../../c"), true).unwrap();
        root.directory(Path::new("/link/d"), true).unwrap();
        root.file(Path::new("/e/f")).unwrap();
        root.file(Path::new("/e/f")).unwrap();
        for made in ["root/a/b", "root/c", "root/real/d", "root/e/f"] {
            assert!(base.join(made).exists(), "{made}");
        }
        assert!(root.directory(Path::new("/link/d"), false).is_err());
        assert!(root.directory(Path::new("/link/new"), false).is_err());
        assert!(root.directory(Path::new("/e/f"), true).is_err());
        assert!(root.directory(Path::new("/e/f/g"), true).is_err());
        fs::remove_dir_all(base).unwrap();
    }
}
