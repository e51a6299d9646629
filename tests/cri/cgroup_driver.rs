//! The systemd cgroup driver, as far as it shows without systemd: what the kubelet is told, and what the runtime is asked for.
//! Where there is a systemd, a pod of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use corten_proto::cri;
use corten_tests::cgroup;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;
use tonic::Code;

/// A runtime that writes down how it was called, and where the cgroup was to be, and fails.
const RUNTIME: &str = r#"#!/bin/sh
for LAST; do :; done
case "$*" in
*" create "*)
    echo "$*" >DIR/args
    sed 's/.*"cgroupsPath":"\([^"]*\)".*/\1/' DIR/run/sandboxes/$LAST/config.json >DIR/path
    echo "no systemd here" >&2
    exit 1 ;;
esac
"#;

fn driver(node: &Node) -> cri::CgroupDriver {
    let config = node.cri.runtime_config(cri::RuntimeConfigRequest::default()).unwrap();
    config.linux.expect("the part for Linux").cgroup_driver()
}

#[test]
fn the_kubelet_is_told_and_the_runtime_asked() {
    let node = Node::with(|config| {
        let root = config["root"].as_str().unwrap().to_owned();
        let dir = Path::new(&root).parent().unwrap();
        let script = dir.join("runtime.sh");
        fs::write(&script, RUNTIME.replace("DIR", &dir.display().to_string())).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let entry = toml::Table::from_iter([("path".to_owned(), script.display().to_string().into())]);
        let runtimes = toml::Table::from_iter([("recorder".to_owned(), entry.into())]);
        config.insert("runtimes".to_owned(), runtimes.into());
        config.insert("default_runtime".to_owned(), "recorder".into());
        config.insert("cgroup_driver".to_owned(), "systemd".into());
    });
    node.pull(BUSYBOX);
    assert_eq!(driver(&node), cri::CgroupDriver::Systemd);

    let run = |parent: &str| {
        let mut config = node.pod_config("driven");
        config.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        node.cri.run_pod_sandbox(request).unwrap_err()
    };
    let read = |name: &str| fs::read_to_string(node.dir().join(name)).unwrap();
    for (parent, slice) in [
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice"),
        ("/kubepods/pod-1", "kubepods-pod_1.slice"),
    ] {
        let error = run(parent);
        assert!(error.message().contains("no systemd here"), "{error}");
        assert!(read("args").contains(" --systemd-cgroup create "), "{}", read("args"));
        assert!(
            read("path").starts_with(&format!("{slice}:corten:")),
            "{}",
            read("path")
        );
    }
    let error = run("/a.slice/b.slice");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("cgroup_parent"), "{error}");
}

#[test]
fn cgroups_are_directories_unless_told_otherwise() {
    let node = Node::start();
    assert_eq!(driver(&node), cri::CgroupDriver::Cgroupfs);
    let mut config = node.pod_config("slice");
    config.linux.as_mut().unwrap().cgroup_parent = "kubepods-pod1.slice".to_owned();
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let error = node.cri.run_pod_sandbox(request).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    node.assert_no_pods_left();
}

#[test]
fn a_pod_is_a_slice_and_its_containers_are_scopes() {
    if !Path::new("/run/systemd/system").exists() || !cgroup::unified() {
        println!("SKIP: needs systemd on cgroup v2");
        return;
    }
    let node = Node::with(|config| {
        config.insert("cgroup_driver".to_owned(), "systemd".into());
    });
    node.pull(BUSYBOX);
    let mut config = node.pod_config("driven");
    let name = node.marker().replace('-', "_");
    config.linux.as_mut().unwrap().cgroup_parent = format!("/{name}.slice/{name}-pod.slice");
    let pod = node.run_pod(config);
    let mut config = container("main", &["sleep", "1000"]);
    config.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let container = pod.start(config);
    let scope = format!("/{name}.slice/{name}-pod.slice/corten-{}.scope", container.id);
    let limit = || fs::read_to_string(cgroup::directory("memory", &scope).join("memory.max")).unwrap();
    assert_eq!(limit(), "67108864\n");
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            oom_score_adj: 500,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri.update_container_resources(request).unwrap();
    assert_eq!(limit(), "100663296\n");
    assert_eq!(container.exec_sh("cat /proc/1/oom_score_adj"), "500\n");
    let infra = format!("/{name}.slice/{name}-pod.slice/corten-{}.scope", pod.id);
    assert!(cgroup::directory("memory", &infra).exists());
    pod.stop();
    pod.remove();
    assert!(!cgroup::directory("memory", &scope).exists() && !cgroup::directory("memory", &infra).exists());
}
