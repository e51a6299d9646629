//! Delegation: a container that has a cgroup namespace and may write to its cgroups owns its own, so that a process of its
//! user can divide it (config-linux.md, "Cgroup ownership"). On v2 alone: on v1 that is not safe.
//!
//! Owned are the directory and the files that the kernel lists for it; the limits stay the runtime's.

use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{AtFlags, Uid, chownat};
use rustix::io::Errno;

use super::directory::Directory;
use crate::id_map::{self, Kind};

/// What the kernel says can be given away, Linux 4.15.
const LIST: &str = "/sys/kernel/cgroup/delegate";

/// The same, where the kernel does not say.
const ALWAYS: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// Who the container's cgroup is to belong to, as the host counts users; `None` where it stays ours.
pub(super) fn owner(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let new = |kind: LinuxNamespaceType| {
        let mut all = linux.namespaces().iter().flatten();
        all.any(|one| one.typ() == kind && one.path().as_ref().is_none_or(|path| path.as_os_str().is_empty()))
    };
    if !new(LinuxNamespaceType::Cgroup) || !writable(spec) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let uid = if new(LinuxNamespaceType::User) {
        id_map::host_id(Kind::Uid.mappings(linux), uid)?
    } else {
        uid
    };
    // Root's they are already.
    (uid != 0).then_some(uid)
}

fn writable(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(|mount| {
        let kind = mount.typ().as_deref().unwrap_or_default();
        let mut options = mount.options().iter().flatten();
        mount.destination() == Path::new("/sys/fs/cgroup")
            && ["cgroup", "cgroup2"].contains(&kind)
            && !options.any(|option| option == "ro" || option == "rro")
    })
}

/// Gives the directory and what the kernel lists in it to this user.
pub(super) fn give(directory: &Directory, uid: u32) -> Result<()> {
    let list = match std::fs::read_to_string(LIST) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => ALWAYS.to_owned(),
        list => list.with_context(|| format!("read {LIST}"))?,
    };
    for file in std::iter::once("").chain(list.lines()) {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        match chownat(directory, file, Some(Uid::from_raw(uid)), None, flags) {
            // Of a controller that is not enabled here.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("chown {}/{file} to {uid}", directory.path.display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn owners() {
        let own = json!([{"type": "cgroup"}, {"type": "user"}]);
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
        let mount = |options: Value| json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options}]);
        for (what, namespaces, maps, mounts, uid, owner) in [
            ("mapped", own.clone(), map.clone(), mount(json!([])), 5, Some(100_005)),
            ("not mapped", own.clone(), map.clone(), mount(json!([])), 10, None),
            (
                "read-only",
                own.clone(),
                map.clone(),
                mount(json!(["nosuid", "ro"])),
                5,
                None,
            ),
            ("not mounted", own, map.clone(), json!([]), 5, None),
            (
                "no user namespace",
                json!([{"type": "cgroup"}]),
                json!([]),
                mount(json!([])),
                7,
                Some(7),
            ),
            (
                "root",
                json!([{"type": "cgroup"}]),
                json!([]),
                mount(json!([])),
                0,
                None,
            ),
            (
                "the cgroup namespace of others",
                json!([{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]),
                json!([]),
                mount(json!([])),
                7,
                None,
            ),
        ] {
            let spec: Spec = serde_json::from_value(json!({
                "ociVersion": "1.0.2",
                "process": {"cwd": "/", "user": {"uid": uid, "gid": 0}},
                "mounts": mounts,
                "linux": {"namespaces": namespaces, "uidMappings": maps},
            }))
            .unwrap();
            assert_eq!(super::owner(&spec), owner, "{what}");
        }
    }
}
