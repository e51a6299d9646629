//! Control groups: where the container is placed, its limits as the kernel has them, and that nothing stays.
//!
//! The specification's limits are v1's; each test names the file and value of both versions and reads the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_tests::bundle::{Bundle, Runtime, wait_until};
use corten_tests::cgroup;
use serde_json::{Value, json};

each_runtime! {
    the_container_is_in_its_cgroup,
    a_relative_path_is_below_a_cgroup_of_the_runtime,
    memory_limits_are_set,
    swap_limit_is_set,
    memory_limit_is_enforced,
    cpu_limits_are_set,
    cpusets_are_set,
    pids_limit_is_set,
    files_of_v2_are_set_by_name,
    pids_limit_is_enforced,
    device_rules_are_set,
    delete_removes_the_cgroup_and_those_below,
    a_value_the_kernel_refuses_is_an_error,
}

corten_only! {
    a_parent_with_processes_is_left_as_it_is: "runc 1.1 enables cpu, cpuset and pids there, and then no container can run below it",
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

/// A control file and what it should hold.
type File = (&'static str, &'static str);

/// Checks the files of the version that this machine has. A file's controller is the first part of its name.
#[track_caller]
fn assert_files(bundle: &Bundle<'_>, v1: &[File], v2: &[File]) {
    for (file, value) in if cgroup::unified() { v2 } else { v1 } {
        let (controller, _) = file.split_once('.').expect("CONTROLLER.NAME");
        assert_eq!(bundle.cgroup_file(controller, file), *value, "{file}");
    }
}

fn the_container_is_in_its_cgroup(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = bundle.report(&[]);
    let path = format!("/{}", bundle.id);
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
        assert_eq!(report.cgroup(controller), Some(&*path), "{controller}");
    }
    assert_eq!(
        report.namespace("cgroup"),
        runtime.bundle().report(&[]).namespace("cgroup")
    );
}

fn a_relative_path_is_below_a_cgroup_of_the_runtime(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let path = format!("{}/inner", bundle.id);
    bundle.spec["linux"]["cgroupsPath"] = json!(path);
    let report = bundle.report(&[]);
    let found = report.cgroup("memory").unwrap_or_default();
    assert!(found.ends_with(&format!("/{path}")), "{found}");
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
    let memory = json!({ "memory": { "limit": 64 * MIB, "reservation": 32 * MIB } });
    assert_files(
        &create(runtime, &memory),
        &[
            ("memory.limit_in_bytes", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432"),
        ],
        &[("memory.max", "67108864"), ("memory.low", "33554432")],
    );
    let unlimited = create(runtime, &json!({ "memory": { "limit": -1 } }));
    assert_files(
        &unlimited,
        &[("memory.limit_in_bytes", "9223372036854771712")],
        &[("memory.max", "max"), ("memory.swap.max", "max")],
    );
}

/// The specification's limit of swap is of memory and swap together, as v1 has it; v2 limits swap alone.
fn swap_limit_is_set(runtime: &Runtime) {
    let memory = json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } });
    let file = if cgroup::unified() {
        "memory.swap.max"
    } else {
        "memory.memsw.limit_in_bytes"
    };
    // Only the control files of a cgroup below the root say whether the kernel counts swap.
    if !create(runtime, &json!({})).cgroup("memory").join(file).exists() {
        eprintln!("SKIP: this kernel does not count swap");
        return;
    }
    assert_files(
        &create(runtime, &memory),
        &[("memory.memsw.limit_in_bytes", "100663296")],
        &[("memory.swap.max", "33554432")],
    );
}

fn memory_limit_is_enforced(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 32 * MIB, "swap": 32 * MIB });
    bundle.probe(&["allocate", "128"]);
    let container = bundle.start();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    let file = if cgroup::unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let events = bundle.cgroup_file("memory", file);
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
}

fn cpu_limits_are_set(runtime: &Runtime) {
    let cpu = json!({ "cpu": { "shares": 512, "quota": 50_000, "period": 200_000 } });
    // The formula by which shares become a weight was changed in 2025; runc 1.1 has the old one.
    let weight = if runtime.is("runc") { "20" } else { "59" };
    assert_files(
        &create(runtime, &cpu),
        &[
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.cfs_period_us", "200000"),
        ],
        &[("cpu.weight", weight), ("cpu.max", "50000 200000")],
    );
    let unlimited = create(runtime, &json!({ "cpu": { "quota": -1 } }));
    assert_files(&unlimited, &[("cpu.cfs_quota_us", "-1")], &[("cpu.max", "max 100000")]);
}

