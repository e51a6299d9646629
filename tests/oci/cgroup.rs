//! Control groups: where the container is placed, its limits as the kernel has them, and that nothing stays.
//!
//! These read cgroup v1 files, which is what the hierarchies of the controllers are here; on a machine with v2 alone
//! the tests skip, and the conversion to v2 values is tested beside it in the runtime.

use std::fs;
use std::path::{Path, PathBuf};

use corten_tests::bundle::{Bundle, Runtime, wait_until};
use serde_json::{Value, json};

each_runtime! {
    the_container_is_in_its_cgroup,
    a_relative_path_is_below_a_cgroup_of_the_runtime,
    memory_limits_are_set,
    memory_limit_is_enforced,
    cpu_limits_are_set,
    cpusets_are_set,
    pids_limit_is_set,
    pids_limit_is_enforced,
    device_rules_are_set,
    delete_removes_the_cgroup_and_those_below,
    a_value_the_kernel_refuses_is_an_error,
}

fn skip() -> bool {
    let skip = !Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists();
    if skip {
        eprintln!("SKIP: no cgroup v1 hierarchies here");
    }
    skip
}

/// A container with these resources, created and not started.
fn create<'r>(runtime: &'r Runtime, resources: &Value) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    for (name, value) in resources.as_object().expect("resources are a map") {
        bundle.spec["linux"]["resources"][name] = value.clone();
    }
    bundle.create();
    bundle
}

fn assert_files(bundle: &Bundle<'_>, expected: &[(&str, &str, &str)]) {
    for (controller, file, value) in expected {
        assert_eq!(
            bundle.cgroup_file(controller, file),
            *value,
            "{controller}/{file}"
        );
    }
}

fn the_container_is_in_its_cgroup(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    let report = bundle.report(&[]);
    let lines: Vec<&str> = report["cgroups"]
        .as_array()
        .expect("cgroups are a list")
        .iter()
        .filter_map(|line| line.as_str())
        .collect();
    for controller in [
        "memory",
        "pids",
        "cpu",
        "cpuset",
        "devices",
        "freezer",
        "blkio",
        "name=systemd",
    ] {
        let end = format!(":{controller}:/{}", bundle.id);
        assert!(
            lines.iter().any(|line| line.ends_with(&end)),
            "{end}: {lines:?}"
        );
    }
    assert_eq!(
        report.namespace("cgroup"),
        runtime.bundle().report(&[]).namespace("cgroup")
    );
}

fn a_relative_path_is_below_a_cgroup_of_the_runtime(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    let path = format!("{}/inner", bundle.id);
    bundle.spec["linux"]["cgroupsPath"] = json!(path);
    let report = bundle.report(&[]);
    let lines = report["cgroups"].to_string();
    assert!(lines.contains(&format!("{path}\"")), "{lines}");
    // The parent is not the container's and stays; it is this test's to remove.
    for parent in directories_named(&bundle.id, Path::new("/sys/fs/cgroup")) {
        fs::remove_dir(&parent).expect("the container's cgroup below is gone");
    }
}

fn directories_named(name: &str, below: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let (found, others): (Vec<_>, Vec<_>) = directories
        .map(|entry| entry.path())
        .partition(|path| path.file_name().is_some_and(|last| last == name));
    let deeper = others.iter().flat_map(|path| directories_named(name, path));
    found.iter().cloned().chain(deeper).collect()
}

const MIB: u64 = 1 << 20;

fn memory_limits_are_set(runtime: &Runtime) {
    if skip() {
        return;
    }
    let memory = json!({ "memory": { "limit": 64 * MIB, "reservation": 32 * MIB } });
    let bundle = create(runtime, &memory);
    assert_files(
        &bundle,
        &[
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ],
    );
    if bundle
        .cgroup("memory")
        .join("memory.memsw.limit_in_bytes")
        .exists()
    {
        let memory = json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } });
        let bundle = create(runtime, &memory);
        assert_files(
            &bundle,
            &[("memory", "memory.memsw.limit_in_bytes", "100663296")],
        );
    }
    let unlimited = create(runtime, &json!({ "memory": { "limit": -1 } }));
    assert_files(
        &unlimited,
        &[("memory", "memory.limit_in_bytes", "9223372036854771712")],
    );
}

