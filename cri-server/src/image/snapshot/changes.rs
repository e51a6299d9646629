//! What a container has made of its root: written down for a checkpoint, and made again at a restore.
//!
//! ```text
//! save      upper/ --> an archive of its files, and the list of what it hides of the layers below
//! restore   the archive --> upper/, then the mount, then what is on the list is removed in the mounted root
//! ```
//! The archive may be anybody's. It is unpacked as an image's layer is ([`unpack`]): no path of it leads out of the
//! directory, and what it may take is held against its length and the free space. The list is followed below the mounted
//! root alone, by `openat2`. Without overlayfs nothing tells the changes from the rest, and neither is done.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, bail, ensure};
use corten_proto::id::Digest;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

use super::Snapshots;
use crate::image::layer_tar;
use crate::image::place::Place;
use crate::image::unpack;
use crate::tree;

/// A directory that hides the one below it, and one that was moved, which says where the files below are (overlayfs).
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// What is to be made of a root that is made.
#[derive(Debug, Default)]
pub struct Changes {
    /// An archive of files, which come over those of the image.
    pub archive: Option<File>,
    /// Paths that are not there any more.
    pub deleted: Vec<String>,
}

impl Snapshots {
    /// Whether changes can be told from the image's files.
    #[must_use]
    pub fn tells_changes(&self) -> bool {
        !self.native
    }

    /// Writes the files that the container in `dir` has changed to `out`; what it has removed of `layers`. Of one moment only
    /// if the container is held meanwhile.
    pub fn save_changes(&self, dir: &Path, layers: &[Digest], out: impl Write) -> Result<Vec<String>> {
        ensure!(
            self.tells_changes(),
            "roots are copies here: nothing tells what was changed"
        );
        let upper = dir.join("upper");
        let lower: Vec<_> = layers.iter().map(|layer| self.images.layer_path(layer)).collect();
        let deleted = Hidden::of(&upper, &lower)?;
        layer_tar::write_files(&upper, out).context("write the changed files")?;
        Ok(deleted)
    }
}

impl Changes {
    /// Unpacks the archive into an empty writable layer.
    pub(super) fn unpack(&self, upper: &Path) -> Result<()> {
        let Some(mut archive) = self.archive.as_ref() else {
            return Ok(());
        };
        archive.rewind().context("rewind the archive of changes")?;
        unpack_file(archive, upper).context("apply the archive of changes")
    }

    /// Removes what is listed, in the mounted root.
    pub(super) fn delete(&self, root: &Path) -> Result<()> {
        if self.deleted.is_empty() {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).context("open the root")?;
        for path in &self.deleted {
            delete(&root, path).with_context(|| format!("delete {path:?}"))?;
        }
        Ok(())
    }
}

/// Unpacks the plain archive `file`, from where it is, into the empty directory `dir`, with all that is promised of layers.
pub(crate) fn unpack_file(file: &File, dir: &Path) -> Result<()> {
    let length = file.metadata().context("fstat of the archive")?.len();
    let root = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let input = BufReader::with_capacity(1 << 16, file);
    unpack::unpack(input, root.into(), Arc::new(AtomicU64::new(length))).map(drop)
}

/// Removes one path below `root`; one that is not there is no error.
fn delete(root: &OwnedFd, path: &str) -> Result<()> {
    let path: PathBuf = Path::new(path)
        .components()
        .filter_map(|component| match component {
            Component::RootDir | Component::CurDir => None,
            Component::Normal(name) => Some(Ok(name)),
            Component::ParentDir | Component::Prefix(_) => Some(Err(())),
        })
        .collect::<Result<_, ()>>()
        .map_err(|()| anyhow::anyhow!("must be a path without \"..\""))?;
    let name = path.file_name().context("must not be the root")?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let parent = match openat2(root, parent, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        parent => parent.context("openat2 of its directory")?,
    };
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // By the descriptor's path, and from there on by descriptors.
        Err(Errno::ISDIR) => tree::remove(&PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)),
        Err(errno) => Err(errno).context("unlinkat"),
    }
}

/// Finds what a writable layer hides of the layers below.
struct Hidden<'a> {
    upper: Place,
    lower: &'a [PathBuf],
    found: Vec<String>,
}

