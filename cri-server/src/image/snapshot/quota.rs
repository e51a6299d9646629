//! Project quotas: the filesystem counts what a container writes, and refuses what goes beyond a limit.
//!
//! Each container's writable directories belong to a project of their own, whose number is kept where the kernel keeps it,
//! in the directories. A free number is found by looking at all containers once, at the start. ext4 (feature `project`,
//! mount option `prjquota`) and XFS (`prjquota`) have such quotas; the calls need Linux 5.14.
//!
//! overlayfs writes without CAP_SYS_RESOURCE, so a limit holds for every container. On ext4 a copy (native) is written by
//! the container itself, and one that was given that capability is counted and not limited.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::sys::{self, PROJECT_INHERITED};
use super::usage::Usage;

/// What one container may write at most; what is absent is as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerLimits {
    /// Blocks, in bytes.
    pub bytes: Option<u64>,
    /// Files of every type.
    pub inodes: Option<u64>,
}

impl LayerLimits {
    /// The key of the configuration that asks for a limit, if one does.
    fn key(self) -> Option<&'static str> {
        match self {
            LayerLimits { bytes: Some(_), .. } => Some("storage.writable_layer_limit_bytes"),
            LayerLimits { inodes: Some(_), .. } => Some("storage.writable_layer_limit_inodes"),
            LayerLimits { .. } => None,
        }
    }
}

/// The first project of ours: far from the numbers that the kubelet (1048577 and on) and people use.
const FIRST_PROJECT: u32 = 0x4000_0000;

/// The projects of the containers below one directory.
#[derive(Debug)]
pub(super) struct Projects {
    containers: PathBuf,
    limits: LayerLimits,
    taken: Mutex<BTreeSet<u32>>,
}

impl Projects {
    /// The projects of the containers in `containers`; none where the filesystem does not count by project.
    pub(super) fn open(containers: &Path, limits: LayerLimits) -> Result<Option<Projects>> {
        let dir = File::open(containers).with_context(|| format!("open {}", containers.display()))?;
        let quotas = match (sys::project_quotas(dir.as_fd()), limits.key()) {
            (Ok(quotas), Some(key)) if !quotas.enforced => {
                bail!(missing(key, containers, "it does not enforce project quotas"))
            }
            (Ok(quotas), _) => quotas,
            (Err(error), Some(key)) => bail!(missing(key, containers, &error.to_string())),
            (Err(_none), None) => return Ok(None),
        };
        if !quotas.counted {
            return Ok(None);
        }
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(containers).with_context(|| format!("list {}", containers.display()))? {
            let entry = entry.with_context(|| format!("list {}", containers.display()))?;
            taken.extend(project_of(&entry.path()));
        }
        Ok(Some(Projects {
            containers: containers.to_owned(),
            limits,
            taken: Mutex::new(taken),
        }))
    }

    /// Gives the empty directories `writable` of one container a project.
    pub(super) fn assign(&self, writable: &[&Path]) -> Result<()> {
        let project = self.take_free();
        for path in writable {
            let dir = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let read = sys::attributes(dir.as_fd());
            let mut attributes = read.with_context(|| format!("FS_IOC_FSGETXATTR of {}", path.display()))?;
            attributes.project = project;
            attributes.flags |= PROJECT_INHERITED;
            sys::set_attributes(dir.as_fd(), attributes)
                .with_context(|| format!("FS_IOC_FSSETXATTR of {}: project {project}", path.display()))?;
            // Also without a limit: an earlier container of this number may have had one.
            let (bytes, inodes) = (self.limits.bytes.unwrap_or(0), self.limits.inodes.unwrap_or(0));
            sys::limit_project(dir.as_fd(), project, bytes, inodes)
                .with_context(|| format!("quotactl Q_SETQUOTA of project {project}: {bytes} bytes, {inodes} inodes"))?;
        }
        Ok(())
    }

    /// What the container in `dir` uses; none if it has no project.
    pub(super) fn usage(&self, dir: &Path) -> Option<Usage> {
        let project = project_of(dir)?;
        let root = File::open(&self.containers).ok()?;
        let (bytes, inodes) = sys::project_usage(root.as_fd(), project).ok()?;
        Some(Usage { bytes, inodes })
    }

    /// Gives a project back, of which there are no files any more.
    pub(super) fn release(&self, project: u32) {
        self.taken().remove(&project);
    }

    fn take_free(&self) -> u32 {
        let mut taken = self.taken();
        let free = (FIRST_PROJECT..).find(|project| !taken.contains(project));
        let free = free.expect("there are fewer containers than numbers");
        taken.insert(free);
        free
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        // A set is whole between two operations.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The project of the container whose files are in `dir`, if it is one of ours.
pub(super) fn project_of(dir: &Path) -> Option<u32> {
    let writable = super::writable_dir(dir)?;
    let opened = File::open(writable).ok()?;
    let attributes = sys::attributes(opened.as_fd()).ok()?;
    (attributes.project >= FIRST_PROJECT).then_some(attributes.project)
}

fn missing(key: &str, containers: &Path, why: &str) -> String {
    format!(
        "{key}: the filesystem of {} must have project quotas (mounted with prjquota): {why}",
        containers.display()
    )
}
