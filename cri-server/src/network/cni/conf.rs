//! Network configurations: files to networks, networks to what plugins read on stdin. Pure but for [`read`].

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The versions whose results this crate reads. 0.1 and 0.2 have another form, which nobody writes any more.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: a chain of plugins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    /// Its name, part of every plugin's configuration.
    pub(super) name: String,
    /// Version of the specification that is spoken with its plugins.
    pub(super) version: String,
    /// In the order of ADD; never empty.
    pub(super) plugins: Vec<Plugin>,
    /// The list all this was read from.
    pub(super) source: Value,
}

/// One plugin of the chain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plugin {
    /// File name of its executable.
    pub(super) kind: String,
    config: Map<String, Value>,
}

/// The network of a file: a list of plugins, or in a `.conf` or `.json` one plugin alone.
pub(super) fn read(path: &Path) -> Result<Network> {
    let meta = std::fs::metadata(path).context("stat")?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        bail!("must be a regular file of at most 1 MiB");
    }
    let text = std::fs::read_to_string(path).context("read")?;
    let value: Value = serde_json::from_str(&text).context("parse as JSON")?;
    if value.get("plugins").is_some() {
        return parse_list(&value);
    }
    let list = json!({
        "name": value["name"],
        "cniVersion": value["cniVersion"],
        "plugins": [value],
    });
    parse_list(&list)
}

/// The network of a list.
pub(super) fn parse_list(list: &Value) -> Result<Network> {
    let name = list["name"].as_str().unwrap_or_default();
    if !is_network_name(name) {
        bail!("name {name:?}: must be a letter or digit, then letters, digits and _ . -");
    }
    let version = list["cniVersion"].as_str().unwrap_or_default();
    if !VERSIONS.contains(&version) {
        bail!("cniVersion {version:?}: must be one of {}", VERSIONS.join(", "));
    }
    let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    if plugins.is_empty() {
        bail!("plugins: must be a list with one plugin at least");
    }
    Ok(Network {
        name: name.to_owned(),
        version: version.to_owned(),
        plugins: plugins.iter().map(parse_plugin).collect::<Result<_>>()?,
        source: list.clone(),
    })
}

/// The type becomes a file name: with a slash it would name any program of the node (CVE-2021-20206).
fn parse_plugin(plugin: &Value) -> Result<Plugin> {
    let kind = plugin["type"].as_str().unwrap_or_default();
    if kind.is_empty() || kind.contains(['/', '\0']) || kind == "." || kind == ".." {
        bail!("plugins type {kind:?}: must be a file name without slashes");
    }
    let config = plugin.as_object().cloned().unwrap_or_default();
    Ok(Plugin {
        kind: kind.to_owned(),
        config,
    })
}

/// The specification's rule for names of networks.
fn is_network_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(rest)
}

impl Plugin {
    /// What the plugin reads: its own configuration with what the runtime adds (CNI specification, section 3,
    /// "Deriving request configuration from plugin configuration").
    pub(super) fn stdin(&self, network: &Network, capabilities: &[(&str, Value)], previous: Option<&Value>) -> Value {
        let mut config = self.config.clone();
        let declared = config.remove("capabilities").unwrap_or_default();
        let granted: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| declared[name].as_bool() == Some(true))
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        config.insert("name".into(), json!(network.name));
        config.insert("cniVersion".into(), json!(network.version));
        if !granted.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(granted));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        Value::Object(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(plugins: &Value) -> Value {
        json!({ "name": "net", "cniVersion": "1.0.0", "plugins": plugins })
    }

    #[test]
    fn lists_that_break_a_rule() {
        for (list, key) in [
            (json!({ "cniVersion": "1.0.0", "plugins": [] }), "name"),
            (json!({ "name": "../x", "cniVersion": "1.0.0" }), "name"),
            (json!({ "name": "a", "plugins": [] }), "cniVersion"),
            (json!({ "name": "a", "cniVersion": "0.2.0" }), "cniVersion"),
            (list(&json!([])), "plugins"),
            (list(&json!({})), "plugins"),
            (list(&json!([{}])), "plugins type"),
            (list(&json!([{ "type": "../../bin/sh" }])), "plugins type"),
            (list(&json!([{ "type": ".." }])), "plugins type"),
            (json!(7), "name"),
        ] {
            let error = parse_list(&list).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"name": "one", "cniVersion": "0.4.0", "type": "bridge", "mtu": 1400}"#;
        std::fs::write(file.path(), text).unwrap();
        let network = read(file.path()).unwrap();
        assert_eq!(
            (network.name.as_str(), network.plugins[0].kind.as_str()),
            ("one", "bridge")
        );
        assert_eq!(network.plugins[0].stdin(&network, &[], None)["mtu"], 1400);
        assert_eq!(parse_list(&network.source).unwrap(), network);
    }

    #[test]
    fn a_plugin_is_told_what_it_declares() {
        let plugins = json!([
            { "type": "a", "capabilities": { "portMappings": true, "bandwidth": true } },
            { "type": "b", "capabilities": { "portMappings": false } },
        ]);
        let network = parse_list(&list(&plugins)).unwrap();
        let ports = json!([{ "hostPort": 80 }]);
        let capabilities = [("portMappings", ports.clone())];
        let previous = json!({ "ips": [] });

        let first = network.plugins[0].stdin(&network, &capabilities, None);
        assert_eq!(
            first,
            json!({ "type": "a", "name": "net", "cniVersion": "1.0.0",
                    "runtimeConfig": { "portMappings": ports } })
        );
        let second = network.plugins[1].stdin(&network, &capabilities, Some(&previous));
        assert_eq!(
            second,
            json!({ "type": "b", "name": "net", "cniVersion": "1.0.0", "prevResult": previous })
        );
    }
}