impl Hidden<'_> {
    fn of(upper: &Path, lower: &[PathBuf]) -> Result<Vec<String>> {
        let mut hidden = Hidden {
            upper: Place::root(upper)?,
            lower,
            found: Vec::new(),
        };
        let mut waiting = vec![(PathBuf::new(), false)];
        while let Some((path, opaque)) = waiting.pop() {
            let below = hidden.directory(&path, opaque);
            waiting.extend(below.with_context(|| format!("look for what {path:?} hides"))?);
        }
        hidden.found.sort();
        Ok(hidden.found)
    }

    /// What one directory hides itself; the directories in it, with whether they show nothing of those below.
    fn directory(&mut self, path: &Path, opaque: bool) -> Result<Vec<(PathBuf, bool)>> {
        let place = self.upper.at(path).context("open its place")?;
        let attributes = place.xattrs()?;
        if attributes.iter().any(|(name, _)| name == REDIRECT) {
            bail!("it was moved there, which an archive cannot say");
        }
        let opaque = opaque || attributes.iter().any(|(name, _)| name == OPAQUE);
        let mut directories = Vec::new();
        let mut names = HashSet::new();
        for name in place.names()? {
            let inner = path.join(&name);
            let entry = place.at(Path::new(&name)).with_context(|| format!("open {name:?}"))?;
            if entry.metadata().is_dir() {
                directories.push((inner, opaque));
            } else if entry.is_whiteout() {
                self.add(&inner)?;
            }
            names.insert(name);
        }
        if opaque {
            for name in self.below(path)? {
                if !names.contains(&name) {
                    self.add(&path.join(name))?;
                }
            }
        }
        Ok(directories)
    }

    /// The names that the layers below have in a directory. A layer may have a link where the directory is: what that leads to
    /// is the node's.
    fn below(&self, path: &Path) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        for layer in self.lower {
            let found = Place::root(layer)?
                .find(path)
                .context("open the directory of a layer")?;
            let Some(directory) = found.filter(|place| place.metadata().is_dir()) else {
                continue;
            };
            for name in directory.names().context("a layer")? {
                let entry = directory.find(Path::new(&name)).context("look into a layer")?;
                if entry.is_some_and(|entry| !entry.is_whiteout()) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let name = path
            .to_str()
            .context("a deleted file's name is not UTF-8, which the list cannot say")?;
        self.found.push(format!("/{name}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_listed_goes_and_nothing_outside() {
        let outer = tempfile::tempdir().unwrap();
        let (root, kept) = (outer.path().join("root"), outer.path().join("kept"));
        for dir in [&root.join("a/b/c"), &root.join("etc"), &kept] {
            fs::create_dir_all(dir).unwrap();
        }
        for file in [
            root.join("a/f"),
            root.join("a/b/g"),
            root.join("etc/passwd"),
            kept.join("f"),
        ] {
            fs::write(file, "x").unwrap();
        }
        symlink(&kept, root.join("out")).unwrap();
        symlink("/etc", root.join("in")).unwrap();
        let opened: OwnedFd = File::open(&root).unwrap().into();
        for path in [
            "/a/f",
            "a/b",
            "/missing",
            "/missing/f",
            "/a/f/g",
            "/out/f",
            "/in/passwd",
            "/in",
        ] {
            delete(&opened, path).unwrap_or_else(|error| panic!("{path}: {error:#}"));
        }
        for path in ["", "/", "..", "/../kept/f", "a/../../kept/f"] {
            assert!(delete(&opened, path).is_err(), "{path}");
        }
        assert!(kept.join("f").exists() && root.join("etc").is_dir());
        for path in ["a/f", "a/b", "etc/passwd"] {
            assert!(!root.join(path).exists(), "{path}");
        }
        assert!(fs::symlink_metadata(root.join("in")).is_err() && root.join("out").is_symlink());
    }

    #[test]
    fn a_writable_layer_and_its_list() {
        use rustix::fs::{CWD, FileType, mknodat};
        let outer = tempfile::tempdir().unwrap();
        let (upper, lower) = (outer.path().join("upper"), outer.path().join("lower"));
        for dir in ["etc", "opaque/sub", "same"] {
            fs::create_dir_all(upper.join(dir)).unwrap();
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        for file in [
            "etc/gone",
            "opaque/hidden",
            "opaque/kept",
            "opaque/sub/deep",
            "same/shown",
        ] {
            fs::write(lower.join(file), "x").unwrap();
        }
        fs::write(upper.join("opaque/kept"), "new").unwrap();
        fs::write(upper.join("same/added"), "new").unwrap();
        mknodat(CWD, upper.join("etc/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join("opaque"), "trusted.overlay.opaque", b"y", flags).unwrap();
        let found = Hidden::of(&upper, std::slice::from_ref(&lower)).unwrap();
        assert_eq!(found, ["/etc/gone", "/opaque/hidden", "/opaque/sub/deep"]);

        let mut archive = tempfile::tempfile().unwrap();
        layer_tar::write_files(&upper, &mut archive).unwrap();
        let changes = Changes {
            archive: Some(archive),
            deleted: Vec::new(),
        };
        let again = outer.path().join("again");
        fs::create_dir(&again).unwrap();
        changes.unpack(&again).unwrap();
        assert_eq!(fs::read(again.join("opaque/kept")).unwrap(), b"new");
        assert!(!again.join("etc/gone").exists(), "no mark of what is gone");
        rustix::fs::lsetxattr(upper.join("same"), "trusted.overlay.redirect", b"/x", flags).unwrap();
        assert!(Hidden::of(&upper, &[lower]).is_err(), "a directory that was moved");
    }

    #[test]
    fn a_link_in_a_layer_shows_no_directory_of_the_node() {
        let outer = tempfile::tempdir().unwrap();
        let [upper, lower, host] = ["upper", "lower", "host"].map(|name| outer.path().join(name));
        for dir in [&upper.join("d/sub"), &lower, &host.join("sub")] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(host.join("sub/of-the-node"), "x").unwrap();
        symlink(&host, lower.join("d")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join("d"), "trusted.overlay.opaque", b"y", flags).unwrap();
        assert!(Hidden::of(&upper, &[lower]).unwrap().is_empty());
    }
}
