//! The checks of `linux`: namespaces, id mappings, paths, devices; resources are `cgroup`'s own to check.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Mount, Process, Spec,
};

use super::{absolute, netdev, sysctl, time};
use crate::rootfs;
use crate::rootfs::options::{Options, Propagation};

/// How many lines the kernel takes for a map, user_namespaces(7); 5 before Linux 4.15.
const MAX_MAPPINGS: usize = 340;

/// The longest name of a host or a domain, `__NEW_UTS_LEN`.
const MAX_NAME: usize = 64;

pub(super) fn linux(linux: &Linux) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    namespaces(linux)?;
    warnings.extend(mappings(linux)?);
    for (field, paths) in [
        ("maskedPaths", linux.masked_paths()),
        ("readonlyPaths", linux.readonly_paths()),
    ] {
        for (index, path) in paths.iter().flatten().enumerate() {
            absolute(Path::new(path), &format!("linux.{field}[{index}]"))?;
        }
    }
    if let Some(name) = linux.rootfs_propagation().as_ref().filter(|name| !name.is_empty()) {
        ensure!(
            Propagation::parse(name).is_some(),
            "linux.rootfsPropagation: {name:?}: must be shared, slave, private or unbindable, or one of these after an r"
        );
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        check_device(device, &format!("linux.devices[{index}]"))?;
    }
    if let Some(sysctls) = linux.sysctl() {
        sysctl::check(sysctls, |kind| private(linux, kind))?;
    }
    if let Some(personality) = linux.personality() {
        let flags = personality.flags().as_deref().unwrap_or_default();
        ensure!(
            flags.is_empty(),
            "linux.personality.flags: {flags:?}: the specification has none yet"
        );
    }
    linux
        .memory_policy()
        .as_ref()
        .map_or(Ok(()), crate::memory_policy::check)?;
    crate::lsm::check_mounts(linux)?;
    linux.seccomp().as_ref().map_or(Ok(()), crate::seccomp::check)?;
    time::offsets(linux)?;
    netdev::devices(linux)?;
    if linux.intel_rdt().is_some() {
        crate::rdt::mounted()?;
    }
    warnings.extend(crate::cgroup::check(linux)?);
    Ok(warnings)
}

/// A namespace of this kind, if the container is to have one, with its place in the document.
pub(super) fn find(linux: &Linux, kind: LinuxNamespaceType) -> Option<(usize, &LinuxNamespace)> {
    linux
        .namespaces()
        .iter()
        .flatten()
        .enumerate()
        .find(|(_, namespace)| namespace.typ() == kind)
}

/// Its path; Go programs write an absent one as an empty one.
pub(super) fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn namespaces(linux: &Linux) -> Result<()> {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in all.iter().enumerate() {
        let (at, kind) = (format!("linux.namespaces[{index}]"), namespace.typ());
        let earlier = all[..index].iter().any(|other| other.typ() == kind);
        ensure!(!earlier, "{at}.type: {kind}: must not appear twice");
        ensure!(
            kind != LinuxNamespaceType::Time || Path::new("/proc/self/ns/time").exists(),
            "{at}.type: time: this kernel has no time namespaces"
        );
        path(namespace).map_or(Ok(()), |path| absolute(path, &format!("{at}.path")))?;
    }
    ensure!(
        find(linux, LinuxNamespaceType::Mount).is_some(),
        "linux.namespaces: must hold a mount namespace: the root filesystem is built in it"
    );
    Ok(())
}

