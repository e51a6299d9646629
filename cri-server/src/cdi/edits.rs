//! What CDI devices make of a container's specification. Gathering them reads the node's device files; applying is pure.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxIntelRdt, Mount, MountBuilder, Spec,
};

use super::document::{ContainerEdits, DeviceNode};
use super::document::{Hook as HookEdit, Mount as MountEdit};
use crate::spec::User;

/// The edits of all devices of a container, in their order.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    env: Vec<String>,
    devices: Vec<Device>,
    mounts: Vec<Mount>,
    /// By the name of the moment, `createRuntime`.
    hooks: Vec<(String, Hook)>,
    groups: Vec<u32>,
    intel_rdt: Option<LinuxIntelRdt>,
}

/// A device node, complete.
#[derive(Clone, Debug, PartialEq)]
struct Device {
    path: PathBuf,
    typ: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    /// For the device cgroup; none for a node that it has no rule about.
    access: Option<String>,
}

impl Edits {
    /// Adds one part of a specification; an error says what the node lacks.
    pub(super) fn add(&mut self, part: &ContainerEdits) -> Result<(), String> {
        if !part.net_devices.is_empty() {
            return Err("netDevices are not supported yet".to_owned());
        }
        self.env.extend(part.env.iter().cloned());
        for node in &part.device_nodes {
            self.devices.push(complete(node)?);
        }
        self.mounts.extend(part.mounts.iter().map(mount));
        self.hooks.extend(part.hooks.iter().map(hook));
        // Group 0 is what the container has or has not for reasons of its own.
        self.groups.extend(part.additional_gids.iter().filter(|&&gid| gid != 0));
        if part.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&part.intel_rdt);
        }
        Ok(())
    }

    /// Gives the user the groups that the devices ask for.
    pub fn add_groups(&self, user: &mut User) {
        for &gid in &self.groups {
            if !user.additional_gids.contains(&gid) {
                user.additional_gids.push(gid);
            }
        }
    }

    /// Changes the specification.
    pub fn apply(&self, spec: &mut Spec) {
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            self.env.iter().for_each(|variable| set_variable(&mut env, variable));
            process.set_env(Some(env));
        }
        self.apply_devices(spec);
        if !self.mounts.is_empty() {
            let mut mounts = spec.mounts().clone().unwrap_or_default();
            for mount in &self.mounts {
                mounts.retain(|other| other.destination() != mount.destination());
                mounts.push(mount.clone());
            }
            // As all mounts are: none hides one made before it.
            mounts.sort_by_key(|mount| mount.destination().components().count());
            spec.set_mounts(Some(mounts));
        }
        self.apply_hooks(spec);
        if let (Some(rdt), Some(linux)) = (&self.intel_rdt, spec.linux_mut()) {
            linux.set_intel_rdt(Some(rdt.clone()));
        }
    }

    /// Nodes and rules. A device without an owner is the container's user's, who would have no use of root's.
    fn apply_devices(&self, spec: &mut Spec) {
        let process = spec.process().as_ref();
        let (uid, gid) = process.map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
        let Some(linux) = spec.linux_mut() else { return };
        let mut devices = linux.devices().clone().unwrap_or_default();
        for device in &self.devices {
            devices.retain(|other| *other.path() != device.path);
            devices.push(device.node(uid, gid));
        }
        linux.set_devices(Some(devices));
        if let Some(resources) = linux.resources_mut() {
            let mut rules = resources.devices().clone().unwrap_or_default();
            rules.extend(self.devices.iter().filter_map(Device::rule));
            resources.set_devices(Some(rules));
        }
    }

    /// By JSON, for oci-spec deprecates the field of the oldest moment, which vendors use to this day.
    fn apply_hooks(&self, spec: &mut Spec) {
        if self.hooks.is_empty() {
            return;
        }
        let own = serde_json::to_value(spec.hooks()).expect("hooks are JSON");
        let mut all: BTreeMap<String, Vec<Hook>> = serde_json::from_value(own).unwrap_or_default();
        for (moment, hook) in &self.hooks {
            all.entry(moment.clone()).or_default().push(hook.clone());
        }
        let all = serde_json::to_value(all).expect("hooks are JSON");
        let hooks: Hooks = serde_json::from_value(all).expect("the moments have been checked");
        spec.set_hooks(Some(hooks));
    }

    #[cfg(test)]
    pub(super) fn env(&self) -> &[String] {
        &self.env
    }
}

