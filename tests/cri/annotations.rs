//! Annotations that a runtime acts on: none of a request reaches it but those that the configuration names.

use std::fs;

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, map};
use serde_json::Value;
use tonic::Code;

/// What runtimes in use take from annotations: hooks, cgroup settings, unit properties, groups, hypervisors; and forged
/// ones of ours.
const STEERING: [&str; 14] = [
    "run.oci.hooks.stderr",
    "run.oci.keep_original_groups",
    "run.oci.systemd.subgroup",
    "run.oci.handler",
    "org.systemd.property.MemoryMax",
    "io.kubernetes.cri-o.UnifiedCgroup.main",
    "io.kubernetes.cri-o.userns-mode",
    "io.kubernetes.cri-o.Devices",
    "io.kubernetes.cri-o.ShmSize",
    "io.katacontainers.config.hypervisor.path",
    "dev.gvisor.flag.host-uds",
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-id",
];

/// A node with two handlers of its own runtime: one that gets some annotations, one that gets none.
fn node() -> Node {
    Node::with(|config| {
        let path = binary("corten").display().to_string();
        let table = format!(
            "[runtimes.open]\npath = '{path}'\npod_annotations = ['io.katacontainers.*', 'io.kubernetes.cri.*']\n\
             container_annotations = ['run.oci.handler']\n[runtimes.closed]\npath = '{path}'\n"
        );
        let table: toml::Table = toml::from_str(&table).unwrap();
        config.extend(table);
    })
}

/// The annotations in the specification of a container, or of a pod's infra container.
fn of(node: &Node, kind: &str, id: &str) -> Value {
    let path = node.dir().join("run").join(kind).join(id).join("config.json");
    let spec: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    spec["annotations"].clone()
}

#[test]
fn a_runtime_gets_no_annotation_that_the_configuration_does_not_name() {
    let node = node();
    node.pull(BUSYBOX);
    for (handler, of_pod, of_container) in [
        ("", &[][..], &[][..]),
        ("closed", &[], &[]),
        (
            "open",
            &["io.katacontainers.config.hypervisor.path"],
            &["run.oci.handler"],
        ),
    ] {
        let mut config = node.pod_config(&format!("pod-{handler}"));
        config.annotations = map(&STEERING.map(|name| (name, "forged")));
        let pod = node.run_pod_by(config, handler);
        let mut asked = container("main", &["sleep", "1000"]);
        asked.annotations = map(&STEERING.map(|name| (name, "forged")));
        let main = pod.start(asked.clone());
        let forged = |annotations: &Value| -> Vec<String> {
            let all = annotations.as_object().unwrap().iter();
            let mut names: Vec<_> = all
                .filter(|(_, it)| *it == "forged")
                .map(|(name, _)| name.clone())
                .collect();
            names.sort();
            names
        };
        let infra = of(&node, "sandboxes", &pod.id);
        assert_eq!(forged(&infra), of_pod, "{handler}");
        assert_eq!(infra["io.kubernetes.cri.container-type"], "sandbox");
        let both: Vec<_> = of_pod.iter().chain(of_container).copied().collect();
        let own = of(&node, "containers", &main.id);
        assert_eq!(forged(&own), both, "{handler}");
        assert_eq!(own["io.kubernetes.cri.sandbox-id"], pod.id);
        assert_eq!(
            main.status().annotations,
            asked.annotations,
            "they are shown all the same"
        );
    }
}

#[test]
fn an_annotation_for_a_runtime_is_plain_text() {
    let node = node();
    let mut config = node.pod_config("web");
    config.annotations = map(&[("io.katacontainers.a", "x\ny")]);
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: "open".to_owned(),
    };
    let error = node.cri.run_pod_sandbox(request).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("io.katacontainers.a"), "{error}");
    node.assert_no_pods_left();
    node.run_pod_by(config, "closed");
}
