//! The overlay mount: many layers on one directory, with a writable one on top or without.
//!
//! A writable mount is `volatile`: without it overlayfs writes all of a container's changes to the disk when the root is
//! unmounted, a quarter of a second or more, for files that are deleted next. It is safe because a root is mounted once in
//! its life: after a crash of the machine its container is dead.
//!
//! The newest way is tried first. A kernel that lacks it says EINVAL or ENOSYS, and gets the next:
//!
//! | since Linux | way | layers |
//! |---|---|---|
//! | 6.8 | one `lowerdir+` per layer | 500, the kernel's own limit |
//! | 5.10 | all in one option, by descriptor, in one page | about 200 |
//! | 4.19 | the same, not `volatile` | about 200 |

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount as mount_2, move_mount,
};

/// A mount that is to be made.
pub(super) struct Overlay<'a> {
    /// Top first, as overlayfs wants them; two at least where nothing is writable.
    pub(super) lower: &'a [PathBuf],
    /// Where changes go, and overlayfs's own directory beside it; none for a read-only mount.
    pub(super) writable: Option<(&'a Path, &'a Path)>,
}

impl Overlay<'_> {
    /// Mounts it on an existing directory.
    pub(super) fn mount_on(&self, target: &Path) -> Result<()> {
        match self.mount_by_layer(target) {
            Err(error) if is_unknown(&error) => {}
            result => return result,
        }
        match self.mount_joined(target, true) {
            Err(error) if is_unknown(&error) && self.writable.is_some() => self.mount_joined(target, false),
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
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        if let Some((upper, work)) = self.writable {
            fsconfig_set_string(&context, "upperdir", upper).context("fsconfig upperdir")?;
            fsconfig_set_string(&context, "workdir", work).context("fsconfig workdir")?;
            fsconfig_set_flag(&context, "volatile").context("fsconfig volatile")?;
            attributes = MountAttrFlags::empty();
        }
        fsconfig_create(&context).context("fsconfig create")?;
        let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context("fsmount")?;
        move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context("move_mount")
    }

    /// Every layer in one option, whose length is limited to a page: so layers are named by descriptor.
    fn mount_joined(&self, target: &Path, volatile: bool) -> Result<()> {
        let open = |path: &Path| {
            fs::File::open(path)
                .map(OwnedFd::from)
                .with_context(|| format!("open {}", path.display()))
        };
        let layers: Vec<OwnedFd> = self.lower.iter().map(|lower| open(lower)).collect::<Result<_>>()?;
        let names: Vec<String> = layers.iter().map(fd_path).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        let mut flags = MountFlags::RDONLY;
        // Open until the mount stands.
        let mut writable = None;
        if let Some((upper, work)) = self.writable {
            let (upper, work) = writable.insert((open(upper)?, open(work)?));
            options += &format!(",upperdir={},workdir={}", fd_path(upper), fd_path(work));
            options += if volatile { ",volatile" } else { "" };
            flags = MountFlags::empty();
        }
        let options = std::ffi::CString::new(options).context("mount options")?;
        let mounted = mount_2("overlay", target, "overlay", flags, options.as_c_str());
        mounted.with_context(|| format!("mount overlay {options:?}"))
    }
}

/// Whether a mount failed because the kernel does not know a call or an option of it.
pub(super) fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(&Errno::INVAL | &Errno::NOSYS))
}

fn fd_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::super::unmount;
    use super::*;

    /// What older kernels get must work on newer ones too, with as many layers as an image may have.
    #[test]
    fn a_hundred_and_twenty_seven_layers_in_one_option() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::Builder::new().prefix(&"long-".repeat(20)).tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let lower: Vec<PathBuf> = (0..127).map(|number| make(&format!("lower-{number}"))).collect();
        for (number, layer) in lower.iter().enumerate() {
            fs::write(layer.join("top"), number.to_string()).unwrap();
            fs::write(layer.join(number.to_string()), "").unwrap();
        }
        let (upper, work, target) = (make("upper"), make("work"), make("target"));
        type Way = fn(&Overlay<'_>, &Path) -> Result<()>;
        let ways: [(&str, bool, Way); 4] = [
            ("volatile", true, |it, target| it.mount_joined(target, true)),
            ("not volatile", true, |it, target| it.mount_joined(target, false)),
            ("read-only", false, |it, target| it.mount_joined(target, true)),
            ("by layer, read-only", false, |it, target| it.mount_by_layer(target)),
        ];
        for (way, is_writable, mount) in ways {
            fs::remove_dir_all(&work).unwrap();
            fs::create_dir(&work).unwrap();
            let overlay = Overlay {
                lower: &lower,
                writable: is_writable.then_some((&upper, &work)),
            };
            mount(&overlay, &target).unwrap();
            let top = fs::read_to_string(target.join("top"));
            let count = fs::read_dir(&target).unwrap().count();
            let written = fs::write(target.join("written"), "").is_ok();
            unmount(&target).unwrap();
            assert_eq!((top.ok().as_deref(), written), (Some("0"), is_writable), "{way}");
            assert_eq!(count, 128, "{way}");
            fs::remove_file(upper.join("written")).ok();
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "unmounted");
        unmount(&target).unwrap();
    }
}
