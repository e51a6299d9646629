//! `update`: limits of a running container, by flags and by document, as the kernel then has them.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use corten_tests::bundle::{Bundle, Container, Runtime, finish};
use corten_tests::cgroup;
use serde_json::{Value, json};

each_runtime! {
    flags_change_limits,
    memory_and_swap_are_raised_and_lowered_together,
    a_document_changes_limits,
    a_document_is_read_from_standard_input,
    zero_in_a_document_changes_nothing,
    a_stopped_container_is_not_updated,
    what_the_kernel_refuses_changes_nothing,
}

corten_only! {
    the_kept_specification_says_what_holds: "runc keeps it in a form of its own",
    a_limit_below_what_is_in_use_is_refused: "runc 1.1 checks it on v2 alone",
    a_limit_without_its_controller_is_named: "runc writes what it can",
    every_flag_reaches_its_file: "runc 1.1 has neither --cpu-burst nor --cpu-idle",
}

const MIB: i64 = 1 << 20;

/// A container that sleeps, with these resources.
fn sleeper<'r>(runtime: &'r Runtime, resources: &Value) -> (Bundle<'r>, Container) {
    let mut bundle = runtime.bundle();
    for (name, value) in resources.as_object().expect("resources are a map") {
        bundle.spec["linux"]["resources"][name] = value.clone();
    }
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    (bundle, container)
}

/// Checks (file of v1, file of v2, value of v1, value of v2).
#[track_caller]
fn assert_files(bundle: &Bundle<'_>, files: &[(&str, &str, &str, &str)]) {
    for (v1, v2, on_v1, on_v2) in files {
        let (file, value) = if cgroup::unified() { (v2, on_v2) } else { (v1, on_v1) };
        let (controller, _) = file.split_once('.').expect("CONTROLLER.NAME");
        assert_eq!(bundle.cgroup_file(controller, file), *value, "{file}");
    }
}

fn flags_change_limits(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &json!({ "cpu": { "quota": 50_000, "period": 200_000 } }));
    let flags = [
        "--memory",
        "64M",
        "--pids-limit",
        "30",
        "--cpu-quota",
        "20000",
        "--cpuset-cpus",
        "0",
    ];
    let _updated = bundle.call("update", &flags).success();
    assert_files(
        &bundle,
        &[
            ("memory.limit_in_bytes", "memory.max", "67108864", "67108864"),
            ("pids.max", "pids.max", "30", "30"),
            ("cpu.cfs_quota_us", "cpu.max", "20000", "20000 200000"),
            ("cpuset.cpus", "cpuset.cpus", "0", "0"),
        ],
    );
    let _updated = bundle
        .call("update", &["--cpu-share", "2048", "--pids-limit", "-1"])
        .success();
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "max");
    if !cgroup::unified() {
        assert_eq!(bundle.cgroup_file("cpu", "cpu.shares"), "2048");
    }
}

fn memory_and_swap_are_raised_and_lowered_together(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &json!({ "memory": { "limit": 32 * MIB, "swap": 48 * MIB } }));
    let swap = if cgroup::unified() {
        "memory.swap.max"
    } else {
        "memory.memsw.limit_in_bytes"
    };
    if !bundle.cgroup("memory").join(swap).exists() {
        eprintln!("SKIP: this kernel does not count swap");
        return;
    }
    for (memory, total) in [(128, 160), (24, 32), (64, 64)] {
        let (limit, total) = (memory * MIB, total * MIB);
        let flags = ["--memory", &limit.to_string(), "--memory-swap", &total.to_string()];
        let _updated = bundle.call("update", &flags).success();
        assert_files(
            &bundle,
            &[
                (
                    "memory.limit_in_bytes",
                    "memory.max",
                    &limit.to_string(),
                    &limit.to_string(),
                ),
                (
                    "memory.memsw.limit_in_bytes",
                    "memory.swap.max",
                    &total.to_string(),
                    &(total - limit).to_string(),
                ),
            ],
        );
    }
}

fn document() -> Value {
    json!({
        "memory": { "limit": 64 * MIB, "reservation": 32 * MIB },
        "cpu": { "shares": 512, "quota": 30_000, "period": 100_000 },
        "pids": { "limit": 17 },
    })
}

