//! What is different for a user who is not root: what such a user may ask for, and how the same is reached without
//! root's rights.
//!
//! | root | another user |
//! |---|---|
//! | state below /run/corten | below `$XDG_RUNTIME_DIR` |
//! | writes any id map | the own id alone, or what newuidmap and newgidmap allow ([`crate::id_map`]) |
//! | copies the host's mounts before there is an init | init does, as root of its user namespace |
//! | init is undumpable from its first instruction | once it is mapped: the files of an undumpable process are root's |
//! | has a cgroup | goes without where none may be made and nothing needs one |
//! | sets the OOM score of the process | has it for the moment of the clone |
//!
//! Root of a user namespace somebody else made (`unshare -r`) is in between: what is refused is done the other way, and
//! a container of root's pays nothing for asking.
//!
//! Where we differ from runc 1.1: supplementary groups are allowed where the kernel allows them, which is where newgidmap
//! has written the map; a user namespace that is joined needs no mappings of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Process, Spec};
use rustix::io::Errno;

use crate::cli::Rootless;
use crate::id_map::{self, Ids, Kind};
use crate::{cgroup, log, process};

/// Whether this process is an ordinary user's.
pub fn unprivileged() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Whether this process is in a user namespace other than the machine's first, whose map is all of the ids.
pub fn in_user_namespace() -> bool {
    // Without procfs there is no telling, and nothing else works either.
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_whole(&map))
}

fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether this is the refusal that somebody who is not root of the machine has to expect.
pub fn is_expected(error: &anyhow::Error) -> bool {
    let system = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    let number = system.or_else(|| Some(error.downcast_ref::<Errno>()?.raw_os_error()));
    matches!(number, Some(libc::EPERM | libc::EACCES)) && is_rootless()
}

/// Whether this process is not root of the machine: an ordinary user's, or root of a user namespace only.
pub fn is_rootless() -> bool {
    unprivileged() || in_user_namespace()
}

/// Where the states of containers are kept if nobody says.
pub fn default_root() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let runtime_directory = variable("XDG_RUNTIME_DIR");
    let own = match rustix::process::geteuid() {
        // Root of a user namespace has the environment of the user who made it.
        uid if uid.is_root() => {
            let of_a_user = || variable("USER").is_none_or(|name| name != "root") && in_user_namespace();
            runtime_directory.filter(|_| of_a_user())
        }
        // The directory that the variable names where a login session sets it.
        uid => Some(runtime_directory.unwrap_or_else(|| format!("/run/user/{uid}").into())),
    };
    own.map_or_else(|| "/run/corten/runtime".into(), |own| Path::new(&own).join("corten"))
}

/// Whether a container may go without a cgroup, if none may be made.
fn may_go_without_cgroup(asked: Rootless) -> bool {
    match asked {
        Rootless::Auto => is_rootless(),
        Rootless::True => true,
        Rootless::False => false,
    }
}

/// What a container has in the place of the cgroup that could not be made: none, where this user may make none, did not
/// name one, and wants no limit.
pub fn without_cgroup(error: anyhow::Error, linux: &Linux, asked: Rootless) -> Result<cgroup::Cgroup> {
    let refused = matches!(error.downcast_ref(), Some(&(Errno::ACCESS | Errno::PERM | Errno::ROFS)));
    if !refused || !may_go_without_cgroup(asked) {
        return Err(error);
    }
    if let Some(path) = linux
        .cgroups_path()
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty())
    {
        return Err(error.context(format!("linux.cgroupsPath: {path:?}: this user may not make it")));
    }
    let none = cgroup::Cgroup::none(linux).map_err(|limit| error.context(format!("{limit:#}")))?;
    log::debug("this user may make no cgroup: the container has none");
    Ok(none)
}

/// Every rule for the specification of a user who is not root, who runs as `own`.
pub fn check(spec: &Spec, own: Ids) -> Result<()> {
    let linux = spec.linux().as_ref().context("linux: missing")?;
    let mut namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let user = user.context("linux.namespaces: must hold a user namespace: only root can do without")?;
    if user.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Ok(());
    }
    for kind in [Kind::Uid, Kind::Gid] {
        let mappings = kind.mappings(linux);
        ensure!(
            id_map::host_id(mappings, 0).is_some(),
            "linux.{}: must map 0, the user who builds the container",
            kind.field()
        );
        if !id_map::is_own(mappings, own.id(kind)) {
            id_map::find_helper(kind)
                .with_context(|| format!("linux.{}: more than the own id {} alone", kind.field(), own.id(kind)))?;
        }
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_mount(mount, linux).with_context(|| format!("mounts[{index}].options"))?;
    }
    spec.process()
        .as_ref()
        .map_or(Ok(()), |process| check_groups(process, linux, own))
}

