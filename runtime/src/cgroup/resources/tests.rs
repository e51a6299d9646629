//! Tables: what a field of the spec makes of the control files, and what is refused.

use serde_json::json;

use super::*;

fn parse(resources: &serde_json::Value) -> LinuxResources {
    serde_json::from_value(resources.clone()).unwrap()
}

/// `file=value` of each write, `?` at the end where the file may be missing.
fn lines(writes: Result<Vec<Write>>) -> Result<String, String> {
    let line = |w: Write| {
        let absent = match &w.absent {
            Absent::Fail => String::new(),
            Absent::Skip => "?".to_owned(),
            Absent::Instead(file, value) => format!(" or {file}={value}"),
        };
        format!("{}={}{absent}", w.file, w.value)
    };
    let all = |writes: Vec<Write>| writes.into_iter().map(line).collect::<Vec<_>>().join(", ");
    writes.map(all).map_err(|error| error.to_string())
}

/// Resources, the writes on v1, and those on v2.
const LIMITS: &str = r#"
    {} | |
    {"cpu": {"shares": 1024}} | cpu.shares=1024 | cpu.weight=100
    {"cpu": {"quota": 50000, "period": 200000}} | cpu.cfs_period_us=200000, cpu.cfs_quota_us=50000 | cpu.max=50000 200000
    {"cpu": {"quota": 50000, "burst": 1000}} | cpu.cfs_quota_us=50000, cpu.cfs_burst_us=1000 | cpu.max=50000 100000, cpu.max.burst=1000
    {"cpu": {"period": 50000}} | cpu.cfs_period_us=50000 | cpu.max=max 50000
    {"cpu": {"quota": -7}} | cpu.cfs_quota_us=-1 | cpu.max=max 100000
    {"cpu": {"quota": 0, "period": 0, "shares": 0}} | |
    {"cpu": {"shares": 2, "idle": 1}} | cpu.shares=2, cpu.idle=1 | cpu.weight=1, cpu.idle=1
    {"cpu": {"cpus": "0-1", "mems": "0"}} | cpuset.cpus=0-1, cpuset.mems=0 | cpuset.cpus=0-1, cpuset.mems=0
    {"cpu": {"cpus": "", "mems": ""}} | |
    {"memory": {"limit": 9, "reservation": 5}} | memory.limit_in_bytes=9, memory.soft_limit_in_bytes=5 | memory.max=9, memory.low=5
    {"memory": {"limit": 9, "swap": 12}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=12 | memory.swap.max=3, memory.max=9
    {"memory": {"limit": 9, "swap": 9}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=9 | memory.swap.max=0?, memory.max=9
    {"memory": {"limit": 9, "swap": -1}} | memory.limit_in_bytes=9, memory.memsw.limit_in_bytes=-1? | memory.swap.max=max?, memory.max=9
    {"memory": {"limit": -1}} | memory.limit_in_bytes=-1, memory.memsw.limit_in_bytes=-1? | memory.swap.max=max?, memory.max=max
    {"memory": {"limit": 9, "swap": 0}} | memory.limit_in_bytes=9 | memory.max=9
    {"memory": {"disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true}} | |
    {"pids": {"limit": 9}} | pids.max=9 | pids.max=9
    {"pids": {"limit": -1}} | pids.max=max | pids.max=max
    {"pids": {"limit": 0}} | |
    {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]} | hugetlb.2MB.limit_in_bytes=0, hugetlb.2MB.rsvd.limit_in_bytes=0? | hugetlb.2MB.max=0, hugetlb.2MB.rsvd.max=0?
    {"unified": {}} | |
    {"blockIO": {"weight": 500}} | blkio.bfq.weight=500 | io.bfq.weight=500 or io.weight=4950
    {"blockIO": {"weight": 10, "leafWeight": 0}} | blkio.bfq.weight=10 | io.bfq.weight=10 or io.weight=1
    {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 1000}]}} | blkio.bfq.weight_device=8:0 1000 | io.bfq.weight=8:0 1000 or io.weight=8:0 10000
    {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 7}]}} | blkio.throttle.read_bps_device=8:1 7 | io.max=8:1 rbps=7
    {"blockIO": {"throttleWriteBpsDevice": [{"major": 8, "rate": 0}]}} | blkio.throttle.write_bps_device=8:0 0 | io.max=8:0 wbps=max
    {"blockIO": {"throttleReadIOPSDevice": [{"major": 8, "rate": 1}], "throttleWriteIOPSDevice": [{"major": 8, "rate": 2}]}} | blkio.throttle.read_iops_device=8:0 1, blkio.throttle.write_iops_device=8:0 2 | io.max=8:0 riops=1, io.max=8:0 wiops=2
    {"rdma": {"mlx": {"hcaHandles": 3}, "bnxt": {"hcaHandles": 1, "hcaObjects": 2}, "none": {}}} | rdma.max=bnxt hca_handle=1 hca_object=2, rdma.max=mlx hca_handle=3 | rdma.max=bnxt hca_handle=1 hca_object=2, rdma.max=mlx hca_handle=3
    {"network": {"classID": 0, "priorities": []}} | |