fn cpusets_are_set(runtime: &Runtime) {
    let bundle = create(runtime, &json!({ "cpu": { "cpus": "0", "mems": "0" } }));
    let set: [File; 2] = [("cpuset.cpus", "0"), ("cpuset.mems", "0")];
    assert_files(&bundle, &set, &set);
    // A v1 cgroup without processors takes no process, so it is given its parent's; a v2 cgroup uses them by itself.
    let unset = create(runtime, &json!({}));
    let root = if cgroup::unified() {
        "cpuset.cpus.effective"
    } else {
        "cpuset.cpus"
    };
    let all = fs::read_to_string(cgroup::directory("cpuset", "/").join(root)).expect("read the root's set");
    assert_eq!(unset.cgroup_file("cpuset", root), all.trim_end());
}

fn pids_limit_is_set(runtime: &Runtime) {
    for (limit, value) in [(23, "23"), (-1, "max")] {
        let file: [File; 1] = [("pids.max", value)];
        let bundle = create(runtime, &json!({ "pids": { "limit": limit } }));
        assert_files(&bundle, &file, &file);
    }
}

/// Only v2 takes files of its own by name.
fn files_of_v2_are_set_by_name(runtime: &Runtime) {
    let unified = json!({ "unified": { "memory.high": "33554432" } });
    if cgroup::unified() {
        assert_files(&create(runtime, &unified), &[], &[("memory.high", "33554432")]);
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["unified"] = unified["unified"].clone();
    let error = bundle.run().failure();
    assert!(error.contains("unified"), "{error}");
    bundle.assert_nothing_left();
}

fn pids_limit_is_enforced(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 5 });
    bundle.probe(&["spawn", "20"]);
    assert_eq!(
        bundle.run().success().stdout,
        "4\n",
        "four children beside the first process"
    );
}

/// v2 has no list to read: there a program decides, which `a_device_needs_the_cgroup_s_leave` tries.
fn device_rules_are_set(runtime: &Runtime) {
    if cgroup::unified() {
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
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.start();
    for controller in ["memory", "pids", "devices"] {
        fs::create_dir_all(bundle.cgroup(controller).join("below/deeper")).expect("make a cgroup below");
    }
    let _deleted = bundle.call("delete", &["--force"]).success();
    let gone = wait_until(|| (!bundle.cgroup("memory").exists()).then_some(()));
    assert!(gone.is_some(), "{} is left", bundle.cgroup("memory").display());
    bundle.assert_nothing_left();
}

fn a_value_the_kernel_refuses_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["cpu"] = json!({ "cpus": "4095" });
    let error = bundle.run().failure();
    assert!(error.contains("4095") || error.contains("cpuset.cpus"), "{error}");
    bundle.assert_nothing_left();
}

/// cgroup-v2.rst, no internal process constraint: a cgroup with processes gives those below it no controllers.
fn a_parent_with_processes_is_left_as_it_is(runtime: &Runtime) {
    if !cgroup::unified() {
        eprintln!("SKIP: the constraint is of cgroup v2");
        return;
    }
    let path = format!("/{}-parent", runtime.marker());
    let parent = cgroup::directory("memory", &path);
    fs::create_dir(&parent).expect("make a cgroup of the test");
    let mut resident = Command::new("sleep").arg("600").spawn().expect("sleep is installed");
    fs::write(parent.join("cgroup.procs"), resident.id().to_string()).expect("move a process");

    let mut bundle = runtime.bundle();
    let own = format!("{path}/{}", bundle.id);
    bundle.spec["linux"]["cgroupsPath"] = json!(own);
    assert_eq!(bundle.report(&[]).cgroup("memory"), Some(&*own));
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 64 * MIB });
    let error = bundle.run().failure();
    assert!(error.contains("memory.max"), "{error}");
    let kind = fs::read_to_string(parent.join("cgroup.type")).expect("every cgroup has a type");
    assert_eq!(kind, "domain\n");

    resident.kill().expect("kill a process of this test");
    resident.wait().expect("wait for a process of this test");
    fs::remove_dir(&parent).expect("the container's cgroup below is gone");
}
