//! A container's root: one overlay of its image's layers, with everything it writes in a directory of its own.
//!
//! ```text
//! containers/ID/upper/   what the container changed
//!               work/    overlayfs's own
//!               lower/   empty; the lower directory of an image without layers
//! ```
//! The mount is `volatile`: without it overlayfs writes all of a container's changes to the disk when the root is
//! unmounted, a quarter of a second or more, for files that are deleted next. It is safe because a root is mounted once in its
//! life: after a crash of the machine its container is dead. Left out: idmapped layers, quotas.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use corten_proto::id::Digest;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount as mount_2, move_mount, unmount as umount,
};

use super::store::ImageStore;

/// Mounts `layers` (bottom first) with a writable layer kept in `dir` on the existing directory `target`.
///
/// The caller holds a lease of the layers. On failure nothing is mounted; `dir` is the caller's to remove.
pub fn mount(store: &ImageStore, layers: &[Digest], dir: &Path, target: &Path) -> Result<()> {
    let lower = lower_dirs(store, layers, dir)?;
    let upper = make_upper(&lower[0], dir)?;
    let work = dir.join("work");
    make_dir(&work)?;
    let overlay = Overlay {
        lower: &lower,
        upper: &upper,
        work: &work,
    };
    overlay
        .mount_on(target)
        .with_context(|| format!("mount overlay of {} layers on {}", layers.len(), target.display()))
}

/// Unmounts a container's root. Where nothing is mounted there is nothing to do.
///
/// Detached: a container's last process may still hold a file, and the mount goes with it.
pub fn unmount(target: &Path) -> Result<()> {
    match umount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL is "not a mount point" for this call; ENOENT a target that is gone.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("umount2 {} MNT_DETACH", target.display())),
    }
}

struct Overlay<'a> {
    /// Top first, as overlayfs wants them.
    lower: &'a [PathBuf],
    upper: &'a Path,
    work: &'a Path,
}

impl Overlay<'_> {
    fn mount_on(&self, target: &Path) -> Result<()> {
        match self.mount_by_layer(target) {
            // "lowerdir+" is Linux 6.8's, the mount API 5.2's.
            Err(error) if is_unknown(&error) => {}
            result => return result,
        }
        match self.mount_joined(target, ",volatile") {
            // 5.10's.
            Err(error) if is_unknown(&error) => self.mount_joined(target, ""),
            result => result,
        }
    }

    /// One option per layer: no limit but the number of layers, and the mount table shows their paths.
    fn mount_by_layer(&self, target: &Path) -> Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen overlay")?;
        for lower in self.lower {
            let set = fsconfig_set_string(&context, "lowerdir+", lower);
            set.with_context(|| format!("fsconfig lowerdir+={}", lower.display()))?;
        }
        fsconfig_set_string(&context, "upperdir", self.upper).context("fsconfig upperdir")?;
        fsconfig_set_string(&context, "workdir", self.work).context("fsconfig workdir")?;
        fsconfig_set_flag(&context, "volatile").context("fsconfig volatile")?;
        fsconfig_create(&context).context("fsconfig create")?;
        let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("fsmount")?;
        move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context("move_mount")
    }

    /// Every layer in one option, whose length is limited to a page: so layers are named by descriptor.
    fn mount_joined(&self, target: &Path, more_options: &str) -> Result<()> {
        let open = |path: &PathBuf| {
            fs::File::open(path)
                .map(OwnedFd::from)
                .with_context(|| format!("open {}", path.display()))
        };
        let layers: Vec<OwnedFd> = self.lower.iter().map(open).collect::<Result<_>>()?;
        let names: Vec<String> = layers.iter().map(fd_path).collect();
        let (upper, work) = (open(&self.upper.to_owned())?, open(&self.work.to_owned())?);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}{more_options}",
            names.join(":"),
            fd_path(&upper),
            fd_path(&work)
        );
        let options = std::ffi::CString::new(options).context("mount options")?;
        mount_2("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mount overlay {options:?}"))
    }
}

/// Whether a mount failed because the kernel does not know a call or an option of it.
fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(&Errno::INVAL | &Errno::NOSYS))
}

fn fd_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The layers' directories, top first, each once.
///
/// overlayfs refuses a directory twice. Of two occurrences the lower one shows nothing that the upper does not.
fn lower_dirs(store: &ImageStore, layers: &[Digest], dir: &Path) -> Result<Vec<PathBuf>> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for path in layers.iter().rev().map(|layer| store.layer_path(layer)) {
        if !lower.contains(&path) {
            lower.push(path);
        }
    }
    if lower.is_empty() {
        let empty = dir.join("lower");
        make_dir(&empty)?;
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).context("chmod of the empty layer")?;
        lower.push(empty);
    }
    Ok(lower)
}

/// The writable layer. Its root is the container's `/`, so it takes owner and mode of the top layer's.
fn make_upper(top: &Path, dir: &Path) -> Result<PathBuf> {
    let upper = dir.join("upper");
    make_dir(&upper)?;
    let root = fs::metadata(top).with_context(|| format!("stat {}", top.display()))?;
    chown(&upper, Some(root.uid()), Some(root.gid())).context("chown of the writable layer")?;
    let mode = fs::Permissions::from_mode(root.mode() & 0o7777);
    fs::set_permissions(&upper, mode).context("chmod of the writable layer")?;
    Ok(upper)
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernels before 6.8 get must work on newer ones too.
    #[test]
    fn layers_in_one_option() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let lower = [make("top"), make("bottom")];
        fs::write(lower[0].join("a"), "top").unwrap();
        fs::write(lower[1].join("a"), "bottom").unwrap();
        fs::write(lower[1].join("b"), "bottom").unwrap();
        let (upper, work, target) = (make("upper"), make("work"), make("target"));
        let overlay = Overlay {
            lower: &lower,
            upper: &upper,
            work: &work,
        };
        overlay.mount_joined(&target, ",volatile").unwrap();
        let read = |name: &str| fs::read_to_string(target.join(name));
        let seen = (read("a").ok(), read("b").ok());
        unmount(&target).unwrap();
        assert_eq!(seen, (Some("top".into()), Some("bottom".into())));
        assert!(read("b").is_err(), "unmounted");
        unmount(&target).unwrap();
    }
}
