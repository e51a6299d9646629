//! Limits that a container is created with, as its cgroup has them.

use std::fs;

use corten_proto::cri::{HugepageLimit, LinuxContainerResources};
use corten_tests::cgroup;
use corten_tests::node::Node;
use corten_tests::pod::container;
use tonic::Code;

const MIB: i64 = 1 << 20;

fn page(page_size: &str, limit: u64) -> HugepageLimit {
    HugepageLimit {
        page_size: page_size.to_owned(),
        limit,
    }
}

#[test]
fn a_kubelets_limits_are_set_and_shown_as_they_were_asked_for() {
    let node = Node::start();
    let pod = node.pod("limits");
    let asked = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 511,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 64 * MIB,
        cpuset_cpus: "0".to_owned(),
        cpuset_mems: "0".to_owned(),
        oom_score_adj: 900,
        // Of every page size, on every node.
        hugepage_limits: vec![page("2MB", 0), page("1GB", 0)],
        ..Default::default()
    };
    let mut config = container("main", &["sleep", "1000"]);
    config.linux.as_mut().unwrap().resources = Some(asked.clone());
    let container = pod.start(config);
    let path = format!("/{}/{}", node.marker(), container.id);
    let read = |controller: &str, v1: &str, v2: &str| {
        let file = if cgroup::unified() { v2 } else { v1 };
        let file = cgroup::directory(controller, &path).join(file);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().to_owned()
    };
    let limit = read("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (64 * MIB).to_string());
    let quota = if cgroup::unified() { "50000 100000" } else { "50000" };
    assert_eq!(read("cpu", "cpu.cfs_quota_us", "cpu.max"), quota);
    assert_eq!(read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    if !cgroup::unified() {
        assert_eq!(read("cpu", "cpu.shares", ""), "511");
    }
    assert_eq!(container.exec_sh("cat /proc/1/oom_score_adj"), "900\n");
    assert_eq!(container.status().resources.unwrap().linux, Some(asked));
}

#[test]
fn limits_that_the_node_cannot_keep_are_refused() {
    let node = Node::start();
    let pod = node.pod("refused");
    let none = LinuxContainerResources::default();
    for (resources, text) in [
        (
            LinuxContainerResources {
                hugepage_limits: vec![page("3MB", 3 << 20)],
                ..none.clone()
            },
            "hugepage_limits",
        ),
        (
            LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                memory_swap_limit_in_bytes: 32 * MIB,
                ..none.clone()
            },
            "memory_swap_limit_in_bytes",
        ),
        (
            LinuxContainerResources {
                unified: [("../memory.high".to_owned(), "1".to_owned())].into(),
                ..none
            },
            "unified",
        ),
    ] {
        let mut config = container("main", &["true"]);
        config.linux.as_mut().unwrap().resources = Some(resources);
        let error = node.cri.create_container(pod.create_request(&config)).expect_err(text);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
}
