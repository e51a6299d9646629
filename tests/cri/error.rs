//! What bad input gets: a code, and a message that names field, value and rule; and nothing is created.

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Pod, container, image};
use tonic::{Code, Status};

/// Asserts the code, and that the message holds every one of `parts`.
#[track_caller]
fn assert_error<T: std::fmt::Debug>(what: &str, result: Result<T, Status>, code: Code, parts: &[&str]) {
    let error = result.expect_err(what);
    assert_eq!(error.code(), code, "{what}: {error}");
    for part in parts {
        assert!(
            error.message().contains(part),
            "{what}: {part:?} is not in {:?}",
            error.message()
        );
    }
}

#[test]
fn unknown_ids_are_not_found() {
    let node = Node::start();
    let cri = &node.cri;
    let id = "0123456789abcdef".repeat(4);
    let not_found = |what: &str, result: Result<(), Status>| assert_error(what, result, Code::NotFound, &[&id]);
    let pod_sandbox_id = id.clone();
    not_found(
        "PodSandboxStatus",
        cri.pod_sandbox_status(cri::PodSandboxStatusRequest {
            pod_sandbox_id,
            verbose: false,
        })
        .map(drop),
    );
    let container_id = id.clone();
    not_found(
        "ContainerStatus",
        cri.container_status(cri::ContainerStatusRequest {
            container_id,
            verbose: false,
        })
        .map(drop),
    );
    let container_id = id.clone();
    not_found(
        "StartContainer",
        cri.start_container(cri::StartContainerRequest { container_id })
            .map(drop),
    );
    let container_id = id.clone();
    let cmd = vec!["true".to_owned()];
    not_found(
        "ExecSync",
        cri.exec_sync(cri::ExecSyncRequest {
            container_id,
            cmd,
            timeout: 1,
        })
        .map(drop),
    );
    let container_id = id.clone();
    not_found(
        "ReopenContainerLog",
        cri.reopen_container_log(cri::ReopenContainerLogRequest { container_id })
            .map(drop),
    );
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(container("main", &["true"])),
        sandbox_config: Some(node.pod_config("absent")),
    };
    not_found("CreateContainer", cri.create_container(request).map(drop));
    node.assert_no_pods_left();
}

#[test]
fn stopping_and_removing_the_unknown_is_no_error() {
    let node = Node::start();
    let id = "0123456789abcdef".repeat(4);
    let pod_sandbox_id = id.clone();
    node.cri
        .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id })
        .expect("StopPodSandbox");
    let pod_sandbox_id = id.clone();
    node.cri
        .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })
        .expect("RemovePodSandbox");
    let container_id = id.clone();
    node.cri
        .stop_container(cri::StopContainerRequest {
            container_id,
            timeout: 1,
        })
        .expect("StopContainer");
    let container_id = id;
    node.cri
        .remove_container(cri::RemoveContainerRequest { container_id })
        .expect("RemoveContainer");
    node.cri
        .remove_image(cri::RemoveImageRequest {
            image: Some(image("127.0.0.1:5000/absent:1")),
        })
        .expect("RemoveImage");
}

/// A change that makes a sandbox's configuration bad, the code it gets, and what the message names.
type BadSandbox = (
    &'static str,
    fn(&mut cri::PodSandboxConfig),
    Code,
    &'static [&'static str],
);

fn metadata(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
    config.metadata.as_mut().expect("our own configuration")
}

fn sandbox_security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    let linux = config.linux.as_mut().expect("our own configuration");
    linux.security_context.as_mut().expect("our own configuration")
}

const BAD_SANDBOXES: &[BadSandbox] = &[
    (
        "no metadata",
        |c| c.metadata = None,
        Code::InvalidArgument,
        &["metadata"],
    ),
    (
        "no name",
        |c| metadata(c).name.clear(),
        Code::InvalidArgument,
        &["metadata.name"],
    ),
    (
        "no uid",
        |c| metadata(c).uid.clear(),
        Code::InvalidArgument,
        &["metadata.uid"],
    ),
    (
        "no namespace",
        |c| metadata(c).namespace.clear(),
        Code::InvalidArgument,
        &["metadata.namespace"],
    ),
    (
        "long hostname",
        |c| c.hostname = "h".repeat(65),
        Code::InvalidArgument,
        &["hostname", "64"],
    ),
    (
        "relative logs",
        |c| c.log_directory = "var/log".to_owned(),
        Code::InvalidArgument,
        &["log_directory", "var/log"],
    ),
    (
        "group without user",
        |c| sandbox_security(c).run_as_group = Some(cri::Int64Value { value: 1000 }),
        Code::InvalidArgument,
        &["run_as_group", "1000", "run_as_user"],
    ),
    (
        "sysctl of the host",
        |c| c.linux.as_mut().unwrap().sysctls = corten_tests::pod::map(&[("kernel.panic", "1")]),
        Code::InvalidArgument,
        &["sysctls", "kernel.panic"],
    ),
    (
        "parent cgroup with ..",
        |c| c.linux.as_mut().unwrap().cgroup_parent = "/kubepods/../../x".to_owned(),
        Code::InvalidArgument,
        &["cgroup_parent", "/kubepods/../../x"],
    ),
    (
        "port out of range",
        |c| {
            c.port_mappings = vec![cri::PortMapping {
                container_port: 70_000,
                host_port: 8080,
                ..Default::default()
            }];
        },
        Code::InvalidArgument,
        &["port", "70000"],
    ),
];

