//! Every check of config.json, before any side effect.
//!
//! Two steps: [`parse_spec`] takes the text, [`validate`] the types. The first refuses what this runtime does not
//! implement and gives every failure its place in the document. The second holds the rules between fields, and the few
//! that need a look at the machine: does the root exist, is a namespace the host's own, has a limit its controller.
//!
//! An error says field, value and rule: `process.cwd: "tmp": must be absolute`. What the specification tells runtimes to
//! pass over is a warning: capabilities that nobody knows, a later minor version. Unknown properties are ignored, as it
//! demands (config.md, Extensibility).
//!
//! Left to the code that does it: whether a program exists, whether the source of a bind does, what the kernel thinks of
//! a filesystem's options.

mod document;
mod linux;
mod netdev;
mod process;
mod spelling;
mod sysctl;
mod time;

use std::path::{Component, Path};

use anyhow::{Context, Result, anyhow, bail, ensure};
use oci_spec::runtime::{Hook, Hooks, Linux, Mount, Spec};

use crate::id_map::Ids;
use crate::rootfs::options::Options;
use crate::rootless;
pub use document::{Parsed, is_supported, parse_process, parse_spec};
pub use process::validate_process;

/// Every check of a spec that needs no side effect. Answers with warnings.
pub fn validate(spec: &Spec, bundle: &Path) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    warnings.extend(version(spec.version())?);
    root(spec, bundle)?;
    let process = spec.process().as_ref().ok_or_else(|| anyhow!("process: missing"))?;
    warnings.extend(validate_process(process)?);
    if rootless::unprivileged() {
        rootless::check(spec, Ids::own())?;
    }
    let linux = spec.linux().as_ref().ok_or_else(|| anyhow!("linux: missing"))?;
    warnings.extend(linux::linux(linux)?);
    linux::joined_mount_namespace(spec, linux)?;
    linux::names(spec, linux)?;
    linux::process_ids(process, linux)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        warnings.extend(check_mount(mount, linux, &format!("mounts[{index}]"))?);
    }
    spec.hooks().as_ref().map_or(Ok(()), hooks)?;
    let annotated = spec.annotations().iter().flatten().all(|(key, _)| !key.is_empty());
    ensure!(annotated, "annotations: \"\": a key must not be empty");
    Ok(warnings)
}

/// The last minor version of the specification that this runtime was written after.
const LAST_MINOR: u32 = 3;

/// SemVer, of major version 1. A later minor version adds fields, which a reader of an earlier one ignores: a warning.
fn version(version: &str) -> Result<Option<String>> {
    let refuse = || anyhow!("ociVersion: {version:?}: must be 1.MINOR.PATCH");
    let mut parts = version.splitn(3, '.');
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    let (major, minor) = (number().ok_or_else(refuse)?, number().ok_or_else(refuse)?);
    // `1.0.0-rc.1+build`: of a pre-release only the number counts here.
    let patch = parts
        .next()
        .and_then(|patch| patch.split(['-', '+']).next()?.parse::<u32>().ok());
    ensure!(major == 1 && patch.is_some(), refuse());
    Ok((minor > LAST_MINOR)
        .then(|| format!("ociVersion: {version}: this runtime knows 1.0 to 1.{LAST_MINOR}; what is newer is ignored")))
}

fn root(spec: &Spec, bundle: &Path) -> Result<()> {
    let root = spec.root().as_ref().ok_or_else(|| anyhow!("root: missing"))?;
    let path = root.path();
    ensure!(!path.as_os_str().is_empty(), "root.path: missing");
    let metadata = std::fs::metadata(bundle.join(path)).with_context(|| format!("root.path: {path:?}"))?;
    ensure!(metadata.is_dir(), "root.path: {path:?}: must be a directory");
    Ok(())
}

fn check_mount(mount: &Mount, linux: &Linux, at: &str) -> Result<Option<String>> {
    let destination = mount.destination();
    ensure!(!destination.as_os_str().is_empty(), "{at}.destination: missing");
    without_nul(&destination.to_string_lossy(), &format!("{at}.destination"))?;
    let options = mount.options().as_deref().unwrap_or_default();
    let options = Options::parse(options).with_context(|| format!("{at}.options"))?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind.is_some() || kind == "bind";
    ensure!(
        bind || options.remount || !kind.is_empty(),
        "{at}.type: missing, and no bind or rbind among {at}.options"
    );
    ensure!(
        !options.copy_up || (kind == "tmpfs" && !bind && !options.remount),
        "{at}.options: tmpcopyup: needs a new mount of type tmpfs"
    );
    linux::idmap(mount, &options, linux, at)?;
    if bind && !options.remount {
        let source = mount
            .source()
            .as_ref()
            .is_some_and(|source| !source.as_os_str().is_empty());
        ensure!(source, "{at}.source: missing: a bind needs one");
    }
    let root = destination
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::CurDir));
    ensure!(!root, "{at}.destination: {destination:?}: the root is root.path's");
    Ok(destination.is_relative().then(|| {
        format!("{at}.destination: {destination:?}: should be absolute; taken as relative to the container's root")
    }))
}

