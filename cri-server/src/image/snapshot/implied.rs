//! Directories that a layer has files in and no entry for: a container sees the owner, mode, times and xattrs that the
//! nearest layer below gives them, as it does where layers are unpacked one over the other.
//!
//! Every layer here is a tree of its own, in which such a directory is root's and has mode 0755, and overlayfs shows the
//! attributes of the topmost directory. The unpacker lists them beside the layer's files, in a file that most layers do not
//! have. Once a root is mounted, each gets the attributes it should have: overlayfs copies it up, alone, without what is in it.
//!
//! Left out: the root of a layer, which few archives have an entry for.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::native;

/// The list, beside a layer's `fs`.
const LIST: &str = "implied.json";

/// Writes the list of a layer that is being unpacked in `layer`.
pub(in super::super) fn save(layer: &Path, paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let path = layer.join(LIST);
    fs::write(&path, serde_json::to_vec(paths)?).with_context(|| format!("write {}", path.display()))
}

/// The lists of layers, of each by its `fs`, top first.
pub(super) struct Implied<'a> {
    layers: Vec<(&'a Path, BTreeSet<String>)>,
}

impl Implied<'_> {
    pub(super) fn read(lower: &[PathBuf]) -> Result<Implied<'_>> {
        let list = |files: &PathBuf| {
            let path = files.with_file_name(LIST);
            match fs::read(&path) {
                Ok(text) => serde_json::from_slice(&text).with_context(|| format!("read {}", path.display())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
                Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
            }
        };
        let layers = lower.iter().map(|files| Ok((files.as_path(), list(files)?)));
        Ok(Implied {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.layers.iter().all(|(_, list)| list.is_empty())
    }

    /// Gives the directories of `root`, which shows the layers, the attributes that they should have.
    pub(super) fn restore(&self, root: &Path) -> Result<()> {
        let paths: BTreeSet<&String> = self.layers.iter().flat_map(|(_, list)| list).collect();
        // From below: what is made in a directory changes its time.
        for path in paths.into_iter().rev() {
            let restored = self.source(path).and_then(|source| match source {
                Some(layer) => copy_attributes(layer, root, path),
                None => Ok(()),
            });
            restored.with_context(|| format!("attributes of {path:?}"))?;
        }
        Ok(())
    }

    /// The layer whose attributes the directory has, where it is not the topmost that has the directory.
    fn source(&self, path: &str) -> Result<Option<&Path>> {
        let mut is_implied = false;
        for (files, list) in &self.layers {
            match look(files, path)? {
                Seen::Nothing => {}
                Seen::End => return Ok(None),
                Seen::Directory { .. } if !list.contains(path) => return Ok(is_implied.then_some(*files)),
                Seen::Directory { is_last: true } => return Ok(None),
                Seen::Directory { is_last: false } => is_implied = true,
            }
        }
        Ok(None)
    }
}

/// What a layer says of a directory.
enum Seen {
    Nothing,
    /// It is not there, and none from the layers below either.
    End,
    /// It is there; `is_last` where those of the layers below are not the same directory's.
    Directory {
        is_last: bool,
    },
}

/// Goes down to `path`, through directories of the layer only: a link or a whiteout hides what is below it.
fn look(files: &Path, path: &str) -> Result<Seen> {
    let mut dir = open(
        File::open(files).with_context(|| format!("open {}", files.display()))?,
        ".",
    )?;
    let mut is_last = false;
    for name in path.split('/') {
        // Of the parent: an opaque directory keeps its own attributes and hides what it holds below.
        is_last |= native::is_opaque(dir.as_fd())?;
        let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if is_last => return Ok(Seen::End),
            Err(Errno::NOENT) => return Ok(Seen::Nothing),
            Err(errno) => return Err(errno).context("statat"),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Seen::End);
        }
        dir = open(dir, name)?;
    }
    Ok(Seen::Directory { is_last })
}

fn copy_attributes(layer: &Path, root: &Path, path: &str) -> Result<()> {
    let find = |top: &Path| {
        open(
            File::open(top).with_context(|| format!("open {}", top.display()))?,
            path,
        )
    };
    let (from, to) = (find(layer)?, find(root)?);
    let stat = rustix::fs::fstat(&from).context("fstat")?;
    native::set_attributes(from.as_fd(), to.as_fd(), c".", &stat)
}

/// Opens a directory below another, following no link.
fn open(dir: impl AsFd, path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(dir.as_fd(), OsStr::new(path), flags, Mode::empty(), within) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened.context("openat2 of a directory"),
        }
    }
}
