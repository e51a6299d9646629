//! Every key of the configuration: whether a reload changes it in the running server, and how its value may be shown.
//!
//! The table stands beside the rules; tests hold it against the types and against `default.toml`, so that no key can be
//! added without a place in all three.

use toml::{Table, Value};

/// What a reload does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It takes effect with the next operation that reads it.
    Live,
    /// It takes effect when the server starts: why.
    Restart(&'static str),
}

use Change::{Live, Restart};

/// A key's path, in which `*` is any name, and what a reload does with it.
pub(crate) type Key = (&'static str, Change);

const LOCKED: Change = Restart("the server has locked it and everything in it");
const BOUND: Change = Restart("the server listens already");
const AT_START: Change = Restart("it is read at the start only");
const PODS: Change = Restart("pods that are there were made with it");

/// All keys, in the order of `default.toml`.
pub(crate) const KEYS: &[Key] = &[
    ("root", LOCKED),
    ("state", LOCKED),
    ("listen", BOUND),
    ("worker_threads", AT_START),
    ("import_dir", AT_START),
    ("image_policy", Live),
    ("shim", Live),
    ("default_runtime", PODS),
    ("cgroup_parent", PODS),
    (
        "cgroup_driver",
        Restart("the kubelet has asked for it and does the same"),
    ),
    ("missing_host_path", Live),
    ("device_ownership_from_security_context", Live),
    ("cdi_spec_dirs", Live),
    ("criu", AT_START),
    ("netns_dir", PODS),
    ("container_log_max_line_bytes", Live),
    ("container_log_limit_bytes", Live),
    ("log.level", Live),
    ("log.format", AT_START),
    ("metrics.listen", BOUND),
    ("tracing.otlp_endpoint", AT_START),
    ("tracing.otlp_protocol", AT_START),
    ("tracing.sample_ratio", AT_START),
    ("security.mask_paths_by_default", Live),
    ("security.unset_seccomp_profile", Live),
    ("checkpoint.restore_from_images", Live),
    ("network.builtin", AT_START),
    ("network.bridge", PODS),
    ("network.subnets", PODS),
    ("network.mtu", PODS),
    ("cni.conf_dir", Live),
    ("cni.bin_dirs", Live),
    ("cni.timeout_s", Live),
    ("cni.ip_preference", Live),
    ("cni.stop_patience_s", Live),
    ("streaming.address", BOUND),
    ("streaming.port", BOUND),
    ("streaming.tls_cert", BOUND),
    ("streaming.tls_key", BOUND),
    ("streaming.client_ca", BOUND),
    ("streaming.idle_timeout_s", BOUND),
    ("runtimes.*.path", Live),
    ("runtimes.*.pod_annotations", Live),
    ("runtimes.*.container_annotations", Live),
    ("pull.hosts_dirs", Live),
    ("pull.auth_file", Live),
    ("pull.credential_helper_dirs", Live),
    ("pull.progress_timeout_s", Live),
    ("pull.layers_at_once", Live),
    ("pull.layers_of_a_registry", Live),
    ("pull.short_name_registries", Live),
    ("pull.short_names.*", Live),
    ("storage.image_root", LOCKED),
    ("storage.snapshotter", PODS),
    ("storage.pinned_images", Live),
    ("storage.writable_layer_limit_bytes", PODS),
    ("storage.writable_layer_limit_inodes", PODS),
    ("registries.*.plain_http", Live),
    ("registries.*.endpoint", Live),
    ("registries.*.ca", Live),
    ("registries.*.skip_verify", Live),
];

/// Parts of names of keys whose values nobody shall read.
const SECRET: &[&str] = &["password", "secret", "token", "headers", "credentials"];
/// Longest value that is shown whole, in characters.
const SHOWN: usize = 80;

/// The entry of a key.
pub(crate) fn find(path: &[String]) -> Option<&'static Key> {
    KEYS.iter().find(|(pattern, _)| {
        let parts: Vec<&str> = pattern.split('.').collect();
        parts.len() == path.len() && parts.iter().zip(path).all(|(part, name)| *part == "*" || part == name)
    })
}