fn hooks(hooks: &Hooks) -> Result<()> {
    for (name, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (index, hook) in list.iter().flatten().enumerate() {
            check_hook(hook, &format!("hooks.{name}[{index}]"))?;
        }
    }
    Ok(())
}

fn check_hook(hook: &Hook, at: &str) -> Result<()> {
    absolute(hook.path(), &format!("{at}.path"))?;
    for argument in hook.args().iter().flatten() {
        without_nul(argument, &format!("{at}.args"))?;
    }
    for entry in hook.env().iter().flatten() {
        environment_entry(entry, &format!("{at}.env"))?;
    }
    hook.timeout()
        .map(crate::hooks::timeout)
        .transpose()
        .with_context(|| at.to_owned())?;
    Ok(())
}

/// An entry of an environment: a name, `=`, and a value without NUL.
fn environment_entry(entry: &str, at: &str) -> Result<()> {
    match entry.split_once('=') {
        Some((name, _)) if !name.is_empty() => without_nul(entry, at),
        _ => bail!("{at}: {entry:?}: must be NAME=VALUE"),
    }
}

fn absolute(path: &Path, at: &str) -> Result<()> {
    ensure!(path.is_absolute(), "{at}: {path:?}: must be absolute");
    without_nul(&path.to_string_lossy(), at)
}