#[test]
fn bad_sandboxes_are_refused() {
    let node = Node::start();
    for (what, change, code, parts) in BAD_SANDBOXES {
        let mut config = node.pod_config("bad");
        change(&mut config);
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        assert_error(what, node.cri.run_pod_sandbox(request), *code, parts);
    }
    let no_config = node.cri.run_pod_sandbox(cri::RunPodSandboxRequest::default());
    assert_error("no config", no_config, Code::InvalidArgument, &["config"]);
    let request = cri::RunPodSandboxRequest {
        config: Some(node.pod_config("bad")),
        runtime_handler: "no-such-handler".to_owned(),
    };
    let unknown = node.cri.run_pod_sandbox(request);
    assert_error(
        "unknown handler",
        unknown,
        Code::InvalidArgument,
        &["runtime_handler", "no-such-handler"],
    );
    let listed = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap()
        .items;
    assert!(listed.is_empty(), "{listed:?}");
    node.assert_no_pods_left();
}

/// A change that makes a container's configuration bad, the code it gets, and what the message names.
type BadContainer = (
    &'static str,
    fn(&mut cri::ContainerConfig),
    Code,
    &'static [&'static str],
);

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("our own configuration");
    linux.security_context.as_mut().expect("our own configuration")
}

fn namespaces(config: &mut cri::ContainerConfig) -> &mut cri::NamespaceOption {
    security(config)
        .namespace_options
        .as_mut()
        .expect("our own configuration")
}

const BAD_CONTAINERS: &[BadContainer] = &[
    (
        "an image for an unknown runtime",
        |c| c.image.as_mut().unwrap().runtime_handler = "no-such-handler".to_owned(),
        Code::InvalidArgument,
        &["image.runtime_handler", "no-such-handler"],
    ),
    (
        "no metadata",
        |c| c.metadata = None,
        Code::InvalidArgument,
        &["metadata"],
    ),
    (
        "no name",
        |c| c.metadata.as_mut().unwrap().name.clear(),
        Code::InvalidArgument,
        &["metadata.name"],
    ),
    ("no image", |c| c.image = None, Code::InvalidArgument, &["image"]),
    (
        "bad image",
        |c| c.image = Some(image("UPPER/Case")),
        Code::InvalidArgument,
        &["image", "UPPER/Case"],
    ),
    (
        "absent image",
        |c| c.image = Some(image("127.0.0.1:5000/absent:1")),
        Code::NotFound,
        &["127.0.0.1:5000/absent:1"],
    ),
    (
        "log outside",
        |c| c.log_path = "../x.log".to_owned(),
        Code::InvalidArgument,
        &["log_path", "../x.log"],
    ),
    (
        "log further outside",
        |c| c.log_path = "a/../../x.log".to_owned(),
        Code::InvalidArgument,
        &["log_path", ".."],
    ),
    (
        "absolute log",
        |c| c.log_path = "/var/log/x".to_owned(),
        Code::InvalidArgument,
        &["log_path", "/var/log/x"],
    ),
    (
        "group without user",
        |c| security(c).run_as_group = Some(cri::Int64Value { value: 1000 }),
        Code::InvalidArgument,
        &["run_as_group", "1000"],
    ),
    (
        "user and name",
        |c| {
            security(c).run_as_user = Some(cri::Int64Value { value: 1 });
            security(c).run_as_username = "nobody".to_owned();
        },
        Code::InvalidArgument,
        &["run_as_user"],
    ),
    (
        "unknown user",
        |c| security(c).run_as_username = "no-such-user".to_owned(),
        Code::InvalidArgument,
        &["run_as_username", "no-such-user"],
    ),
    (
        "negative user",
        |c| security(c).run_as_user = Some(cri::Int64Value { value: -5 }),
        Code::InvalidArgument,
        &["run_as_user", "-5"],
    ),
    (
        "privileged",
        |c| security(c).privileged = true,
        Code::InvalidArgument,
        &["privileged"],
    ),
    (
        "unknown capability",
        |c| {
            security(c).capabilities = Some(cri::Capability {
                add_capabilities: vec!["MAKE_COFFEE".to_owned()],
                ..Default::default()
            });
        },
        Code::InvalidArgument,
        &["capabilities", "MAKE_COFFEE"],
    ),
    (
        "unknown target",
        |c| {
            namespaces(c).set_pid(cri::NamespaceMode::Target);
            namespaces(c).target_id = "no-such-container".to_owned();
        },
        Code::NotFound,
        &["no-such-container"],
    ),
    (
        "relative mount",
        |c| {
            c.mounts = vec![cri::Mount {
                container_path: "data".to_owned(),
                host_path: "/tmp".to_owned(),
                ..Default::default()
            }];
        },
        Code::InvalidArgument,
        &["container_path", "data"],
    ),
    (
        "device without a name",
        |c| {
            c.devices = vec![cri::Device {
                container_path: "/dev/x".to_owned(),
                host_path: "/dev/no-such-device".to_owned(),
                permissions: "rwm".to_owned(),
            }];
        },
        Code::InvalidArgument,
        &["devices", "/dev/no-such-device"],
    ),
    (
        "CDI device",
        |c| {
            c.cdi_devices = vec![cri::CdiDevice {
                name: "vendor.example/gpu=0".to_owned(),
            }];
        },
        Code::InvalidArgument,
        &["CDI_devices", "vendor.example/gpu=0"],
    ),
];

