//! What is mounted of an image's layers: containers' roots, with everything a container writes in a directory of its own,
//! and read-only views for image volumes.
//!
//! ```text
//! containers/ID/upper/          what the container changed
//!               work/           overlayfs's own
//!               lower-N/        empty; stand in for layers where an image has too few
//!               layers/         the mapped layers, only while a root is mounted on an older kernel
//!               root/           instead of upper and work: the container's whole copy (native)
//!               volumes/N/      an image volume: mount, and what it is made of (view)
//! ```
//! | module | owns |
//! |---|---|
//! | `overlay` | the mount of many layers on one directory |
//! | `native` | the copy, where overlayfs cannot be mounted |
//! | `implied` | directories whose attributes a layer does not tell |
//! | `idmapped` | layers as a user namespace sees them: one mapped mount, however many layers |
//! | `view` | read-only views with sub-paths |
//! | `changes` | what a container has made of its root, for checkpoints |
//! | `usage`, `quota`, `sys` | what containers have written, and how much they may |
//!
//! Which of overlayfs and native a node uses is decided once, when the server starts: a kernel that refused one root would
//! refuse the next, and a container's copy can cost minutes and gigabytes, which must not come as a surprise.

pub(crate) mod changes;
mod idmapped;
pub(super) mod implied;
mod native;
mod overlay;
mod quota;
mod sys;
mod usage;
mod view;

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use corten_proto::id::Digest;
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_change, open_tree, unmount as umount,
};
use serde::{Deserialize, Serialize};

use self::idmapped::MappedLayers;
use self::implied::Implied;
use self::overlay::Overlay;
use self::usage::Accounts;
use super::store::ImageStore;
use crate::tree;

pub use self::changes::Changes;
pub use self::quota::LayerLimits;
pub use self::usage::Usage;
pub use self::view::{Volume, unmount_volumes};

/// Ways to make a container's root filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snapshotter {
    /// [`Snapshotter::Overlayfs`] where the kernel can mount it there, else [`Snapshotter::Native`].
    #[default]
    Auto,
    /// A mount of the image's layers; no copy is made.
    Overlayfs,
    /// A copy of all layers for every container.
    Native,
}

/// How this node makes roots and views, and the accounts of what containers write.
pub struct Snapshots {
    images: Arc<ImageStore>,
    /// The directory of the containers' directories.
    containers: PathBuf,
    native: bool,
    accounts: Accounts,
}

/// A container's root that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Root<'a> {
    /// Diff ids, bottom first, which the caller has leased.
    pub layers: &'a [Digest],
    /// The container's directory, which exists; what is made in it is the caller's to remove.
    pub dir: &'a Path,
    /// The existing directory to mount on.
    pub target: &'a Path,
    /// The user namespace whose ids the files are to have; none for the node's.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

impl Snapshots {
    /// Roots for containers whose directories are in `containers`, which exists. No container may write
    /// more than `limits`; an error if the filesystem there cannot hold it to that, or if `wanted` cannot be had.
    pub fn open(
        images: Arc<ImageStore>,
        containers: &Path,
        wanted: Snapshotter,
        limits: LayerLimits,
    ) -> Result<Arc<Snapshots>> {
        let native = is_native(wanted, containers)?;
        let accounts = Accounts::open(containers, limits)?;
        let counted_by = match &accounts {
            Accounts::Projects(_) => "project quotas",
            Accounts::Walk(_) => "walking",
        };
        let snapshotter = if native { "native" } else { "overlayfs" };
        tracing::info!(snapshotter, counted_by, ?limits, "roots of containers");
        Ok(Arc::new(Snapshots {
            images,
            containers: containers.to_owned(),
            native,
            accounts,
        }))
    }

    /// Makes a container's root and mounts it. On failure nothing is mounted.
    pub fn mount(&self, root: &Root<'_>) -> Result<()> {
        self.mount_changed(root, None)
    }

    /// The same, with changes over the image's files.
    pub fn mount_changed(&self, root: &Root<'_>, changes: Option<&Changes>) -> Result<()> {
        ensure!(
            changes.is_none() || self.tells_changes(),
            "roots are copies here: nothing can be restored"
        );
        let mounted = self.with_layers(root.layers, root.user_namespace, root.dir, |lower| match self.native {
            true => self.mount_copy(root, lower),
            false => self.mount_overlay(root, changes, lower),
        });
        mounted.with_context(|| format!("mount {} layers on {}", root.layers.len(), root.target.display()))
    }