"#;

#[test]
fn limits_as_files() {
    for row in LIMITS.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let resources: LinuxResources = serde_json::from_str(cells[0]).unwrap();
        assert_eq!(lines(v1(&resources)).as_deref(), Ok(cells[1]), "v1 of {row}");
        assert_eq!(lines(v2(&resources)).as_deref(), Ok(cells[2]), "v2 of {row}");
    }
}

#[test]
fn controls_of_one_version_alone() {
    for (resources, on_v1, on_v2) in [
        (
            json!({"memory": {"swappiness": 60}}),
            Ok("memory.swappiness=60"),
            Err("swappiness"),
        ),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            Ok("memory.oom_control=1"),
            Err("disableOOMKiller"),
        ),
        (
            json!({"memory": {"kernelTCP": 5}}),
            Ok("memory.kmem.tcp.limit_in_bytes=5"),
            Err("kernelTCP"),
        ),
        (
            json!({"cpu": {"realtimePeriod": 5}}),
            Ok("cpu.rt_period_us=5"),
            Err("realtimePeriod"),
        ),
        (
            json!({"cpu": {"realtimeRuntime": 5}}),
            Ok("cpu.rt_runtime_us=5"),
            Err("realtimeRuntime"),
        ),
        (
            json!({"network": {"classID": 1_048_577, "priorities": [{"name": "eth0", "priority": 5}]}}),
            Ok("net_cls.classid=1048577, net_prio.ifpriomap=eth0 5"),
            Err("linux.resources.network"),
        ),
        (
            json!({"unified": {"memory.oom.group": "1"}}),
            Err("unified"),
            Ok("memory.oom.group=1"),
        ),
    ] {
        for (is, should) in [
            (lines(v1(&parse(&resources))), on_v1),
            (lines(v2(&parse(&resources))), on_v2),
        ] {
            match should {
                Ok(line) => assert_eq!(is.as_deref(), Ok(line), "{resources}"),
                Err(word) => assert!(is.clone().unwrap_err().contains(word), "{resources}: {is:?}"),
            }
        }
    }
}

#[test]
fn unified_in_order_and_by_controller() {
    let resources = parse(&json!({"unified": {"pids.max": "3", "io.weight": "default 5", "memory.high": "9"}}));
    let order: Vec<_> = v2(&resources)
        .unwrap()
        .into_iter()
        .map(|w| w.controller().to_owned())
        .collect();
    assert_eq!(order, ["io", "memory", "pids"]);
    for file in [
        "",
        "x",
        ".x",
        "x.",
        "cgroup.procs",
        "memory.max/../../x",
        "a/b.c",
        "memory.\0",
    ] {
        assert!(check_unified(file).is_err(), "{file:?}");
    }
}