/// Sets a variable, in the place of one of that name.
fn set_variable(env: &mut Vec<String>, variable: &str) {
    let name = variable.split_once('=').map_or(variable, |(name, _)| name);
    env.retain(|other| other.split_once('=').map_or(other.as_str(), |(name, _)| name) != name);
    env.push(variable.to_owned());
}

impl Device {
    fn node(&self, uid: u32, gid: u32) -> LinuxDevice {
        let own = |id: u32| Some(id).filter(|&id| id > 0);
        let mut node = LinuxDeviceBuilder::default()
            .path(&self.path)
            .typ(self.typ)
            .major(self.major)
            .minor(self.minor)
            .build()
            .expect("every field of the builder has a default");
        node.set_file_mode(self.mode)
            .set_uid(self.uid.or(own(uid)))
            .set_gid(self.gid.or(own(gid)));
        node
    }

    fn rule(&self) -> Option<LinuxDeviceCgroup> {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(self.typ)
            .major(self.major)
            .minor(self.minor)
            .access(self.access.as_ref()?)
            .build();
        Some(rule.expect("every field of the builder has a default"))
    }
}

/// What the specification leaves out of a node is the node's own device.
fn complete(node: &DeviceNode) -> Result<Device, String> {
    let host = node.host_path.as_ref().unwrap_or(&node.path);
    let known = match node.typ.as_str() {
        "" => None,
        "b" => Some(LinuxDeviceType::B),
        "p" => Some(LinuxDeviceType::P),
        _ => Some(LinuxDeviceType::C),
    };
    let (typ, major, minor) = match (known, node.major, node.minor) {
        (Some(LinuxDeviceType::P), _, _) => (LinuxDeviceType::P, 0, 0),
        (Some(typ), Some(major), minor) if major != 0 => (typ, major, minor.unwrap_or(0)),
        _ => {
            let (typ, major, minor) = look_up(host)?;
            if known.is_some_and(|known| known != typ) {
                return Err(format!("{}: is of another type than {:?}", host.display(), node.typ));
            }
            (typ, major, minor)
        }
    };
    let access = match node.permissions.as_str() {
        "none" => None,
        "" => Some("rwm"),
        some => Some(some),
    };
    Ok(Device {
        path: node.path.clone(),
        typ,
        major,
        minor,
        mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        access: access.filter(|_| typ != LinuxDeviceType::P).map(str::to_owned),
    })
}

fn look_up(path: &Path) -> Result<(LinuxDeviceType, i64, i64), String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("device {}: {error}", path.display()))?;
    let typ = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_fifo() => return Ok((LinuxDeviceType::P, 0, 0)),
        _ => return Err(format!("{}: is not a device", path.display())),
    };
    let number = |part: u64| i64::try_from(part).expect("a device number has 20 bits at most");
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    Ok((typ, number(major), number(minor)))
}

/// A mount of a path of the node unless it says something else.
fn mount(edit: &MountEdit) -> Mount {
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    let mut options = edit.options.clone();
    if edit.typ.is_empty() && !options.iter().any(is_bind) {
        options.push("rbind".to_owned());
    }
    MountBuilder::default()
        .destination(&edit.container_path)
        .typ(if edit.typ.is_empty() { "bind" } else { &edit.typ })
        .source(&edit.host_path)
        .options(options)
        .build()
        .expect("every field of the builder has a default")
}

