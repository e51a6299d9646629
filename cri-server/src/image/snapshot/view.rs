//! Read-only views of images, for image volumes: a whole image, or what is at a path inside.
//!
//! ```text
//! volumes/N/whole/    the image, mounted (or copied, where overlayfs cannot be)
//!           mount     what the container is to see: a mount of `whole`, or of a directory or file inside
//! ```
//! The sub-path is the pod's word and what lies there the image's, so it is resolved by the kernel with `whole` as the root:
//! links in the image lead nowhere else (openat2, RESOLVE_IN_ROOT). `whole` is unmounted again once `mount` stands.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use corten_proto::id::Digest;
use corten_runtime::sys::mount::{Attributes, mount_setattr};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::implied::Implied;
use super::overlay::Overlay;
use super::{Snapshots, clone_tree, fill, make_dir, make_upper, native, unmount};
use crate::tree;

/// A view that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    /// Diff ids, bottom first, which the caller has leased.
    pub layers: &'a [Digest],
    /// A directory for this view alone, which is made; its parent exists.
    pub dir: &'a Path,
    /// What to show of the image; empty for all of it.
    pub sub_path: &'a str,
    /// The user namespace whose ids the files are to have; none for the node's.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

impl Snapshots {
    /// Makes a view and mounts it. Gives the path to bind into a container: a directory, or a file where the sub-path
    /// names one. On failure nothing is mounted.
    pub fn view(&self, volume: &Volume<'_>) -> Result<PathBuf> {
        make_dir(volume.dir)?;
        let whole = volume.dir.join("whole");
        make_dir(&whole)?;
        self.show_whole(volume, &whole)?;
        let shown = show(&whole, volume.sub_path, &volume.dir.join("mount"));
        unmount(&whole)?;
        shown
    }

    /// All of the image, at `whole`.
    fn show_whole(&self, volume: &Volume<'_>, whole: &Path) -> Result<()> {
        self.with_layers(volume.layers, volume.user_namespace, volume.dir, |mut lower| {
            if self.native {
                let copied = lower.iter().rev().try_for_each(|layer| native::copy(layer, whole));
                copied.context("copy the image")?;
                return Implied::read(&lower)?.restore(whole);
            }
            let implied = Implied::read(&lower)?;
            if !implied.is_empty() {
                return restored_on(whole, &lower, &implied, volume.dir);
            }
            // overlayfs without a writable layer wants two others.
            fill(&mut lower, 2, volume.dir)?;
            let overlay = Overlay {
                lower: &lower,
                writable: None,
            };
            overlay.mount_on(whole).context("mount the image")
        })
    }
}

/// Mounts layers of which some leave attributes of directories to others. They need a place to be written to; the view that
/// is made of the mount is read-only.
fn restored_on(whole: &Path, lower: &[PathBuf], implied: &Implied<'_>, dir: &Path) -> Result<()> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for left in [&upper, &work].into_iter().filter(|path| path.exists()) {
        tree::remove(left)?;
    }
    make_upper(&lower[0], &upper)?;
    make_dir(&work)?;
    let overlay = Overlay {
        lower,
        writable: Some((&upper, &work)),
    };
    overlay.mount_on(whole).context("mount the image")?;
    implied.restore(whole).or_else(|error| {
        unmount(whole)?;
        Err(error)
    })
}

/// Unmounts the views in `volumes`, a container's directory of them, which need not exist.
pub fn unmount_volumes(volumes: &Path) -> Result<()> {
    for entry in fs::read_dir(volumes).into_iter().flatten() {
        let dir = entry.with_context(|| format!("list {}", volumes.display()))?.path();
        for mounted in ["mount", "whole"] {
            unmount(&dir.join(mounted))?;
        }
    }
    Ok(())
}

/// Mounts what is at `sub_path` of `whole` on `target`, which is made.
fn show(whole: &Path, sub_path: &str, target: &Path) -> Result<PathBuf> {
    let found = resolve(whole, sub_path)?;
    let stat = rustix::fs::fstat(&found).context("fstat of the sub-path")?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => make_dir(target)?,
        FileType::RegularFile => drop(File::create(target).with_context(|| format!("create {}", target.display()))?),
        other => bail!("sub-path {sub_path:?}: must be a directory or a regular file, not {other:?}"),
    }
    let mount = clone_tree(found.as_fd(), "")?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    mount_setattr(mount.as_fd(), false, &read_only).context("mount_setattr MOUNT_ATTR_RDONLY")?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("move_mount to {}", target.display()))?;
    Ok(target.to_owned())
}

fn resolve(whole: &Path, sub_path: &str) -> Result<OwnedFd> {
    if Path::new(sub_path)
        .components()
        .any(|part| part == Component::ParentDir)
    {
        bail!("sub-path {sub_path:?}: must not hold ..");
    }
    let root = File::open(whole).with_context(|| format!("open {}", whole.display()))?;
    let path = if sub_path.is_empty() { "." } else { sub_path };
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within) {
            // A rename or mount anywhere while a `..` of a link was crossed (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => bail!("sub-path {sub_path:?}: the image has no such path"),
            Err(errno) => return Err(anyhow!(errno).context(format!("openat2 of sub-path {sub_path:?}"))),
            Ok(found) => return Ok(found),
        }
    }
}