/// The only key with this last name, wherever it is.
pub(super) fn named(name: &str) -> Option<&'static str> {
    let mut found = KEYS.iter().map(|(path, _)| *path);
    let is_it = |path: &&str| path.rsplit('.').next() == Some(name) && *path != name;
    let first = found.find(is_it)?;
    found.find(is_it).is_none().then_some(first)
}

/// Whether a value is not for everybody's eyes.
pub(crate) fn is_secret(path: &[String]) -> bool {
    path.iter().any(|part| SECRET.iter().any(|word| part.contains(word)))
        && !path
            .last()
            .is_some_and(|name| name.ends_with("_dirs") || name.ends_with("_file"))
}

/// A value as a message may show it: on one line, not too long, without secrets.
pub(super) fn shown(path: &[String], value: &str) -> String {
    if is_secret(path) {
        return "hidden".to_owned();
    }
    let line = value.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = without_login(&line);
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// A text in which `user:password@` of URLs is hidden.
pub(crate) fn without_login(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(['/', '"', '\'', ' ']).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown.push_str("***");
                &after[at..]
            }
            None => after,
        };
    }
    shown + rest
}

/// All values that are no tables, by their keys' paths, in order.
pub(crate) fn leaves(table: &Table) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                let inner = leaves(inner).into_iter();
                found.extend(inner.map(|(path, value)| ([vec![name.clone()], path].concat(), value)));
            }
            value => found.push((vec![name.clone()], value.clone())),
        }
    }
    found
}

