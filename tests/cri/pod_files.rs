//! What a pod gives its containers: resolv.conf, hostname, /dev/shm.

use std::fs;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;

#[test]
fn resolv_conf_is_what_the_pod_asks_for() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("dns");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".to_owned(), "fd00::10".to_owned()],
        searches: vec!["default.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned(), "edns0".to_owned()],
    });
    let pod = node.run_pod(config);
    let container = pod.sh("main", "sleep 1000");
    let text = container.exec_sh("cat /etc/resolv.conf");
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "search default.svc.cluster.local svc.cluster.local",
        "nameserver 10.96.0.10",
        "nameserver fd00::10",
        "options ndots:5 edns0",
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for line in expected {
        assert!(lines.contains(&line), "{line:?} in {text}");
    }
}

#[test]
fn resolv_conf_is_the_hosts_unless_the_pod_asks() {
    let node = Node::start();
    let pod = node.pod("dns-host");
    let container = pod.sh("main", "sleep 1000");
    assert_eq!(
        container.exec_sh("cat /etc/resolv.conf"),
        fs::read_to_string("/etc/resolv.conf").unwrap()
    );
}

#[test]
fn the_hostname_is_the_pods() {
    let node = Node::start();
    let pod = node.pod("named-pod");
    let container = pod.sh("main", "sleep 1000");
    assert_eq!(
        container.exec_sh("hostname; cat /etc/hostname; echo $HOSTNAME"),
        "named-pod\nnamed-pod\nnamed-pod\n"
    );
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(),
        "named-pod"
    );
}

#[test]
fn shared_memory_is_shared_within_the_pod_and_with_nobody_else() {
    let node = Node::start();
    let pod = node.pod("shm");
    let one = pod.sh("one", "sleep 1000");
    let two = pod.sh("two", "sleep 1000");
    one.exec_sh("echo shared > /dev/shm/file");
    assert_eq!(two.exec_sh("cat /dev/shm/file"), "shared\n");
    let mount = two.exec_sh("grep ' /dev/shm ' /proc/self/mounts");
    assert!(mount.contains("tmpfs") && mount.contains("size=65536k"), "{mount}");
    let other = node.pod("shm-other");
    assert_eq!(other.sh("main", "sleep 1000").exec_sh("ls /dev/shm"), "");
}

#[test]
fn sysctls_apply_to_the_pod_alone() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("sysctl");
    let sysctls = corten_tests::pod::map(&[("net.ipv4.ip_local_port_range", "20000 30000")]);
    config.linux.as_mut().unwrap().sysctls = sysctls;
    let pod = node.run_pod(config);
    let container = pod.start(container("main", &["sleep", "1000"]));
    let range = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    assert_eq!(range(&container.exec_sh(&format!("cat {path}"))), ["20000", "30000"]);
    let host = node.network.enter(|| fs::read_to_string(path).unwrap());
    assert_ne!(range(&host), ["20000", "30000"]);
}
