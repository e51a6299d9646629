//! The filesystem that containers' writable layers are on, and the names of block devices.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A filesystem as it is at one call.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    /// Where it is mounted.
    pub(super) mountpoint: PathBuf,
    /// Numbers of its device.
    pub(super) device: (u32, u32),
    /// Bytes it has room for; less, where containers are limited.
    pub(super) limit_bytes: u64,
    /// Inodes; a filesystem that makes them as needed says 0.
    pub(super) inodes: u64,
    pub(super) free_inodes: u64,
}

impl Disk {
    /// The filesystem of `dir`, where each container may write `limit` bytes.
    pub(super) fn of(dir: &Path, limit: Option<u64>) -> Disk {
        let device = dir.metadata().map(|metadata| metadata.dev()).unwrap_or_default();
        let mut disk = Disk {
            mountpoint: mountpoint(dir),
            device: (libc::major(device), libc::minor(device)),
            ..Disk::default()
        };
        if let Ok(stat) = rustix::fs::statvfs(dir) {
            let size = stat.f_blocks.saturating_mul(stat.f_frsize);
            disk.limit_bytes = limit.map_or(size, |limit| limit.min(size));
            (disk.inodes, disk.free_inodes) = (stat.f_files, stat.f_ffree);
        }
        disk
    }
}

/// The topmost directory above `path` that is on the same filesystem.
pub(crate) fn mountpoint(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_gone| path.to_owned());
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let own = device(&path);
    path.ancestors()
        .take_while(|above| device(above) == own)
        .last()
        .unwrap_or(&path)
        .to_owned()
}

/// Names of block devices, each looked up once.
#[derive(Default)]
pub(super) struct DeviceNames(HashMap<(u32, u32), String>);

impl DeviceNames {
    /// `/dev/NAME`; its numbers for what is no block device, as btrfs's own.
    pub(super) fn name(&mut self, (major, minor): (u32, u32)) -> &str {
        self.0.entry((major, minor)).or_insert_with(|| {
            let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
            match link.file_name() {
                Some(name) => format!("/dev/{}", name.to_string_lossy()),
                None => format!("{major}:{minor}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mountpoint_is_above_and_on_the_same_device() {
        assert_eq!(mountpoint(Path::new("/proc/self/")), Path::new("/proc"));
        assert_eq!(mountpoint(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn a_filesystem_and_a_limit_below_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Disk::of(dir.path(), None);
        assert!(whole.limit_bytes > 1 << 20 && dir.path().canonicalize().unwrap().starts_with(&whole.mountpoint));
        assert_eq!(Disk::of(dir.path(), Some(4096)).limit_bytes, 4096);
        assert_eq!(Disk::of(dir.path(), Some(u64::MAX)).limit_bytes, whole.limit_bytes);
    }

    #[test]
    fn devices_without_a_name() {
        let mut names = DeviceNames::default();
        assert_eq!(names.name((0, 999)), "0:999");
        for entry in fs::read_dir("/sys/dev/block").into_iter().flatten().flatten().take(1) {
            let numbers = entry.file_name().into_string().unwrap();
            let (major, minor) = numbers.split_once(':').unwrap();
            let name = names.name((major.parse().unwrap(), minor.parse().unwrap()));
            assert!(name.starts_with("/dev/"), "{name}");
        }
    }
}
