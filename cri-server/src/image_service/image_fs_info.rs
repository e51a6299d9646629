//! ImageFsInfo: what images take, from the store's accounts.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use corten_proto::cri;

use crate::image::ImageStore;

/// The usage of all layers. Containers are on the same filesystem; the kubelet sees by the equal mountpoints that there is
/// one disk to watch and not two.
pub(super) fn response(images: &ImageStore, mountpoint: &Path) -> cri::ImageFsInfoResponse {
    let (bytes, inodes) = images.usage();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let usage = cri::FilesystemUsage {
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: mountpoint.display().to_string(),
        }),
        // Never absent: the kubelet reads it without looking.
        used_bytes: Some(cri::UInt64Value { value: bytes }),
        inodes_used: Some(cri::UInt64Value { value: inodes }),
    };
    cri::ImageFsInfoResponse {
        image_filesystems: vec![usage.clone()],
        container_filesystems: vec![usage],
    }
}

/// The topmost directory above `path` that is on the same filesystem.
pub(super) fn mountpoint(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_gone| path.to_owned());
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let own = device(&path);
    path.ancestors()
        .take_while(|above| device(above) == own)
        .last()
        .unwrap_or(&path)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mountpoint_is_above_and_on_the_same_device() {
        assert_eq!(mountpoint(Path::new("/proc/self/")), Path::new("/proc"));
        assert_eq!(mountpoint(Path::new("/")), Path::new("/"));
    }
}
