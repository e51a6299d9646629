//! Capability names and the five sets of a container's process. Pure.

use std::collections::{BTreeSet, HashSet};

use corten_proto::cri::ContainerConfig;
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::host::CapabilityName;
use super::{Host, SpecError, security};

/// Every capability the kernel knows, by its bit (include/uapi/linux/capability.h, Linux 5.9 and later).
const NAMES: [CapabilityName; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container gets that asks for nothing: the fourteen that Docker chose and everyone kept.
const DEFAULT: [CapabilityName; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Stands for every capability of the node.
const ALL: &str = "ALL";

/// The set in the line `field` of a `/proc/PID/status`; bits without a name are left out.
pub(crate) fn from_status(status: &str, field: &str) -> BTreeSet<CapabilityName> {
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let set = NAMES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    set.map(|(_, &name)| name).collect()
}

/// oci-spec's value for a name of the kernel's.
pub(super) fn to_oci(name: &str) -> Option<Capability> {
    name.strip_prefix("CAP_")?.parse().ok()
}

/// None at all: the infra container.
pub(super) fn none() -> LinuxCapabilities {
    sets(&HashSet::new(), &HashSet::new())
}

/// Refuses names that no kernel knows.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    Request::parse(config).map(|_| ())
}

/// The sets of a container's process.
///
/// Inheritable stays empty (CVE-2022-24769), except for what is asked for as ambient, which the kernel takes only from
/// there. Default capabilities that the node itself lacks are left out; those asked for by name are refused.
pub(super) fn of(config: &ContainerConfig, host: &Host) -> Result<LinuxCapabilities, SpecError> {
    let set = bounding(config, host)?;
    // A privileged container has the node's, whatever it names; none of them ambient (CVE-2018-1000400).
    let ambient = match security::is_privileged(config) {
        true => BTreeSet::new(),
        false => Request::parse(config)?.ambient.intersection(&set).copied().collect(),
    };
    Ok(sets(&to_oci_set(&set), &to_oci_set(&ambient)))
}

/// The capabilities that the container's processes may ever have.
pub(super) fn bounding(config: &ContainerConfig, host: &Host) -> Result<BTreeSet<CapabilityName>, SpecError> {
    let all = &host.capabilities;
    if security::is_privileged(config) {
        return Ok(all.clone());
    }
    let request = Request::parse(config)?;
    let mut set: BTreeSet<CapabilityName> = DEFAULT.iter().copied().filter(|name| all.contains(name)).collect();
    if request.add_all {
        set.clone_from(all);
    }
    if request.drop_all {
        set.clear();
    }
    for &name in request.add.iter().chain(&request.ambient) {
        if !all.contains(name) {
            let rule = "must be held by the node's container runtime";
            return Err(SpecError::invalid(ADD, name, rule));
        }
        set.insert(name);
    }
    for name in &request.drop {
        set.remove(name);
    }
    Ok(set)
}

fn to_oci_set(names: &BTreeSet<CapabilityName>) -> HashSet<Capability> {
    names.iter().filter_map(|name| to_oci(name)).collect()
}

fn sets(set: &HashSet<Capability>, ambient: &HashSet<Capability>) -> LinuxCapabilities {
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set.clone())
        .inheritable(ambient.clone())
        .ambient(ambient.clone())
        .build()
        .expect("every field of the builder has a default")
}

const ADD: &str = "linux.security_context.capabilities.add_capabilities";
const DROP: &str = "linux.security_context.capabilities.drop_capabilities";
const AMBIENT: &str = "linux.security_context.capabilities.add_ambient_capabilities";

/// The request's names, parsed.
#[derive(Default)]
struct Request {
    add_all: bool,
    add: BTreeSet<CapabilityName>,
    drop_all: bool,
    drop: BTreeSet<CapabilityName>,
    ambient: BTreeSet<CapabilityName>,
}

impl Request {
    fn parse(config: &ContainerConfig) -> Result<Request, SpecError> {
        let Some(asked) = security::context(config).and_then(|it| it.capabilities.as_ref()) else {
            return Ok(Request::default());
        };
        let (add_all, add) = parse(ADD, &asked.add_capabilities)?;
        let (drop_all, drop) = parse(DROP, &asked.drop_capabilities)?;
        let (ambient_all, ambient) = parse(AMBIENT, &asked.add_ambient_capabilities)?;
        if ambient_all {
            return Err(SpecError::invalid(AMBIENT, ALL, "must name single capabilities"));
        }
        Ok(Request {
            add_all,
            add,
            drop_all,
            drop,
            ambient,
        })
    }
}

