//! Trees that somebody else may change meanwhile, gone through by descriptors.
//!
//! ```text
//! root --openat2, no link in any component--> place (O_PATH) --fstat--> what it is --> its content, by the place alone
//! ```
//! A name is looked up once. What is read afterwards is what was looked at, whatever has that name by then; and nothing is
//! opened for reading before it is known to be a file or a directory, since opening a fifo waits and opening a device acts.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest extended attribute, and longest list of their names (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// Extended attributes by name.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Something in a tree: a file, a directory, a link itself.
pub(super) struct Place {
    /// Opened with `O_PATH`.
    file: File,
    metadata: Metadata,
}

impl Place {
    /// The directory at `path`, whose own name and those above it are the node's.
    pub(super) fn root(path: &Path) -> Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let place = opened.and_then(|opened| Place::of(opened.into()));
        place.with_context(|| format!("open {}", path.display()))
    }

    /// What `path` names below this directory; the empty path is the directory.
    pub(super) fn at(&self, path: &Path) -> io::Result<Place> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(&self.file, path, flags, Mode::empty(), resolve)?;
        Place::of(opened.into())
    }

    /// The same; none where nothing has that name, and none behind a link.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Place>> {
        match self.at(path) {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn of(file: File) -> io::Result<Place> {
        let metadata = file.metadata()?;
        Ok(Place { file, metadata })
    }

    /// What it is.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether it says that a file of the layers below is gone (overlayfs).
    pub(super) fn is_whiteout(&self) -> bool {
        self.metadata.file_type().is_char_device() && self.metadata.rdev() == 0
    }

    /// The names in the directory, in order.
    pub(super) fn names(&self) -> Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.file, ".", flags, Mode::empty()).context("open the directory")?;
        let mut names = Vec::new();
        for entry in Dir::new(opened).context("read the directory")? {
            let name = entry.context("read the directory")?.file_name().to_bytes().to_vec();
            if !matches!(name.as_slice(), b"." | b"..") {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The regular file, for reading.
    pub(super) fn content(&self) -> Result<File> {
        ensure!(self.metadata.is_file(), "not a regular file");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.again(), flags, Mode::empty()).context("open")?;
        Ok(opened.into())
    }

    /// Where the symbolic link leads.
    pub(super) fn target(&self) -> Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.file, "", Vec::new()).context("readlinkat")?;
        Ok(target.into_bytes())
    }

    /// Every extended attribute, in order.
    pub(super) fn xattrs(&self) -> Result<Attributes> {
        let mut buffer = vec![0; MAX_XATTR];
        let length = rustix::fs::listxattr(self.again(), &mut buffer[..]).context("listxattr")?;
        let mut names: Vec<Vec<u8>> = buffer[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort();
        let value = |name: Vec<u8>| {
            let mut buffer = vec![0; MAX_XATTR];
            let length = rustix::fs::getxattr(self.again(), OsString::from_vec(name.clone()), &mut buffer[..])
                .with_context(|| format!("getxattr {:?}", String::from_utf8_lossy(&name)))?;
            buffer.truncate(length);
            Ok((name, buffer))
        };
        names.into_iter().map(value).collect()
    }

    /// A path that leads to what the descriptor is of, and no further if that is a link.
    fn again(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, XattrFlags, mknodat};

    use super::*;

    #[test]
    fn no_link_is_followed_in_any_component() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
        for made in [&tree.join("in"), &host] {
            fs::create_dir_all(made).unwrap();
            fs::write(made.join("file"), "x").unwrap();
        }
        symlink(&host, tree.join("out")).unwrap();
        symlink("in", tree.join("inner")).unwrap();
        let root = Place::root(&tree).unwrap();
        let table = [
            ("", true),
            ("in/file", true),
            ("out", true),
            ("out/file", false),
            ("inner/file", false),
            ("in/file/x", false),
            ("missing", false),
        ];
        for (path, there) in table {
            assert_eq!(root.find(Path::new(path)).unwrap().is_some(), there, "{path}");
        }
        assert!(root.find(Path::new("../host/file")).is_err(), "above the root");
        let link = root.at(Path::new("out")).unwrap();
        assert_eq!(link.target().unwrap(), host.as_os_str().as_encoded_bytes());
        assert!(link.content().is_err() && link.names().is_err());
    }

    #[test]
    fn what_is_read_is_what_was_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "looked at").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("secret", &link).unwrap();
        let flags = XattrFlags::empty();
        rustix::fs::lsetxattr(&link, "trusted.of", b"link", flags).unwrap();
        rustix::fs::setxattr(&link, "trusted.of", b"secret", flags).unwrap();
        let root = Place::root(dir.path()).unwrap();
        let attributes = root.at(Path::new("link")).unwrap().xattrs().unwrap();
        assert_eq!(attributes, [(b"trusted.of".to_vec(), b"link".to_vec())]);
        let exchanges: [&dyn Fn(); 2] = [&|| symlink("secret", &file).unwrap(), &|| {
            mknodat(CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
        }];
        for exchange in exchanges {
            fs::remove_file(&file).ok();
            fs::write(&file, "looked at").unwrap();
            let place = root.at(Path::new("file")).unwrap();
            fs::rename(&file, dir.path().join("moved")).unwrap();
            exchange();
            let mut content = String::new();
            place.content().unwrap().read_to_string(&mut content).unwrap();
            assert_eq!(content, "looked at");
            // Under its new kind neither followed nor waited for.
            assert!(root.at(Path::new("file")).unwrap().content().is_err());
        }
    }
}