/// The owner of a filesystem must exist in the user namespace; the kernel says no more than EINVAL to another.
fn check_mount(mount: &Mount, linux: &Linux) -> Result<()> {
    let options = mount.options().as_deref().unwrap_or_default();
    // A bind has the filesystem of its source, for which such options mean nothing.
    let bound = |option: &String| option == "bind" || option == "rbind";
    if mount.typ().as_deref() == Some("bind") || options.iter().any(bound) {
        return Ok(());
    }
    for option in options {
        for (name, kind) in [("uid=", Kind::Uid), ("gid=", Kind::Gid)] {
            let Some(id) = option.strip_prefix(name) else { continue };
            let id: u32 = id.parse().with_context(|| format!("{option:?}: must be a number"))?;
            ensure!(
                id_map::host_id(kind.mappings(linux), id).is_some(),
                "{option:?}: is not mapped by linux.{}",
                kind.field()
            );
        }
    }
    Ok(())
}

/// Whoever maps the own group alone must give up setgroups for it (user_namespaces(7)).
fn check_groups(process: &Process, linux: &Linux, own: Ids) -> Result<()> {
    let groups = process.user().additional_gids().as_deref().unwrap_or_default();
    let denied = id_map::is_own(Kind::Gid.mappings(linux), own.gid);
    ensure!(
        groups.is_empty() || !denied,
        "process.user.additionalGids: {groups:?}: need linux.gidMappings of more than the own group"
    );
    Ok(())
}

/// The OOM score of this process, put back on drop.
#[derive(Debug)]
pub struct LentOomScore(i32);

/// Takes on the OOM score that a process is to have, which its clone inherits: nobody but root can write to the files of
/// an undumpable process. A score that may not be set is a warning, as it is for root.
pub fn lend_oom_score(process: &Process) -> Result<Option<LentOomScore>> {
    if process.oom_score_adj().is_none() || !unprivileged() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(OWN_OOM_SCORE).with_context(|| format!("read {OWN_OOM_SCORE}"))?;
    let before = text
        .trim()
        .parse()
        .with_context(|| format!("{OWN_OOM_SCORE}: {text:?}"))?;
    let lent = LentOomScore(before);
    process::set_oom_score_adj(process, i32::try_from(std::process::id())?)?;
    Ok(Some(lent))
}

const OWN_OOM_SCORE: &str = "/proc/self/oom_score_adj";

impl Drop for LentOomScore {
    fn drop(&mut self) {
        let written = std::fs::write(OWN_OOM_SCORE, self.0.to_string());
        log::best_effort("take back the OOM score", written.context(OWN_OOM_SCORE));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OWN: Ids = Ids { uid: 4000, gid: 5000 };

    fn document() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "user"}],
                "uidMappings": [{"containerID": 0, "hostID": 4000, "size": 1}],
                "gidMappings": [{"containerID": 0, "hostID": 5000, "size": 1}],
            },
        })
    }

    fn checked(pointer: &str, value: Value) -> Result<(), String> {
        let mut document = document();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[name] = value;
        check(&serde_json::from_value(document).unwrap(), OWN).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_a_user_may_ask_for() {
        assert_eq!(checked("/hostname", Value::Null), Ok(()));
        let joined = json!([{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}]);
        assert_eq!(checked("/linux/namespaces", joined), Ok(()));
        let bound = json!([{"destination": "/a", "source": "/b", "type": "none", "options": ["bind", "uid=7"]}]);
        assert_eq!(checked("/mounts", bound), Ok(()));
        let own = json!([{"destination": "/a", "type": "tmpfs", "options": ["uid=0", "gid=0"]}]);
        assert_eq!(checked("/mounts", own), Ok(()));
    }

    #[test]
    fn what_is_refused() {
        let tmpfs = |option: &str| json!([{"destination": "/a", "type": "tmpfs", "options": [option]}]);
        for (pointer, value, words) in [
            (
                "/linux/namespaces",
                json!([{"type": "mount"}]),
                "linux.namespaces: must hold a user namespace",
            ),
            (
                "/linux/uidMappings",
                json!([{"containerID": 1, "hostID": 4000, "size": 1}]),
                "linux.uidMappings: must map 0",
            ),
            (
                "/mounts",
                tmpfs("uid=1"),
                "mounts[0].options: \"uid=1\": is not mapped by linux.uidMappings",
            ),
            (
                "/mounts",
                tmpfs("gid=5"),
                "mounts[0].options: \"gid=5\": is not mapped by linux.gidMappings",
            ),
            (
                "/mounts",
                tmpfs("gid=tty"),
                "mounts[0].options: \"gid=tty\": must be a number",
            ),
            (
                "/process/user",
                json!({"uid": 0, "gid": 0, "additionalGids": [0]}),
                "process.user.additionalGids: [0]",
            ),
        ] {
            let error = checked(pointer, value).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_whole_map() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n"));
        assert!(!is_whole(""));
    }
}