/// Ids of containers, and files of one, that the pod has: none.
#[track_caller]
fn assert_no_container(node: &Node, pod: &Pod<'_>) {
    let listed = node
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .unwrap()
        .containers;
    assert!(listed.is_empty(), "{listed:?}");
    let left: Vec<String> = node
        .pod_files()
        .into_iter()
        .filter(|file| !file.contains(&pod.id))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let overlays: Vec<String> = node
        .watch
        .left()
        .into_iter()
        .filter(|line| line.contains("overlay"))
        .collect();
    assert!(overlays.is_empty(), "{overlays:?}");
}

#[test]
fn bad_containers_are_refused() {
    let node = Node::start();
    let pod = node.pod("good");
    for (what, change, code, parts) in BAD_CONTAINERS {
        let mut config = container("bad", &["sleep", "1000"]);
        change(&mut config);
        assert_error(
            what,
            node.cri.create_container(pod.create_request(&config)),
            *code,
            parts,
        );
        assert_no_container(&node, &pod);
    }
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_error(
        "no config",
        node.cri.create_container(request),
        Code::InvalidArgument,
        &["config"],
    );
    assert_no_container(&node, &pod);
    assert_eq!(
        pod.status().state(),
        cri::PodSandboxState::SandboxReady,
        "the pod is none the worse"
    );
}

#[test]
fn bad_image_references_are_refused() {
    let node = Node::start();
    let long = format!("127.0.0.1:5000/{}:1", "x".repeat(300));
    for reference in [
        "",
        "UPPER/Case",
        "a b",
        "host:port/x",
        "x:tag with space",
        "x@sha256:short",
        "../x",
        &long,
    ] {
        let request = cri::PullImageRequest {
            image: Some(image(reference)),
            ..Default::default()
        };
        let shown = if reference.len() > 100 { "image" } else { reference };
        assert_error(
            reference,
            node.cri.pull_image(request),
            Code::InvalidArgument,
            &["image", shown],
        );
    }
    assert_error(
        "no image",
        node.cri.pull_image(cri::PullImageRequest::default()),
        Code::InvalidArgument,
        &["image"],
    );
    let listed = node.cri.list_images(cri::ListImagesRequest::default()).unwrap().images;
    assert!(listed.is_empty(), "{listed:?}");
    assert_eq!(node.registry().requests().len(), 0, "refused before anybody is asked");
}

#[test]
fn calls_in_the_wrong_state_are_refused_and_change_nothing() {
    let node = Node::start();
    let pod = node.pod("state");
    let running = pod.sh("running", "sleep 1000");
    let start = |id: &str| {
        node.cri.start_container(cri::StartContainerRequest {
            container_id: id.to_owned(),
        })
    };
    assert_error(
        "start twice",
        start(&running.id),
        Code::FailedPrecondition,
        &[&running.id],
    );
    assert_eq!(running.status().state(), cri::ContainerState::ContainerRunning);
    let ended = pod.sh("ended", "exit 0");
    let status = ended.wait_exit();
    assert_error("start again", start(&ended.id), Code::FailedPrecondition, &[&ended.id]);
    assert_eq!(ended.status(), status);
    let created = pod.create(container("created", &["true"]));
    let exec = node.cri.exec_sync(created.exec_request(&["true"], 1));
    assert_error("exec before the start", exec, Code::FailedPrecondition, &[&created.id]);
}