#[track_caller]
fn assert_document(bundle: &Bundle<'_>) {
    assert_files(
        bundle,
        &[
            ("memory.limit_in_bytes", "memory.max", "67108864", "67108864"),
            ("memory.soft_limit_in_bytes", "memory.low", "33554432", "33554432"),
            ("cpu.cfs_quota_us", "cpu.max", "30000", "30000 100000"),
            ("pids.max", "pids.max", "17", "17"),
        ],
    );
}

fn a_document_changes_limits(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &json!({}));
    let path = bundle.path().join("resources.json");
    fs::write(&path, document().to_string()).expect("write a file of the bundle");
    let path = path.to_str().expect("temporary directories have names of ASCII");
    // What the document says counts alone.
    let _updated = bundle
        .call("update", &["--resources", path, "--pids-limit", "99"])
        .success();
    assert_document(&bundle);
}

fn a_document_is_read_from_standard_input(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &json!({}));
    let mut command = bundle.command("update");
    let mut child = command
        .args(["-r", "-", &bundle.id])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start the runtime");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(document().to_string().as_bytes())
        .expect("write to the runtime");
    drop(stdin);
    assert!(child.wait().expect("wait for a child").success());
    assert_document(&bundle);
}

fn zero_in_a_document_changes_nothing(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &document());
    let path = bundle.path().join("resources.json");
    // The form that runc's manual shows.
    let zeros = json!({
        "memory": { "limit": 0, "reservation": 0, "swap": 0, "kernel": 0, "kernelTCP": 0 },
        "cpu": { "shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0, "cpus": "", "mems": "" },
        "blockIO": { "weight": 0 },
    });
    fs::write(&path, zeros.to_string()).expect("write a file of the bundle");
    let path = path.to_str().expect("temporary directories have names of ASCII");
    let _updated = bundle.call("update", &["-r", path]).success();
    assert_document(&bundle);
}

fn a_stopped_container_is_not_updated(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime, &json!({}));
    let _killed = finish(bundle.command("kill").args([&bundle.id, "KILL"])).success();
    container.wait();
    bundle.wait_for_status("stopped");
    let error = bundle.call("update", &["--pids-limit", "5"]).failure();
    assert!(error.contains("not running"), "{error}");
}

fn what_the_kernel_refuses_changes_nothing(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime, &json!({ "pids": { "limit": 9 } }));
    let flags = ["--pids-limit", "11", "--cpuset-cpus", "4095"];
    let error = bundle.call("update", &flags).failure();
    assert!(error.contains("4095") || error.contains("cpuset.cpus"), "{error}");
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "9");
}

fn the_kept_specification_says_what_holds(runtime: &Runtime) {
    let resources = json!({ "cpu": { "quota": 50_000, "period": 200_000 }, "memory": { "limit": 64 * MIB } });
    let (bundle, _container) = sleeper(runtime, &resources);
    let _updated = bundle
        .call("update", &["--cpu-quota", "20000", "--pids-limit", "7"])
        .success();
    let text = fs::read_to_string(bundle.state_directory().join("config.json")).expect("the kept specification");
    let kept: Value = serde_json::from_str(&text).expect("it is JSON");
    let kept = &kept["linux"]["resources"];
    assert_eq!(kept["cpu"], json!({ "quota": 20_000, "period": 200_000 }));
    assert_eq!(kept["memory"], resources["memory"]);
    assert_eq!(kept["pids"], json!({ "limit": 7 }));
    assert_eq!(kept["devices"], bundle.spec["linux"]["resources"]["devices"]);
}

fn a_limit_below_what_is_in_use_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 128 * MIB, "checkBeforeUpdate": true });
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let path = bundle.path().join("resources.json");
    let tiny = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } });
    fs::write(&path, tiny.to_string()).expect("write a file of the bundle");
    let path = path.to_str().expect("temporary directories have names of ASCII");
    let error = bundle.call("update", &["-r", path]).failure();
    assert!(
        error.contains("linux.resources.memory.limit: 4096: is less than"),
        "{error}"
    );
    assert_eq!(bundle.status(), "running");
}

