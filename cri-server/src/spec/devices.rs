//! Device nodes and the rules of the device cgroup. Pure.
//!
//! The nodes every container has (null, zero, full, random, urandom, tty, ptmx, console) are the runtime's to make and
//! to allow (OCI runtime-spec, config-linux.md, default devices); here stands what comes on top.

use std::collections::BTreeMap;
use std::path::Path;

use corten_proto::cri::{ContainerConfig, Device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder};

use super::host::HostDevice;
use super::{Sources, SpecError, security};

/// The runtime's own, which a privileged container's list must not name a second time.
const DEFAULT_DEVICES: &[&str] = &[
    "/dev/console",
    "/dev/full",
    "/dev/null",
    "/dev/ptmx",
    "/dev/random",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// Refuses devices that break a rule.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    for (index, device) in config.devices.iter().enumerate() {
        let field = |name: &str| format!("devices[{index}].{name}");
        super::absolute(&field("host_path"), &device.host_path)?;
        super::absolute(&field("container_path"), container_path(device))?;
        let access = &device.permissions;
        if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
            let rule = "must be one or more of r, w and m";
            return Err(SpecError::invalid(field("permissions"), access, rule));
        }
    }
    Ok(())
}

/// Where the container has the device: where the node has it, unless the request says otherwise.
pub(super) fn container_path(device: &Device) -> &str {
    match device.container_path.as_str() {
        "" => &device.host_path,
        path => path,
    }
}

/// The nodes to make. Of several at one path the last counts: a request's own device goes before the node's, of which
/// a privileged container has all.
pub(super) fn nodes(sources: &Sources) -> Vec<LinuxDevice> {
    let is_default = |path: &Path| DEFAULT_DEVICES.iter().any(|known| path == Path::new(known));
    let by_path: BTreeMap<&Path, &HostDevice> = sources
        .devices
        .iter()
        .map(|device| (device.path.as_path(), device))
        .filter(|(path, _)| !is_default(path))
        .collect();
    by_path.into_values().map(node).collect()
}

/// Nothing but what is listed, or everything for a privileged container.
pub(super) fn rules(config: &ContainerConfig, sources: &Sources) -> Vec<LinuxDeviceCgroup> {
    if security::is_privileged(config) {
        return vec![everything(true)];
    }
    let mut rules = vec![everything(false)];
    rules.extend(sources.devices.iter().map(rule));
    rules
}

/// The infra container's: the runtime's own devices alone.
pub(super) fn infra_rules() -> Vec<LinuxDeviceCgroup> {
    vec![everything(false)]
}

fn node(device: &HostDevice) -> LinuxDevice {
    LinuxDeviceBuilder::default()
        .path(&device.path)
        .typ(device.typ)
        .major(number(device.major))
        .minor(number(device.minor))
        .file_mode(device.mode)
        .uid(device.uid)
        .gid(device.gid)
        .build()
        .expect("every field of the builder has a default")
}

fn rule(device: &HostDevice) -> LinuxDeviceCgroup {
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(device.typ)
        .major(number(device.major))
        .minor(number(device.minor))
        .access(&device.access)
        .build()
        .expect("every field of the builder has a default")
}

fn everything(allow: bool) -> LinuxDeviceCgroup {
    LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .access("rwm")
        .build()
        .expect("every field of the builder has a default")
}

/// Device numbers are 12 and 20 bits wide in the kernel.
fn number(number: u64) -> i64 {
    i64::try_from(number).expect("a device number has 20 bits at most")
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceType;

    use super::*;

    fn device(path: &str, minor: u64) -> HostDevice {
        HostDevice {
            path: path.into(),
            typ: LinuxDeviceType::C,
            major: 10,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 7,
            access: "rw".into(),
        }
    }

    #[test]
    fn listed_devices_are_made_and_allowed() {
        let sources = Sources {
            devices: vec![device("/dev/fuse", 229)],
            ..Default::default()
        };
        let node = &nodes(&sources)[0];
        assert_eq!(node.path(), Path::new("/dev/fuse"));
        assert_eq!((node.major(), node.minor(), node.gid()), (10, 229, Some(7)));
        let rules = rules(&ContainerConfig::default(), &sources);
        assert_eq!((rules[0].allow(), rules[0].major()), (false, None));
        assert_eq!((rules[1].allow(), rules[1].minor()), (true, Some(229)));
        assert_eq!(rules[1].access().as_deref(), Some("rw"));
    }

    #[test]
    fn one_node_a_path_and_none_of_the_runtimes_own() {
        let devices = vec![device("/dev/null", 3), device("/dev/fuse", 229), device("/dev/fuse", 7)];
        let nodes = nodes(&Sources {
            devices,
            ..Default::default()
        });
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].minor(), 7, "the request's, which comes last");
    }

    #[test]
    fn permissions() {
        let config = |permissions: &str| ContainerConfig {
            devices: vec![Device {
                host_path: "/dev/fuse".into(),
                container_path: "/dev/fuse".into(),
                permissions: permissions.into(),
            }],
            ..Default::default()
        };
        for good in ["r", "rwm", "mw"] {
            assert_eq!(check(&config(good)), Ok(()));
        }
        for bad in ["", "x", "rw "] {
            assert_eq!(check(&config(bad)).unwrap_err().field, "devices[0].permissions");
        }
    }
}
