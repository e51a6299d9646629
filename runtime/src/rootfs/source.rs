//! Where the mounts of a container come from: everything that has a path on the host, and the copies of it.
//!
//! Opened by the parent, as the host's root: a user namespace's root may not be able to reach the paths. A copy is
//! private, or has the propagation that its options or `linux.rootfsPropagation` give it; a peer of the host's mount it
//! is only where that is asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sched::CloneFlags;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{FileType, fstat};

use super::idmap::Idmaps;
use super::options::{Bind, Options, Propagation};
use super::{dev, linux, mask, mount, mount_options, spec_mounts};
use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup, CgroupPaths};
use crate::namespaces::Namespaces;

/// What the parent opens before there is an init: everything that has a path on the host.
#[derive(Debug)]
pub struct Sources {
    pub(super) root: OwnedFd,
    pub(super) mounts: Vec<Source>,
    pub(super) devices: Vec<dev::Device>,
    pub(super) null: OwnedFd,
    pub(super) user_namespace: bool,
}

/// Where a mount comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// A filesystem of this kind, made in init's namespaces.
    Filesystem(String),
    /// A path to bind, opened by init and copied once it is its turn: the container then sees its mounts in their order.
    Path(PathBuf, Bind, Options),
    /// A detached copy of a mount, attributes and all.
    Bind(OwnedFd),
    /// The container's own cgroups of the v1 hierarchies: a directory name and a detached copy each.
    Cgroups(Vec<(String, OwnedFd)>),
    /// What is mounted at the destination already.
    Remount(Options),
}

impl Sources {
    /// Opens the root and every source of a bind.
    pub fn open(bundle: &Bundle, cgroup: &CgroupPaths, namespaces: &Namespaces, idmaps: &Idmaps) -> Result<Sources> {
        let user_namespace = namespaces.user();
        // It shows the container its own cgroup as the root of the hierarchy.
        let cgroup_namespace = namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP);
        let root = copy_root(bundle).context("the root filesystem")?;
        let kind = FileType::from_raw_mode(fstat(&root).context("fstat of the root")?.st_mode);
        ensure!(
            kind == FileType::Directory,
            "root.path: {} is not a directory",
            bundle.rootfs.display()
        );
        let mut mounts = Vec::new();
        for (index, mount) in spec_mounts(&bundle.spec).iter().enumerate() {
            let source = if idmaps.maps(index) {
                Source::open_idmapped(mount, bundle, |copy| idmaps.apply(index, copy))
            } else {
                Source::open(mount, bundle, cgroup, user_namespace, cgroup_namespace)
            };
            mounts.push(source.with_context(|| format!("mount on {}", mount.destination().display()))?);
        }
        let devices = dev::devices(&bundle.spec, user_namespace)?;
        Ok(Sources {
            root,
            mounts,
            devices,
            null: mask::null_device()?,
            user_namespace,
        })
    }
}

/// A copy of the root filesystem, private, or, where it is to be told of what the host mounts in it, a slave.
fn copy_root(bundle: &Bundle) -> Result<OwnedFd> {
    match root_propagation(&bundle.spec) {
        Some(propagation) if propagation.kind == libc::MS_SLAVE => {
            let copy = mount::copy_path_as_peer(&bundle.rootfs, Bind::Recursive)?;
            mount::set_propagation(copy.as_fd(), contained(propagation))?;
            Ok(copy)
        }
        _ => mount::copy_path(&bundle.rootfs, Bind::Recursive),
    }
}

