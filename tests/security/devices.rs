//! Devices: whatever the specification's list says, a container opens those it is granted and no other.

use corten_tests::bundle::{Bundle, Runtime};
use serde_json::{Value, json};

tests! {
    an_empty_list_allows_nothing_more_than_every_container_has,
    a_list_of_grants_is_no_list_of_denials,
    without_any_list_nothing_more_is_allowed,
}

/// What opening a node of each major number, minor 0, says; `made` adds to the specification's rules.
fn opened(bundle: &mut Bundle<'_>, rules: Option<Value>) -> Value {
    let resources = &mut bundle.spec["linux"]["resources"];
    match rules {
        Some(rules) => resources["devices"] = rules,
        None => drop(
            resources
                .as_object_mut()
                .expect("resources are an object")
                .remove("devices"),
        ),
    }
    for set in ["bounding", "effective", "permitted"] {
        let capabilities = &mut bundle.spec["process"]["capabilities"][set];
        capabilities
            .as_array_mut()
            .expect("capabilities are a list")
            .push(json!("CAP_MKNOD"));
    }
    // A filesystem that lets devices be devices.
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["dev"] }));
    bundle.probe(&["devices", "/tmp"]);
    let outcomes = serde_json::from_str(&bundle.run().success().stdout).expect("the probe prints JSON");
    let Value::Object(map) = &outcomes else {
        panic!("{outcomes}")
    };
    assert_eq!(map.len(), 510);
    outcomes
}

/// Every class but those named is refused.
#[track_caller]
fn assert_only(outcomes: &Value, allowed: &[&str]) {
    for (device, outcome) in outcomes.as_object().expect("outcomes are a map") {
        if allowed.contains(&device.as_str()) {
            // There may be no driver; what counts is that it has been asked.
            assert_ne!(*outcome, "EPERM", "{device}");
        } else {
            assert_eq!(*outcome, "EPERM", "{device}");
        }
    }
}

/// 5:0 is the controlling terminal, 136:0 the first of the container's own.
const DEFAULT: [&str; 2] = ["c 5:0", "c 136:0"];

/// GHSA-g54h-m393-cpwq.
fn an_empty_list_allows_nothing_more_than_every_container_has(runtime: &Runtime) {
    assert_only(&opened(&mut runtime.bundle(), Some(json!([]))), &DEFAULT);
}

fn a_list_of_grants_is_no_list_of_denials(runtime: &Runtime) {
    let rules = json!([{ "allow": true, "type": "c", "major": 10, "minor": 0, "access": "rwm" }]);
    assert_only(
        &opened(&mut runtime.bundle(), Some(rules)),
        &[DEFAULT[0], DEFAULT[1], "c 10:0"],
    );
}

fn without_any_list_nothing_more_is_allowed(runtime: &Runtime) {
    assert_only(&opened(&mut runtime.bundle(), None), &DEFAULT);
}
