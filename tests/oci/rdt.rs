//! `linux.intelRdt`. What is done to the resctrl filesystem is tested beside the code, on a tree that looks like it: few
//! machines have the processor for the real one.

use std::fs;

use corten_tests::bundle::Runtime;
use serde_json::json;

corten_only! {
    without_resctrl_it_is_refused: "runc ignores an intelRdt that asks for nothing",
    without_resctrl_no_schema_is_changed: "runc names neither the flag nor what is missing",
}

fn has_resctrl() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let has = mounts.contains(" - resctrl ");
    if has {
        eprintln!("SKIP: this machine has resctrl");
    }
    has
}

fn without_resctrl_it_is_refused(runtime: &Runtime) {
    if has_resctrl() {
        return;
    }
    for rdt in [
        json!({}),
        json!({ "closID": "gold" }),
        json!({ "schemata": ["L3:0=f"], "enableMonitoring": true }),
    ] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["intelRdt"] = rdt;
        let error = bundle.run().failure();
        assert!(
            error.contains("linux.intelRdt: the resctrl filesystem is not mounted"),
            "{error}"
        );
        bundle.assert_nothing_left();
    }
}

fn without_resctrl_no_schema_is_changed(runtime: &Runtime) {
    if has_resctrl() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let limit = bundle.cgroup_file("pids", "pids.max");
    let document = bundle.path().join("resources.json");
    fs::write(&document, json!({ "pids": { "limit": 77 } }).to_string()).expect("write a file of the test");
    let document = document.to_string_lossy();
    for (flags, named) in [
        (
            ["--l3-cache-schema", "L3:0=f", "--pids-limit", "77"],
            "--l3-cache-schema L3:0=f",
        ),
        (
            ["--pids-limit", "77", "--mem-bw-schema", "MB:0=20"],
            "--mem-bw-schema MB:0=20",
        ),
        (
            ["--resources", &*document, "--mem-bw-schema", "MB:0=20"],
            "--mem-bw-schema MB:0=20",
        ),
    ] {
        let error = bundle.call("update", &flags).failure();
        assert!(
            error.contains(named) && error.contains("the resctrl filesystem is not mounted"),
            "{error}"
        );
        assert_eq!(bundle.cgroup_file("pids", "pids.max"), limit, "nothing has changed");
    }
    let _updated = bundle
        .call("update", &["--l3-cache-schema", "", "--pids-limit", "78"])
        .success();
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "78");
}
