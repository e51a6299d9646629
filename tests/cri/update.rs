//! UpdateContainerResources and UpdatePodSandboxResources: set in the cgroup, shown as asked for, kept over a restart of the
//! server; and a refused or failed update changes nothing.

use std::collections::BTreeMap;
use std::fs;

use corten_proto::cri::{self, LinuxContainerResources};
use corten_tests::cgroup;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, Pod, container, is_alive};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

/// Files with the limits that are compared: controller, v1's name, v2's.
const FILES: &[(&str, &str, &str)] = &[
    ("memory", "memory.limit_in_bytes", "memory.max"),
    ("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
    ("cpu", "cpu.shares", "cpu.weight"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    ("cpu", "cpu.cfs_period_us", "cpu.max"),
    ("cpuset", "cpuset.cpus", "cpuset.cpus"),
];

/// A node with runc and crun beside its own runtime.
fn node_with_peers() -> Node {
    let node = Node::with(|config| {
        let mut runtimes = toml::Table::new();
        for (name, path) in [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")] {
            let entry = toml::Table::from_iter([("path".to_owned(), path.into())]);
            runtimes.insert(name.to_owned(), entry.into());
        }
        config.insert("runtimes".to_owned(), runtimes.into());
    });
    node.pull(BUSYBOX);
    node
}

fn update(node: &Node, container: &Container<'_>, change: LinuxContainerResources) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(change),
        ..Default::default()
    };
    node.cri.update_container_resources(request).map(drop)
}

fn shown(container: &Container<'_>) -> LinuxContainerResources {
    let resources = container.status().resources.expect("resources");
    resources.linux.unwrap_or_default()
}

/// The limits that the kernel has for a container, by v1's names; a file it lacks is left out.
fn limits(node: &Node, container: &Container<'_>) -> BTreeMap<&'static str, String> {
    let path = format!("/{}/{}", node.marker(), container.id);
    let read = |&(controller, v1, v2): &(&str, &'static str, &str)| {
        let file = if cgroup::unified() { v2 } else { v1 };
        let text = fs::read_to_string(cgroup::directory(controller, &path).join(file)).ok()?;
        Some((v1, text.trim().to_owned()))
    };
    FILES.iter().filter_map(read).collect()
}

#[track_caller]
fn assert_limits(node: &Node, container: &Container<'_>, memory: i64, quota: i64) {
    let limits = limits(node, container);
    assert_eq!(limits["memory.limit_in_bytes"], memory.to_string());
    if cgroup::unified() {
        assert_eq!(limits["cpu.cfs_quota_us"], format!("{quota} 100000"));
    } else {
        assert_eq!(limits["cpu.cfs_quota_us"], quota.to_string());
    }
    if let Some(both) = limits.get("memory.memsw.limit_in_bytes") {
        let expected = if cgroup::unified() { 0 } else { memory };
        assert_eq!(*both, expected.to_string(), "no swap");
    }
}

/// What an update must not change when it fails: limits, record, specification, status, scores.
fn everything(node: &Node, container: &Container<'_>) -> (BTreeMap<&'static str, String>, [String; 4]) {
    let read = |path: String| fs::read_to_string(node.dir().join(path)).unwrap_or_default();
    let spec: serde_json::Value =
        serde_json::from_str(&read(format!("run/containers/{}/config.json", container.id))).expect("a specification");
    let texts = [
        read(format!("lib/containers/{}/record.json", container.id)),
        spec.to_string(),
        format!("{:?}", shown(container)),
        fs::read_to_string(format!("/proc/{}/oom_score_adj", container.pid())).unwrap(),
    ];
    (limits(node, container), texts)
}

fn by_handler<'n>(node: &'n Node, handler: &str) -> Pod<'n> {
    node.run_pod_by(node.pod_config(&format!("by-{handler}")), handler)
}

/// crun of this age refuses a machine with cgroups of both versions.
fn can_run(handler: &str) -> bool {
    let can = handler != "crun" || cgroup::unified();
    if !can {
        println!("SKIP: crun needs cgroups of one version");
    }
    can
}

#[track_caller]
fn updates_are_set_shown_and_kept(handler: &str) {
    if !can_run(handler) {
        return;
    }
    let node = node_with_peers();
    let pod = by_handler(&node, handler);
    let mut config = container("main", &["sh", "-c", "sleep 1000 & sleep 1000"]);
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        oom_score_adj: 100,
        ..Default::default()
    });
    let container = pod.create(config);
    let change = LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 513,
        oom_score_adj: 500,
        ..Default::default()
    };
    update(&node, &container, change).expect("an update before the start");
    assert_limits(&node, &container, 64 * MIB, 50_000);
    container.start();
    assert_eq!(container.exec_sh("cat /proc/1/oom_score_adj"), "500\n");
    assert_limits(&node, &container, 64 * MIB, 50_000);

    let grow = LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        memory_swap_limit_in_bytes: 128 * MIB,
        cpu_quota: -1,
        oom_score_adj: 600,
        cpuset_cpus: "0".to_owned(),
        ..Default::default()
    };
    update(&node, &container, grow.clone()).expect("an update while it runs");
    // Not those of the exec itself: runc gives them what the container was created with.
    let scores = container.exec_sh("for pid in $(pidof sleep); do cat /proc/$pid/oom_score_adj; done");
    assert_eq!(scores, "600\n600\n");
    assert_eq!(limits(&node, &container)["cpuset.cpus"], "0");
    let expected = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_shares: 513,
        ..grow
    };
    assert_eq!(shown(&container), expected);
    let spec = &container.info()["runtimeSpec"]["linux"]["resources"];
    assert_eq!(spec["memory"]["limit"], 128 * MIB);
    assert_eq!(spec["cpu"]["shares"], 513);
    assert!(!spec["devices"].as_array().expect("device rules").is_empty());

    node.kill_server();
    node.launch().unwrap();
    assert_eq!(shown(&container), expected);
    let shrink = LinuxContainerResources {
        memory_limit_in_bytes: 96 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        cpu_quota: 20_000,
        ..Default::default()
    };
    update(&node, &container, shrink).expect("a smaller limit");
    assert_limits(&node, &container, 96 * MIB, 20_000);
    assert_eq!(
        (shown(&container).cpu_shares, shown(&container).oom_score_adj),
        (513, 600)
    );
}

