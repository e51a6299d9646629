//! Devices of the node in containers: alone, by link, by directory, with their rights and owners.

use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::container;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// The kernel log: a device that no container has unless it asks for it. Nothing is read from it or written to it.
const KMSG: (u64, u64) = (1, 11);

fn make(path: &Path, (major, minor): (u64, u64)) {
    mknod(
        path,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o640),
        makedev(major, minor),
    )
    .unwrap();
    std::os::unix::fs::chown(path, Some(0), Some(77)).unwrap();
}

fn device(host: &Path, container_path: &str, permissions: &str) -> cri::Device {
    cri::Device {
        container_path: container_path.to_owned(),
        host_path: host.display().to_string(),
        permissions: permissions.to_owned(),
    }
}

#[test]
fn devices_come_with_their_rights_and_owners() {
    let node = Node::start();
    let dir = node.dir().join("devices");
    fs::create_dir_all(dir.join("deep")).unwrap();
    make(&dir.join("one"), KMSG);
    make(&dir.join("deep/two"), (1, 5));
    fs::write(dir.join("no-device"), "").unwrap();
    std::os::unix::fs::symlink(dir.join("one"), node.dir().join("link")).unwrap();
    let pod = node.pod("devices");
    let mut config = container("main", &["sleep", "1000"]);
    config.devices = vec![
        device(&node.dir().join("link"), "/dev/linked", "w"),
        device(&dir, "/dev/all", "w"),
    ];
    let container = pod.start(config);
    let stat = "stat -c '%t:%T %g %a' /dev/linked /dev/all/one /dev/all/deep/two";
    assert_eq!(container.exec_sh(stat), "1:b 77 640\n1:b 77 640\n1:5 77 640\n");
    assert_eq!(container.exec_sh("ls /dev/all"), "deep\none\n");
    // The device cgroup has the write, and nothing else.
    assert_eq!(container.exec_sh(": >/dev/linked && echo opened"), "opened\n");
    let refused = container.exec_sh("(: </dev/linked) 2>&1 || true");
    assert!(refused.contains("Operation not permitted"), "{refused}");
}

#[test]
fn a_device_needs_no_path_in_the_container_and_can_be_the_users() {
    let node = Node::with(|config| {
        config.insert("device_ownership_from_security_context".to_owned(), true.into());
    });
    let pod = node.pod("owner");
    let mut config = container("main", &["sleep", "1000"]);
    config.devices = vec![device(Path::new("/dev/kmsg"), "", "w")];
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(cri::Int64Value { value: 1001 });
    security.run_as_group = Some(cri::Int64Value { value: 1002 });
    let container = pod.start(config);
    assert_eq!(container.exec_sh("stat -c '%u %g' /dev/kmsg"), "1001 1002\n");
}

#[test]
fn a_privileged_container_has_the_nodes_devices() {
    let node = Node::start();
    node.pull(corten_tests::node::BUSYBOX);
    let mut pod = node.pod_config("privileged");
    let linux = pod.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().privileged = true;
    let pod = node.run_pod(pod);
    let mut config = container("main", &["sleep", "1000"]);
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .privileged = true;
    let container = pod.start(config);
    assert_eq!(container.exec_sh("stat -c '%t:%T' /dev/kmsg"), "1:b\n");
    assert_eq!(container.exec_sh(": >/dev/kmsg && echo opened"), "opened\n");
}