/// What does not go together with a mount namespace that exists: the root is built in a copy of it, and moved.
pub(super) fn joined_mount_namespace(spec: &Spec, linux: &Linux) -> Result<()> {
    let Some((index, _)) = find(linux, LinuxNamespaceType::Mount).filter(|(_, namespace)| path(namespace).is_some())
    else {
        return Ok(());
    };
    let at = format!("linux.namespaces[{index}].path");
    let new_user = find(linux, LinuxNamespaceType::User).is_some_and(|(_, namespace)| path(namespace).is_none());
    ensure!(
        !new_user,
        "{at}: needs the user namespace it belongs to: a new one has no rights in it"
    );
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.create_container().as_ref());
    // Its processes decide what is at the path of a hook there, which would run with all of the runtime's rights.
    ensure!(
        hooks.is_none_or(Vec::is_empty),
        "{at}: must be absent where there are hooks.createContainer"
    );
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = mount.options().iter().flatten();
        // The kernel leaves such a mount out of every copy.
        let unbindable = options
            .filter_map(|option| Propagation::parse(option))
            .any(|propagation| propagation.kind == libc::MS_UNBINDABLE);
        ensure!(
            !unbindable,
            "{at}: must be absent where mounts[{index}].options says unbindable"
        );
    }
    Ok(())
}

/// Whether the container has a namespace of this kind that is not the runtime's own, which is the host's.
pub(super) fn private(linux: &Linux, kind: LinuxNamespaceType) -> Result<bool> {
    let Some((index, namespace)) = find(linux, kind) else {
        return Ok(false);
    };
    let Some(path) = path(namespace) else {
        return Ok(true);
    };
    let inode = |path: &Path| {
        let file = std::fs::metadata(path).with_context(|| format!("linux.namespaces[{index}].path: {path:?}"))?;
        anyhow::Ok((file.dev(), file.ino()))
    };
    // strum's name is that of /proc/PID/ns.
    Ok(inode(path)? != inode(&Path::new("/proc/self/ns").join(kind.to_string()))?)
}

/// The host's and the domain's name: in a namespace that is not the host's.
pub(super) fn names(spec: &Spec, linux: &Linux) -> Result<()> {
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        // An empty name is one, too: set without a namespace of its own it would be the host's.
        let Some(name) = name else { continue };
        ensure!(
            name.len() <= MAX_NAME,
            "{field}: {name:?}: must not be longer than {MAX_NAME} bytes"
        );
        ensure!(!name.contains('\0'), "{field}: {name:?}: must not hold a NUL");
        let own = private(linux, LinuxNamespaceType::Uts)?;
        ensure!(own, "{field}: {name:?}: needs a uts namespace that is not the host's");
    }
    Ok(())
}

fn mappings(linux: &Linux) -> Result<Option<String>> {
    let lists = [
        ("uidMappings", linux.uid_mappings()),
        ("gidMappings", linux.gid_mappings()),
    ]
    .map(|(field, list)| (field, list.as_deref().unwrap_or_default()));
    let user = find(linux, LinuxNamespaceType::User).map(|(_, namespace)| namespace);
    for (field, list) in lists {
        let Some(user) = user else {
            ensure!(list.is_empty(), "linux.{field}: needs a user namespace");
            continue;
        };
        ensure!(
            !list.is_empty() || path(user).is_some(),
            "linux.{field}: missing: a new user namespace needs mappings"
        );
        check_mappings(list, &format!("linux.{field}"))?;
    }
    let ignored = user.is_some_and(|user| path(user).is_some()) && lists.iter().any(|(_, list)| !list.is_empty());
    Ok(ignored.then(|| {
        "linux.uidMappings, linux.gidMappings: the user namespace that is joined has its own; ignored".to_owned()
    }))
}

/// The mapping of a mount's ids: both lists or none, and then that of the container's user namespace (config.md, "Mounts").
pub(super) fn idmap(mount: &Mount, options: &Options, linux: &Linux, at: &str) -> Result<()> {
    let Some(_depth) = rootfs::idmap::depth(mount, options) else {
        return Ok(());
    };
    let bind = options.bind.is_some() || mount.typ().as_deref() == Some("bind");
    ensure!(
        bind && !options.remount,
        "{at}.options: idmap: only a bind can be idmapped"
    );
    let lists = [
        ("uidMappings", mount.uid_mappings()),
        ("gidMappings", mount.gid_mappings()),
    ]
    .map(|(field, list)| (field, list.as_deref().unwrap_or_default()));
    if lists.iter().all(|(_, list)| list.is_empty()) {
        let user = find(linux, LinuxNamespaceType::User).is_some();
        ensure!(
            user,
            "{at}.options: idmap: needs uidMappings and gidMappings, or a user namespace"
        );
        return Ok(());
    }
    for (field, list) in lists {
        ensure!(
            !list.is_empty(),
            "{at}.{field}: missing: an idmapped mount needs both mappings"
        );
        check_mappings(list, &format!("{at}.{field}"))?;
    }
    Ok(())
}

