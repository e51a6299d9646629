//! What is refused, and how: before anything is made, with exit code 1, one line on stderr that names the field, and
//! the same in the log as runc writes it.

use std::fs;

use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::{Value, json};

each_runtime! {
    a_missing_config_is_refused,
    a_config_that_is_no_json_is_refused,
    an_invalid_config_is_refused,
    errors_are_logged_as_json,
    an_unknown_property_is_passed_over,
    unknown_commands_and_flags_are_refused,
}

corten_only! {
    the_error_names_the_field: "runc names the rule but seldom the field",
    what_is_not_built_is_refused: "runc implements some of it and ignores the rest",
    ids_and_groups_of_another_type_are_refused: "runc takes what Go's decoder takes",
}

fn refused(bundle: &Bundle<'_>) -> String {
    let error = bundle.call("create", &[]).failure();
    bundle.assert_nothing_left();
    error
}

fn a_missing_config_is_refused(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let mut command = runtime.command();
    let error = finish(command.arg("create").arg("--bundle").arg(bundle.path()).arg(&bundle.id)).failure();
    assert!(error.contains("config.json"), "{error}");
    bundle.assert_nothing_left();
}

fn a_config_that_is_no_json_is_refused(runtime: &Runtime) {
    for text in ["", "{", "[]", "{\"ociVersion\": 1}", "\u{0}"] {
        let bundle = runtime.bundle();
        fs::write(bundle.path().join("config.json"), text).expect("write config.json");
        let mut command = runtime.command();
        finish(command.arg("create").arg("--bundle").arg(bundle.path()).arg(&bundle.id)).failure();
        bundle.assert_nothing_left();
    }
}

/// A pointer into config.json, what is put there, and the word of the field the error is to name.
type Case = (&'static str, Value, &'static str);

/// Puts `value` where the JSON pointer says; the last step may be new.
fn put(spec: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer has a slash");
    let parent = spec
        .pointer_mut(parent)
        .expect("the parent is in the default specification");
    match parent {
        Value::Array(list) => list[name.parse::<usize>().expect("an index")] = value,
        parent => parent[name] = value,
    }
}

fn invalid() -> Vec<Case> {
    vec![
        ("/process", Value::Null, "process"),
        ("/process/args", json!([]), "args"),
        ("/process/cwd", json!("relative"), "cwd"),
        ("/process/cwd", json!(""), "cwd"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1 }]),
            "RLIMIT_NONSENSE",
        ),
        ("/root", Value::Null, "root"),
        ("/linux/namespaces/0", json!({ "type": "nonsense" }), "nonsense"),
        ("/linux/namespaces/1", json!({ "type": "pid" }), "namespaces"),
        (
            "/linux/uidMappings",
            json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]),
            "uidMappings",
        ),
        (
            "/linux/sysctl",
            json!({ "vm.overcommit_memory": "1" }),
            "vm.overcommit_memory",
        ),
        ("/linux/rootfsPropagation", json!("sideways"), "rootfsPropagation"),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "q", "major": 1, "minor": 1 }]),
            "devices",
        ),
        (
            "/mounts/0",
            json!({ "destination": "/proc", "type": "bind", "source": "/no/such/source" }),
            "/proc",
        ),
    ]
}

fn with<'r>(runtime: &'r Runtime, pointer: &str, value: &Value) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    put(&mut bundle.spec, pointer, value.clone());
    bundle
}

fn an_invalid_config_is_refused(runtime: &Runtime) {
    // runc 1.1 takes an unknown propagation for none, and passes over mappings without a user namespace.
    let passed_over = ["/linux/rootfsPropagation", "/linux/uidMappings"];
    for (pointer, value, _) in invalid() {
        if runtime.is("runc") && passed_over.contains(&pointer) {
            continue;
        }
        let output = with(runtime, pointer, &value).call("create", &[]);
        assert_eq!(output.code, 1, "{pointer} = {value}: {output:?}");
    }
}

fn the_error_names_the_field(runtime: &Runtime) {
    for (pointer, value, name) in invalid() {
        let error = refused(&with(runtime, pointer, &value));
        assert!(error.contains(name), "{pointer} = {value}: {error}");
    }
}

fn ids_and_groups_of_another_type_are_refused(runtime: &Runtime) {
    for (pointer, value) in [
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!(4_294_967_296_u64)),
        ("/process/user/gid", json!("0")),
        ("/process/user/additionalGids", json!([1.5])),
        ("/process/env", json!("PATH=/bin")),
        ("/process/args", json!(["/probe", 1])),
    ] {
        refused(&with(runtime, pointer, &value));
    }
}

/// What config.md and config-linux.md have and corten does not: pointer and JSON; the last word is to be in the error.
const NOT_BUILT: [(&str, &str); 2] = [
    ("/vm", r#"{ "kernel": { "path": "/kernel" } }"#),
    ("/windows", r#"{ "layerFolders": ["C"] }"#),
];

fn what_is_not_built_is_refused(runtime: &Runtime) {
    for (pointer, text) in NOT_BUILT {
        let value: Value = serde_json::from_str(text).expect("the table holds JSON");
        let error = refused(&with(runtime, pointer, &value));
        let name = pointer.rsplit('/').next().unwrap_or(pointer);
        assert!(error.contains(name), "{pointer} = {value}: {error}");
    }
}

/// config.md, "Extensibility": an unknown property is no error. A known one that is not built is (above).
fn an_unknown_property_is_passed_over(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["org.example.unknown"] = json!({ "any": "thing" });
    bundle.spec["process"]["org.example.unknown"] = json!(1);
    bundle.probe(&["exit", "0"]);
    let _output = bundle.run().success();
}

fn errors_are_logged_as_json(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["args"] = json!(["/no/such/program"]);
    bundle.write();
    let log = bundle.path().join("log");
    let mut command = runtime.command();
    command
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "create", "--bundle"])
        .arg(bundle.path());
    let error = finish(command.arg(&bundle.id)).failure();
    assert!(error.contains("/no/such/program"), "{error}");
    let text = fs::read_to_string(&log).expect("the log was written");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect();
    let last = lines
        .iter()
        .rfind(|line| line["level"] == "error")
        .expect("an error was logged");
    assert!(
        last["msg"]
            .as_str()
            .is_some_and(|message| message.contains("/no/such/program")),
        "{last}"
    );
    let time = last["time"].as_str().expect("time is a string");
    assert!(time.len() >= 20 && time.as_bytes()[10] == b'T', "{time} is RFC 3339");
    bundle.assert_nothing_left();
}

fn unknown_commands_and_flags_are_refused(runtime: &Runtime) {
    for args in [
        &["frobnicate"][..],
        &["create", "--frobnicate"],
        &["list", "--format", "xml"],
        &["start"],
        &["kill"],
    ] {
        let output = runtime.call(args);
        // runc prints its usage and exits with 0 for an unknown command.
        if !(runtime.is("runc") && args == ["frobnicate"]) {
            assert_ne!(output.code, 0, "{args:?}: {output:?}");
        }
    }
}
