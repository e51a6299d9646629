//! What the node looks like, as values: the only place of `spec`, with `user`, that reads the node.
//!
//! [`Host`] is read once when the server starts; [`Sources`] for each container, because host paths and devices come
//! and go. Reading the sources has one side effect, written down at [`Sources::read`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use corten_proto::cri::{ContainerConfig, Device, Mount};
use oci_spec::runtime::LinuxDeviceType;

use super::mountinfo::{self, Propagation};
use super::{SpecError, capabilities, security};

/// Where the kernel shows the cgroup hierarchies.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Deepest directory below `/dev` that is searched for devices; bounds a tree that someone else shapes.
const MAX_DEVICE_DEPTH: usize = 8;
/// Directories of `/dev` that are filesystems of their own; every container has its own of these.
const DEV_FILESYSTEMS: &[&str] = &["fd", "hugepages", "mqueue", "pts", "shm"];

/// The facts about the node that shape every spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The capabilities the server may pass on: its bounding set.
    pub capabilities: BTreeSet<CapabilityName>,
    /// The node runs on the unified cgroup hierarchy (v2).
    pub cgroup_v2: bool,
    /// The kernel accounts swap per cgroup, so that a swap limit can be set.
    pub swap_limit: bool,
    /// The lowest oom_score_adj the server may give away: -1000, or its own without CAP_SYS_RESOURCE.
    pub oom_score_adj_floor: i32,
    /// The kernel can make a whole tree of mounts read-only (mount_setattr, Linux 5.12).
    pub recursive_read_only: bool,
    /// Pods can have user namespaces: the node allows them, and overlayfs takes layers with mapped ids (Linux 5.19).
    pub user_namespaces: bool,
    /// SELinux is enabled.
    pub selinux: bool,
    /// AppArmor is enabled, and profiles can be loaded.
    pub apparmor: bool,
}

/// A capability by its kernel name, `CAP_CHOWN`; ordered, which oci-spec's type is not.
pub type CapabilityName = &'static str;

/// The node's side of one container's mounts and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// One for each mount of the request, in its order.
    pub mounts: Vec<MountSource>,
    /// Every device the container gets; for a privileged one all that the node has.
    pub devices: Vec<HostDevice>,
}

/// The host path of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSource {
    /// With every link followed.
    pub path: PathBuf,
    /// How the mount that holds the path propagates.
    pub(crate) propagation: Propagation,
}

/// A device node of the node, and where the container has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Path in the container.
    pub path: PathBuf,
    /// Block or character.
    pub typ: LinuxDeviceType,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits of the node's own file.
    pub mode: u32,
    /// Owner of the node's own file.
    pub uid: u32,
    /// Group of the node's own file.
    pub gid: u32,
    /// What the device cgroup allows, of `rwm`.
    pub access: String,
}

impl Host {
    /// Reads the facts.
    pub fn read() -> anyhow::Result<Host> {
        let status = read_text("/proc/self/status")?;
        let own: i32 = read_text("/proc/self/oom_score_adj")?.trim().parse()?;
        let can_lower = capabilities::from_status(&status, "CapEff").contains("CAP_SYS_RESOURCE");
        let cgroup_v2 = is_cgroup_v2();
        Ok(Host {
            capabilities: capabilities::from_status(&status, "CapBnd"),
            cgroup_v2,
            swap_limit: has_swap_limit(cgroup_v2),
            oom_score_adj_floor: if can_lower { -1000 } else { own },
            recursive_read_only: kernel_at_least(5, 12),
            user_namespaces: kernel_at_least(5, 19) && has_user_namespaces(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            apparmor: crate::apparmor::is_enabled(),
        })
    }
}

impl Sources {
    /// Looks the request's host paths and devices up. Blocks: a path may be on a dead network filesystem.
    ///
    /// A host path that does not exist is made, as a directory with mode 0755, once everything else was found. The CRI
    /// would have an error here (api.proto, Mount.host_path); but an untyped hostPath volume of Kubernetes means just
    /// this, the kubelet leaves it to the runtime, and both peers do it.
    ///
    /// `volumes` are the mounted image volumes, by their place in the request.
    pub fn read(config: &ContainerConfig, volumes: &BTreeMap<usize, PathBuf>) -> Result<Sources, SpecError> {
        let mut devices = match security::is_privileged(config) {
            true => below_dev()?,
            false => Vec::new(),
        };
        for (index, device) in config.devices.iter().enumerate() {
            let field = format!("devices[{index}].host_path");
            devices.extend(requested_devices(&field, device)?);
        }
        let mounts = match config.mounts.is_empty() {
            true => Vec::new(),
            false => read_mounts(&config.mounts, volumes)?,
        };
        Ok(Sources { mounts, devices })
    }
}

fn read_mounts(mounts: &[Mount], volumes: &BTreeMap<usize, PathBuf>) -> Result<Vec<MountSource>, SpecError> {
    let named = |index: usize| format!("mounts[{index}].host_path");
    let mut paths = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        paths.push(match volumes.get(&index) {
            Some(volume) => Some(volume.clone()),
            None => existing(&named(index), &mount.host_path)?,
        });
    }
    for (index, mount) in mounts.iter().enumerate() {
        if paths[index].is_none() {
            paths[index] = Some(make_directory(&named(index), &mount.host_path)?);
        }
    }
    // Once for all of them, and after the lookups, which may have mounted something (autofs).
    let table =
        read_text("/proc/self/mountinfo").map_err(|error| SpecError::failed("mounts", "", format!("{error:#}")))?;
    let table = mountinfo::parse(&table);
    let source = |path: PathBuf| MountSource {
        propagation: mountinfo::propagation(&table, &path),
        path,
    };
    Ok(paths.into_iter().flatten().map(source).collect())
}

