//! `corten features`: what this runtime can do, as the document of the OCI runtime specification (features.md, 1.3).
//!
//! It says what the code does, not what this machine allows (features.md asks for no more; `supportedFlags` is the one field
//! that is the kernel's), and is taken from what the
//! code goes by wherever there is such a thing: a field of config.json is shown as implemented if its check lets it pass, a
//! mount option if the parser takes it.

use anyhow::{Context, Result};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::print;
use crate::rootfs::options::Options;
use crate::seccomp;
use crate::state::OCI_VERSION;
use crate::validate::is_supported;

/// The oldest version whose documents are understood.
const OCI_VERSION_MIN: &str = "1.0.0";

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The options that config.md has a meaning for, whatever the filesystem ("Linux mount options"), with those that mount(8)
/// has for the opposite of a default. Whether this runtime takes one is for its parser to say.
const MOUNT_OPTIONS: [&[&str]; 5] = [
    &["bind", "rbind", "idmap", "ridmap", "remount", "defaults", "tmpcopyup"],
    &[
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    ],
    &[
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "symfollow",
        "nosymfollow",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ],
    &[
        "rro",
        "rrw",
        "rsuid",
        "rnosuid",
        "rdev",
        "rnodev",
        "rexec",
        "rnoexec",
        "rsymfollow",
        "rnosymfollow",
        "ratime",
        "rnoatime",
        "rdiratime",
        "rnodiratime",
        "rrelatime",
        "rnorelatime",
        "rstrictatime",
        "rnostrictatime",
    ],
    &[
        "acl",
        "noacl",
        "async",
        "sync",
        "dirsync",
        "iversion",
        "noiversion",
        "lazytime",
        "nolazytime",
        "loud",
        "silent",
        "mand",
        "nomand",
    ],
];

/// Prints the document.
pub(super) fn features() -> Result<()> {
    let text = serde_json::to_string_pretty(&document()).context("encode the features")?;
    print(&format!("{text}\n"))
}

fn document() -> Value {
    json!({
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION,
        "hooks": HOOKS,
        "mountOptions": mount_options(),
        "linux": linux(),
        "annotations": {
            "org.corten.version": env!("CARGO_PKG_VERSION"),
            // runc's way to say that there are `checkpoint` and `restore`; whether CRIU is there is the node's affair.
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        // What systemd is told of the container's scope.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    })
}

fn mount_options() -> Vec<&'static str> {
    let mut options: Vec<&str> = MOUNT_OPTIONS.into_iter().flatten().copied().collect();
    options.retain(|option| Options::parse(&[option]).is_ok());
    options.sort_unstable();
    options
}

fn linux() -> Value {
    json!({
        "namespaces": namespaces(),
        "capabilities": capabilities(),
        "cgroup": {
            "v1": true,
            "v2": true,
            "systemd": true,
            "systemdUser": true,
            "rdma": is_supported("linux.resources.rdma"),
        },
        "seccomp": {
            "enabled": is_supported("linux.seccomp"),
            "actions": seccomp::ACTIONS,
            "operators": seccomp::OPERATORS,
            "archs": seccomp::architectures(),
            "knownFlags": seccomp::FLAGS,
            "supportedFlags": seccomp::supported_flags(),
        },
        "apparmor": { "enabled": is_supported("process.apparmorProfile") },
        "selinux": { "enabled": is_supported("process.selinuxLabel") },
        "intelRdt": {
            "enabled": is_supported("linux.intelRdt"),
            "schemata": is_supported("linux.intelRdt"),
            "monitoring": is_supported("linux.intelRdt"),
        },
        "mountExtensions": { "idmap": { "enabled": is_supported("mounts[].uidMappings") } },
        "netDevices": { "enabled": is_supported("linux.netDevices") },
    })
}

fn namespaces() -> Vec<&'static str> {
    let mut kinds = vec!["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];
    if is_supported("linux.timeOffsets") {
        kinds.insert(5, "time");
    }
    kinds
}

/// Those that the code has names for; a kernel may lack some.
fn capabilities() -> Vec<String> {
    CapabilitySet::all()
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What features.md has for Linux is said, one way or the other.
    #[test]
    fn every_field_is_there() {
        let document = document();
        for pointer in [
            "/ociVersionMin",
            "/ociVersionMax",
            "/hooks/5",
            "/mountOptions/50",
            "/linux/namespaces/6",
            "/linux/capabilities/40",
            "/linux/cgroup/v1",
            "/linux/cgroup/v2",
            "/linux/cgroup/systemd",
            "/linux/cgroup/systemdUser",
            "/linux/cgroup/rdma",
            "/linux/seccomp/enabled",
            "/linux/seccomp/actions/8",
            "/linux/seccomp/operators/6",
            "/linux/seccomp/archs/6",
            "/linux/seccomp/knownFlags/3",
            "/linux/seccomp/supportedFlags",
            "/linux/apparmor/enabled",
            "/linux/selinux/enabled",
            "/linux/intelRdt/enabled",
            "/linux/mountExtensions/idmap/enabled",
            "/linux/netDevices/enabled",
            "/annotations",
            "/potentiallyUnsafeConfigAnnotations",
        ] {
            assert!(
                document.pointer(pointer).is_some_and(|value| !value.is_null()),
                "{pointer}"
            );
        }
        assert_eq!(document["linux"]["capabilities"][0], "CAP_CHOWN");
    }

    #[test]
    fn options_are_what_the_parser_takes() {
        let options = mount_options();
        assert!(options.contains(&"rnosymfollow") && options.is_sorted());
        assert_eq!(options.contains(&"tmpcopyup"), Options::parse(&["tmpcopyup"]).is_ok());
        let twice = options.windows(2).any(|pair| pair[0] == pair[1]);
        assert!(!twice, "{options:?}");
    }
}
