//! `corten spec`: a config.json to start from, word for word what `runc spec` writes, but for the version, the hostname, and
//! the ambient capabilities, which without inheritable ones nobody can have (capabilities(7)).
//!
//! `config.json.in` is the text, with a word between two `@` where the two kinds of it differ.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};

use crate::cgroup::{self, Layout};
use crate::cli;
use crate::state::OCI_VERSION;

const TEMPLATE: &str = include_str!("config.json.in");

/// Writes config.json, unless there is one.
pub(super) fn spec(flags: &cli::NewSpec) -> Result<()> {
    let path = flags.bundle.join("config.json");
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(what)?;
    let user = flags
        .rootless
        .then(|| (rustix::process::geteuid(), rustix::process::getegid()));
    let user = user.map(|(uid, gid)| (uid.as_raw(), gid.as_raw()));
    // As runc: on v1 the whole hierarchy would be seen but for the namespace, and always has been.
    let cgroup_namespace = matches!(cgroup::layout()?, Layout::V2(_));
    file.write_all(text(user, cgroup_namespace).as_bytes())
        .with_context(what)
}

/// The specification, of a container that root makes, or of one that this user makes.
fn text(user: Option<(u32, u32)>, cgroup_namespace: bool) -> String {
    let mut namespaces = String::new();
    if cgroup_namespace {
        namespaces += &namespace("cgroup");
    }
    let mut text = TEMPLATE.replace("@oci-version@", OCI_VERSION);
    let words = match user {
        None => [
            ("@terminal-group@", ",\n\t\t\t\t\"gid=5\"".to_owned()),
            (
                "@sysfs@",
                "\"type\": \"sysfs\",\n\t\t\t\"source\": \"sysfs\",".to_owned(),
            ),
            ("@sysfs-option@", String::new()),
            ("@resources@", DEVICES.to_owned()),
            (
                "@network@",
                "\t\t\t{\n\t\t\t\t\"type\": \"network\"\n\t\t\t},\n".to_owned(),
            ),
            ("@namespaces@", namespaces),
        ],
        Some((uid, gid)) => [
            // The group is not mapped.
            ("@terminal-group@", String::new()),
            // Of the host's network namespace no sysfs can be made.
            ("@sysfs@", "\"type\": \"none\",\n\t\t\t\"source\": \"/sys\",".to_owned()),
            ("@sysfs-option@", "\t\t\t\t\"rbind\",\n".to_owned()),
            (
                "@resources@",
                mapping("uidMappings", uid) + &mapping("gidMappings", gid),
            ),
            ("@network@", String::new()),
            ("@namespaces@", namespace("user") + &namespaces),
        ],
    };
    for (word, value) in words {
        text = text.replace(word, &value);
    }
    text
}

/// Devices are the container's own, or none.
const DEVICES: &str = "\t\t\"resources\": {\n\t\t\t\"devices\": [\n\t\t\t\t{\n\t\t\t\t\t\"allow\": false,\n\t\t\t\t\t\
                       \"access\": \"rwm\"\n\t\t\t\t}\n\t\t\t]\n\t\t},\n";

/// One more element of the list.
fn namespace(kind: &str) -> String {
    format!(",\n\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}")
}

/// The container's root is this user or group of the host.
fn mapping(name: &str, id: u32) -> String {
    format!(
        "\t\t\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::parse_spec;

    #[test]
    fn every_kind_can_be_read() {
        for (user, cgroup_namespace, namespaces) in [
            (None, false, 5),
            (None, true, 6),
            (Some((7, 8)), false, 5),
            (Some((7, 8)), true, 6),
        ] {
            let text = text(user, cgroup_namespace);
            assert!(!text.contains('@'), "{text}");
            let parsed = parse_spec(text.as_bytes()).unwrap();
            assert_eq!(parsed.warnings, Vec::<String>::new());
            let linux = parsed.value.linux().as_ref().unwrap();
            assert_eq!(linux.namespaces().as_ref().unwrap().len(), namespaces);
            let host = linux.uid_mappings().as_ref().map(|mappings| mappings[0].host_id());
            assert_eq!(host, user.map(|(uid, _)| uid));
        }
    }
}