fn a_limit_without_its_controller_is_named(runtime: &Runtime) {
    if cgroup::unified() || cgroup::directory("hugetlb", "").exists() {
        eprintln!("SKIP: this machine has the hugetlb controller");
        return;
    }
    let (bundle, _container) = sleeper(runtime, &json!({ "pids": { "limit": 9 } }));
    let path = bundle.path().join("resources.json");
    let change = json!({ "pids": { "limit": 5 }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] });
    fs::write(&path, change.to_string()).expect("write a file of the bundle");
    let path = path.to_str().expect("temporary directories have names of ASCII");
    let error = bundle.call("update", &["-r", path]).failure();
    assert!(
        error.contains("linux.resources.hugepageLimits") && error.contains("hugetlb"),
        "{error}"
    );
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "9", "nothing was written");
}

/// Flag, value, file and value on v1, and on v2; none where that version has no such limit.
type Flag = [&'static str; 6];

const FLAGS: [Flag; 15] = [
    [
        "--blkio-weight",
        "500",
        "blkio.bfq.weight",
        "500",
        "io.weight",
        "default 4950",
    ],
    [
        "--cpu-period",
        "200000",
        "cpu.cfs_period_us",
        "200000",
        "cpu.max",
        "50000 200000",
    ],
    [
        "--cpu-quota",
        "40000",
        "cpu.cfs_quota_us",
        "40000",
        "cpu.max",
        "40000 200000",
    ],
    [
        "--cpu-burst",
        "1000",
        "cpu.cfs_burst_us",
        "1000",
        "cpu.max.burst",
        "1000",
    ],
    ["--cpu-share", "512", "cpu.shares", "512", "cpu.weight", "59"],
    ["--cpu-rt-period", "900000", "cpu.rt_period_us", "900000", "", ""],
    ["--cpu-rt-runtime", "100", "cpu.rt_runtime_us", "100", "", ""],
    ["--cpuset-cpus", "0", "cpuset.cpus", "0", "cpuset.cpus", "0"],
    ["--cpuset-mems", "0", "cpuset.mems", "0", "cpuset.mems", "0"],
    [
        "--memory",
        "96m",
        "memory.limit_in_bytes",
        "100663296",
        "memory.max",
        "100663296",
    ],
    [
        "--memory-reservation",
        "32m",
        "memory.soft_limit_in_bytes",
        "33554432",
        "memory.low",
        "33554432",
    ],
    [
        "--memory-swap",
        "128m",
        "memory.memsw.limit_in_bytes",
        "134217728",
        "memory.swap.max",
        "33554432",
    ],
    [
        "--kernel-memory-tcp",
        "8m",
        "memory.kmem.tcp.limit_in_bytes",
        "8388608",
        "",
        "",
    ],
    ["--pids-limit", "12", "pids.max", "12", "pids.max", "12"],
    ["--cpu-idle", "1", "cpu.idle", "1", "cpu.idle", "1"],
];

/// A file that the kernel does not have is an error that names the limit.
fn every_flag_reaches_its_file(runtime: &Runtime) {
    let (bundle, _container) = sleeper(
        runtime,
        &json!({ "cpu": { "quota": 50_000, "period": 100_000 }, "memory": { "limit": 64 * MIB } }),
    );
    for [flag, value, v1, on_v1, v2, on_v2] in FLAGS {
        let (file, expected) = if cgroup::unified() { (v2, on_v2) } else { (v1, on_v1) };
        let controller = file.split('.').next().unwrap_or_default();
        if file.is_empty() || !bundle.cgroup(controller).join(file).exists() {
            let error = bundle.call("update", &[flag, value]).failure();
            assert!(error.contains("linux.resources."), "{flag}: {error}");
            continue;
        }
        let _updated = bundle.call("update", &[flag, value]).success();
        let read = bundle.cgroup_file(controller, file);
        assert!(read.ends_with(expected), "{flag} {value}: {file} is {read:?}");
    }
    let output = bundle.call("update", &["--kernel-memory", "16m"]).success();
    assert!(output.stderr.contains("memory.kernel"), "{output:?}");
}
