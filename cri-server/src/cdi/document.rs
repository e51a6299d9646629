//! One CDI specification: its form, as JSON or YAML, and the rules that its content must keep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde::Deserialize;

use super::name;

/// The versions of the format, oldest first.
const VERSIONS: &[&str] = &["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// Moments in a container's life that a hook can be for.
const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A specification: devices of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    /// `VENDOR/CLASS`.
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For every container that has one of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

/// What is to be changed of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ContainerEdits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<LinuxIntelRdt>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: PathBuf,
    /// On the node, where it differs.
    pub(super) host_path: Option<PathBuf>,
    #[serde(rename = "type", default)]
    pub(super) typ: String,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    #[serde(rename = "hostInterfaceName")]
    _host_interface_name: String,
    #[serde(rename = "name")]
    _name: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(rename = "type", default)]
    pub(super) typ: String,
}

impl Document {
    /// Reads the content of `path`, whose name ends in `.json` or `.yaml`; else what is wrong with it.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Document, String> {
        let document: Document = match path.extension().is_some_and(|extension| extension == "json") {
            true => serde_json::from_slice(text).map_err(|error| format!("not a CDI specification: {error}"))?,
            false => serde_saphyr::from_slice(text).map_err(|error| format!("not a CDI specification: {error}"))?,
        };
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        let version = &self.cdi_version;
        let own = VERSIONS.iter().position(|known| known == version);
        let own = own.ok_or_else(|| format!("cdiVersion {version:?}: must be one of {}", VERSIONS.join(", ")))?;
        name::check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("devices: must not be empty".to_owned());
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            name::check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("device {:?}: must not be there twice", device.name));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(format!("device {:?}: containerEdits must not be empty", device.name));
            }
        }
        self.all_edits().try_for_each(ContainerEdits::check)?;
        match self.features().find(|(since, _)| version_number(since) > own) {
            Some((since, feature)) => Err(format!("cdiVersion {version:?}: {feature} needs {since}")),
            None => Ok(()),
        }
    }

    fn all_edits(&self) -> impl Iterator<Item = &ContainerEdits> {
        let own = std::iter::once(&self.container_edits);
        own.chain(self.devices.iter().map(|device| &device.container_edits))
    }

    /// What it holds that not every version has, and since which one it is there.
    fn features(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let any = |has: fn(&ContainerEdits) -> bool| self.all_edits().any(has);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let annotated = |it: &Device| !it.annotations.is_empty();
        [
            (
                any(|it| it.mounts.iter().any(|it| !it.typ.is_empty())),
                "0.4.0",
                "the type of a mount",
            ),
            (
                any(|it| it.device_nodes.iter().any(|it| it.host_path.is_some())),
                "0.5.0",
                "hostPath of a device node",
            ),
            (
                self.devices
                    .iter()
                    .any(|it| it.name.starts_with(|c: char| c.is_ascii_digit())),
                "0.5.0",
                "a device's name that begins with a digit",
            ),
            (
                !self.annotations.is_empty() || self.devices.iter().any(annotated),
                "0.6.0",
                "annotations",
            ),
            (class.contains('.'), "0.6.0", "a class with a dot"),
            (any(|it| it.intel_rdt.is_some()), "0.7.0", "intelRdt"),
            (any(|it| !it.additional_gids.is_empty()), "0.7.0", "additionalGids"),
            (any(|it| !it.net_devices.is_empty()), "1.1.0", "netDevices"),
        ]
        .into_iter()
        .filter_map(|(is_there, since, feature)| is_there.then_some((since, feature)))
    }
}

