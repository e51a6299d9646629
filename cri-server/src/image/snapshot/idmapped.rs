//! Layers as a user namespace sees them, so that pods with one share the layers of all others.
//!
//! The kernel (6.18 is the newest we know) cannot map the ids of an overlayfs mount itself, so its layers have to be mapped
//! (Linux 5.19 takes such). One mount per layer would cost a container of 60 layers 60 mounts, each under the lock of the
//! whole machine's mount table. Instead the one directory that holds all layers is cloned and mapped, once; overlayfs finds
//! every layer below that clone. What a container writes needs no mapping: it is written with the ids its processes have.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use corten_proto::id::Digest;
use corten_runtime::sys::mount::map_ids;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};

use super::{clone_tree, make_dir, unmount};

/// The directory of all layers, mounted with other ids.
pub(super) struct MappedLayers {
    mount: OwnedFd,
    /// Where it can be reached.
    path: PathBuf,
}

/// A mount in the machine's tree; unmounted by its drop.
pub(super) struct Attached(PathBuf);

impl MappedLayers {
    /// Maps the ids of everything in `layers` by `user_namespace`. The mount is nowhere in the tree and goes with this.
    pub(super) fn new(layers: &Path, user_namespace: BorrowedFd<'_>) -> Result<MappedLayers> {
        let dir = File::open(layers).with_context(|| format!("open {}", layers.display()))?;
        let mount = clone_tree(dir.as_fd(), "")?;
        map_ids(mount.as_fd(), false, user_namespace)
            .with_context(|| format!("mount_setattr MOUNT_ATTR_IDMAP of {}", layers.display()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(MappedLayers { mount, path })
    }

    /// Mounts it on `at`, which is made, for kernels that take layers from the tree only. The guard ends that; overlayfs
    /// has mounts of its own by then.
    pub(super) fn attach(&mut self, at: &Path) -> Result<Attached> {
        make_dir(at)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.mount, "", CWD, at, flags).with_context(|| format!("move_mount to {}", at.display()))?;
        self.path = at.to_owned();
        Ok(Attached(at.to_owned()))
    }

    /// The files of a layer.
    pub(super) fn layer(&self, layer: &Digest) -> PathBuf {
        self.path.join(layer.hex()).join("fs")
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let removed = unmount(&self.0)
            .and_then(|()| std::fs::remove_dir(&self.0).with_context(|| format!("remove {}", self.0.display())));
        if let Err(error) = removed {
            tracing::warn!("unmount mapped layers: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::super::overlay::Overlay;
    use super::*;

    /// Kernels before 6.15 get their layers from the tree; on newer ones it must work too.
    #[test]
    fn attached_layers() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let layer: Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
        let files = dir.path().join("layers").join(layer.hex()).join("fs");
        for name in ["upper", "work", "target"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("a"), "").unwrap();
        let mut unshare = Command::new("unshare");
        let mut process = unshare.args(["--user", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        while fs::read_link(proc.join("ns/user")).unwrap() == fs::read_link("/proc/self/ns/user").unwrap() {
            std::thread::yield_now();
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(proc.join(map), "0 100000 65536").unwrap();
        }
        let namespace = File::open(proc.join("ns/user")).unwrap();
        let mut mapped = MappedLayers::new(&dir.path().join("layers"), namespace.as_fd()).unwrap();
        let at = dir.path().join("attached");
        let attached = mapped.attach(&at).unwrap();
        assert!(mapped.layer(&layer).starts_with(&at));
        let overlay = Overlay {
            lower: &[mapped.layer(&layer)],
            writable: Some((&dir.path().join("upper"), &dir.path().join("work"))),
        };
        let target = dir.path().join("target");
        overlay.mount_on(&target).unwrap();
        drop(attached);
        let owner = fs::metadata(target.join("a")).map(|metadata| metadata.uid());
        unmount(&target).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(owner.unwrap(), 100_000);
        assert!(!at.exists(), "unmounted and removed, while the overlay stood");
    }
}
