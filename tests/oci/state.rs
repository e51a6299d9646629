//! `state` and `list`: the fields that runc has, and no others.

use std::os::unix::fs::chown;

use corten_tests::bundle::{Bundle, Container, Runtime};
use serde_json::{Value, json};

each_runtime! {
    state_has_runc_s_fields,
    list_has_them_too,
    a_stopped_container_has_no_pid,
    annotations_are_left_out_where_there_are_none,
    the_owner_is_a_name_or_a_number,
    a_list_of_none_is_empty,
    quiet_wins_over_a_format,
}

const FIELDS: [&str; 9] = [
    "annotations",
    "bundle",
    "created",
    "id",
    "ociVersion",
    "owner",
    "pid",
    "rootfs",
    "status",
];

fn sleeper(runtime: &Runtime) -> (Bundle<'_>, Container) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.spec["annotations"] = json!({ "org.example.key": "value" });
    let container = bundle.start();
    (bundle, container)
}

fn names(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn check(value: &Value, bundle: &Bundle<'_>, container: &Container) {
    assert_eq!(names(value), FIELDS);
    assert_eq!(value["bundle"], json!(bundle.path()));
    assert_eq!(
        value["rootfs"],
        json!(bundle.rootfs("/").to_string_lossy().trim_end_matches('/'))
    );
    assert_eq!(value["pid"], container.pid.as_raw());
    assert_eq!(value["annotations"], json!({ "org.example.key": "value" }));
    let created = value["created"].as_str().expect("a time");
    assert!(created.len() >= 20 && created.ends_with('Z'), "{created}");
}

fn state_has_runc_s_fields(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let state = bundle.state();
    check(&state, &bundle, &container);
    // runc 1.1 leaves the field empty here, and fills it in for list.
    assert_eq!(state["owner"], if runtime.is("runc") { "" } else { "root" });
    // As people read it: one field to a line.
    let text = bundle.call("state", &[]).success().stdout;
    assert!(text.starts_with("{\n  \"ociVersion\": "), "{text}");
}

fn list(runtime: &Runtime) -> Value {
    let text = runtime.call(["list", "--format", "json"]).success().stdout;
    serde_json::from_str(&text).expect("list prints JSON")
}

fn list_has_them_too(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let listed = list(runtime);
    check(&listed[0], &bundle, &container);
    assert_eq!(listed[0]["owner"], "root");
}

fn a_stopped_container_has_no_pid(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.start().wait();
    let state = bundle.state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    assert_eq!(list(runtime)[0]["pid"], 0);
}

fn annotations_are_left_out_where_there_are_none(runtime: &Runtime) {
    let bundle = runtime.bundle();
    bundle.create();
    assert_eq!(names(&bundle.state()), FIELDS[1..]);
}

/// Whoever made the container's directory.
fn the_owner_is_a_name_or_a_number(runtime: &Runtime) {
    let bundle = runtime.bundle();
    bundle.create();
    // Debian's base-passwd has user 3; nobody has the other.
    for (uid, owner) in [(3, "sys"), (3_999_999_999, "#3999999999")] {
        chown(bundle.state_directory(), Some(uid), None).expect("chown a directory of this test");
        assert_eq!(list(runtime)[0]["owner"], owner);
        let table = runtime.call(["list"]).success().stdout;
        assert!(table.trim_end().ends_with(owner), "{table}");
    }
    chown(bundle.state_directory(), Some(0), None).expect("chown a directory of this test");
}

fn a_list_of_none_is_empty(runtime: &Runtime) {
    let table = runtime.call(["list"]).success().stdout;
    assert_eq!(table.lines().count(), 1, "{table}");
    assert_eq!(runtime.call(["list", "-q"]).success().stdout, "");
    // Go's encoder has no empty list, but this.
    let none = if runtime.is("runc") { Value::Null } else { json!([]) };
    assert_eq!(list(runtime), none);
}

fn quiet_wins_over_a_format(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let text = runtime.call(["list", "-q", "-f", "json"]).success().stdout;
    assert_eq!(text, format!("{}\n", bundle.id));
}