/// Sets or removes a value; tables that are empty then go too.
pub(super) fn set(table: &mut Table, path: &[String], value: Option<Value>) {
    match (path, value) {
        ([], _) => {}
        ([name], Some(value)) => {
            table.insert(name.clone(), value);
        }
        ([name], None) => {
            table.remove(name);
        }
        ([name, rest @ ..], value) => {
            let inner = table.entry(name.clone()).or_insert_with(|| Table::new().into());
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
                if inner.is_empty() {
                    table.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Config, DEFAULT_TEXT};
    use super::*;

    /// `default.toml` with its commented keys and tables in force.
    fn everything() -> Table {
        let is_setting = |text: &str| {
            let name = text.trim_start_matches('[');
            let word = name
                .find(|c: char| !(c.is_ascii_lowercase() || c == '_'))
                .unwrap_or(name.len());
            let after = &name[word..];
            word > 0 && (after.starts_with(" = ") || text.starts_with('[') && after.starts_with(['.', ']']))
        };
        let lines = DEFAULT_TEXT.lines().map(|line| match line.strip_prefix("# ") {
            Some(inner) if is_setting(inner) => inner,
            _ => line,
        });
        toml::from_str(&lines.collect::<Vec<_>>().join("\n"))
            .expect("every commented key is TOML when it is uncommented")
    }

    /// The pattern of a path that `default.toml` has.
    fn pattern(path: &[String]) -> String {
        match path {
            [table, _, name] if table == "runtimes" || table == "registries" => format!("{table}.*.{name}"),
            [table, map, _] if table == "pull" && map == "short_names" => "pull.short_names.*".to_owned(),
            path => path.join("."),
        }
    }

    #[test]
    fn the_default_file_documents_the_keys_of_the_table_and_no_others() {
        let documented: BTreeSet<String> = leaves(&everything()).iter().map(|(path, _)| pattern(path)).collect();
        let classified: BTreeSet<String> = KEYS.iter().map(|(path, _)| (*path).to_owned()).collect();
        let left: Vec<_> = documented.difference(&classified).collect();
        assert!(
            left.is_empty(),
            "say in config/keys.rs whether a reload changes {left:?}"
        );
        let left: Vec<_> = classified.difference(&documented).collect();
        assert!(left.is_empty(), "explain in config/default.toml: {left:?}");
    }

    #[test]
    fn the_types_have_the_keys_of_the_table_and_no_others() {
        let everything = everything();
        everything
            .clone()
            .try_into::<Config>()
            .expect("every key of default.toml is one of Config");
        // An unknown key makes serde list the known ones, those without a value too.
        let mut tables = vec![Vec::new()];
        tables.extend(KEYS.iter().filter_map(|(path, _)| {
            let (table, _) = path.rsplit_once('.')?;
            Some(table.replace('*', "x").split('.').map(str::to_owned).collect())
        }));
        for table in tables {
            let probe = [table.clone(), vec!["no_such_key".to_owned()]].concat();
            let mut document = Table::new();
            set(&mut document, &probe, Some(1.into()));
            let error = document.try_into::<Config>().unwrap_err();
            let Some((_, expected)) = error.message().split_once("no_such_key`, expected") else {
                continue;
            };
            for name in expected.split('`').skip(1).step_by(2) {
                let prefix = [table.clone(), vec![name.to_owned()]].concat();
                let known = |(path, _): &Key| {
                    let parts: Vec<&str> = path.split('.').collect();
                    parts.len() >= prefix.len()
                        && parts.iter().zip(&prefix).all(|(part, it)| *part == "*" || part == it)
                };
                assert!(
                    KEYS.iter().any(known),
                    "say in config/keys.rs whether a reload changes {}",
                    prefix.join(".")
                );
            }
        }
    }

    #[test]
    fn every_key_is_explained() {
        let lines: Vec<&str> = DEFAULT_TEXT.lines().collect();
        for (path, _) in KEYS {
            let name = path.rsplit('.').next().unwrap_or(path);
            let is_it = |line: &&str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{name} = ")) || name == "*" && line.starts_with("[pull.short_names]")
            };
            let at = lines.iter().position(is_it).expect(path);
            let explained = lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with('#') || line.starts_with('['));
            assert!(
                explained.clone().any(|line| line.starts_with("# ")),
                "{path} without a word"
            );
        }
    }

    #[test]
    fn paths_and_patterns() {
        let path = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(find(&path("registries a.example:5 ca")).unwrap().0, "registries.*.ca");
        assert_eq!(find(&path("registries a.example:5")), None);
        assert_eq!(find(&path("roots")), None);
        assert_eq!(named("level"), Some("log.level"));
        assert_eq!(named("path"), Some("runtimes.*.path"));
        assert_eq!(named("root"), None);
    }

    #[test]
    fn what_is_shown() {
        let long = "x".repeat(SHOWN + 1);
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        for (key, value, expected) in [
            ("root", "\"/a\"", "\"/a\"".to_owned()),
            ("cdi_spec_dirs", "[\n  1,\n  2\n]", "[ 1, 2 ]".to_owned()),
            ("root", long.as_str(), format!("{}...", &long[1..])),
            ("a.password", "'hush'", "hidden".to_owned()),
            ("tracing.headers", "{ a = 'hush' }", "hidden".to_owned()),
            ("pull.credential_helper_dirs", "['/bin']", "['/bin']".to_owned()),
            ("a", "'http://me:hush@h/x@y'", "'http://***@h/x@y'".to_owned()),
            ("a", "'https://h:1/x'", "'https://h:1/x'".to_owned()),
        ] {
            assert_eq!(shown(&path(key), value), expected, "{key}");
        }
    }

    #[test]
    fn values_are_set_and_removed_with_their_tables() {
        let mut table: Table = toml::from_str("a = 1\n[b.c]\nd = 2\n").unwrap();
        let path = ["b", "c", "d"].map(str::to_owned);
        set(&mut table, &path, None);
        assert_eq!(table, toml::from_str("a = 1").unwrap());
        set(&mut table, &path, Some(3.into()));
        assert_eq!(leaves(&table)[1], (path.to_vec(), 3.into()));
    }
}
