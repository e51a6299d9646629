//! What the node looks like, as values: the only place of `spec`, with `user`, that reads the node.
//!
//! [`Host`] is read once when the server starts; [`Sources`] for each container, because host paths and devices come
//! and go. The host paths of mounts are looked up in `host_paths`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use corten_proto::cri::{ContainerConfig, Device, Int64Value};
use oci_spec::runtime::LinuxDeviceType;

use super::host_paths::{MadeDirectories, MissingHostPath, MountSource, read_mounts};
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
    /// The page sizes that the kernel can limit per cgroup, `2MB`; none without its hugetlb controller.
    pub huge_page_sizes: BTreeSet<String>,
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

/// What a runtime can do of what CRI asks about; the kernel's part of it is [`Host`]'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It knows the mount option `rro`: read-only with all that is mounted below.
    pub recursive_read_only: bool,
    /// It maps the ids of bind mounts. One that cannot passes over the mappings without a word.
    pub idmapped_mounts: bool,
    /// User namespaces, and mounts with mapped ids for them.
    pub user_namespaces: bool,
    /// It saves and restores containers by CRIU.
    pub checkpoint: bool,
}

/// How [`Sources::read`] goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceRules {
    /// For host paths that do not exist.
    pub missing_host_path: MissingHostPath,
    /// The request's devices get the user and group of its security context.
    pub device_ownership: bool,
}

/// The node's side of one container's mounts and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// One for each mount of the request, in its order.
    pub mounts: Vec<MountSource>,
    /// Every device the container gets; for a privileged one all that the node has.
    pub devices: Vec<HostDevice>,
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
            huge_page_sizes: huge_page_sizes(cgroup_v2),
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
    /// A host path that does not exist is made, if the rules say so, once everything else was found.
    ///
    /// `volumes` are the mounted image volumes, by their place in the request.
    pub fn read(
        config: &ContainerConfig,
        volumes: &BTreeMap<usize, PathBuf>,
        rules: SourceRules,
    ) -> Result<(Sources, MadeDirectories), SpecError> {
        let mut devices = match security::is_privileged(config) {
            true => below_dev()?,
            false => Vec::new(),
        };
        for (index, device) in config.devices.iter().enumerate() {
            let field = format!("devices[{index}].host_path");
            let mut found = requested_devices(&field, device)?;
            if rules.device_ownership {
                found.iter_mut().for_each(|device| give_to_user(device, config));
            }
            devices.extend(found);
        }
        let mut made = MadeDirectories::default();
        let mounts = match config.mounts.is_empty() {
            true => Vec::new(),
            false => read_mounts(&config.mounts, volumes, rules.missing_host_path, &mut made)?,
        };
        Ok((Sources { mounts, devices }, made))
    }
}

/// Ids that are out of range have been refused before.
fn give_to_user(device: &mut HostDevice, config: &ContainerConfig) {
    let context = security::context(config);
    let id = |value: Option<&Int64Value>| value.and_then(|it| u32::try_from(it.value).ok());
    device.uid = id(context.and_then(|it| it.run_as_user.as_ref())).unwrap_or(device.uid);
    device.gid = id(context.and_then(|it| it.run_as_group.as_ref())).unwrap_or(device.gid);
}

/// The devices a request names: one, or all below a directory, each under the container path.
fn requested_devices(field: &str, device: &Device) -> Result<Vec<HostDevice>, SpecError> {
    let host = fs::canonicalize(&device.host_path)
        .map_err(|error| SpecError::invalid(field, &device.host_path, format!("must exist on the node: {error}")))?;
    let container = super::clean(super::devices::container_path(device));
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

/// v1 has files for each size in the controller's root; on v2 the sizes are the kernel's, if the controller is there.
fn huge_page_sizes(cgroup_v2: bool) -> BTreeSet<String> {
    let names = |path: &str| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    if !cgroup_v2 {
        let files = names(&format!("{CGROUP_ROOT}/hugetlb"));
        let size = |name: &String| {
            Some(
                name.strip_prefix("hugetlb.")?
                    .strip_suffix(".limit_in_bytes")?
                    .to_owned(),
            )
        };
        // `2MB.rsvd` is the other limit of the same pages.
        return files
            .iter()
            .filter_map(size)
            .filter(|size| !size.contains('.'))
            .collect();
    }
    let controllers = fs::read_to_string(format!("{CGROUP_ROOT}/cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "hugetlb") {
        return BTreeSet::new();
    }
    let pools = names("/sys/kernel/mm/hugepages");
    let kib = pools
        .iter()
        .filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
    kib.map(page_size).collect()
}

/// A page size of so many KiB as cgroup files and the runtime-spec have it.
fn page_size(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
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
            huge_page_sizes: BTreeSet::new(),
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
    fn page_sizes() {
        for (kib, size) in [(64, "64KB"), (2048, "2MB"), (1 << 20, "1GB"), (16 << 20, "16GB")] {
            assert_eq!(page_size(kib), size);
        }
    }

    #[test]
    fn devices_belong_to_the_user_where_the_rules_say_so() {
        use corten_proto::cri::{LinuxContainerConfig, LinuxContainerSecurityContext};
        let config = |user: Option<i64>| ContainerConfig {
            devices: vec![Device {
                host_path: "/dev/null".into(),
                permissions: "r".into(),
                ..Default::default()
            }],
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    run_as_user: user.map(|value| Int64Value { value }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (user, device_ownership, expected) in [(Some(7), true, 7), (Some(7), false, 0), (None, true, 0)] {
            let rules = SourceRules {
                device_ownership,
                ..Default::default()
            };
            let (sources, _made) = Sources::read(&config(user), &BTreeMap::new(), rules).unwrap();
            let device = &sources.devices[0];
            assert_eq!((device.uid, device.path.as_path()), (expected, Path::new("/dev/null")));
        }
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
