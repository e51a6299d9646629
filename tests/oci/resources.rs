//! `linux.resources` beyond processors, memory and pids: block IO, packets, RDMA, and what no kernel has any more.
//!
//! Each test names the file and value of both versions of cgroups and reads the machine's.

use std::fs;

use corten_tests::bundle::{Bundle, Runtime};
use corten_tests::cgroup;
use serde_json::{Value, json};

each_runtime! {
    throttles_are_set,
    a_weight_is_set,
}

corten_only! {
    a_controller_that_is_not_there_is_named: "runc names a file, after it has made the cgroup, or passes over the field",
    leaf_weights_are_refused: "runc passes over them on v2",
    kernel_memory_is_passed_over_aloud: "runc does not say so",
}

fn with<'r>(runtime: &'r Runtime, name: &str, value: &Value) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["resources"][name] = value.clone();
    bundle
}

/// The number of a disk of this machine.
fn disk() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/partitions").expect("/proc/partitions");
    // Of whole disks alone: the kernel takes no limit for a partition.
    let whole = |name: &str| fs::exists(format!("/sys/block/{name}/queue")).is_ok_and(|there| there);
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [major, minor, _, name] = fields[..] else {
            return None;
        };
        let number = (major.parse().ok()?, minor.parse().ok()?);
        whole(name).then_some(number)
    })
}

fn throttles_are_set(runtime: &Runtime) {
    let Some((major, minor)) = disk() else {
        eprintln!("SKIP: this machine has no disk");
        return;
    };
    let limit = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let bundle = with(
        runtime,
        "blockIO",
        &json!({
            "throttleReadBpsDevice": limit(1_048_576), "throttleWriteBpsDevice": limit(2_097_152),
            "throttleReadIOPSDevice": limit(300), "throttleWriteIOPSDevice": limit(400),
        }),
    );
    bundle.create();
    if cgroup::unified() {
        let line = format!("{major}:{minor} rbps=1048576 wbps=2097152 riops=300 wiops=400");
        assert_eq!(bundle.cgroup_file("io", "io.max"), line);
        return;
    }
    for (file, rate) in [
        ("blkio.throttle.read_bps_device", 1_048_576),
        ("blkio.throttle.write_bps_device", 2_097_152),
        ("blkio.throttle.read_iops_device", 300),
        ("blkio.throttle.write_iops_device", 400),
    ] {
        assert_eq!(
            bundle.cgroup_file("blkio", file),
            format!("{major}:{minor} {rate}"),
            "{file}"
        );
    }
}

fn a_weight_is_set(runtime: &Runtime) {
    let plain = runtime.bundle();
    plain.create();
    let (controller, file) = if cgroup::unified() {
        ("io", "io.bfq.weight")
    } else {
        ("blkio", "blkio.bfq.weight")
    };
    let bfq = plain.cgroup(controller).join(file).exists();
    let other = plain.cgroup("io").join("io.weight").exists();
    let bundle = with(runtime, "blockIO", &json!({ "weight": 500 }));
    if bfq {
        bundle.create();
        let text = bundle.cgroup_file(controller, file);
        assert_eq!(text.split_ascii_whitespace().last(), Some("500"), "{text}");
    } else if cgroup::unified() && other {
        bundle.create();
        assert_eq!(bundle.cgroup_file("io", "io.weight"), "default 4950");
    } else if runtime.is("corten") {
        let error = bundle.run().failure();
        assert!(error.contains("linux.resources.blockIO.weight"), "{error}");
        bundle.assert_nothing_left();
    }
}

/// Limits of controllers that are not everywhere: set where they are, refused by field and controller where not.
fn a_controller_that_is_not_there_is_named(runtime: &Runtime) {
    let missing = |controller: &str| !cgroup::directory(controller, "").exists() || cgroup::unified();
    for (field, value, controller) in [
        ("network", json!({ "classID": 1_048_577 }), "net_cls"),
        (
            "network",
            json!({ "priorities": [{ "name": "lo", "priority": 2 }] }),
            "net_prio",
        ),
        ("rdma", json!({ "mlx5_1": { "hcaHandles": 3 } }), "rdma"),
        ("hugepageLimits", json!([{ "pageSize": "2MB", "limit": 0 }]), "hugetlb"),
    ] {
        let bundle = with(runtime, field, &value);
        let on_v2 = ["rdma", "hugetlb"].contains(&controller);
        if !missing(controller) || (cgroup::unified() && on_v2) {
            // No such RDMA device: the kernel says so of the value.
            if controller != "rdma" {
                bundle.create();
            }
            continue;
        }
        let error = bundle.run().failure();
        assert!(error.contains(&format!("linux.resources.{field}")), "{error}");
        assert!(error.contains(controller) || cgroup::unified(), "{error}");
        bundle.assert_nothing_left();
    }
}

fn leaf_weights_are_refused(runtime: &Runtime) {
    for block_io in [
        json!({ "leafWeight": 100 }),
        json!({ "weightDevice": [{ "major": 8, "minor": 0, "leafWeight": 100 }] }),
    ] {
        let bundle = with(runtime, "blockIO", &block_io);
        let error = bundle.run().failure();
        assert!(error.contains("eafWeight: 100: Linux has no leaf weights"), "{error}");
        bundle.assert_nothing_left();
    }
}

fn kernel_memory_is_passed_over_aloud(runtime: &Runtime) {
    let mut bundle = with(runtime, "memory", &json!({ "kernel": 16_777_216 }));
    bundle.probe(&["exit", "0"]);
    let output = bundle.run().success();
    assert!(
        output.stderr.contains("level=warning") && output.stderr.contains("memory.kernel"),
        "{output:?}"
    );
}
