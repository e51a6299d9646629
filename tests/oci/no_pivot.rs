//! `--no-pivot`: a root that is moved over the host's instead of exchanged with it.

use corten_tests::bundle::Runtime;
use serde_json::json;

each_runtime! {
    the_root_is_the_container_s,
    a_container_without_it_can_be_executed_in,
}

corten_only! {
    what_is_below_has_no_mounts: "runc 1.1 leaves all of the host's mounts there but /proc and /sys",
    it_needs_namespaces_of_its_own: "runc 1.1 leaves the host's mounts where they are then",
}

fn the_root_is_the_container_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["report", "/", "/probe", "/proc"]);
    let output = bundle.call("run", &["--no-pivot"]).success();
    let report = corten_tests::bundle::Report::parse(&output.stdout);
    assert_eq!(report.path("/probe")["type"], "file");
    assert!(report.has_option("/", "ro"), "{}", report.mount("/"));
    assert_eq!(report.mount("/proc")["type"], "proc");
    // Its processes, and not the host's.
    assert_eq!(report["pid"], 1);
}

fn a_container_without_it_can_be_executed_in(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.launch("run", &["--detach", "--no-pivot"]);
    let report = bundle.exec_report(&[]);
    assert_eq!(report["init_executable"], "/probe");
}

/// With every right there is, a program takes its root away: what it then sees of the host is one filesystem, without
/// what was mounted on it.
fn what_is_below_has_no_mounts(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE"]);
    bundle.spec["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    bundle.probe(&["under-root"]);
    let output = bundle.call("run", &["--no-pivot"]).success();
    let entries: Vec<&str> = output.stdout.split_whitespace().collect();
    assert_eq!(entries, ["proc:0", "sys:0"], "{output:?}");
}

fn it_needs_namespaces_of_its_own(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("user", None);
    let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    bundle.spec["linux"]["uidMappings"] = mapping.clone();
    bundle.spec["linux"]["gidMappings"] = mapping;
    let error = bundle.call("create", &["--no-pivot"]).failure();
    assert!(error.contains("--no-pivot"), "{error}");
    bundle.assert_nothing_left();
}
