//! Exchanging the root: the container's in, the host's out.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use rustix::fs::{Mode, OFlags};

use crate::mountinfo::Line;

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

/// Makes `root`, which is mounted over `/`, this process's root, where the host's cannot be exchanged: pivot_root(2) refuses
/// the initramfs. For `--no-pivot`, in a mount namespace of the container's own.
///
/// The host's root stays below the container's: a process with CAP_SYS_ADMIN can take the upper one away and enter its own
/// mount namespace anew, and is then in the host's root. So whatever else is mounted there is detached first, /proc and /sys
/// with it; what is left is the initramfs itself. `proc` is a procfs nobody has mounted over.
pub fn chroot_over(root: impl AsFd, proc: BorrowedFd<'_>) -> Result<()> {
    detach_host_mounts(proc)?;
    fchdir(root).context("fchdir to the new root")?;
    chroot(".").context("chroot(.)")?;
    chdir("/").context("chdir(/)")
}

/// Detaches every mount on the old root but the new one, which lies over its `/`.
fn detach_host_mounts(proc: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The process's root: a path that is `/` alone does not follow what is mounted over it.
    let old = rustix::fs::open("/", flags, Mode::empty()).context("open /")?;
    let (id, _) = super::mount::id(&old)?;
    // Each round uncovers what lay below the mounts of the one before.
    loop {
        let mounts = mounts_on(&mountinfo(proc)?, id);
        if mounts.is_empty() {
            return Ok(());
        }
        for path in mounts {
            umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .with_context(|| format!("detach the host's mount on {}", path.display()))?;
        }
    }
}

fn mountinfo(proc: BorrowedFd<'_>) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, "self/mountinfo", flags, Mode::empty()).context("open mountinfo")?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).context("read mountinfo")?;
    ensure!(!text.is_empty(), "mountinfo is empty");
    // A path may hold any byte but those that are written as octal numbers; one that is no text would not be found.
    String::from_utf8(text).context("mountinfo: a path that is not UTF-8")
}

/// The places of mounts whose parent has this id, the later ones first, but for `/`.
fn mounts_on(mountinfo: &str, id: u64) -> Vec<PathBuf> {
    let lines = mountinfo.lines().rev().filter_map(Line::parse);
    lines
        .filter(|line| line.parent == id && *line.place != *Path::new("/"))
        .map(|line| line.place.into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_old_root() {
        let mountinfo = "\
            1 1 0:2 / / rw - rootfs rootfs rw\n\
            20 1 0:5 / /proc rw - proc proc rw\n\
            21 20 0:6 / /proc/sys/fs/binfmt_misc rw - binfmt_misc b rw\n\
            22 1 0:7 / /mnt/a\\040b\\134 rw master:1 - tmpfs t rw\n\
            30 1 8:1 /c / rw - ext4 /dev/sda1 rw\n\
            31 30 0:9 / /proc rw - proc proc rw\n\
            bad line\n";
        let found = mounts_on(mountinfo, 1);
        assert_eq!(found, [PathBuf::from("/mnt/a b\\"), PathBuf::from("/proc")]);
        assert!(mounts_on(mountinfo, 99).is_empty());
    }
}