fn check_mappings(mappings: &[LinuxIdMapping], field: &str) -> Result<()> {
    ensure!(
        mappings.len() <= MAX_MAPPINGS,
        "{field}: {} lines: at most {MAX_MAPPINGS}",
        mappings.len()
    );
    // Ids end before u32::MAX, which means "none".
    let ranges =
        |map: &LinuxIdMapping| [map.container_id(), map.host_id()].map(|first| (first, first.checked_add(map.size())));
    let overlap = |(a, a_end): (u32, Option<u32>), (b, b_end): (u32, Option<u32>)| Some(a) < b_end && Some(b) < a_end;
    for (index, map) in mappings.iter().enumerate() {
        let at = format!("{field}[{index}]");
        ensure!(map.size() > 0, "{at}.size: 0: must be greater than zero");
        let own = ranges(map);
        ensure!(
            own.iter().all(|(_, end)| end.is_some()),
            "{at}.size: {}: reaches past the last id",
            map.size()
        );
        for earlier in &mappings[..index] {
            let twice = own.into_iter().zip(ranges(earlier)).any(|(a, b)| overlap(a, b));
            ensure!(!twice, "{at}: an id must not be mapped twice");
        }
    }
    Ok(())
}

/// The process's user and groups must exist in a new user namespace: setuid to one that is not mapped is EINVAL.
pub(super) fn process_ids(process: &Process, linux: &Linux) -> Result<()> {
    let new = find(linux, LinuxNamespaceType::User).is_some_and(|(_, namespace)| path(namespace).is_none());
    if !new {
        return Ok(());
    }
    let user = process.user();
    let groups = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|&gid| ("additionalGids", gid));
    let gids = std::iter::once(("gid", user.gid()))
        .chain(groups)
        .map(|id| (id, linux.gid_mappings()));
    for ((field, id), mappings) in std::iter::once((("uid", user.uid()), linux.uid_mappings())).chain(gids) {
        let mapped = mappings
            .iter()
            .flatten()
            .any(|map| id >= map.container_id() && id - map.container_id() < map.size());
        ensure!(
            mapped,
            "process.user.{field}: {id}: is not mapped in the new user namespace"
        );
    }
    Ok(())
}

