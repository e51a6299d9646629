//! Network configurations: files to networks, networks to what plugins read on stdin. Pure but for [`read`].
//!
//! A list may leave plugins to others: those in `NAME/*.conf` beside it, by name, follow its own (CNI specification 1.1,
//! "Configuration format", `loadOnlyInlinedPlugins`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::capabilities::Capabilities;

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The versions whose results this crate reads, oldest first. 0.1 and 0.2 have another form, which nobody writes any more.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The first version whose plugins know STATUS and GC.
const WITH_STATUS: &str = "1.1.0";

/// A network: a chain of plugins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    /// Its name, part of every plugin's configuration.
    pub(super) name: String,
    /// Version of the specification that is spoken with its plugins.
    pub(super) version: String,
    /// In the order of ADD; never empty.
    pub(super) plugins: Vec<Plugin>,
    /// Whether plugins may be asked to collect garbage: not where several runtimes share the network.
    pub(super) collects: bool,
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
    let mut value = read_json(path)?;
    let is_list = value.get("plugins").is_some() || path.extension().is_some_and(|it| it == "conflist");
    if is_list {
        add_others_plugins(&mut value, path)?;
        return parse_list(&value);
    }
    let list = json!({
        "name": value["name"],
        "cniVersion": value["cniVersion"],
        "plugins": [value],
    });
    parse_list(&list)
}

fn read_json(path: &Path) -> Result<Value> {
    let meta = std::fs::metadata(path).context("stat")?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        bail!("must be a regular file of at most 1 MiB");
    }
    let text = std::fs::read_to_string(path).context("read")?;
    serde_json::from_str(&text).context("parse as JSON")
}

/// Appends what lies in the list's own directory to its plugins.
fn add_others_plugins(list: &mut Value, path: &Path) -> Result<()> {
    let name = list["name"].as_str().unwrap_or_default();
    let (Some(directory), true) = (path.parent(), is_network_name(name)) else {
        return Ok(());
    };
    if list["loadOnlyInlinedPlugins"].as_bool() == Some(true) {
        return Ok(());
    }
    for path in others_plugins(&directory.join(name)) {
        let plugin = read_json(&path).with_context(|| path.display().to_string())?;
        match list.get_mut("plugins").and_then(Value::as_array_mut) {
            Some(plugins) => plugins.push(plugin),
            None => list["plugins"] = json!([plugin]),
        }
    }
    Ok(())
}

/// The plugins in a list's own directory, by name; none where there is no such directory.
pub(super) fn others_plugins(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "conf"))
        .collect();
    paths.sort();
    paths
}

/// The network of a list.
pub(super) fn parse_list(list: &Value) -> Result<Network> {
    let name = list["name"].as_str().unwrap_or_default();
    if !is_network_name(name) {
        bail!("name {name:?}: must be a letter or digit, then letters, digits and _ . -");
    }
    let version = version(list)?;
    let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    if plugins.is_empty() {
        bail!("plugins: must be a list with one plugin at least");
    }
    Ok(Network {
        name: name.to_owned(),
        version: version.to_owned(),
        plugins: plugins.iter().map(parse_plugin).collect::<Result<_>>()?,
        collects: version >= WITH_STATUS && list["disableGC"].as_bool() != Some(true),
        source: list.clone(),
    })
}

/// The version to speak: the latest that is known here of `cniVersions`, which a list may have since 1.1, else `cniVersion`.
fn version(list: &Value) -> Result<&'static str> {
    let known = |asked: &Value| VERSIONS.iter().position(|known| asked.as_str() == Some(known));
    let several = list["cniVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let latest = several.iter().filter_map(known).max();
    match latest.max(known(&list["cniVersion"])) {
        Some(index) => Ok(VERSIONS[index]),
        None => {
            let asked = list["cniVersion"].as_str().unwrap_or_default();
            bail!("cniVersion {asked:?}: must be one of {}", VERSIONS.join(", "))
        }
    }
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

impl Network {
    /// Whether its plugins can say that they are ready.
    pub(super) fn has_status(&self) -> bool {
        self.version.as_str() >= WITH_STATUS
    }

    /// The file names of all executables that it takes: the plugins', and those that hand out addresses for them.
    pub(super) fn programs(&self) -> Vec<String> {
        let of = |plugin: &Plugin| {
            let ipam = plugin.config.get("ipam").and_then(|ipam| ipam["type"].as_str());
            [Some(plugin.kind.clone()), ipam.map(str::to_owned)]
        };
        let mut programs: Vec<String> = self.plugins.iter().flat_map(of).flatten().collect();
        programs.dedup();
        programs
    }
}

impl Plugin {
    /// What the plugin reads: its own configuration with what the runtime adds (CNI specification, section 3,
    /// "Deriving request configuration from plugin configuration").
    pub(super) fn stdin(&self, network: &Network, capabilities: &Capabilities, previous: Option<&Value>) -> Value {
        let mut config = self.config.clone();
        let declared = config.remove("capabilities").unwrap_or_default();
        let granted: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| declared[name.as_str()].as_bool() == Some(true))
            .map(|(name, value)| (name.clone(), value.clone()))
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
        assert_eq!(network.plugins[0].stdin(&network, &Map::new(), None)["mtu"], 1400);
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
        let capabilities = Map::from_iter([("portMappings".to_owned(), ports.clone())]);
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

    #[test]
    fn the_latest_version_that_both_know_is_spoken() {
        let list = |several: Value| json!({ "name": "a", "cniVersion": "0.4.0", "cniVersions": several, "plugins": [{ "type": "a" }] });
        for (several, version, collects) in [
            (json!(null), "0.4.0", false),
            (json!(["0.3.1", "1.1.0", "9.0.0"]), "1.1.0", true),
            (json!(["9.0.0"]), "0.4.0", false),
            (json!(["0.3.1"]), "0.4.0", false),
        ] {
            let network = parse_list(&list(several.clone())).unwrap();
            let found = (network.version.as_str(), network.collects, network.has_status());
            assert_eq!(found, (version, collects, collects), "{several}");
        }
        let mut shared = list(json!(["1.1.0"]));
        shared["disableGC"] = json!(true);
        assert!(!parse_list(&shared).unwrap().collects);
    }

    #[test]
    fn plugins_of_others_follow_those_of_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("10-net.conflist");
        let write = |list: &Value| std::fs::write(&path, list.to_string()).unwrap();
        let kinds = || -> Vec<String> {
            let network = read(&path).unwrap();
            network.plugins.into_iter().map(|plugin| plugin.kind).collect()
        };
        std::fs::create_dir(directory.path().join("net")).unwrap();
        for (file, kind) in [("20.conf", "second"), ("10.conf", "first"), ("30.txt", "none")] {
            let path = directory.path().join("net").join(file);
            std::fs::write(path, json!({ "type": kind }).to_string()).unwrap();
        }
        write(&json!({ "name": "net", "cniVersion": "1.1.0", "plugins": [{ "type": "own" }] }));
        assert_eq!(kinds(), ["own", "first", "second"]);
        assert_eq!(
            parse_list(&read(&path).unwrap().source).unwrap().plugins.len(),
            3,
            "DEL knows them too"
        );
        write(&json!({ "name": "net", "cniVersion": "1.1.0" }));
        assert_eq!(kinds(), ["first", "second"]);
        write(
            &json!({ "name": "net", "cniVersion": "1.1.0", "loadOnlyInlinedPlugins": true, "plugins": [{ "type": "own" }] }),
        );
        assert_eq!(kinds(), ["own"]);
    }
}
