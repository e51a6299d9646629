//! What is best found by doing it: an overlay mount, a user namespace, a mount with mapped ids.
//!
//! The overlay is mounted by a thread with a mount namespace of its own, on a tmpfs that nobody else sees; both go with the
//! thread. A mapped mount is nowhere in the tree at all.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::check::Check;
use super::disk::existing;
use crate::config::Config;
use crate::image::snapshot::{self, Snapshotter};
use crate::pod_userns::Holder;
use crate::spec::user_namespace::IdMap;

/// Where the thread mounts its tmpfs: a directory that every machine has.
const PLACE: &str = "/tmp";
/// Ids as a kubelet's first pod has them.
const IDS: IdMap = IdMap {
    uid: 65536,
    gid: 65536,
    length: 65536,
};

pub(super) fn look(config: &Config) -> Vec<Check> {
    let overlay = judge_overlay(try_overlay().as_ref().err(), config.storage.snapshotter);
    let mut checks = vec![overlay];
    match Holder::start(&config.shim(), IDS, false) {
        Ok(holder) => {
            let directory = existing(config.image_root());
            checks.push(judge_user_namespace(None, max_user_namespaces()));
            checks.push(judge_mapped(try_mapped(directory, &holder).as_ref().err(), directory));
        }
        Err(error) => {
            checks.push(judge_user_namespace(Some(&error), max_user_namespaces()));
            checks.push(Check::skipped("idmapped-mounts", "needs a user namespace"));
        }
    }
    checks
}

/// Runs in the theme's own thread, which has nothing else to do with mounts but what follows.
fn try_overlay() -> Result<()> {
    let trial = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare CLONE_NEWNS")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make all mounts private")?;
        mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).context("mount a tmpfs")?;
        snapshot::try_overlay(Path::new(PLACE))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay".into())
            .spawn_scoped(scope, trial);
        thread
            .context("start a thread")?
            .join()
            .expect("the trial returns its errors")
    })
}

fn judge_overlay(error: Option<&anyhow::Error>, wanted: Snapshotter) -> Check {
    let name = "overlayfs";
    let Some(error) = error else {
        return Check::ok(name, "mounted on a trial");
    };
    let fix = "use a kernel with CONFIG_OVERLAY_FS, or load the module: modprobe overlay";
    match wanted {
        Snapshotter::Native => Check::ok(name, "not used: storage.snapshotter is native"),
        Snapshotter::Overlayfs => {
            let meaning = "storage.snapshotter is overlayfs: the server does not start";
            Check::problem(name, format!("{error:#}"), meaning, fix)
        }
        Snapshotter::Auto => {
            let meaning = "every container gets a copy of its image: slow starts, and much disk";
            Check::warning(name, format!("{error:#}"), meaning, fix)
        }
    }
}

fn max_user_namespaces() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").ok()?;
    text.trim().parse().ok()
}

fn judge_user_namespace(error: Option<&anyhow::Error>, limit: Option<u64>) -> Check {
    let name = "user-namespaces";
    let meaning = "pods with a user namespace (hostUsers: false) cannot be run";
    match (error, limit) {
        (_, Some(limit @ 0..1000)) => {
            let found = format!("user.max_user_namespaces is {limit}");
            Check::warning(name, found, meaning, "sysctl -w user.max_user_namespaces=10000")
        }
        (None, _) => Check::ok(name, "made one on a trial"),
        (Some(error), _) => {
            let fix = "see to it that corten-shim can be executed and that the kernel has CONFIG_USER_NS";
            Check::warning(name, format!("{error:#}"), meaning, fix)
        }
    }
}

fn try_mapped(directory: &Path, holder: &Holder) -> Result<()> {
    let namespace = holder.path("user");
    let namespace = File::open(&namespace).with_context(|| format!("open {}", namespace.display()))?;
    snapshot::try_mapped(directory, namespace.as_fd())
}

fn judge_mapped(error: Option<&anyhow::Error>, directory: &Path) -> Check {
    let name = "idmapped-mounts";
    match error {
        None => Check::ok(
            name,
            format!("ids can be mapped on the filesystem of {}", directory.display()),
        ),
        Some(error) => Check::warning(
            name,
            format!("{error:#}"),
            "pods with a user namespace (hostUsers: false) cannot have images from there",
            "put root (or storage.image_root) on ext4, XFS, Btrfs or, since Linux 6.3, tmpfs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn without_overlayfs() {
        let error = anyhow!("fsopen overlay: ENODEV");
        let table = [
            (Snapshotter::Auto, Verdict::Warning),
            (Snapshotter::Overlayfs, Verdict::Problem),
            (Snapshotter::Native, Verdict::Ok),
        ];
        for (wanted, expected) in table {
            assert_eq!(judge_overlay(Some(&error), wanted).verdict, expected, "{wanted:?}");
            assert_eq!(judge_overlay(None, wanted).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn user_namespaces_and_mapped_ids() {
        let error = anyhow!("ENOSPC");
        let table = [
            (None, Some(96_365), Verdict::Ok),
            (None, None, Verdict::Ok),
            (None, Some(10), Verdict::Warning),
            (Some(&error), Some(96_365), Verdict::Warning),
            (Some(&error), Some(0), Verdict::Warning),
        ];
        for (error, limit, expected) in table {
            assert_eq!(
                judge_user_namespace(error, limit).verdict,
                expected,
                "{error:?} {limit:?}"
            );
        }
        assert_eq!(judge_mapped(Some(&error), Path::new("/a")).verdict, Verdict::Warning);
    }
}
