//! Version, Status, RuntimeConfig: what a kubelet asks before it sends any pod.

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::map;
use serde_json::Value;

use crate::lost::wait_for;

pub(crate) fn condition(reply: &cri::StatusResponse, kind: &str) -> cri::RuntimeCondition {
    let conditions = &reply.status.as_ref().expect("a status").conditions;
    let found = conditions.iter().find(|condition| condition.r#type == kind);
    found
        .unwrap_or_else(|| panic!("no condition {kind} in {conditions:?}"))
        .clone()
}

#[test]
fn version_names_the_runtime() {
    let node = Node::start();
    let version = "0.1.0".to_owned();
    let reply = node.cri.version(cri::VersionRequest { version }).unwrap();
    assert_eq!(reply.version, "0.1.0", "kubelet compares this with its own");
    assert_eq!(reply.runtime_name, "corten");
    assert_eq!(reply.runtime_api_version, "v1");
    assert_eq!(reply.runtime_version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn status_is_ready_and_tells_no_more_than_is_true() {
    let node = Node::start();
    let reply = node.cri.status(cri::StatusRequest { verbose: false }).unwrap();
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = condition(&reply, kind);
        assert!(condition.status, "{condition:?}");
    }
    let names: Vec<&str> = reply
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert_eq!(names.iter().filter(|name| name.is_empty()).count(), 1, "{names:?}");
    assert!(names.contains(&"corten"), "{names:?}");
    for handler in &reply.runtime_handlers {
        let features = handler.features.unwrap_or_default();
        let is_own = ["", "corten"].contains(&handler.name.as_str());
        assert_eq!(features.user_namespaces, is_own, "{handler:?}");
    }
    assert!(reply.info.is_empty(), "info is for verbose calls");

    let reply = node.cri.status(cri::StatusRequest { verbose: true }).unwrap();
    let config: Value = serde_json::from_str(&reply.info["config"]).expect("config is JSON");
    assert!(
        config.to_string().contains(&node.marker()),
        "the configuration in effect: {config}"
    );
}

#[test]
fn without_a_network_configuration_the_status_says_so() {
    let node = Node::start();
    let conflist = node.dir().join("cni/10-ct.conflist");
    let aside = node.dir().join("10-ct.conflist");
    std::fs::rename(&conflist, &aside).unwrap();
    let status = || node.cri.status(cri::StatusRequest::default()).unwrap();
    wait_for("NetworkReady stays", || !condition(&status(), "NetworkReady").status);
    let reply = status();
    let network = condition(&reply, "NetworkReady");
    assert!(!network.reason.is_empty());
    let conf_dir = node.dir().join("cni").display().to_string();
    assert!(
        network.message.contains(&conf_dir),
        "names where it looked: {network:?}"
    );
    assert!(
        condition(&reply, "RuntimeReady").status,
        "pods of the host's network still run"
    );

    let config = node.pod_config("no-network");
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    let error = node.cri.run_pod_sandbox(request.clone()).unwrap_err();
    assert!(error.message().contains(&conf_dir), "{error}");
    node.assert_no_pods_left();

    std::fs::rename(&aside, &conflist).unwrap();
    wait_for("a new file is seen without a restart", || {
        condition(&status(), "NetworkReady").status
    });
    node.cri
        .run_pod_sandbox(request)
        .expect("the same metadata once more, after the failure");
}

#[test]
fn runtime_config_names_the_cgroup_driver() {
    let node = Node::start();
    let reply = node.cri.runtime_config(cri::RuntimeConfigRequest {}).unwrap();
    assert_eq!(reply.linux.expect("linux").cgroup_driver(), cri::CgroupDriver::Cgroupfs);
}

#[test]
fn a_second_server_with_the_same_directories_is_refused() {
    let node = Node::start();
    let mut command = std::process::Command::new(corten_tests::binary("corten-cri"));
    command.arg("--config").arg(node.dir().join("config.toml"));
    let output = node.network.enter(|| command.output().unwrap());
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(&node.marker()), "names what is taken: {stderr}");
    node.cri
        .version(cri::VersionRequest::default())
        .expect("the first one serves on");
}

#[test]
fn the_socket_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start();
    for (path, mode) in [("run", 0o700), ("run/corten.sock", 0o600), ("lib", 0o700)] {
        let metadata = std::fs::metadata(node.dir().join(path)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }
}

#[test]
fn labels_and_annotations_come_back_byte_for_byte() {
    let node = Node::start();
    let mut config = node.pod_config("labels");
    config.labels = map(&[("io.kubernetes.pod.name", "labels"), ("empty", ""), ("ünï", "ä\n\"\\ ")]);
    config.annotations = map(&[("kubernetes.io/config.hash", "{\"a\": [1, 2]}"), ("", "key is empty")]);
    let pod = node.run_pod(config.clone());
    let status = pod.status();
    assert_eq!(
        (status.labels, status.annotations),
        (config.labels.clone(), config.annotations.clone())
    );
    let listed = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap()
        .items;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].labels, &listed[0].annotations),
        (&config.labels, &config.annotations)
    );
}