fn version_number(version: &str) -> usize {
    VERSIONS
        .iter()
        .position(|known| *known == version)
        .unwrap_or(VERSIONS.len())
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        self.env.iter().try_for_each(|variable| check_variable(variable))?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        self.mounts.iter().try_for_each(|mount| {
            check_path("containerPath", &mount.container_path)?;
            if mount.host_path.as_os_str().is_empty() {
                Err("hostPath: must not be empty".to_owned())
            } else {
                Ok(())
            }
        })
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        check_path("path", &self.path)?;
        if !["", "b", "c", "u", "p"].contains(&self.typ.as_str()) {
            return Err(format!(
                "{}: type {:?}: must be b, c, u or p",
                self.path.display(),
                self.typ
            ));
        }
        let access = &self.permissions;
        if access != "none" && !access.chars().all(|c| "rwm".contains(c)) {
            return Err(format!(
                "{}: permissions {access:?}: must be of r, w and m",
                self.path.display()
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        let name = &self.hook_name;
        if !HOOKS.contains(&name.as_str()) {
            return Err(format!("hookName {name:?}: must be one of {}", HOOKS.join(", ")));
        }
        check_path("path", &self.path)?;
        self.env.iter().try_for_each(|variable| check_variable(variable))
    }
}

fn check_variable(variable: &str) -> Result<(), String> {
    match variable.split_once('=') {
        Some((name, _)) if !name.is_empty() && !variable.contains('\0') => Ok(()),
        _ => Err(format!("env {variable:?}: must be NAME=VALUE")),
    }
}

fn check_path(field: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    Err(format!("{field} {path:?}: must be an absolute path"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(document: &Value) -> Result<Document, String> {
        Document::parse(Path::new("a.json"), document.to_string().as_bytes())
    }

    /// A specification of one device with these edits.
    fn with(version: &str, edits: &Value) -> Value {
        json!({ "cdiVersion": version, "kind": "v.com/gpu", "devices": [{ "name": "a", "containerEdits": edits }] })
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let yaml = "\
cdiVersion: \"0.6.0\"
kind: vendor.com/gpu
containerEdits:
  env: [\"ALL=1\"]
devices:
- name: \"0\"
  annotations: {a: b}
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0
      fileMode: 438
      permissions: rw
    mounts:
    - {hostPath: /lib/x, containerPath: /lib/x, options: [ro, bind]}
";
        let document = Document::parse(Path::new("a.yaml"), yaml.as_bytes()).unwrap();
        let device = &document.devices[0];
        assert_eq!((document.kind.as_str(), device.name.as_str()), ("vendor.com/gpu", "0"));
        assert_eq!(device.container_edits.device_nodes[0].file_mode, Some(438));
        assert_eq!(document.container_edits.env, ["ALL=1"]);
        let same = json!({
            "cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "containerEdits": { "env": ["ALL=1"] },
            "devices": [{ "name": "0", "annotations": { "a": "b" }, "containerEdits": {
                "deviceNodes": [{ "path": "/dev/gpu0", "fileMode": 438, "permissions": "rw" }],
                "mounts": [{ "hostPath": "/lib/x", "containerPath": "/lib/x", "options": ["ro", "bind"] }],
            }}],
        });
        assert_eq!(parse(&same).unwrap().devices[0].container_edits, device.container_edits);
    }

    #[test]
    fn versions_have_their_features() {
        let node = json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/dev/y" }] });
        let groups = json!({ "additionalGids": [7] });
        let rdt = json!({ "intelRdt": { "closID": "x" } });
        let net = json!({ "netDevices": [{ "hostInterfaceName": "a", "name": "b" }] });
        let typed = json!({ "mounts": [{ "hostPath": "/a", "containerPath": "/b", "type": "tmpfs" }] });
        let env = json!({ "env": ["A=1"] });
        for (version, edits, good) in [
            ("0.3.0", &env, true),
            ("1.1.0", &env, true),
            ("0.2.0", &env, false),
            ("2.0.0", &env, false),
            ("", &env, false),
            ("0.3.0", &typed, false),
            ("0.4.0", &typed, true),
            ("0.4.0", &node, false),
            ("0.5.0", &node, true),
            ("0.6.0", &groups, false),
            ("0.7.0", &groups, true),
            ("0.6.0", &rdt, false),
            ("1.0.0", &rdt, true),
            ("1.0.0", &net, false),
            ("1.1.0", &net, true),
        ] {
            assert_eq!(parse(&with(version, edits)).is_ok(), good, "{version} {edits}");
        }
    }

    #[test]
    fn what_breaks_a_rule_says_which() {
        let good = with("1.0.0", &json!({ "env": ["A=1"] }));
        parse(&good).unwrap();
        let changed = |pointer: &str, value: Value| {
            let mut document = good.clone();
            *document.pointer_mut(pointer).expect("it is there") = value;
            document
        };
        let edits = |value: Value| changed("/devices/0/containerEdits", value);
        for (document, text) in [
            (changed("/kind", json!("gpu")), "kind"),
            (changed("/devices", json!([])), "devices"),
            (changed("/devices/0/name", json!("-a")), "device \"-a\""),
            (edits(json!({})), "must not be empty"),
            (edits(json!({ "env": ["A"] })), "env"),
            (edits(json!({ "deviceNodes": [{ "path": "dev/x" }] })), "absolute"),
            (
                edits(json!({ "deviceNodes": [{ "path": "/dev/x", "type": "q" }] })),
                "type",
            ),
            (
                edits(json!({ "deviceNodes": [{ "path": "/dev/x", "permissions": "x" }] })),
                "permissions",
            ),
            (
                edits(json!({ "hooks": [{ "hookName": "later", "path": "/x" }] })),
                "hookName",
            ),
            (
                edits(json!({ "mounts": [{ "hostPath": "", "containerPath": "/x" }] })),
                "hostPath",
            ),
            (edits(json!({ "surprise": 1 })), "surprise"),
            (json!([]), "not a CDI specification"),
        ] {
            let error = parse(&document).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let twice = json!({ "name": "a", "containerEdits": { "env": ["A=1"] } });
        assert!(
            parse(&changed("/devices", json!([twice, twice])))
                .unwrap_err()
                .contains("twice")
        );
        assert!(Document::parse(Path::new("a.yaml"), b"kind: [").is_err());
    }
}
