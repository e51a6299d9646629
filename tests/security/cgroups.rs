//! cgroups: a container neither writes to those of the machine nor gets into one that is not its own.

use std::fs;

use corten_tests::bundle::{Bundle, Runtime};
use corten_tests::cgroup;
use serde_json::json;

tests! {
    a_container_cannot_write_to_its_cgroup,
    a_user_namespace_does_not_open_the_cgroups,
    no_release_agent_is_in_reach,
    a_cgroup_outside_of_the_hierarchy_is_refused,
    exec_goes_to_no_cgroup_but_the_container_s,
    a_user_namespace_s_container_is_where_its_parent_is_limited,
}

const CONTROLLER: &str = "memory";

fn inside(file: &str) -> String {
    let hierarchy = if cgroup::unified() {
        String::new()
    } else {
        format!("{CONTROLLER}/")
    };
    format!("/sys/fs/cgroup/{hierarchy}{file}")
}

/// With every capability that could help.
fn powerful(runtime: &Runtime) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    for set in ["bounding", "effective", "permitted"] {
        bundle.spec["process"]["capabilities"][set] = json!(["CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER"]);
    }
    bundle
}

fn assert_read_only(bundle: &mut Bundle<'_>) {
    let [procs, notify, directory] = [inside("cgroup.procs"), inside("notify_on_release"), inside("")];
    let report = bundle.report(&[&procs, &notify, &directory]);
    assert_eq!(report.path(&procs)["write"], "EROFS", "{}", report.path(&procs));
    assert_eq!(report.path(&directory)["write"], "EROFS", "{}", report.path(&directory));
    // v2 has no such file.
    assert!(!report.is_writable(&notify));
}

fn a_container_cannot_write_to_its_cgroup(runtime: &Runtime) {
    assert_read_only(&mut powerful(runtime));
    let mut bundle = powerful(runtime);
    bundle.namespace("cgroup", None);
    assert_read_only(&mut bundle);
}

/// CVE-2023-25809: without a cgroup namespace of its own.
fn a_user_namespace_does_not_open_the_cgroups(runtime: &Runtime) {
    let mut bundle = powerful(runtime);
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    }
    assert_read_only(&mut bundle);
}

/// CVE-2022-0492: the file is in the root of a v1 hierarchy, which no container sees, even where it may write.
fn no_release_agent_is_in_reach(runtime: &Runtime) {
    for own_namespace in [false, true] {
        let mut bundle = powerful(runtime);
        if own_namespace {
            bundle.namespace("cgroup", None);
        }
        bundle.mount("/sys/fs/cgroup")["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        let agents: Vec<String> = [
            "", "memory/", "cpu/", "pids/", "rdma/", "systemd/", "freezer/", "devices/",
        ]
        .map(|hierarchy| format!("/sys/fs/cgroup/{hierarchy}release_agent"))
        .into();
        let paths: Vec<&str> = agents.iter().map(String::as_str).collect();
        let report = bundle.report(&paths);
        for path in paths {
            assert_eq!(report.path(path)["error"], "ENOENT", "{path}: {}", report.path(path));
        }
    }
}

/// A path with `..` in it, and one that is the root of all cgroups.
fn a_cgroup_outside_of_the_hierarchy_is_refused(runtime: &Runtime) {
    let own = fs::read_to_string("/proc/self/cgroup").expect("read this process's cgroups");
    for path in [
        "../../..",
        "/../escape",
        "a/../../escape",
        "/a/b/../../../escape",
        "..",
        "/",
        "//",
        "/.",
        ".",
        "/..",
        "a\0b",
        "/a\nb",
    ] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        bundle.spec["linux"]["cgroupsPath"] = json!(path);
        let error = bundle.run().failure();
        assert!(error.contains("cgroup"), "{path:?}: {error}");
        bundle.assert_nothing_left();
    }
    let long = format!("/{}", "x".repeat(5000));
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.spec["linux"]["cgroupsPath"] = json!(long);
    let _error = bundle.run().failure();
    assert_eq!(
        fs::read_to_string("/proc/self/cgroup").expect("read this process's cgroups"),
        own
    );
}

/// `exec --cgroup` names a cgroup below the container's own, however it is written.
fn exec_goes_to_no_cgroup_but_the_container_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let paths = [
        "..",
        "../",
        "/..",
        "a/../../b",
        "../escape",
        "memory:..",
        "memory:../x",
        "/../../",
        "\n",
        "no/such/cgroup",
    ];
    for path in paths {
        let output = bundle.exec(&["--cgroup", path], &["/probe", "report"]);
        assert_eq!(output.stdout, "", "{path:?}: a program has run");
        let _error = output.failure();
    }
}

/// CVE-2025-47291: with a user namespace too the limits of the parent hold.
fn a_user_namespace_s_container_is_where_its_parent_is_limited(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let parent = format!("/{}-parent", bundle.id);
    bundle.spec["linux"]["cgroupsPath"] = json!(format!("{parent}/inner"));
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    }
    let report = bundle.report(&[]);
    let expected = format!("{parent}/inner");
    assert!(
        report.cgroup(CONTROLLER).is_some_and(|path| path.ends_with(&expected)),
        "{}",
        report["cgroups"]
    );
    corten_tests::leak::remove_cgroup(&parent);
}
