//! Idmapped mounts: the files of a bind belong to other ids in the container than on the disk.
//!
//! The kernel takes the mapping as a user namespace, which has to exist for the time of one call: a process is cloned
//! into it, its maps are written, the namespace is opened, and the process ends. Mounts of one mapping share one
//! namespace. All this is done by the runtime before there is an init: only who is privileged over the filesystem may
//! map its ids, and that the root of a container's user namespace is not.
//!
//! The mapping is the mount's own; else that of the container's user namespace, so that the ids of the disk are those
//! inside (config.md, "Mounts"). Left out: mapping what is not a bind, which runc does not do either.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use rustix::process::{WaitId, WaitIdOptions};

use super::options::{Bind, Options};
use super::spec_mounts;
use crate::namespaces::{self, Namespaces};
use crate::sys;
use crate::sys::clone::{Cloned, clone3, exit_now};

/// The user namespaces of a specification's idmapped mounts.
#[derive(Debug, Default)]
pub struct Idmaps {
    namespaces: Vec<OwnedFd>,
    mounts: Vec<Idmapped>,
}

/// One idmapped mount.
#[derive(Debug)]
struct Idmapped {
    /// Which of the specification's.
    mount: usize,
    /// Whether the mounts below it are mapped too.
    depth: Bind,
    /// Which of the namespaces.
    namespace: usize,
}

/// Where a mapping comes from: maps to be made, or the user namespace that the container joins.
#[derive(Clone, Copy, PartialEq)]
enum Mapping<'a> {
    Maps(&'a [LinuxIdMapping], &'a [LinuxIdMapping]),
    Joined,
}

/// Whether the ids of a mount are to be mapped, and how deep. Callers that know no `idmap` option give mappings alone,
/// which then stand for it.
pub fn depth(mount: &Mount, options: &Options) -> Option<Bind> {
    let own = !maps(mount.uid_mappings()).is_empty() || !maps(mount.gid_mappings()).is_empty();
    options.idmap.or(own.then_some(Bind::One))
}

fn maps(list: &Option<Vec<LinuxIdMapping>>) -> &[LinuxIdMapping] {
    list.as_deref().unwrap_or_default()
}

impl Idmaps {
    /// Makes the namespaces; where no mount asks for one, nothing.
    pub fn open(spec: &Spec, namespaces: &Namespaces) -> Result<Idmaps> {
        let mut idmaps = Idmaps::default();
        let mut made: Vec<Mapping<'_>> = Vec::new();
        for (index, mount) in spec_mounts(spec).iter().enumerate() {
            let Some(depth) = depth(mount, &super::mount_options(mount)?) else {
                continue;
            };
            let mapping = Mapping::of(mount, spec, namespaces);
            let namespace = match made.iter().position(|other| *other == mapping) {
                Some(namespace) => namespace,
                None => {
                    let what = || format!("mounts[{index}]: a user namespace of its id mappings");
                    idmaps.namespaces.push(mapping.open(namespaces).with_context(what)?);
                    made.push(mapping);
                    made.len() - 1
                }
            };
            idmaps.mounts.push(Idmapped {
                mount: index,
                depth,
                namespace,
            });
        }
        Ok(idmaps)
    }

    /// Whether the ids of this mount of the specification are mapped.
    pub fn maps(&self, mount: usize) -> bool {
        self.mounts.iter().any(|idmapped| idmapped.mount == mount)
    }

    /// Maps the ids of a detached copy, if that is asked of this mount of the specification.
    pub fn apply(&self, mount: usize, copy: BorrowedFd<'_>) -> Result<()> {
        let Some(idmapped) = self.mounts.iter().find(|idmapped| idmapped.mount == mount) else {
            return Ok(());
        };
        let recursive = idmapped.depth == Bind::Recursive;
        let namespace = self.namespaces[idmapped.namespace].as_fd();
        sys::mount::map_ids(copy, recursive, namespace).map_err(|error| {
            let reason = match error.raw_os_error() {
                Some(libc::EINVAL) => "; its filesystem does not support idmapped mounts, or the mount is one already",
                Some(libc::EPERM) => "; that takes the rights of root over its filesystem",
                _ => "",
            };
            anyhow::Error::new(error).context(format!(
                "mount_setattr(recursive: {recursive}, MOUNT_ATTR_IDMAP){reason}"
            ))
        })
    }
}

impl<'a> Mapping<'a> {
    fn of(mount: &'a Mount, spec: &'a Spec, namespaces: &Namespaces) -> Mapping<'a> {
        let (uids, gids) = (maps(mount.uid_mappings()), maps(mount.gid_mappings()));
        match spec.linux() {
            _ if !uids.is_empty() => Mapping::Maps(uids, gids),
            Some(linux) if namespaces.joined_user().is_none() => {
                Mapping::Maps(maps(linux.uid_mappings()), maps(linux.gid_mappings()))
            }
            _ => Mapping::Joined,
        }
    }

    fn open(self, namespaces: &Namespaces) -> Result<OwnedFd> {
        match self {
            Mapping::Maps(uids, gids) => user_namespace(uids, gids),
            Mapping::Joined => {
                let joined = namespaces
                    .joined_user()
                    .context("the container has no user namespace")?;
                joined.try_clone_to_owned().context("dup the user namespace")
            }
        }
    }
}

/// A user namespace of these maps that no process is in.
fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let (waits, ends) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let (pid, pidfd) = match clone3(CloneFlags::CLONE_NEWUSER, None).context("clone3(CLONE_NEWUSER)")? {
        Cloned::Child => {
            drop(ends);
            // Until the other end is closed, by who holds it or by its death.
            let closed = rustix::io::retry_on_intr(|| rustix::io::read(&waits, &mut [0u8; 1]));
            exit_now(i32::from(closed.is_err()))
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    let opened = namespaces::write_maps(pid, uids, gids).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        File::open(&path).with_context(|| format!("open {path}"))
    });
    drop(ends);
    let ended = || rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    rustix::io::retry_on_intr(ended).context("waitid")?;
    Ok(opened?.into())
}