fn check_device(device: &LinuxDevice, at: &str) -> Result<()> {
    absolute(device.path(), &format!("{at}.path"))?;
    match device.typ() {
        LinuxDeviceType::A => bail!("{at}.type: a: must be c, b, u or p"),
        LinuxDeviceType::P => {}
        LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U => {
            // How the kernel divides a device number, MINORBITS.
            for (field, number, limit) in [("major", device.major(), 1 << 12), ("minor", device.minor(), 1 << 20)] {
                ensure!(
                    (0..limit).contains(&number),
                    "{at}.{field}: {number}: must be 0 to {}",
                    limit - 1
                );
            }
        }
    }
    if let Some(mode) = device.file_mode() {
        // Some programs put the type of the node in, as stat has it; `type` decides.
        ensure!(mode <= 0o177_777, "{at}.fileMode: {mode}: is not a file's mode");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{check, refused};

    pub(in super::super) fn namespaces(more: &[Value]) -> (&'static str, Value) {
        let mut all = vec![json!({"type": "mount"})];
        all.extend_from_slice(more);
        ("/linux/namespaces", Value::Array(all))
    }

    #[test]
    fn namespaces_refused() {
        refused(
            r#"
            /linux/namespaces | [] | linux.namespaces | mount
            /linux/namespaces | [{"type": "mount", "path": "x"}] | linux.namespaces[0].path: "x" | absolute
            /linux/namespaces | [{"type": "mount"}, {"type": "mount"}] | linux.namespaces[1].type: mnt | twice
            /linux/timeOffsets | {"monotonic": {"secs": 1}} | linux.timeOffsets.monotonic | needs a time namespace
            /linux/netDevices | {"lo": {"name": "x"}} | linux.netDevices."lo" | needs a network namespace
            /linux/intelRdt | {} | linux.intelRdt | not mounted
            /linux/namespaces | [{"type": "pid", "path": "x"}] | linux.namespaces[0].path: "x" | absolute
            "#,
        );
        let empty_path = json!({"type": "pid", "path": ""});
        assert_eq!(check(&[namespaces(&[empty_path])]), Ok(vec![]));
    }

    #[test]
    fn beside_a_mount_namespace_that_exists() {
        let joined = |more: &[Value]| {
            let mut all = vec![json!({"type": "mount", "path": "/run/mnt"})];
            all.extend_from_slice(more);
            ("/linux/namespaces", Value::Array(all))
        };
        let ids = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        let bind =
            |option: &str| json!([{"destination": "/x", "source": "/", "type": "bind", "options": ["bind", option]}]);
        assert_eq!(check(&[joined(&[])]), Ok(vec![]));
        assert_eq!(check(&[joined(&[]), ("/mounts", bind("private"))]), Ok(vec![]));
        for (change, rule) in [
            (("/mounts", bind("unbindable")), "mounts[0].options"),
            (("/mounts", bind("runbindable")), "mounts[0].options"),
            (
                ("/hooks", json!({"createContainer": [{"path": "/x"}]})),
                "hooks.createContainer",
            ),
        ] {
            let error = check(&[joined(&[]), change]).unwrap_err();
            assert!(
                error.starts_with("linux.namespaces[0].path: ") && error.contains(rule),
                "{error}"
            );
        }
        let error = check(&[
            joined(&[json!({"type": "user"})]),
            ("/linux/uidMappings", ids.clone()),
            ("/linux/gidMappings", ids),
        ])
        .unwrap_err();
        assert!(error.contains("user namespace"), "{error}");
    }

    #[test]
    fn names_need_a_namespace() {
        let uts = |path: Value| namespaces(&[json!({"type": "uts", "path": path})]);
        for field in ["/hostname", "/domainname"] {
            let at = &field[1..];
            assert_eq!(check(&[(field, json!("x".repeat(64))), uts(Value::Null)]), Ok(vec![]));
            for (name, namespaces, rule) in [
                (json!("x"), namespaces(&[]), "uts"),
                (json!(""), namespaces(&[]), "uts"),
                (json!("x"), uts(json!("/proc/self/ns/uts")), "not the host's"),
                (json!("x".repeat(65)), uts(Value::Null), "64"),
                (json!("x\u{0}"), uts(Value::Null), "NUL"),
                (json!("x"), uts(json!("/no/such/namespace")), "No such file"),
            ] {
                let error = check(&[(field, name.clone()), namespaces]).unwrap_err();
                assert!(
                    error.contains(rule) && (error.starts_with(at) || rule == "No such file"),
                    "{name}: {error}"
                );
            }
        }
    }

    #[test]
    fn sysctls_need_a_namespace() {
        let sysctl = ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        assert_eq!(
            check(&[sysctl.clone(), namespaces(&[json!({"type": "network"})])]),
            Ok(vec![])
        );
        let host = json!({"type": "network", "path": "/proc/self/ns/net"});
        for namespaces in [namespaces(&[]), namespaces(&[host])] {
            let error = check(&[sysctl.clone(), namespaces]).unwrap_err();
            assert!(
                error.starts_with("linux.sysctl.\"net.ipv4.ip_forward\": needs a net namespace"),
                "{error}"
            );
        }
    }

    #[test]
    fn mappings() {
        let map =
            |container: u32, host: u32, size: u32| json!({"containerID": container, "hostID": host, "size": size});
        let with = |uids: Value, user: Value| {
            check(&[
                namespaces(&[user]),
                ("/linux/uidMappings", uids),
                ("/linux/gidMappings", json!([map(0, 5, 9)])),
            ])
        };
        let new = json!({"type": "user"});
        for (uids, user, result) in [
            (json!([map(0, 1000, 10), map(10, 5, 3)]), new.clone(), Ok(0)),
            (
                json!([map(0, 1000, 1)]),
                json!({"type": "user", "path": "/proc/self/ns/user"}),
                Ok(1),
            ),
            (
                json!([map(0, 1, 1)]),
                json!({"type": "pid"}),
                Err("linux.uidMappings: needs a user namespace"),
            ),
            (json!([]), new.clone(), Err("linux.uidMappings: missing")),
            (json!([map(0, 1, 0)]), new.clone(), Err("linux.uidMappings[0].size: 0")),
            (
                json!([map(0, u32::MAX, 1)]),
                new.clone(),
                Err("linux.uidMappings[0].size: 1: reaches"),
            ),
            (
                json!([map(0, 1, 5), map(4, 100, 1)]),
                new.clone(),
                Err("linux.uidMappings[1]: an id"),
            ),
            (
                json!([map(0, 1, 5), map(5, 5, 1)]),
                new.clone(),
                Err("linux.uidMappings[1]: an id"),
            ),
            (
                json!([map(1, 1, 5)]),
                new.clone(),
                Err("process.user.uid: 0: is not mapped"),
            ),
            (
                Value::Array(vec![map(0, 1, 1); 341]),
                new,
                Err("linux.uidMappings: 341 lines"),
            ),
        ] {
            match (with(uids.clone(), user), result) {
                (Ok(warnings), Ok(count)) => {
                    assert_eq!(warnings.len(), count, "{uids}: {warnings:?}")
                }
                (Err(error), Err(words)) => assert!(error.starts_with(words), "{uids}: {error}"),
                (is, should) => panic!("{uids}: {is:?}, not {should:?}"),
            }
        }
    }

    #[test]
    fn devices() {
        let with = |extra: Value| {
            let mut device = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3});
            let fields = extra.as_object().unwrap().clone();
            device.as_object_mut().unwrap().extend(fields);
            check(&[("/linux/devices", json!([device]))])
        };
        assert_eq!(with(json!({"fileMode": 0o20666, "uid": 0})), Ok(vec![]));
        assert_eq!(with(json!({"type": "p", "major": -5})), Ok(vec![]));
        for (extra, words) in [
            (json!({"path": "x"}), "path: \"x\": must be absolute"),
            (json!({"type": "a"}), "type: a: must be c, b, u or p"),
            (json!({"major": -1}), "major: -1: must be 0 to 4095"),
            (json!({"minor": 1 << 20}), "minor: 1048576: must be 0 to 1048575"),
        ] {
            let error = with(extra).unwrap_err();
            assert_eq!(error, format!("linux.devices[0].{words}"));
        }
    }

    #[test]
    fn other_fields_refused() {
        refused(
            r#"
            /linux/maskedPaths       | ["/a", "b"]              | linux.maskedPaths[1]: "b"            | absolute
            /linux/readonlyPaths     | ["../b"]                 | linux.readonlyPaths[0]               | absolute
            /linux/rootfsPropagation | "sideways"               | linux.rootfsPropagation: "sideways"  | slave
            /linux/resources/memory  | {"limit": 5, "swap": 4}  | linux.resources.memory.swap: 4       | less than
            /linux/resources/devices | [{"allow": true, "access": "x"}] | linux.resources.devices[0].access | 'x'
            "#,
        );
    }
}
