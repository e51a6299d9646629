//! Where the server and the shims stand: outside of every pod's cgroup, so that a pod that runs out of memory takes neither
//! along; and as far from the kernel's choice as this machine allows.

use std::fs;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;
use corten_tests::{cgroup, leak};

use crate::abuse::count;

/// The pid that a shim's file in its sandbox's directory says.
fn shim_of(node: &Node, pod: &str) -> i32 {
    let path = node.dir().join("run/sandboxes").join(pod).join("shim.pid");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

fn proc(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// Whether this process may lower a score: CAP_SYS_RESOURCE is the bit 24 of what it has.
fn may_protect() -> bool {
    let status = proc(std::process::id().cast_signed(), "status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 24) != 0
}

#[test]
fn server_and_shims_are_in_no_pod_s_cgroup() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let own = [node.server_pid(), shim_of(&node, &pod.id)];
    for pid in own {
        let cgroups = proc(pid, "cgroup");
        assert!(!cgroups.contains(&node.marker()), "{cgroups}");
    }
    // The look itself finds what it looks for.
    let container = proc(main.pid().try_into().unwrap(), "cgroup");
    assert!(container.contains(&node.marker()), "{container}");
    let inherited: i32 = proc(std::process::id().cast_signed(), "oom_score_adj")
        .trim()
        .parse()
        .unwrap();
    for (pid, score) in own.into_iter().zip([-998, -999]) {
        let found: i32 = proc(pid, "oom_score_adj").trim().parse().unwrap();
        assert_eq!(found, if may_protect() { score } else { inherited });
    }
    if !may_protect() {
        assert!(
            node.server_log().contains("oom_score_adj stays at"),
            "{}",
            node.server_log()
        );
    }
}

/// The file of a cgroup's memory limit.
fn limit_file(path: &str) -> std::path::PathBuf {
    let name = if cgroup::unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    cgroup::directory("memory", path).join(name)
}

/// "oomypod": containers that take all the memory of their pod, one after the other (`CORTEN_ABUSE` of them).
#[test]
fn a_pod_without_memory_takes_neither_shim_nor_server_along() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let parent = format!("/{}/pod", node.marker());
    let mut config = node.pod_config("greedy");
    config.linux.as_mut().unwrap().cgroup_parent = parent.clone();
    let pod = node.run_pod(config);
    fs::write(limit_file(&parent), (32 << 20).to_string()).unwrap();
    let (server, shim) = (node.server_pid(), shim_of(&node, &pod.id));
    for attempt in 0..count(5) {
        let mut greedy = container("greedy", &["sh", "-c", "x=y; while true; do x=$x$x; done"]);
        greedy.metadata.as_mut().unwrap().attempt = attempt.try_into().unwrap();
        // The infra container is not the kernel's first choice.
        greedy.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
            oom_score_adj: 1000,
            ..Default::default()
        });
        let greedy = pod.start(greedy);
        let status = greedy.wait_exit();
        assert_eq!(status.exit_code, 137, "{status:?}");
        greedy.remove();
    }
    assert_eq!((node.server_pid(), shim_of(&node, &pod.id)), (server, shim));
    for pid in [server, shim] {
        assert!(corten_tests::pod::is_alive(pid.into()), "{pid} has ended");
    }
    assert_eq!(pod.sh("after", "sleep 1000").exec_sh("echo still here"), "still here\n");
    pod.stop();
    pod.remove();
    leak::remove_cgroup(&parent);
}