/// `path` with its links followed; none if nothing is there.
fn existing(field: &str, path: &str) -> Result<Option<PathBuf>, SpecError> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SpecError::failed(field, path, format!("look the path up: {error}"))),
    }
}

/// Makes the directory and those above it; its path with the links followed.
fn make_directory(field: &str, path: &str) -> Result<PathBuf, SpecError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .and_then(|()| fs::canonicalize(path))
        .map_err(|error| {
            let rule = format!("make the missing directory: {error}");
            SpecError::failed(field, path, rule)
        })
}

/// The devices a request names: one, or all below a directory, each under the container path.
fn requested_devices(field: &str, device: &Device) -> Result<Vec<HostDevice>, SpecError> {
    let host = fs::canonicalize(&device.host_path)
        .map_err(|error| SpecError::invalid(field, &device.host_path, format!("must exist on the node: {error}")))?;
    let container = super::clean(&device.container_path);
    let mut found = Vec::new();
    if host.is_dir() {
        walk(&host, 0, &[], &mut |path| {
            // The walk stays below `host`, so that the prefix is always there.
            let Ok(rest) = path.strip_prefix(&host) else {
                return;
            };
            found.extend(device_at(path, container.join(rest), &device.permissions));
        })
        .map_err(|error| SpecError::failed(field, &device.host_path, error.to_string()))?;
    } else {
        found.extend(device_at(&host, container, &device.permissions));
    }
    if found.is_empty() {
        let rule = "must be a device, or a directory with devices in it";
        return Err(SpecError::invalid(field, &device.host_path, rule));
    }
    Ok(found)
}

/// Every device of the node, for a privileged container.
fn below_dev() -> Result<Vec<HostDevice>, SpecError> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), 0, DEV_FILESYSTEMS, &mut |path| {
        found.extend(device_at(path, path.to_owned(), "rwm"));
    })
    .map_err(|error| SpecError::failed("devices of the node", "/dev", error.to_string()))?;
    Ok(found)
}

/// Calls `visit` for each file below `directory` that is neither a link nor a directory. What vanishes meanwhile, as
/// devices do, is passed over.
fn walk(directory: &Path, depth: usize, skip: &[&str], visit: &mut dyn FnMut(&Path)) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let skipped = entry.file_name().to_str().is_some_and(|name| skip.contains(&name));
        if kind.is_dir() && !skipped && depth < MAX_DEVICE_DEPTH {
            match walk(&entry.path(), depth + 1, &[], visit) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if !kind.is_dir() && !kind.is_symlink() {
            visit(&entry.path());
        }
    }
    Ok(())
}

/// The device node at `host`, if it is one.
fn device_at(host: &Path, path: PathBuf, access: &str) -> Option<HostDevice> {
    let meta = fs::symlink_metadata(host).ok()?;
    let typ = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    Some(HostDevice {
        path,
        typ,
        major: nix::sys::stat::major(meta.rdev()),
        minor: nix::sys::stat::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    })
}

