//! Masked and read-only paths.
//!
//! A masked file is covered by /dev/null and a masked directory by an empty read-only tmpfs, one for all of them. The
//! null device is the host's, opened before the container's root is looked at and checked to be device 1:3: taken from
//! the container's /dev it could be anything (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, fstat, makedev};

use super::mount;
use super::options::Bind;
use super::resolve::Root;

/// The host's null device, as a detached mount.
pub fn null_device() -> Result<OwnedFd> {
    let null = mount::copy_path(Path::new("/dev/null"), Bind::One)?;
    let stat = fstat(&null).context("fstat(/dev/null)")?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    ensure!(is_null, "/dev/null of the host is not the null device");
    Ok(null)
}

/// What hides a path: the mount itself in the first place, copies of it in the next ones. Before Linux 6.15 only a mount
/// that is attached can be copied, and later only one that was made in the caller's mount namespace.
#[derive(Debug)]
struct Cover {
    mount: OwnedFd,
    attached: bool,
}

impl Cover {
    fn new(mount: OwnedFd) -> Cover {
        Cover { mount, attached: false }
    }

    fn put(&mut self, place: OwnedFd) -> Result<()> {
        if self.attached {
            return mount::attach(mount::copy(&self.mount)?, place);
        }
        self.attached = true;
        mount::attach(&self.mount, place)
    }
}

/// Hides what is at these paths; a path with nothing there needs no hiding.
pub fn mask(root: &Root, paths: &[String], null: &OwnedFd) -> Result<()> {
    let mut null = Cover::new(null.try_clone().context("dup the null device")?);
    let mut empty: Option<Cover> = None;
    for path in paths {
        let what = || format!("mask {path}");
        let Some(place) = root.find(Path::new(path)).with_context(what)? else {
            continue;
        };
        let stat = fstat(&place).with_context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            null.put(place).with_context(what)?;
            continue;
        }
        check_not_root(root, &place).with_context(what)?;
        let empty = match &mut empty {
            Some(empty) => empty,
            none => none.insert(Cover::new(empty_directory().with_context(what)?)),
        };
        empty.put(place).with_context(what)?;
    }
    Ok(())
}

/// What would lie over the root would be the root of whoever enters this mount namespace later, as exec does, but not of
/// init; an image has led a path there by a link.
fn check_not_root(root: &Root, place: &OwnedFd) -> Result<()> {
    let (root, place) = (fstat(root).context("fstat")?, fstat(place).context("fstat")?);
    let same = (root.st_dev, root.st_ino) == (place.st_dev, place.st_ino);
    ensure!(!same, "a link leads to the root itself");
    Ok(())
}

/// A directory nobody can put anything into.
fn empty_directory() -> Result<OwnedFd> {
    let options = [("nr_inodes".to_owned(), Some("1".to_owned()))];
    let empty = mount::filesystem("tmpfs", Some("tmpfs"), &options)?;
    mount::set_readonly(empty.as_fd(), false)?;
    Ok(empty)
}

/// Makes what is at these paths read-only, with all that is mounted below.
pub fn readonly(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        let what = || format!("make {path} read-only");
        let Some(place) = root.find(Path::new(path)).with_context(what)? else {
            continue;
        };
        check_not_root(root, &place).with_context(what)?;
        let copy = mount::copy(&place).with_context(what)?;
        mount::set_readonly(copy.as_fd(), true).with_context(what)?;
        mount::attach(copy, place).with_context(what)?;
    }
    Ok(())
}
