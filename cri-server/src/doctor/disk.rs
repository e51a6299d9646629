//! The filesystems of `root`, `state` and the images: room, kind, options, and quotas where they are asked for.

use std::fs;
use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use corten_runtime::mountinfo::Line;
use rustix::fs::{FileType, Mode, OFlags, RawDir, StatVfs, StatVfsMountFlags, open, statvfs};

use super::check::Check;
use crate::config::Config;
use crate::image::snapshot::{self, Snapshotter};

/// Room below which nothing can be pulled or started, in bytes.
const LEAST_BYTES: u64 = 64 << 20;
/// Filesystems on which overlayfs cannot have its layers, or containers' files cannot be kept.
const UNFIT: [&str; 12] = [
    "overlay",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "vfat",
    "exfat",
    "ceph",
    "glusterfs",
    "fuseblk",
    "virtiofs",
];

/// What is known of the filesystem of a directory.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Its kind, as mount(8) names it; empty if unknown.
    kind: String,
    bytes: u64,
    bytes_free: u64,
    /// 0 where the filesystem has no fixed number of them.
    inodes: u64,
    inodes_free: u64,
    read_only: bool,
    noexec: bool,
    /// Whether a directory says what its entries are; none where there is no entry to ask of.
    has_types: Option<bool>,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let (root, state, images) = (
        existing(&config.root),
        existing(&config.state),
        existing(config.image_root()),
    );
    let mut checks = Vec::new();
    for (name, directory) in [("disk-root", root), ("disk-state", state), ("disk-images", images)] {
        // Said once of a filesystem.
        if name == "disk-images" && same_filesystem(images, root) {
            continue;
        }
        match gather(directory) {
            Ok(facts) => {
                if name == "disk-root" || !same_filesystem(directory, root) {
                    checks.push(judge_room(name, directory, &facts));
                }
                checks.extend(match name {
                    "disk-state" => judge_state(directory, &facts),
                    _ => Some(judge_kind(directory, &facts, config.storage.snapshotter)),
                });
            }
            Err(error) => checks.push(Check::problem(
                name,
                format!("{}: {error}", directory.display()),
                "the server cannot keep anything there",
                "mount the disk, or change the configuration's root, state or storage.image_root",
            )),
        }
    }
    let quotas = config
        .storage
        .writable_layer_limit_bytes
        .map(|_| snapshot::enforces_project_quotas(root));
    checks.extend(quotas.map(|enforced| judge_quotas(root, enforced)));
    checks
}

/// The deepest directory of `path` that exists: what is not there yet will be made on its filesystem.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn same_filesystem(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(one) == device(other)
}

fn gather(directory: &Path) -> rustix::io::Result<Facts> {
    let found: StatVfs = statvfs(directory)?;
    Ok(Facts {
        kind: kind(directory).unwrap_or_default(),
        bytes: found.f_blocks * found.f_frsize,
        bytes_free: found.f_bavail * found.f_frsize,
        inodes: found.f_files,
        inodes_free: found.f_favail,
        read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        noexec: found.f_flag.contains(StatVfsMountFlags::NOEXEC),
        has_types: has_types(directory),
    })
}