    /// What the container in `dir` has written, and when that was found; none where it is not known (yet).
    #[must_use]
    pub fn usage(&self, dir: &Path) -> Option<(Usage, SystemTime)> {
        self.accounts.of(dir)
    }

    /// What all containers have written together, and when that was found.
    #[must_use]
    pub fn total_usage(&self) -> (Usage, SystemTime) {
        self.accounts.total(&self.containers)
    }

    /// The directory that containers' directories are in.
    #[must_use]
    pub fn containers(&self) -> &Path {
        &self.containers
    }

    /// Removes the container's directory `dir`, in which nothing is mounted, whatever there is of it.
    pub fn remove(&self, dir: &Path) -> Result<()> {
        let project = self.accounts.project(dir);
        tree::remove(dir)?;
        // Only now: until its files are gone, nobody else may have its number.
        self.accounts.release(project);
        Ok(())
    }

    /// Calls `mount` with the layers' directories, top first, as the user namespace sees them; a second time, if need be,
    /// for which it has to undo what it began. `dir` is for what stands there meanwhile.
    fn with_layers(
        &self,
        layers: &[Digest],
        user_namespace: Option<BorrowedFd<'_>>,
        dir: &Path,
        mount: impl Fn(Vec<PathBuf>) -> Result<()>,
    ) -> Result<()> {
        let Some(user_namespace) = user_namespace else {
            return mount(self.lower_dirs(layers, None));
        };
        let mut mapped = MappedLayers::new(&self.images.root().join("layers"), user_namespace)?;
        match mount(self.lower_dirs(layers, Some(&mapped))) {
            // Before Linux 6.15 overlayfs takes no layer from a mount that is nowhere in the tree.
            Err(error) if !self.native && overlay::is_unknown(&error) => {
                let _attached = mapped.attach(&dir.join("layers"))?;
                mount(self.lower_dirs(layers, Some(&mapped)))
            }
            result => result,
        }
    }

    fn mount_overlay(&self, root: &Root<'_>, changes: Option<&Changes>, mut lower: Vec<PathBuf>) -> Result<()> {
        self.undo_writable(root.dir)?;
        fill(&mut lower, 1, root.dir)?;
        let upper = make_upper(&lower[0], &root.dir.join("upper"))?;
        let work = root.dir.join("work");
        make_dir(&work)?;
        if let Accounts::Projects(projects) = &self.accounts {
            projects.assign(&[&upper, &work])?;
        }
        if let Some(changes) = changes {
            changes.unpack(&upper)?;
        }
        let overlay = Overlay {
            lower: &lower,
            writable: Some((&upper, &work)),
        };
        overlay.mount_on(root.target)?;
        let restored = Implied::read(&lower).and_then(|implied| implied.restore(root.target));
        let restored = restored.and_then(|()| changes.map_or(Ok(()), |changes| changes.delete(root.target)));
        restored.or_else(|error| {
            unmount(root.target)?;
            Err(error)
        })
    }

    /// Removes what a mount that failed has made.
    fn undo_writable(&self, dir: &Path) -> Result<()> {
        let project = self.accounts.project(dir);
        let made = ["upper", "work"].map(|name| dir.join(name)).into_iter();
        for path in made.filter(|path| path.exists()) {
            tree::remove(&path)?;
        }
        self.accounts.release(project);
        Ok(())
    }

    fn mount_copy(&self, root: &Root<'_>, mut lower: Vec<PathBuf>) -> Result<()> {
        fill(&mut lower, 1, root.dir)?;
        let copy = make_upper(&lower[0], &root.dir.join("root"))?;
        if let Accounts::Projects(projects) = &self.accounts {
            projects.assign(&[&copy])?;
        }
        for layer in lower.iter().rev() {
            native::copy(layer, &copy).with_context(|| format!("copy {}", layer.display()))?;
        }
        Implied::read(&lower)?.restore(&copy)?;
        mount_bind(&copy, root.target).with_context(|| format!("mount --bind {}", copy.display()))?;
        // Else what is mounted in the container's root would appear in its directory too, and hold it.
        mount_change(root.target, MountPropagationFlags::PRIVATE).context("make the mount private")
    }