#[test]
fn limits_that_make_no_sense() {
    for (resources, word) in [
        (json!({"memory": {"swap": 5}}), "needs memory.limit"),
        (json!({"memory": {"limit": -1, "swap": 5}}), "needs memory.limit"),
        (json!({"memory": {"limit": 6, "swap": 5}}), "less than"),
        (json!({"memory": {"useHierarchy": false}}), "useHierarchy"),
        (json!({"memory": {"swappiness": 101}}), "0 to 100"),
        (json!({"cpu": {"idle": 2}}), "idle"),
        (json!({"blockIO": {"weight": 9}}), "blockIO.weight: 9: must be 10"),
        (json!({"blockIO": {"leafWeight": 9}}), "leaf weights"),
        (
            json!({"blockIO": {"weightDevice": [{"major": 1, "minor": 2, "weight": 1001}]}}),
            "blockIO.weightDevice.weight",
        ),
        (
            json!({"blockIO": {"weightDevice": [{"major": 1, "minor": 2, "leafWeight": 10}]}}),
            "blockIO.weightDevice.leafWeight",
        ),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 2, "rate": 1}]}}),
            "throttleReadBpsDevice: -1:2",
        ),
        (json!({"rdma": {"a b": {"hcaHandles": 1}}}), "rdma: \"a b\""),
        (
            json!({"hugepageLimits": [{"pageSize": "../x", "limit": 0}]}),
            "pageSize",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "+2MB", "limit": 0}]}),
            "pageSize",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -2}]}),
            "negative",
        ),
    ] {
        for result in [v1(&parse(&resources)), v2(&parse(&resources))] {
            let error = result.unwrap_err().to_string();
            assert!(
                error.starts_with("linux.resources.") && error.contains(word),
                "{resources}: {error}"
            );
        }
    }
}

#[test]
fn shares_as_weight() {
    for (shares, weight) in [
        (0, 1),
        (1, 1),
        (2, 1),
        (102, 17),
        (1024, 100),
        (512, 59),
        (2048, 174),
        (262_143, 10_000),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(cpu::weight(shares), weight, "{shares}");
    }
    let all: Vec<u64> = (2..=262_144).step_by(97).map(cpu::weight).collect();
    assert!(all.is_sorted());
}

#[test]
fn lists_that_no_kernel_takes() {
    let long = "0,".repeat(3200);
    // More than a page, which is where other cgroup files end.
    let every_other = (0..8192).step_by(2).map(|cpu| format!("{cpu},")).collect::<String>();
    for (field, list, words) in [
        ("cpus", "0-4294967295", Some("4294967295 must be below 8192")),
        ("cpus", "99999999999999999999", Some("must be below 8192")),
        ("cpus", "0-8192", Some("8192 must be below 8192")),
        ("cpus", "0-8191:2/4", None),
        ("cpus", "all", None),
        ("mems", "1024", Some("1024 must be below 1024")),
        ("mems", "0-1023", None),
        ("cpus", &every_other, None),
        ("mems", &long, Some("6400 characters: must be at most 6244")),
    ] {
        let resources = parse(&json!({"cpu": {field: list}}));
        for made in [v1(&resources), v2(&resources)] {
            let error = made.err().map(|error| error.to_string());
            let fits = match (&error, words) {
                (Some(error), Some(words)) => {
                    error.starts_with(&format!("linux.resources.cpu.{field}: ")) && error.contains(words)
                }
                (None, None) => true,
                _ => false,
            };
            assert!(fits, "{field}: {list}: {error:?}");
        }
    }
}

#[test]
fn names_that_are_no_words() {
    for name in ["", "eth 0", "eth0\n1"] {
        let resources = parse(&json!({"network": {"priorities": [{"name": name, "priority": 5}]}}));
        let error = v1(&resources).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.network.priorities: "), "{error}");
    }
}

#[test]
fn kernel_memory_is_passed_over() {
    for (limit, warns) in [(0, 0), (-1, 0), (5, 1)] {
        let resources = parse(&json!({"memory": {"kernel": limit}}));
        assert_eq!(warnings(&resources).len(), warns, "{limit}");
        assert_eq!(lines(v1(&resources)).as_deref(), Ok(""));
    }
}

#[test]
fn every_write_names_its_field() {
    let resources = parse(&json!({"memory": {"limit": 9, "swap": 12}, "pids": {"limit": 3}, "cpu": {"cpus": "0"}}));
    let fields: Vec<_> = v2(&resources).unwrap().iter().map(|w| w.field).collect();
    assert_eq!(fields, ["cpu.cpus", "memory.swap", "memory.limit", "pids.limit"]);
}
