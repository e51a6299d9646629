//! CDI devices, by the field and by annotations, as a container has them.

use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, Pod, container, map};
use serde_json::{Value, json};
use tonic::Code;

/// A node that looks for specifications in two directories of its own.
fn node() -> Node {
    let node = Node::with(|config| {
        let root = config["root"].as_str().unwrap().to_owned();
        let dir = Path::new(&root).parent().unwrap();
        let dirs = ["cdi-static", "cdi-dynamic"].map(|name| toml::Value::from(dir.join(name).display().to_string()));
        config.insert("cdi_spec_dirs".to_owned(), dirs.to_vec().into());
    });
    for name in ["cdi-static", "cdi-dynamic", "data"] {
        fs::create_dir(node.dir().join(name)).unwrap();
    }
    fs::write(node.dir().join("data/file"), "from the node\n").unwrap();
    node
}

fn write(node: &Node, name: &str, text: &str) {
    fs::write(node.dir().join(name), text).unwrap();
}

fn gpu(env: &str) -> Value {
    json!({
        "cdiVersion": "0.5.0",
        "kind": "vendor.example/gpu",
        "devices": [{ "name": "0", "containerEdits": { "env": [env] } }],
    })
}

fn with_devices(name: &str, devices: &[&str]) -> cri::ContainerConfig {
    let mut config = container(name, &["sleep", "1000"]);
    let device = |&name: &&str| cri::CdiDevice { name: name.to_owned() };
    config.cdi_devices = devices.iter().map(device).collect();
    config
}

fn variable(container: &Container<'_>, name: &str) -> String {
    container.exec_sh(&format!("tr '\\0' '\\n' </proc/1/environ | sed -n 's/^{name}=//p'"))
}

#[track_caller]
fn refusal(node: &Node, pod: &Pod<'_>, config: &cri::ContainerConfig) -> String {
    let error = node.cri.create_container(pod.create_request(config)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    error.message().to_owned()
}

#[test]
fn a_device_brings_everything_it_is_described_with() {
    let node = node();
    let dir = node.dir().display().to_string();
    let yaml = format!(
        "\
cdiVersion: 1.0.0
kind: vendor.example/gpu
containerEdits:
  env: [COMMON=1]
  additionalGids: [4321]
devices:
- name: a
  containerEdits:
    env: [DEVICE=a]
    deviceNodes:
    - {{path: /dev/gpu-a, hostPath: /dev/kmsg, permissions: w, uid: 7, fileMode: 384}}
    mounts:
    - {{hostPath: {dir}/data, containerPath: /opt/driver, options: [ro, rbind]}}
    hooks:
    - {{hookName: createRuntime, path: /bin/sh, args: [sh, -c, \"echo hook >>{dir}/hook\"]}}
"
    );
    write(&node, "cdi-static/gpu.yaml", &yaml);
    let pod = node.pod("cdi");
    let mut config = with_devices("main", &["vendor.example/gpu=a"]);
    // The same device a second time, in the older way.
    config.annotations = map(&[("cdi.k8s.io/gpu", "vendor.example/gpu=a")]);
    let container = pod.start(config);
    assert_eq!(
        (variable(&container, "COMMON"), variable(&container, "DEVICE")),
        ("1\n".into(), "a\n".into())
    );
    assert_eq!(container.exec_sh("stat -c '%t:%T %u %a' /dev/gpu-a"), "1:b 7 600\n");
    assert_eq!(container.exec_sh(": >/dev/gpu-a && echo opened"), "opened\n");
    assert_eq!(container.exec_sh("cat /opt/driver/file"), "from the node\n");
    let refused = container.exec_sh("(echo x >/opt/driver/file) 2>&1 || true");
    assert!(refused.contains("Read-only"), "{refused}");
    assert!(
        container
            .exec_sh("id -G")
            .split_whitespace()
            .any(|group| group == "4321")
    );
    let user = container.status().user.unwrap().linux.unwrap();
    assert!(user.supplemental_groups.contains(&4321), "{user:?}");
    assert_eq!(fs::read_to_string(node.dir().join("hook")).unwrap(), "hook\n");
}

#[test]
fn the_files_are_those_of_the_moment_and_later_directories_count() {
    let node = node();
    let pod = node.pod("changing");
    let device = "vendor.example/gpu=0";
    let missing = refusal(&node, &pod, &with_devices("none", &[device]));
    assert!(missing.contains(device) && missing.contains("cdi-dynamic"), "{missing}");

    write(&node, "cdi-static/a.json", &gpu("FROM=static").to_string());
    let first = pod.start(with_devices("first", &[device]));
    assert_eq!(variable(&first, "FROM"), "static\n");

    write(&node, "cdi-dynamic/a.json", &gpu("FROM=dynamic").to_string());
    let mut config = container("second", &["sleep", "1000"]);
    config.annotations = map(&[("cdi.k8s.io/x", device)]);
    let second = pod.start(config);
    assert_eq!(variable(&second, "FROM"), "dynamic\n");
    assert_eq!(second.status().annotations["cdi.k8s.io/x"], device);

    write(&node, "cdi-dynamic/b.json", &gpu("FROM=other").to_string());
    let conflict = refusal(&node, &pod, &with_devices("third", &[device]));
    assert!(conflict.contains("a.json") && conflict.contains("b.json"), "{conflict}");

    write(&node, "cdi-dynamic/a.json", "{");
    write(&node, "cdi-dynamic/b.json", &gpu("FROM=b").to_string());
    let fourth = pod.start(with_devices("fourth", &[device]));
    assert_eq!(variable(&fourth, "FROM"), "b\n", "a broken file is passed over");
    let broken = refusal(&node, &pod, &with_devices("fifth", &["vendor.example/gpu=1"]));
    assert!(
        broken.contains("gpu=1") && broken.contains("a.json cannot be used"),
        "{broken}"
    );
    assert!(node.server_log().contains("a.json"));
    let name = refusal(&node, &pod, &with_devices("sixth", &["gpu"]));
    assert!(name.contains("CDI_devices[0].name"), "{name}");
}
