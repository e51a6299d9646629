//! Pod networks: each CNI configuration, its plugins, and the programs that plugins run.

use std::path::{Path, PathBuf};

use super::check::Check;
use crate::config::Config;
use crate::network::cni::{Found, inspect};
use crate::oci;

/// Plugins that need iptables or nft, in all or some of their configurations.
const FILTERING: [&str; 4] = ["bridge", "firewall", "portmap", "ptp"];

/// A plugin of the network in use: its name, and the first file of that name in the directories of plugins.
struct Plugin {
    kind: String,
    at: Option<PathBuf>,
    executable: bool,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let found = match inspect(&config.cni.conf_dir) {
        Ok(found) => found,
        Err(error) => {
            let fix = "see to it that the directory can be read, or change cni.conf_dir";
            let meaning = "pods get no network";
            return vec![Check::problem("cni-config", format!("{error:#}"), meaning, fix)];
        }
    };
    let mut checks = vec![judge_config(&found, &config.cni.conf_dir, has_builtin(config))];
    if let Some((_, Ok(kinds))) = found.iter().find(|(_, kinds)| kinds.is_ok()) {
        let plugins: Vec<Plugin> = kinds.iter().map(|kind| plugin(kind, &config.cni.bin_dirs)).collect();
        checks.push(judge_plugins(&plugins, &config.cni.bin_dirs));
        checks.push(judge_programs(kinds, has_program));
    }
    checks
}

/// Whether the configuration has a built-in network and it is on. By its name: what this program was built without, it has
/// no key for.
fn has_builtin(config: &Config) -> bool {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let network = table.get("network").and_then(toml::Value::as_table);
    network.is_some_and(|network| network.get("builtin").and_then(toml::Value::as_bool) == Some(true))
}

fn plugin(kind: &str, directories: &[PathBuf]) -> Plugin {
    let executable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let files: Vec<PathBuf> = directories
        .iter()
        .map(|it| it.join(kind))
        .filter(|it| it.is_file())
        .collect();
    let at = files.iter().find(|path| executable(path)).or(files.first()).cloned();
    Plugin {
        kind: kind.to_owned(),
        executable: at.as_deref().is_some_and(executable),
        at,
    }
}

fn has_program(name: &str) -> bool {
    // As the server has it, and not whoever runs this.
    std::env::split_paths(oci::PATH).any(|directory| directory.join(name).is_file())
}

fn judge_config(found: &[Found], directory: &Path, builtin: bool) -> Check {
    let name = "cni-config";
    let bad: Vec<String> = found
        .iter()
        .filter_map(|(path, outcome)| Some(format!("{}: {}", path.display(), outcome.as_ref().err()?)))
        .collect();
    let good = found.iter().find(|(_, outcome)| outcome.is_ok());
    let mend = "mend the file, or remove it; the first valid one by name is used";
    match (good, bad.is_empty(), builtin) {
        (Some((path, _)), true, _) => Check::ok(name, format!("{} is used", path.display())),
        (Some((path, _)), false, _) => {
            let meaning = format!("it is passed over, and {} is used", path.display());
            Check::warning(name, bad.join("; "), meaning, mend)
        }
        (None, false, _) => Check::problem(name, bad.join("; "), "pods get no network; NetworkReady is false", mend),
        (None, true, true) => Check::ok(
            name,
            format!("none in {}: the built-in network is used", directory.display()),
        ),
        (None, true, false) => Check::problem(
            name,
            format!("no configuration in {}", directory.display()),
            "pods get no network; NetworkReady is false",
            "install a network (its agent writes the file), or name its directory in cni.conf_dir",
        ),
    }
}

fn judge_plugins(plugins: &[Plugin], directories: &[PathBuf]) -> Check {
    let name = "cni-plugins";
    let places: Vec<_> = directories.iter().map(|it| it.display().to_string()).collect();
    let complaint = |plugin: &Plugin| match &plugin.at {
        None => Some(format!("{} is not in {}", plugin.kind, places.join(" or "))),
        Some(path) if !plugin.executable => Some(format!("{} cannot be executed", path.display())),
        Some(_) => None,
    };
    let complaints: Vec<String> = plugins.iter().filter_map(complaint).collect();
    if complaints.is_empty() {
        let names: Vec<&str> = plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        return Check::ok(name, names.join(", "));
    }
    Check::problem(
        name,
        complaints.join("; "),
        "every pod's network fails",
        "install the plugin (package containernetworking-plugins), chmod +x it, or add its directory to cni.bin_dirs",
    )
}

fn judge_programs(kinds: &[String], has: impl Fn(&str) -> bool) -> Check {
    let name = "iptables";
    let users: Vec<&str> = kinds
        .iter()
        .map(String::as_str)
        .filter(|kind| FILTERING.contains(kind))
        .collect();
    if users.is_empty() {
        return Check::skipped(name, "no plugin in use runs it");
    }
    let there: Vec<&str> = ["iptables", "nft"].into_iter().filter(|program| has(program)).collect();
    if there.is_empty() {
        return Check::warning(
            name,
            format!(
                "neither iptables nor nft is installed, and {} may run them",
                users.join(", ")
            ),
            "masquerade and host ports fail",
            "install the package iptables or nftables",
        );
    }
    Check::ok(name, there.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn configurations() {
        let good = || ("/c/20.conflist".into(), Ok(vec!["bridge".to_owned()]));
        let bad = || ("/c/10.conflist".into(), Err("parse as JSON".to_owned()));
        let table: [(Vec<Found>, bool, Verdict); 5] = [
            (vec![good()], false, Verdict::Ok),
            (vec![bad(), good()], false, Verdict::Warning),
            (vec![bad()], true, Verdict::Problem),
            (vec![], true, Verdict::Ok),
            (vec![], false, Verdict::Problem),
        ];
        for (found, builtin, expected) in table {
            let check = judge_config(&found, Path::new("/c"), builtin);
            assert_eq!(check.verdict, expected, "{found:?} {builtin}");
        }
    }

    #[test]
    fn plugins() {
        let plugin = |at: Option<&str>, executable| Plugin {
            kind: "bridge".to_owned(),
            at: at.map(Into::into),
            executable,
        };
        let table = [
            (plugin(Some("/b/bridge"), true), Verdict::Ok, "bridge"),
            (plugin(Some("/b/bridge"), false), Verdict::Problem, "cannot be executed"),
            (plugin(None, false), Verdict::Problem, "is not in /b"),
        ];
        for (plugin, expected, words) in table {
            let check = judge_plugins(&[plugin], &["/b".into()]);
            assert_eq!(check.verdict, expected);
            assert!(check.found.contains(words), "{}", check.found);
        }
        assert_eq!(
            judge_programs(&["bridge".to_owned()], |_| false).verdict,
            Verdict::Warning
        );
        assert_eq!(
            judge_programs(&["bridge".to_owned()], |it| it == "nft").verdict,
            Verdict::Ok
        );
        assert_eq!(
            judge_programs(&["macvlan".to_owned()], |_| false).verdict,
            Verdict::Skipped
        );
    }

    #[test]
    fn the_built_in_network_is_known_by_its_key() {
        assert_eq!(
            has_builtin(&Config::default()),
            toml::Table::try_from(Config::default())
                .unwrap()
                .get("network")
                .and_then(|network| network.get("builtin"))
                .is_some_and(|value| value.as_bool() == Some(true))
        );
    }
}