fn without_nul(text: &str, at: &str) -> Result<()> {
    ensure!(!text.contains('\0'), "{at}: {text:?}: must not hold a NUL");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The document every table begins with: valid, with the bundle `/` and its root `tmp`.
    pub(super) fn minimal() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "tmp"},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}]},
        })
    }

    /// Sets `pointer` (JSON pointer) to `value`, making objects on the way; `null` takes the field out.
    pub(super) fn set(document: &mut Value, pointer: &str, value: Value) {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        if !parent.is_empty() && document.pointer(parent).is_none() {
            set(document, parent, json!({}));
        }
        match (document.pointer_mut(parent).unwrap(), value) {
            (Value::Object(object), Value::Null) => drop(object.remove(name)),
            (Value::Object(object), value) => drop(object.insert(name.to_owned(), value)),
            (Value::Array(array), value) => array[name.parse::<usize>().unwrap()] = value,
            (other, _) => panic!("{pointer}: {other}"),
        }
    }

    /// Parses and validates the minimal document with these changes; warnings or the whole error.
    pub(super) fn check(changes: &[(&str, Value)]) -> Result<Vec<String>, String> {
        let mut document = minimal();
        for (pointer, value) in changes {
            set(&mut document, pointer, value.clone());
        }
        let parsed = parse_spec(document.to_string().as_bytes());
        let all = parsed.and_then(|parsed| {
            let mut warnings = parsed.warnings;
            warnings.extend(validate(&parsed.value, Path::new("/"))?);
            Ok(warnings)
        });
        all.map_err(|error| format!("{error:#}"))
    }

    /// Rows of `pointer | value | path | rule`: the change must be refused in words that begin with the field's path and
    /// hold the rule.
    pub(super) fn refused(table: &str) {
        for row in table.trim().lines() {
            let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
            let [pointer, value, path, rule] = cells[..] else {
                panic!("not a row: {row}")
            };
            let error = check(&[(pointer, serde_json::from_str(value).unwrap())]).expect_err(row);
            assert!(error.starts_with(path) && error.contains(rule), "{row}: {error}");
        }
    }

    #[test]
    fn the_minimal_document() {
        assert_eq!(check(&[]), Ok(vec![]));
        // Unknown properties are for others.
        assert_eq!(
            check(&[("/process/invention", json!(1)), ("/org.example", json!({}))]),
            Ok(vec![])
        );
    }

    #[test]
    fn versions() {
        for (text, warns) in [
            ("1.0.0", false),
            ("1.0.2-dev", false),
            ("1.3.0", false),
            ("1.4.0", true),
            ("1.12.0+x", true),
        ] {
            let warnings = check(&[("/ociVersion", json!(text))]).unwrap();
            assert_eq!(!warnings.is_empty(), warns, "{text}: {warnings:?}");
        }
        for text in ["", "1", "1.0", "2.0.0", "0.9.0", "1.x.0", "1.0.", "1.0.x"] {
            let error = check(&[("/ociVersion", json!(text))]).unwrap_err();
            assert!(error.starts_with("ociVersion: "), "{error}");
        }
        assert!(check(&[("/ociVersion", Value::Null)]).is_err());
    }

    #[test]
    fn top_level_fields_refused() {
        refused(
            r#"
            /root        | null                | root                             | missing
            /root/path   | ""                  | root.path                        | missing
            /root/path   | "no-such-directory" | root.path: "no-such-directory"   | No such file
            /root/path   | "/proc/version"     | root.path: "/proc/version"       | must be a directory
            /process     | null                | process                          | missing
            /linux       | null                | linux                            | missing
            /annotations | {"": "x"}           | annotations                      | empty
            "#,
        );
    }

    #[test]
    fn mounts() {
        let mounts = |mount: Value| ("/mounts", json!([mount]));
        for (mount, warns) in [
            (
                json!({"destination": "/tmp", "type": "tmpfs", "options": ["nosuid", "size=1m"]}),
                false,
            ),
            (
                json!({"destination": "/a", "source": "/b", "options": ["rbind", "rro"]}),
                false,
            ),
            (json!({"destination": "/a", "source": "b", "type": "bind"}), false),
            (json!({"destination": "data", "type": "tmpfs"}), true),
        ] {
            let warnings = check(&[mounts(mount.clone())]).unwrap();
            assert_eq!(!warnings.is_empty(), warns, "{mount}: {warnings:?}");
        }
        for (mount, path, rule) in [
            (
                json!({"destination": "", "type": "tmpfs"}),
                "mounts[0].destination",
                "missing",
            ),
            (
                json!({"destination": "/", "type": "tmpfs"}),
                "mounts[0].destination",
                "root.path",
            ),
            (
                json!({"destination": "/a\u{0}b", "type": "tmpfs"}),
                "mounts[0].destination",
                "NUL",
            ),
            (json!({"destination": "/a"}), "mounts[0].type", "missing"),
            (
                json!({"destination": "/a", "options": ["bind"]}),
                "mounts[0].source",
                "missing",
            ),
            (
                json!({"destination": "/a", "source": "/b", "options": ["bind", "tmpcopyup"]}),
                "mounts[0].options",
                "tmpfs",
            ),
            (
                json!({"destination": "/a", "type": "proc", "options": ["tmpcopyup"]}),
                "mounts[0].options",
                "tmpfs",
            ),
            (json!({"type": "tmpfs"}), "mounts[0]", "missing field `destination`"),
        ] {
            let error = check(&[mounts(mount.clone())]).unwrap_err();
            assert!(error.starts_with(path) && error.contains(rule), "{mount}: {error}");
        }
    }

    #[test]
    fn idmapped_mounts() {
        let map = json!([{"containerID": 0, "hostID": 5, "size": 10}]);
        let with = |options: &[&str], uids: &Value, gids: &Value, user: bool| {
            let mount = json!({"destination": "/a", "source": "/b", "type": "none", "options": options,
                "uidMappings": uids, "gidMappings": gids});
            let mut changes = vec![("/mounts", json!([mount]))];
            if user {
                changes.push(("/linux/namespaces", json!([{"type": "mount"}, {"type": "user"}])));
                changes.push(("/linux/uidMappings", map.clone()));
                changes.push(("/linux/gidMappings", map.clone()));
            }
            check(&changes)
        };
        let (none, empty) = (Value::Null, json!([{"containerID": 0, "hostID": 5, "size": 0}]));
        assert_eq!(with(&["bind", "idmap"], &map, &map, false), Ok(vec![]));
        assert_eq!(with(&["rbind", "ridmap"], &none, &none, true), Ok(vec![]));
        assert_eq!(with(&["bind"], &map, &map, false), Ok(vec![]));
        for (options, uids, gids, user, words) in [
            (
                &["bind", "idmap"][..],
                &none,
                &none,
                false,
                "mounts[0].options: idmap: needs",
            ),
            (&["bind", "idmap"], &map, &none, false, "mounts[0].gidMappings: missing"),
            (&["bind"], &none, &map, true, "mounts[0].uidMappings: missing"),
            (
                &["bind", "idmap"],
                &map,
                &empty,
                false,
                "mounts[0].gidMappings[0].size: 0",
            ),
            (&["idmap"], &map, &map, false, "mounts[0].options: idmap: only a bind"),
        ] {
            let error = with(options, uids, gids, user).unwrap_err();
            assert!(error.starts_with(words), "{options:?}: {error}");
        }
    }

    #[test]
    fn hooks_of_every_kind() {
        for name in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            let hook = |hook: Value| check(&[("/hooks", json!({name: [{"path": "/bin/true"}, hook]}))]);
            assert_eq!(
                hook(json!({"path": "/x", "args": ["x"], "env": ["A="], "timeout": 1})),
                Ok(vec![])
            );
            for (bad, field, rule) in [
                (json!({"path": "x"}), ".path", "absolute"),
                (json!({"path": ""}), ".path", "absolute"),
                (json!({"path": "/x", "timeout": 0}), "", "greater than zero"),
                (json!({"path": "/x", "timeout": -5}), "", "greater than zero"),
                (json!({"path": "/x", "env": ["A"]}), ".env", "NAME=VALUE"),
                (json!({"path": "/x", "args": ["a\u{0}"]}), ".args", "NUL"),
            ] {
                let error = hook(bad.clone()).unwrap_err();
                assert!(
                    error.starts_with(&format!("hooks.{name}[1]{field}")) && error.contains(rule),
                    "{bad}: {error}"
                );
            }
        }
    }
}