fn memory_limit_is_enforced(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 32 * MIB, "swap": 32 * MIB });
    bundle.probe(&["allocate", "128"]);
    let container = bundle.start();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    let events = bundle.cgroup_file("memory", "memory.oom_control");
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
}

fn cpu_limits_are_set(runtime: &Runtime) {
    if skip() {
        return;
    }
    let bundle = create(
        runtime,
        &json!({ "cpu": { "shares": 512, "quota": 50_000, "period": 200_000 } }),
    );
    assert_files(
        &bundle,
        &[
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.cfs_period_us", "200000"),
        ],
    );
    let unlimited = create(runtime, &json!({ "cpu": { "quota": -1 } }));
    assert_files(&unlimited, &[("cpu", "cpu.cfs_quota_us", "-1")]);
}

fn cpusets_are_set(runtime: &Runtime) {
    if skip() {
        return;
    }
    let bundle = create(runtime, &json!({ "cpu": { "cpus": "0", "mems": "0" } }));
    assert_files(
        &bundle,
        &[
            ("cpuset", "cpuset.cpus", "0"),
            ("cpuset", "cpuset.mems", "0"),
        ],
    );
    let unset = create(runtime, &json!({}));
    let all = fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.cpus").expect("read the root's set");
    assert_files(&unset, &[("cpuset", "cpuset.cpus", all.trim_end())]);
}

fn pids_limit_is_set(runtime: &Runtime) {
    if skip() {
        return;
    }
    assert_files(
        &create(runtime, &json!({ "pids": { "limit": 23 } })),
        &[("pids", "pids.max", "23")],
    );
    assert_files(
        &create(runtime, &json!({ "pids": { "limit": -1 } })),
        &[("pids", "pids.max", "max")],
    );
}

fn pids_limit_is_enforced(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 5 });
    bundle.probe(&["spawn", "20"]);
    assert_eq!(
        bundle.run().success().stdout,
        "4\n",
        "four children beside the first process"
    );
}

fn device_rules_are_set(runtime: &Runtime) {
    if skip() {
        return;
    }
    let bundle = create(
        runtime,
        &json!({ "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
            { "allow": true, "type": "b", "major": 8, "access": "r" },
        ] }),
    );
    let text = bundle.cgroup_file("devices", "devices.list");
    let rules: Vec<&str> = text.lines().collect();
    assert!(!rules.contains(&"a *:* rwm"), "{rules:?}");
    // The last four are the default devices of config-linux.md, which every container may use, and mknod.
    for rule in [
        "c 10:229 rw",
        "b 8:* r",
        "c 1:3 rwm",
        "c 5:2 rwm",
        "c 136:* rwm",
        "c *:* m",
    ] {
        assert!(rules.contains(&rule), "{rule}: {rules:?}");
    }
}

fn delete_removes_the_cgroup_and_those_below(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.start();
    for controller in ["memory", "pids", "devices"] {
        fs::create_dir_all(bundle.cgroup(controller).join("below/deeper"))
            .expect("make a cgroup below");
    }
    let _deleted = bundle.call("delete", &["--force"]).success();
    let gone = wait_until(|| (!bundle.cgroup("memory").exists()).then_some(()));
    assert!(
        gone.is_some(),
        "{} is left",
        bundle.cgroup("memory").display()
    );
    bundle.assert_nothing_left();
}

fn a_value_the_kernel_refuses_is_an_error(runtime: &Runtime) {
    if skip() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["cpu"] = json!({ "cpus": "4095" });
    let error = bundle.run().failure();
    assert!(
        error.contains("4095") || error.contains("cpuset.cpus"),
        "{error}"
    );
    bundle.assert_nothing_left();
}