fn hook(edit: &HookEdit) -> (String, Hook) {
    let mut hook = HookBuilder::default()
        .path(&edit.path)
        .build()
        .expect("every field of the builder has a default");
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    hook.set_args(some(&edit.args))
        .set_env(some(&edit.env))
        .set_timeout(edit.timeout);
    (edit.hook_name.clone(), hook)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn edits(part: Value) -> Edits {
        let mut edits = Edits::default();
        edits.add(&serde_json::from_value(part).unwrap()).unwrap();
        edits
    }

    fn applied(part: Value, uid: u32) -> Value {
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": { "cwd": "/", "env": ["PATH=/bin", "A=old"], "user": { "uid": uid, "gid": 0 } },
            "mounts": [{ "destination": "/a/b/c" }, { "destination": "/x" }],
            "hooks": { "poststop": [{ "path": "/first" }] },
            "linux": {
                "devices": [{ "path": "/dev/null", "type": "c", "major": 9, "minor": 9 }],
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            },
        }))
        .unwrap();
        edits(part).apply(&mut spec);
        serde_json::to_value(spec).unwrap()
    }

    #[test]
    fn environment_mounts_and_hooks() {
        let spec = applied(
            json!({
                "env": ["A=new", "B=2"],
                "mounts": [
                    { "hostPath": "/lib/x", "containerPath": "/x", "options": ["ro"] },
                    { "hostPath": "none", "containerPath": "/y", "type": "tmpfs" },
                ],
                "hooks": [
                    { "hookName": "poststop", "path": "/second", "args": ["second", "x"] },
                    { "hookName": "prestart", "path": "/third", "timeout": 5 },
                ],
                "intelRdt": { "closID": "c" },
            }),
            0,
        );
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "A=new", "B=2"]));
        let places: Vec<_> = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["destination"])
            .collect();
        assert_eq!(places, ["/x", "/y", "/a/b/c"]);
        assert_eq!(spec["mounts"][0]["options"], json!(["ro", "rbind"]));
        assert_eq!(spec["mounts"][1]["type"], "tmpfs");
        let hooks = json!({
            "prestart": [{ "path": "/third", "timeout": 5 }],
            "poststop": [{ "path": "/first" }, { "path": "/second", "args": ["second", "x"] }],
        });
        assert_eq!(spec["hooks"], hooks);
        assert_eq!(spec["linux"]["intelRdt"]["closID"], "c");
    }

    #[test]
    fn device_nodes_are_completed_and_allowed() {
        let nodes = json!({ "deviceNodes": [
            { "path": "/dev/null" },
            { "path": "/dev/mine", "hostPath": "/dev/zero", "permissions": "r", "uid": 3, "fileMode": 384 },
            { "path": "/dev/far", "type": "b", "major": 200, "minor": 1, "permissions": "none" },
            { "path": "/dev/pipe", "type": "p" },
        ]});
        let spec = applied(nodes, 5);
        let devices = spec["linux"]["devices"].as_array().unwrap();
        let numbers: Vec<_> = devices
            .iter()
            .map(|it| (it["path"].as_str(), &it["major"], &it["minor"]))
            .collect();
        assert_eq!(
            format!("{numbers:?}"),
            format!(
                "{:?}",
                [
                    (Some("/dev/null"), 1, 3),
                    (Some("/dev/mine"), 1, 5),
                    (Some("/dev/far"), 200, 1),
                    (Some("/dev/pipe"), 0, 0),
                ]
                .map(|(path, major, minor)| (path, json!(major), json!(minor)))
            )
        );
        assert_eq!((&devices[0]["uid"], &devices[1]["uid"]), (&json!(5), &json!(3)));
        assert_eq!(
            (&devices[0]["gid"], &devices[1]["fileMode"]),
            (&Value::Null, &json!(384))
        );
        let rules = &spec["linux"]["resources"]["devices"];
        let allowed = |minor: i64, access: &str| json!({ "allow": true, "type": "c", "major": 1, "minor": minor, "access": access });
        assert_eq!(
            *rules,
            json!([{ "allow": false, "access": "rwm" }, allowed(3, "rwm"), allowed(5, "r")])
        );
    }

    #[test]
    fn what_the_node_lacks() {
        for (part, text) in [
            (json!({ "deviceNodes": [{ "path": "/dev/no-such" }] }), "/dev/no-such"),
            (json!({ "deviceNodes": [{ "path": "/etc/passwd" }] }), "is not a device"),
            (
                json!({ "deviceNodes": [{ "path": "/dev/null", "type": "b" }] }),
                "another type",
            ),
            (
                json!({ "netDevices": [{ "hostInterfaceName": "a", "name": "b" }] }),
                "netDevices",
            ),
        ] {
            let error = Edits::default()
                .add(&serde_json::from_value(part).unwrap())
                .unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn groups_go_to_the_user_once() {
        let mut user = User {
            uid: 1,
            gid: 2,
            additional_gids: vec![2, 7],
        };
        edits(json!({ "additionalGids": [0, 7, 8] })).add_groups(&mut user);
        assert_eq!(user.additional_gids, [2, 7, 8]);
    }
}
