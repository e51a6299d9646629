//! `linux.intelRdt`. What is done to the resctrl filesystem is tested beside the code, on a tree that looks like it: few
//! machines have the processor for the real one.

use std::fs;

use corten_tests::bundle::Runtime;
use serde_json::json;

corten_only! {
    without_resctrl_it_is_refused: "runc ignores an intelRdt that asks for nothing",
}

fn without_resctrl_it_is_refused(runtime: &Runtime) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    if mounts.contains(" - resctrl ") {
        eprintln!("SKIP: this machine has resctrl");
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
