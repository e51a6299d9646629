//! ImageFsInfo: what images and containers take, from accounts.
//!
//! Two filesystems, or one: the kubelet sees by the equal mountpoints whether there is one disk to watch or two. Layers are
//! counted when they are unpacked, what containers write by the filesystem or by a walk in the background
//! (`image::snapshot`); a call walks nothing.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use corten_proto::cri;

use crate::image::ImageStore;
use crate::image::snapshot::{Snapshots, Usage};
use crate::stats::mountpoint;

/// Where the filesystems of images and of containers are mounted.
pub(super) struct Mountpoints {
    images: PathBuf,
    containers: PathBuf,
}

impl Mountpoints {
    /// Of these directories, which do not move while the server runs.
    pub(super) fn of(images: &ImageStore, snapshots: &Snapshots) -> Self {
        Mountpoints {
            images: mountpoint(images.root()),
            containers: mountpoint(snapshots.containers()),
        }
    }
}

/// The usage of all layers, and that of all writable layers. Blocks for a few calls of the filesystem.
pub(super) fn response(images: &ImageStore, snapshots: &Snapshots, at: &Mountpoints) -> cri::ImageFsInfoResponse {
    let (bytes, inodes) = images.usage();
    let layers = (Usage { bytes, inodes }, SystemTime::now());
    cri::ImageFsInfoResponse {
        image_filesystems: vec![filesystem(&at.images, layers)],
        container_filesystems: vec![filesystem(&at.containers, snapshots.total_usage())],
    }
}

fn filesystem(mountpoint: &Path, (usage, found_at): (Usage, SystemTime)) -> cri::FilesystemUsage {
    let since_epoch = found_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    cri::FilesystemUsage {
        timestamp: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: mountpoint.display().to_string(),
        }),
        // Never absent: the kubelet reads it without looking.
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    }
}