impl Source {
    fn open(
        mount: &Mount,
        bundle: &Bundle,
        cgroup: &CgroupPaths,
        user_namespace: bool,
        cgroup_namespace: bool,
    ) -> Result<Source> {
        let options = mount_options(mount)?;
        if options.remount {
            return Ok(Source::Remount(options));
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        if let Some(bind) = bind(mount, &options) {
            let (path, options) = bind_source(mount, bundle, options)?;
            let shared = options
                .propagation
                .is_some_and(|propagation| propagation.kind == libc::MS_SHARED);
            // To share what is mounted below with the host, a copy must be made where its source is still shared.
            if user_namespace || shared {
                return bind_path(&path, bind, &options).map(Source::Bind);
            }
            return Ok(Source::Path(path, bind, options));
        }
        match (kind, cgroup) {
            ("", _) => anyhow::bail!("neither a type nor a bind"),
            ("cgroup", CgroupPaths::V1(directories)) => {
                // A container without cgroups is in those of its runtime.
                let inherited = directories.is_empty().then(Cgroup::own).transpose()?;
                let paths = inherited.as_ref().map_or(cgroup, Cgroup::paths);
                let copy = |(name, path): (&str, &Path)| {
                    Ok((
                        name.trim_start_matches("name=").to_owned(),
                        cgroup_directory(path, &options)?,
                    ))
                };
                Ok(Source::Cgroups(paths.iter().map(copy).collect::<Result<_>>()?))
            }
            ("cgroup" | "cgroup2", CgroupPaths::V2(path)) if cgroup_namespace => {
                Ok(Source::Bind(cgroup_directory(path, &options)?))
            }
            // A user namespace may mount no hierarchy but that of a cgroup namespace of its own.
            ("cgroup" | "cgroup2", CgroupPaths::V2(_)) if user_namespace => {
                Ok(Source::Bind(cgroup_directory(cgroup::unified()?, &options)?))
            }
            ("cgroup", CgroupPaths::V2(_)) => Ok(Source::Filesystem("cgroup2".to_owned())),
            (kind, _) => Ok(Source::Filesystem(kind.to_owned())),
        }
    }

    /// A bind whose ids `map` maps: before its options, which may say that nothing of it changes any more.
    fn open_idmapped(mount: &Mount, bundle: &Bundle, map: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<Source> {
        let options = mount_options(mount)?;
        let bind = bind(mount, &options).context("only a bind can be idmapped")?;
        let (path, options) = bind_source(mount, bundle, options)?;
        let copy = mount::copy_path_as_peer(&path, bind)?;
        map(copy.as_fd()).with_context(|| format!("map the ids of {}", path.display()))?;
        mount::set_options(copy.as_fd(), &options, 0)?;
        Ok(Source::Bind(copy))
    }

    /// What is at the path of a source that has one.
    ///
    /// Opened before the container's root lies over `/`: afterwards a `..` that arrives at `/` goes on in that root, and
    /// a link that an image has put there leads to wherever on the host it likes. `/etc/resolv.conf`, as a link to
    /// `../run/systemd/resolve/stub-resolv.conf`, is such a path.
    pub(super) fn place(&self) -> Result<Option<OwnedFd>> {
        match self {
            Source::Path(path, ..) => mount::open_path(path).map(Some),
            Source::Filesystem(_) | Source::Bind(_) | Source::Cgroups(_) | Source::Remount(_) => Ok(None),
        }
    }
}

/// Whether a mount is a bind, and what it takes along: an option says so, or the type does.
fn bind(mount: &Mount, options: &Options) -> Option<Bind> {
    let by_type = mount.typ().as_deref() == Some("bind");
    options.bind.or(by_type.then_some(Bind::One))
}

/// The path of the host that a bind is from, and its options with the propagation it gets.
fn bind_source(mount: &Mount, bundle: &Bundle, mut options: Options) -> Result<(PathBuf, Options)> {
    let source = mount.source().as_ref().context("a bind needs a source")?;
    options.propagation = options.propagation.or(default_propagation(&bundle.spec));
    Ok((bundle.path.join(source), options))
}

/// A copy of one cgroup directory: the same files as a mount made inside the container's cgroup namespace would show,
/// but it can be made before the container is in its cgroup.
fn cgroup_directory(path: &Path, options: &Options) -> Result<OwnedFd> {
    let copy = mount::copy_path(path, Bind::One)?;
    mount::set_options(copy.as_fd(), options, 0)?;
    Ok(copy)
}

/// A copy of the mount at a path of the host, with its options, the propagation among them.
fn bind_path(path: &Path, bind: Bind, options: &Options) -> Result<OwnedFd> {
    let copy = mount::copy_path_as_peer(path, bind)?;
    mount::set_options(copy.as_fd(), options, 0)?;
    Ok(copy)
}

/// The same of what has been opened.
pub(super) fn bind_place(place: &OwnedFd, bind: Bind, options: &Options) -> Result<OwnedFd> {
    let copy = mount::copy_as_peer(place, bind)?;
    mount::set_options(copy.as_fd(), options, 0)?;
    Ok(copy)
}

/// What `linux.rootfsPropagation` asks for.
pub(super) fn root_propagation(spec: &Spec) -> Option<Propagation> {
    Propagation::parse(linux(spec)?.rootfs_propagation().as_deref()?)
}

/// The propagation of a bind that names none: that of the root; else a slave, so that what the host unmounts is
/// unmounted here too and does not stay busy.
fn default_propagation(spec: &Spec) -> Option<Propagation> {
    Some(root_propagation(spec).map_or(
        Propagation {
            kind: libc::MS_SLAVE,
            recursive: true,
        },
        contained,
    ))
}

/// The same for the mounts below too: one of them that stayed the host's peer would carry mounts out of the container.
fn contained(propagation: Propagation) -> Propagation {
    Propagation {
        recursive: true,
        ..propagation
    }
}
