//! Time namespaces: new ones with `linux.timeOffsets`, joined ones, and exec.

use std::fs;

use corten_tests::bundle::{Bundle, Report, Runtime};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::namespaces::map_ids;

corten_only! {
    a_new_namespace_has_the_caller_s_clocks: "runc has time namespaces from 1.2 on",
    offsets_shift_the_clocks: "runc has time namespaces from 1.2 on",
    offsets_of_a_user_namespace_s_container: "runc has time namespaces from 1.2 on",
    offsets_where_a_process_between_joins: "runc has time namespaces from 1.2 on",
    exec_has_the_container_s_clocks: "runc has time namespaces from 1.2 on",
    a_namespace_is_joined: "runc has time namespaces from 1.2 on",
    offsets_that_cannot_be_are_refused: "runc has time namespaces from 1.2 on",
    hooks_have_the_host_s_clocks: "runc has time namespaces from 1.2 on",
}

const AHEAD: i64 = 1_000_000;
const FURTHER: i64 = 3_000_000;

fn own() -> String {
    fs::read_link("/proc/thread-self/ns/time")
        .expect("every process has one")
        .to_string_lossy()
        .into_owned()
}

fn with_offsets(bundle: &mut Bundle<'_>) {
    bundle.namespace("time", None);
    bundle.spec["linux"]["timeOffsets"] =
        json!({ "monotonic": { "secs": AHEAD, "nanosecs": 500 }, "boottime": { "secs": FURTHER } });
}

/// How far ahead of the host's the clocks are. A test takes less than a minute.
#[track_caller]
fn assert_ahead(report: &Report, monotonic: i64, boottime: i64) {
    for (clock, id, offset) in [
        ("monotonic", ClockId::Monotonic, monotonic),
        ("boottime", ClockId::Boottime, boottime),
    ] {
        let inside = report["clocks"][clock].as_i64().expect("a number of seconds");
        let ahead = inside - clock_gettime(id).tv_sec;
        assert!(
            (offset - 60..=offset).contains(&ahead),
            "{clock}: {ahead} seconds ahead, not {offset}"
        );
    }
}

fn a_new_namespace_has_the_caller_s_clocks(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("time", None);
    let report = bundle.report(&[]);
    assert_ne!(report.namespace("time"), own());
    assert_eq!(report.namespace("time"), report.namespace("time_for_children"));
    assert_ahead(&report, 0, 0);
}

fn offsets_shift_the_clocks(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    with_offsets(&mut bundle);
    let report = bundle.report(&["/proc/self/timens_offsets"]);
    assert_ne!(report.namespace("time"), own());
    assert_eq!(report.namespace("time"), report.namespace("time_for_children"));
    assert_ahead(&report, AHEAD, FURTHER);
    let text = report.path("/proc/self/timens_offsets")["text"]
        .as_str()
        .unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "1000000", "500", "boottime", "3000000", "0"]);
}

fn offsets_of_a_user_namespace_s_container(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    map_ids(&mut bundle);
    with_offsets(&mut bundle);
    assert_ahead(&bundle.report(&[]), AHEAD, FURTHER);
}

fn offsets_where_a_process_between_joins(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    bundle.namespace("pid", Some(&format!("/proc/{}/ns/pid", target.pid)));
    with_offsets(&mut bundle);
    assert_ahead(&bundle.report(&[]), AHEAD, FURTHER);
}

fn exec_has_the_container_s_clocks(runtime: &Runtime) {
    for user in [false, true] {
        let mut bundle = runtime.bundle();
        if user {
            map_ids(&mut bundle);
        }
        with_offsets(&mut bundle);
        bundle.probe(&["sleep"]);
        let container = bundle.start();
        let report = bundle.exec_report(&[]);
        assert_ahead(&report, AHEAD, FURTHER);
        let inits = fs::read_link(format!("/proc/{}/ns/time", container.pid)).expect("the container runs");
        assert_eq!(report.namespace("time"), inits.to_string_lossy());
    }
}

fn a_namespace_is_joined(runtime: &Runtime) {
    let mut first = runtime.bundle();
    with_offsets(&mut first);
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    let path = format!("/proc/{}/ns/time", target.pid);
    bundle.namespace("time", Some(&path));
    let report = bundle.report(&[]);
    assert_ahead(&report, AHEAD, FURTHER);
    let expected = fs::read_link(&path).expect("the first container runs");
    assert_eq!(report.namespace("time"), expected.to_string_lossy());
}

fn offsets_that_cannot_be_are_refused(runtime: &Runtime) {
    for (offsets, words) in [
        (
            json!({ "boottime": { "secs": -4_000_000_000_i64 } }),
            "linux.timeOffsets.boottime.secs",
        ),
        (
            json!({ "monotonic": { "nanosecs": 1_000_000_000 } }),
            "linux.timeOffsets.monotonic.nanosecs",
        ),
        (json!({ "realtime": { "secs": 1 } }), "linux.timeOffsets.realtime"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.namespace("time", None);
        bundle.spec["linux"]["timeOffsets"] = offsets;
        let error = bundle.run().failure();
        assert!(error.contains(words), "{error}");
        bundle.assert_nothing_left();
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } });
    assert!(bundle.run().failure().contains("needs a time namespace"));
}

/// createRuntime hooks are run in the runtime's namespaces.
fn hooks_have_the_host_s_clocks(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    with_offsets(&mut bundle);
    let log = bundle.path().join("hooks");
    bundle.spec["hooks"] = json!({ "createRuntime": [
        { "path": bundle.rootfs("/probe"), "args": ["probe", "hook", log, "createRuntime"] },
    ] });
    bundle.probe(&["exit", "0"]);
    let _run = bundle.run().success();
    let text = fs::read_to_string(&log).expect("the hook has run");
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("a line is JSON");
    assert_eq!(line["namespaces"]["time"], json!(own()));
}