/// Whether ALL is among `names`, and the others; any case, with or without `CAP_`.
fn parse(field: &str, names: &[String]) -> Result<(bool, BTreeSet<CapabilityName>), SpecError> {
    let mut all = false;
    let mut set = BTreeSet::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if upper == ALL {
            all = true;
            continue;
        }
        let known = NAMES.iter().find(|known| known.strip_prefix("CAP_") == Some(short));
        let known =
            known.ok_or_else(|| SpecError::invalid(field, name, "must be ALL or the name of a Linux capability"))?;
        set.insert(*known);
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{Capability as Asked, LinuxContainerConfig, LinuxContainerSecurityContext};

    use super::super::host::tests::host;
    use super::*;

    fn config(add: &[&str], drop: &[&str], ambient: &[&str], privileged: bool) -> ContainerConfig {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Asked {
                add_capabilities: names(add),
                drop_capabilities: names(drop),
                add_ambient_capabilities: names(ambient),
            }),
            privileged,
            ..Default::default()
        };
        ContainerConfig {
            linux: Some(LinuxContainerConfig {
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn size(set: &Option<HashSet<Capability>>) -> usize {
        set.as_ref().unwrap().len()
    }

    #[test]
    fn every_name_is_known_to_oci_spec() {
        for name in NAMES {
            assert!(to_oci(name).is_some(), "{name}");
        }
    }

    #[test]
    fn add_and_drop() {
        let host = host();
        let all = host.capabilities.len();
        for (add, drop, expected) in [
            (&[][..], &[][..], 14),
            (&["net_admin"], &[], 15),
            (&["CAP_NET_ADMIN", "NET_ADMIN"], &["cap_net_raw"], 14),
            (&[], &["ALL"], 0),
            (&["CHOWN"], &["ALL"], 1),
            (&["all"], &[], all),
            (&["ALL"], &["CHOWN"], all - 1),
            (&["ALL"], &["ALL"], 0),
            (&["CHOWN"], &["CHOWN"], 13),
        ] {
            let sets = of(&config(add, drop, &[], false), &host).unwrap();
            assert_eq!(size(sets.bounding()), expected, "+{add:?} -{drop:?}");
            assert_eq!(sets.bounding(), sets.effective());
            assert_eq!(sets.bounding(), sets.permitted());
            assert_eq!((size(sets.inheritable()), size(sets.ambient())), (0, 0));
        }
    }

    #[test]
    fn ambient_ones_are_in_all_five_sets() {
        let sets = of(&config(&[], &["ALL"], &["NET_ADMIN"], false), &host()).unwrap();
        let one = Some(HashSet::from([Capability::NetAdmin]));
        for set in [
            sets.bounding(),
            sets.effective(),
            sets.permitted(),
            sets.inheritable(),
            sets.ambient(),
        ] {
            assert_eq!(set, &one);
        }
    }

    #[test]
    fn privileged_is_all_the_node_has() {
        let host = host();
        let sets = of(&config(&[], &["ALL"], &[], true), &host).unwrap();
        assert_eq!(size(sets.effective()), host.capabilities.len());
        assert_eq!(size(sets.inheritable()), 0);
    }

    #[test]
    fn unknown_and_unheld_names_are_refused() {
        for (add, drop, ambient, field) in [
            (&["CAP_NOPE"][..], &[][..], &[][..], ADD),
            (&[""], &[], &[], ADD),
            (&["SYS_RESOURCE"], &[], &[], ADD),
            (&[], &["x"], &[], DROP),
            (&[], &[], &["ALL"], AMBIENT),
        ] {
            let error = of(&config(add, drop, ambient, false), &host()).unwrap_err();
            assert_eq!(error.field, field);
        }
    }

    #[test]
    fn the_line_of_proc_status() {
        let status = "Name:\tx\nCapEff:\t0000000000000003\nCapBnd:\tffffffffffffffff\n";
        let set = from_status(status, "CapEff");
        assert_eq!(set.into_iter().collect::<Vec<_>>(), ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
        assert_eq!(from_status(status, "CapBnd").len(), NAMES.len());
        assert!(from_status("", "CapBnd").is_empty());
    }
}
