//! Exchanging the root: the container's in, the host's out.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

/// The mount at the working directory: taken away again, unless it becomes the root. In a mount namespace that others
/// live in too it would stay.
struct Candidate;

impl Candidate {
    fn elected(self) {
        std::mem::forget(self);
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let undone = umount2(".", MntFlags::MNT_DETACH).context("detach the new root");
        crate::log::best_effort("undo the mount over /", undone);
    }
}

/// Makes `root`, which is mounted over `/`, the root of this mount namespace, and lets go of the old one.
///
/// Both arguments of pivot_root are `.`: the old root comes to lie on top of the new one, from where it is detached,
/// and the new root needs no directory to hold it (pivot_root(2), "pivot_root(".", ".")").
pub fn pivot(root: impl AsFd) -> Result<()> {
    fchdir(root).context("fchdir to the new root")?;
    let candidate = Candidate;
    pivot_root(".", ".").context("pivot_root(., .)")?;
    candidate.elected();
    umount2(".", MntFlags::MNT_DETACH).context("detach the old root")?;
    chdir("/").context("chdir(/)")
}