/// The kind of the mount that holds a directory: the last of the deepest above it.
fn kind(directory: &Path) -> Option<String> {
    let directory = fs::canonicalize(directory).ok()?;
    let table = fs::File::open("/proc/self/mountinfo").ok()?;
    let mut best: Option<(usize, String)> = None;
    for line in std::io::BufReader::new(table).lines() {
        let line = line.ok()?;
        let Some(mount) = Line::parse(&line).filter(|mount| directory.starts_with(&mount.place)) else {
            continue;
        };
        let depth = mount.place.components().count();
        if best.as_ref().is_none_or(|(known, _)| depth >= *known) {
            best = Some((depth, mount.kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

/// XFS without ftype and some network filesystems say nothing of entries' types, which overlayfs needs.
fn has_types(directory: &Path) -> Option<bool> {
    let directory = open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut buffer = Vec::with_capacity(8192);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    while let Some(Ok(entry)) = entries.next() {
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Some(entry.file_type() != FileType::Unknown);
        }
    }
    None
}

fn judge_room(name: &'static str, directory: &Path, facts: &Facts) -> Check {
    let percent = |free: u64, all: u64| (u128::from(free) * 100 / u128::from(all.max(1))).min(100);
    let bytes = percent(facts.bytes_free, facts.bytes);
    let inodes = if facts.inodes == 0 {
        100
    } else {
        percent(facts.inodes_free, facts.inodes)
    };
    let free = indicatif::BinaryBytes(facts.bytes_free);
    let found = format!(
        "{}: {free} ({bytes} %) and {inodes} % of inodes are free",
        directory.display()
    );
    let fix = "corten-cri image prune --all; look for what else fills it with du -x and, for inodes, du -x --inodes";
    if facts.bytes_free < LEAST_BYTES.min(facts.bytes / 2) || bytes < 1 || inodes < 1 {
        return Check::problem(
            name,
            found,
            "nothing can be pulled or started, and records cannot be written",
            fix,
        );
    }
    // What kubelets by default evict at: nodefs.available 10 %, nodefs.inodesFree 5 %.
    if bytes < 10 || inodes < 5 {
        return Check::warning(name, found, "a kubelet evicts pods from a node with so little", fix);
    }
    Check::ok(name, found)
}

fn judge_kind(directory: &Path, facts: &Facts, wanted: Snapshotter) -> Check {
    let name = "disk-filesystem";
    let found = |what: &str| format!("{} is on {}{what}", directory.display(), facts.kind);
    let fix = "put root (or storage.image_root) on ext4, XFS made with ftype=1, or Btrfs, mounted rw";
    if facts.read_only {
        return Check::problem(name, found(", mounted read-only"), "the server cannot start", fix);
    }
    let is_unfit = UNFIT.contains(&facts.kind.as_str()) || facts.kind.starts_with("fuse.");
    if is_unfit {
        return match wanted {
            Snapshotter::Native => Check::warning(
                name,
                found(""),
                "containers' roots are copies, if it keeps devices and xattrs",
                fix,
            ),
            _ => Check::problem(name, found(""), "overlayfs cannot have its layers there", fix),
        };
    }
    if facts.has_types == Some(false) {
        let what = ", which does not say what a directory's entries are (d_type)";
        return Check::problem(name, found(what), "overlayfs cannot have its layers there", fix);
    }
    if facts.noexec && wanted == Snapshotter::Native {
        let fix = "mount -o remount,exec it";
        return Check::problem(
            name,
            found(", mounted noexec"),
            "no program of a container can be executed",
            fix,
        );
    }
    Check::ok(name, found(""))
}

fn judge_state(directory: &Path, facts: &Facts) -> Option<Check> {
    let name = "disk-state-options";
    let option = match facts {
        Facts { read_only: true, .. } => "ro",
        Facts { noexec: true, .. } => "noexec",
        _ => return None,
    };
    Some(Check::problem(
        name,
        format!("{} is mounted {option}", directory.display()),
        "no pod can be run: the program that holds its namespaces is executed from there",
        format!(
            "mount -o remount,rw,exec {}, or put state elsewhere",
            directory.display()
        ),
    ))
}

fn judge_quotas(directory: &Path, enforced: bool) -> Check {
    let name = "project-quotas";
    match enforced {
        true => Check::ok(name, format!("enforced on {}", directory.display())),
        false => Check::problem(
            name,
            format!(
                "the filesystem of {} does not enforce project quotas",
                directory.display()
            ),
            "the server does not start with storage.writable_layer_limit_bytes",
            "mount it with prjquota (ext4: tune2fs -O project,quota first), or remove the key",
        ),
    }
}

/// Used by the leftovers too: a path of the image store.
pub(super) fn layers(config: &Config) -> PathBuf {
    config.image_root().join("layers")
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    fn facts() -> Facts {
        Facts {
            kind: "ext4".to_owned(),
            bytes: 100 << 30,
            bytes_free: 50 << 30,
            inodes: 1000,
            inodes_free: 900,
            ..Facts::default()
        }
    }

    #[test]
    fn room() {
        let table = [
            (facts(), Verdict::Ok),
            (
                Facts {
                    bytes_free: 5 << 30,
                    ..facts()
                },
                Verdict::Warning,
            ),
            (
                Facts {
                    bytes_free: 1 << 20,
                    ..facts()
                },
                Verdict::Problem,
            ),
            (
                Facts {
                    inodes_free: 40,
                    ..facts()
                },
                Verdict::Warning,
            ),
            (
                Facts {
                    inodes_free: 0,
                    ..facts()
                },
                Verdict::Problem,
            ),
            (
                Facts {
                    inodes: 0,
                    inodes_free: 0,
                    ..facts()
                },
                Verdict::Ok,
            ),
            (
                Facts {
                    bytes: 32 << 20,
                    bytes_free: 31 << 20,
                    ..facts()
                },
                Verdict::Ok,
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(
                judge_room("disk-root", Path::new("/r"), &facts).verdict,
                expected,
                "{facts:?}"
            );
        }
    }

    #[test]
    fn kinds() {
        let of = |kind: &str| Facts {
            kind: kind.to_owned(),
            ..facts()
        };
        let table = [
            (of("xfs"), Snapshotter::Auto, Verdict::Ok),
            (
                Facts {
                    has_types: Some(false),
                    ..of("xfs")
                },
                Snapshotter::Auto,
                Verdict::Problem,
            ),
            (of("nfs4"), Snapshotter::Auto, Verdict::Problem),
            (of("fuse.sshfs"), Snapshotter::Overlayfs, Verdict::Problem),
            (of("overlay"), Snapshotter::Native, Verdict::Warning),
            (
                Facts {
                    read_only: true,
                    ..facts()
                },
                Snapshotter::Auto,
                Verdict::Problem,
            ),
            (
                Facts {
                    noexec: true,
                    ..facts()
                },
                Snapshotter::Auto,
                Verdict::Ok,
            ),
            (
                Facts {
                    noexec: true,
                    ..facts()
                },
                Snapshotter::Native,
                Verdict::Problem,
            ),
        ];
        for (facts, wanted, expected) in table {
            assert_eq!(
                judge_kind(Path::new("/r"), &facts, wanted).verdict,
                expected,
                "{facts:?} {wanted:?}"
            );
        }
        assert!(judge_state(Path::new("/s"), &facts()).is_none());
        let noexec = judge_state(
            Path::new("/s"),
            &Facts {
                noexec: true,
                ..facts()
            },
        );
        assert_eq!(noexec.unwrap().verdict, Verdict::Problem);
        assert_eq!(judge_quotas(Path::new("/r"), false).verdict, Verdict::Problem);
    }

    #[test]
    fn a_directory_that_exists() {
        let facts = gather(existing(Path::new("/proc/self/nowhere/deeper"))).unwrap();
        assert_eq!(facts.kind, "proc");
    }
}