#[test]
fn updates_are_set_shown_and_kept_by_corten() {
    updates_are_set_shown_and_kept("corten");
}

#[test]
fn updates_are_set_shown_and_kept_by_runc() {
    updates_are_set_shown_and_kept("runc");
}

#[test]
fn updates_are_set_shown_and_kept_by_crun() {
    updates_are_set_shown_and_kept("crun");
}

/// Updates of a container that uses 8 MB of 64 MiB, each with the code and a part of the message that it gets.
fn hopeless_updates() -> [(LinuxContainerResources, Code, &'static str); 4] {
    let more = LinuxContainerResources {
        cpu_shares: 300,
        oom_score_adj: 700,
        ..Default::default()
    };
    [
        (
            LinuxContainerResources {
                memory_limit_in_bytes: MIB,
                ..more.clone()
            },
            Code::FailedPrecondition,
            "bytes in use",
        ),
        (
            // The kernel refuses it, when the shares have been written.
            LinuxContainerResources {
                cpuset_cpus: "4000".to_owned(),
                ..more.clone()
            },
            Code::Internal,
            "cpu",
        ),
        (
            LinuxContainerResources {
                oom_score_adj: 2000,
                ..more.clone()
            },
            Code::InvalidArgument,
            "oom_score_adj",
        ),
        (
            LinuxContainerResources {
                memory_limit_in_bytes: 32 * MIB,
                memory_swap_limit_in_bytes: 16 * MIB,
                ..more
            },
            Code::InvalidArgument,
            "memory_swap_limit_in_bytes",
        ),
    ]
}

#[test]
fn a_refused_or_failed_update_changes_nothing() {
    let node = node_with_peers();
    for handler in ["corten", "runc", "crun"].into_iter().filter(|it| can_run(it)) {
        let pod = by_handler(&node, handler);
        // The last command is not the shell itself, whose variable the memory is.
        let script = "x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo full; sleep 1000; true";
        let mut config = container("main", &["sh", "-c", script]);
        config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB,
            cpu_shares: 200,
            ..Default::default()
        });
        let container = pod.start(config);
        container.wait_output("full");
        let pid = container.pid();
        let before = everything(&node, &container);
        for (change, code, text) in hopeless_updates() {
            let error = update(&node, &container, change).expect_err(text);
            assert_eq!(error.code(), code, "{handler}: {error}");
            assert!(error.message().contains(text), "{handler}: {error}");
            assert_eq!(everything(&node, &container), before, "{handler}: {text}");
        }
        assert!(is_alive(pid), "{handler}: killed by an update");
        update(&node, &container, LinuxContainerResources::default()).expect("nothing to change");
        assert_eq!(everything(&node, &container).0, before.0);
        pod.stop();
        pod.remove();
    }
}

#[test]
fn only_what_is_there_and_has_not_ended_can_be_updated() {
    let node = Node::start();
    let pod = node.pod("ended");
    let container = pod.sh("main", "exit 3");
    container.wait_exit();
    let shares = LinuxContainerResources {
        cpu_shares: 300,
        ..Default::default()
    };
    let error = update(&node, &container, shares.clone()).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(shown(&container).cpu_shares, 0);
    container.remove();
    let error = update(&node, &container, shares).unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[test]
fn resources_of_a_pod_are_kept_and_shown() {
    let node = Node::start();
    let pod = node.pod("sized");
    let change = |overhead, resources| {
        let shares = |cpu_shares: i64| LinuxContainerResources {
            cpu_shares,
            ..Default::default()
        };
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            overhead: Option::<i64>::map(overhead, shares),
            resources: Option::<i64>::map(resources, shares),
        };
        node.cri.update_pod_sandbox_resources(request)
    };
    let shares = |name: &str| pod.info()["resources"][name]["cpu_shares"].as_i64();
    assert_eq!((shares("overhead"), shares("resources")), (None, None));
    change(Some(10), Some(20)).unwrap();
    change(None, Some(30)).unwrap();
    assert_eq!((shares("overhead"), shares("resources")), (Some(10), Some(30)));
    node.kill_server();
    node.launch().unwrap();
    assert_eq!((shares("overhead"), shares("resources")), (Some(10), Some(30)));
    pod.stop();
    assert_eq!(change(None, Some(40)).unwrap_err().code(), Code::FailedPrecondition);
    pod.remove();
    assert_eq!(change(None, Some(40)).unwrap_err().code(), Code::NotFound);
}
