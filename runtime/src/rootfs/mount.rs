//! Mounts by descriptor: made detached (`fsopen`, `open_tree`), given their attributes, and put in place with
//! `move_mount` onto a directory that is a descriptor too. No path of the container's takes part in the mount itself.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};

use super::options::{Bind, Options, Propagation};
use crate::sys::mount::{Attributes, mount_setattr};

/// A filesystem of its own, detached: mounted nowhere yet. Attributes are not yet applied.
pub fn filesystem(kind: &str, source: Option<&str>, options: &[(String, Option<String>)]) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| format!("fsopen({kind:?})"))?;
    let make = || -> Result<OwnedFd> {
        if let Some(source) = source {
            fsconfig_set_string(&context, "source", source).with_context(|| format!("source={source}"))?;
        }
        configure(context.as_fd(), options)?;
        fsconfig_create(&context).context("fsconfig(CMD_CREATE)")?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("fsmount")
    };
    make()
        .map_err(|error| explain(context.as_fd(), error))
        .with_context(|| format!("make a {kind} filesystem"))
}

/// Adds what the kernel has to say about a failed filesystem context: one message a read, each `e text`.
fn explain(context: BorrowedFd<'_>, error: anyhow::Error) -> anyhow::Error {
    let Ok(copy) = context.try_clone_to_owned() else {
        return error;
    };
    let mut log = File::from(copy);
    let (mut line, mut told) = ([0u8; 512], Vec::new());
    while let Ok(length @ 1..) = log.read(&mut line) {
        told.push(String::from_utf8_lossy(&line[..length]).trim().to_owned());
    }
    if told.is_empty() {
        return error;
    }
    error.context(format!("kernel: {}", told.join("; ")))
}

/// Changes the mount that `place` is the root of, and, where options of the filesystem itself are given, that. Options
/// that are not named stay as they are, as with mount(8).
pub fn remount(place: &OwnedFd, options: &Options) -> Result<()> {
    let flags = AtFlags::EMPTY_PATH;
    let stat = statx(place, "", flags, StatxFlags::empty()).context("statx")?;
    ensure!(
        stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        "remount: nothing is mounted there"
    );
    if !options.filesystem.is_empty() {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = fspick(place, "", flags).context("fspick")?;
        configure(context.as_fd(), &options.filesystem)
            .and_then(|()| fsconfig_reconfigure(&context).context("fsconfig(CMD_RECONFIGURE)"))
            .map_err(|error| explain(context.as_fd(), error))?;
    }
    set_options(place.as_fd(), options, libc::MOUNT_ATTR_RDONLY)
}

fn configure(context: BorrowedFd<'_>, options: &[(String, Option<String>)]) -> Result<()> {
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(context, key.as_str()),
        }
        .with_context(|| format!("fsconfig({key}={})", value.as_deref().unwrap_or_default()))?;
    }
    Ok(())
}

/// A copy of the mount at `path` of the host, detached and private: a copy begins as the peer of what it was made from,
/// and what the container then mounted on it would appear on a host whose mounts are shared, as systemd makes them.
pub fn copy_path(path: &Path, bind: Bind) -> Result<OwnedFd> {
    let copy = copy_path_as_peer(path, bind)?;
    let private = Propagation {
        kind: libc::MS_PRIVATE,
        recursive: bind == Bind::Recursive,
    };
    set_propagation(copy.as_fd(), private)?;
    Ok(copy)
}

/// A copy that is still the peer of the mount at `path`, for whoever gives it a propagation.
pub fn copy_path_as_peer(path: &Path, bind: Bind) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind == Bind::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).with_context(|| format!("open_tree({}, CLONE)", path.display()))
}

/// What is at a path of the host, opened as a place only. Unlike O_PATH this sets off an automount, as a bind does.
pub fn open_path(path: &Path) -> Result<OwnedFd> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC).with_context(|| format!("open_tree({})", path.display()))
}

/// A copy of the mount beneath what has been opened, still its peer.
pub fn copy_as_peer(place: impl AsFd, bind: Bind) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if bind == Bind::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags).context("open_tree(fd, CLONE)")
}

/// A copy of the mount beneath an open file or directory, detached; with everything mounted below.
pub fn copy(place: impl AsFd) -> Result<OwnedFd> {
    copy_as_peer(place, Bind::Recursive)
}

/// The id of the mount that `place` is in, and its inode's number there. Linux 5.8.
pub fn id(place: impl AsFd) -> Result<(u64, u64)> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    let stat = statx(place, "", AtFlags::EMPTY_PATH, wanted).context("statx(fd, STATX_MNT_ID)")?;
    Ok((stat.stx_mnt_id, stat.stx_ino))
}

/// Puts a detached mount in place. Its descriptor names the mount as before.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags).context("move_mount")
}

/// Gives a mount the attributes of its options; `except` holds those for later.
pub fn set_options(mount: BorrowedFd<'_>, options: &Options, except: u64) -> Result<()> {
    let mut one = options.attributes;
    one.set &= !except;
    set_attributes(mount, false, one)?;
    set_attributes(mount, true, options.recursive)?;
    options
        .propagation
        .map_or(Ok(()), |propagation| set_propagation(mount, propagation))
}

/// Sets the propagation of a mount, or of all from it on.
pub fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> Result<()> {
    let attributes = Attributes {
        propagation: propagation.kind,
        ..Attributes::default()
    };
    set_attributes(mount, propagation.recursive, attributes)
}

/// Makes a mount read-only, with `recursive` all below it too.
pub fn set_readonly(mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    set_attributes(
        mount,
        recursive,
        Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        },
    )
}

fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, attributes: Attributes) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    mount_setattr(mount, recursive, &attributes)
        .with_context(|| format!("mount_setattr(recursive: {recursive}, {attributes:x?})"))
}