    /// The layers' directories, top first, each once.
    ///
    /// overlayfs refuses a directory twice. Of two occurrences the lower one shows nothing that the upper does not.
    fn lower_dirs(&self, layers: &[Digest], mapped: Option<&MappedLayers>) -> Vec<PathBuf> {
        let mut lower: Vec<PathBuf> = Vec::new();
        for layer in layers.iter().rev() {
            let path = match mapped {
                Some(mapped) => mapped.layer(layer),
                None => self.images.layer_path(layer),
            };
            if !lower.contains(&path) {
                lower.push(path);
            }
        }
        lower
    }
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

/// Whether roots are copies.
fn is_native(wanted: Snapshotter, containers: &Path) -> Result<bool> {
    if wanted == Snapshotter::Native {
        return Ok(true);
    }
    let Err(error) = try_overlay(containers) else {
        return Ok(false);
    };
    if wanted == Snapshotter::Overlayfs {
        return Err(error.context("storage.snapshotter: overlayfs cannot be mounted here"));
    }
    let error = format!("{error:#}");
    tracing::warn!(error, "no overlayfs here: every container gets a copy of its image");
    Ok(true)
}

/// Mounts an overlay as a container's would be, and unmounts it.
pub(crate) fn try_overlay(containers: &Path) -> Result<()> {
    let dir = containers.join(".trial");
    let trial = || -> Result<()> {
        // What a killed server left of its trial.
        unmount(&dir.join("target"))?;
        tree::remove(&dir)?;
        make_dir(&dir)?;
        for name in ["lower", "upper", "work", "target"] {
            make_dir(&dir.join(name))?;
        }
        let overlay = Overlay {
            lower: &[dir.join("lower")],
            writable: Some((&dir.join("upper"), &dir.join("work"))),
        };
        overlay.mount_on(&dir.join("target"))?;
        unmount(&dir.join("target"))
    };
    let result = trial();
    tree::remove(&dir)?;
    result
}

/// Maps the ids of a mount of `directory` that is nowhere in the tree.
pub(crate) fn try_mapped(directory: &Path, user_namespace: BorrowedFd<'_>) -> Result<()> {
    MappedLayers::new(directory, user_namespace).map(drop)
}

/// Whether the filesystem of `directory` refuses what goes beyond a project's limit.
pub(crate) fn enforces_project_quotas(directory: &Path) -> bool {
    let opened = fs::File::open(directory);
    opened.is_ok_and(|it| sys::project_quotas(it.as_fd()).is_ok_and(|quotas| quotas.enforced))
}

/// Adds empty directories below `dir` until there are `least`.
fn fill(lower: &mut Vec<PathBuf>, least: usize, dir: &Path) -> Result<()> {
    while lower.len() < least {
        let empty = dir.join(format!("lower-{}", lower.len()));
        // A second try finds the first one's.
        if !empty.exists() {
            make_dir(&empty)?;
        }
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).context("chmod of an empty layer")?;
        lower.push(empty);
    }
    Ok(())
}

/// The writable layer. Its root is the container's `/`, so it takes owner and mode of the top layer's.
fn make_upper(top: &Path, upper: &Path) -> Result<PathBuf> {
    make_dir(upper)?;
    let root = fs::metadata(top).with_context(|| format!("stat {}", top.display()))?;
    chown(upper, Some(root.uid()), Some(root.gid())).context("chown of the writable layer")?;
    let mode = fs::Permissions::from_mode(root.mode() & 0o7777);
    fs::set_permissions(upper, mode).context("chmod of the writable layer")?;
    Ok(upper.to_owned())
}

/// The directory of what a container has written, of the container directory `dir`.
fn writable_dir(dir: &Path) -> Option<PathBuf> {
    ["upper", "root"]
        .map(|name| dir.join(name))
        .into_iter()
        .find(|it| it.is_dir())
}

fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(path);
    made.with_context(|| format!("create {}", path.display()))
}

/// A mount of its own of what is at `path` of an open directory; of the directory itself for the empty path.
fn clone_tree(dir: BorrowedFd<'_>, path: &str) -> Result<std::os::fd::OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(dir, path, flags).context("open_tree OPEN_TREE_CLONE")
}