fn read_text(path: &str) -> anyhow::Result<String> {
    use anyhow::Context as _;
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// v2 mounted at the root of the hierarchies; a hybrid node, with v2 in a directory below, counts as v1.
fn is_cgroup_v2() -> bool {
    rustix::fs::statfs(CGROUP_ROOT).is_ok_and(|fs| fs.f_type == nix::sys::statfs::CGROUP2_SUPER_MAGIC.0)
}

/// The kernel has the file if it has the namespaces.
fn has_user_namespaces() -> bool {
    read_text("/proc/sys/user/max_user_namespaces").is_ok_and(|limit| limit.trim() != "0")
}

/// The running kernel's version is `major.minor` or later.
/// Whether the kernel is this version or a later one.
pub(crate) fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = read_text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0u32), numbers.next().unwrap_or(0u32)) >= (major, minor)
}

/// v1 has the file in every memory cgroup, v2 in every one but the root's: the server's own decides.
fn has_swap_limit(cgroup_v2: bool) -> bool {
    if !cgroup_v2 {
        return Path::new(CGROUP_ROOT)
            .join("memory/memory.memsw.limit_in_bytes")
            .exists();
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .is_some_and(|own| Path::new(CGROUP_ROOT).join(own).join("memory.swap.max").exists())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node on cgroup v1 without SELinux whose server lacks CAP_SYS_RESOURCE alone.
    pub(in crate::spec) fn host() -> Host {
        let mut capabilities = capabilities::from_status("CapBnd:\tffffffffffffffff", "CapBnd");
        capabilities.remove("CAP_SYS_RESOURCE");
        Host {
            capabilities,
            cgroup_v2: false,
            swap_limit: true,
            oom_score_adj_floor: 0,
            recursive_read_only: true,
            user_namespaces: true,
            selinux: false,
            apparmor: false,
        }
    }

    #[test]
    fn the_node_is_readable() {
        let host = Host::read().unwrap();
        assert!(host.capabilities.contains("CAP_CHOWN"));
        assert!(kernel_at_least(5, 6) && !kernel_at_least(1000, 0));
        assert!((-1000..=1000).contains(&host.oom_score_adj_floor));
    }

    #[test]
    fn host_paths_are_followed_and_missing_ones_made() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let new = dir.path().join("a/b");
        let mount = |path: &Path| Mount {
            host_path: path.to_str().unwrap().to_owned(),
            container_path: "/x".into(),
            ..Default::default()
        };
        let config = ContainerConfig {
            mounts: vec![mount(&dir.path().join("link")), mount(&new)],
            ..Default::default()
        };
        let sources = Sources::read(&config, &BTreeMap::new()).unwrap();
        let paths: Vec<_> = sources.mounts.iter().map(|mount| mount.path.clone()).collect();
        assert_eq!(
            paths,
            [fs::canonicalize(&real).unwrap(), fs::canonicalize(&new).unwrap()]
        );
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o755);

        fs::write(dir.path().join("file"), "").unwrap();
        let through = ContainerConfig {
            mounts: vec![mount(&dir.path().join("file/below"))],
            ..Default::default()
        };
        assert_eq!(
            Sources::read(&through, &BTreeMap::new()).unwrap_err().field,
            "mounts[0].host_path"
        );
    }

    #[test]
    fn devices_are_found_alone_and_below_directories() {
        let device = |host: &str| Device {
            host_path: host.into(),
            container_path: "/dev/mine".into(),
            permissions: "rw".into(),
        };
        let null = requested_devices("f", &device("/dev/null")).unwrap();
        assert_eq!((null[0].major, null[0].minor, null[0].typ), (1, 3, LinuxDeviceType::C));
        assert_eq!(
            (null[0].path.as_path(), null[0].access.as_str()),
            (Path::new("/dev/mine"), "rw")
        );

        let all = requested_devices("f", &device("/dev")).unwrap();
        assert!(all.iter().any(|device| device.path == Path::new("/dev/mine/null")));

        assert!(requested_devices("f", &device("/etc/passwd")).is_err());
        assert!(requested_devices("f", &device("/dev/none-such")).is_err());
    }
}
