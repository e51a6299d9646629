//! CreateContainer, StartContainer, RemoveContainer, ContainerStatus, ListContainers.

use std::collections::BTreeSet;
use std::fs;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, container, is_alive, map};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

fn list(node: &Node, filter: cri::ContainerFilter) -> BTreeSet<String> {
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let containers = node.cri.list_containers(request).expect("ListContainers").containers;
    containers.into_iter().map(|container| container.id).collect()
}

fn ids(containers: &[&Container<'_>]) -> BTreeSet<String> {
    containers.iter().map(|container| container.id.clone()).collect()
}

#[test]
fn a_container_from_creation_to_removal() {
    let node = Node::start();
    let pod = node.pod("life");
    let mut config = container("main", &["sh", "-c", "echo hello; exit 0"]);
    config.labels = map(&[("io.kubernetes.container.name", "main")]);
    config.annotations = map(&[("io.kubernetes.container.hash", "c0ffee")]);
    let container = pod.create(config);

    let created = container.status();
    assert_eq!(created.state(), cri::ContainerState::ContainerCreated);
    assert!(created.created_at > 1_600_000_000_000_000_000, "nanoseconds");
    assert_eq!((created.started_at, created.finished_at), (0, 0));
    assert_eq!(created.metadata, container.config.metadata);
    assert_eq!(created.labels, container.config.labels);
    assert_eq!(created.annotations, container.config.annotations);
    assert_eq!(created.log_path, container.log.display().to_string(), "absolute");
    let image = node
        .cri
        .list_images(cri::ListImagesRequest::default())
        .unwrap()
        .images
        .remove(0);
    assert_eq!(created.image_id, image.id, "image collection compares the two");
    assert_eq!(created.image.unwrap().image, BUSYBOX, "the name that was asked for");
    assert_eq!(created.image_ref, image.repo_digests[0]);

    container.start();
    assert!(
        container.log.exists(),
        "kubelet links to the log as soon as StartContainer answers"
    );
    let exited = container.wait_exit();
    assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"));
    assert!(
        exited.created_at <= exited.started_at && exited.started_at <= exited.finished_at,
        "{exited:?}"
    );
    assert_eq!(container.output("stdout"), "hello\n");
    assert_eq!(container.status(), exited, "an end does not change");

    container.remove();
    let request = cri::ContainerStatusRequest {
        container_id: container.id.clone(),
        verbose: false,
    };
    assert_eq!(node.cri.container_status(request).unwrap_err().code(), Code::NotFound);
    container.remove();
    assert!(container.log.exists(), "logs are the kubelet's to remove");
}

#[test]
fn exit_codes_are_told() {
    let node = Node::start();
    let pod = node.pod("codes");
    for (name, script, code) in [
        ("seven", "exit 7", 7),
        // A shell tells 128 + signal of its child.
        ("segv", "sh -c 'kill -SEGV $$'; exit $?", 139),
    ] {
        let exited = pod.sh(name, script).wait_exit();
        assert_eq!((exited.exit_code, exited.reason.as_str()), (code, "Error"), "{name}");
    }
    let killed = pod.sh("killed", "sleep 1000");
    let pid = Pid::from_raw(i32::try_from(killed.pid()).unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let exited = killed.wait_exit();
    assert_eq!(
        (exited.exit_code, exited.reason.as_str()),
        (137, "Error"),
        "killed, but not for memory"
    );
}

#[test]
fn the_status_of_a_running_container() {
    let node = Node::start();
    let pod = node.pod("running");
    let container = pod.sh("main", "sleep 1000");
    let status = container.status();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    assert!(status.started_at > 0 && status.finished_at == 0);
    assert_eq!(status.reason, "");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (0, 0));
    let info = container.info();
    assert_eq!(info["sandboxID"], pod.id.as_str());
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], "sh");
    let command = fs::read_to_string(format!("/proc/{}/cmdline", container.pid())).unwrap();
    assert!(command.contains("sleep"), "{command:?}");
}

#[test]
fn the_list_can_be_filtered() {
    let node = Node::start();
    let pod = node.pod("one");
    let mut config = container("labelled", &["sleep", "1000"]);
    config.labels = map(&[("tier", "front")]);
    let labelled = pod.start(config);
    let created = pod.create(container("created", &["true"]));
    let other = node.pod("two");
    let elsewhere = other.sh("main", "exit 0");
    elsewhere.wait_exit();

    let by_state = |state: cri::ContainerState| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: state.into() }),
        ..Default::default()
    };
    let by_pod = |id: &str| cri::ContainerFilter {
        pod_sandbox_id: id.to_owned(),
        ..Default::default()
    };
    let by_id = |id: &str| cri::ContainerFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    let by_label = cri::ContainerFilter {
        label_selector: map(&[("tier", "front")]),
        ..Default::default()
    };
    let all = ids(&[&labelled, &created, &elsewhere]);
    assert_eq!(
        list(&node, cri::ContainerFilter::default()),
        all,
        "infra containers are not listed"
    );
    assert_eq!(
        list(&node, by_state(cri::ContainerState::ContainerRunning)),
        ids(&[&labelled])
    );
    assert_eq!(
        list(&node, by_state(cri::ContainerState::ContainerCreated)),
        ids(&[&created])
    );
    assert_eq!(
        list(&node, by_state(cri::ContainerState::ContainerExited)),
        ids(&[&elsewhere])
    );
    assert_eq!(list(&node, by_pod(&pod.id)), ids(&[&labelled, &created]));
    assert_eq!(list(&node, by_id(&created.id)), ids(&[&created]));
    assert_eq!(list(&node, by_id(&created.id[..12])), ids(&[&created]));
    assert_eq!(list(&node, by_label), ids(&[&labelled]));
    let mut both = by_pod(&other.id);
    both.state = by_state(cri::ContainerState::ContainerRunning).state;
    assert_eq!(list(&node, both), ids(&[]), "all parts must match");
}

#[test]
fn a_running_container_can_be_removed() {
    let node = Node::start();
    let pod = node.pod("forced");
    let container = pod.sh("main", "sleep 1000");
    let pid = container.pid();
    container.remove();
    assert!(!is_alive(pid));
    assert_eq!(list(&node, cri::ContainerFilter::default()), ids(&[]));
    assert_nothing_left_of(&node, &container.id);
}

/// Nothing of a container is left on the node, while its pod lives on.
#[track_caller]
fn assert_nothing_left_of(node: &Node, id: &str) {
    let left: Vec<String> = node.pods_left().into_iter().filter(|line| line.contains(id)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_created_container_can_be_removed() {
    let node = Node::start();
    let pod = node.pod("unstarted");
    let container = pod.create(container("main", &["sleep", "1000"]));
    container.remove();
    assert_nothing_left_of(&node, &container.id);
}

#[test]
fn the_same_name_again_is_the_same_container() {
    let node = Node::start();
    let pod = node.pod("again");
    let config = container("main", &["sleep", "1000"]);
    let first = pod.create(config.clone());
    assert_eq!(pod.create(config.clone()).id, first.id, "a retry of the kubelet's");
    let mut next = config;
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(pod.create(next).id, first.id);
}

#[test]
fn a_command_that_does_not_exist_is_an_error_that_names_it() {
    let node = Node::start();
    let pod = node.pod("no-command");
    let request = pod.create_request(&container("main", &["/no/such/command"]));
    // Where the runtime looks for the command decides whether the creation or the start fails.
    let error = match node.cri.create_container(request) {
        Err(error) => error,
        Ok(created) => {
            let container_id = created.container_id;
            node.cri
                .start_container(cri::StartContainerRequest { container_id })
                .unwrap_err()
        }
    };
    assert!(error.message().contains("/no/such/command"), "{error}");
    assert_eq!(list(&node, by_running()), ids(&[]));
}

fn by_running() -> cri::ContainerFilter {
    let state = cri::ContainerState::ContainerRunning.into();
    cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state }),
        ..Default::default()
    }
}

#[test]
fn the_root_is_the_images_and_each_containers_own() {
    let node = Node::start();
    let pod = node.pod("roots");
    let one = pod.sh("one", "sleep 1000");
    let two = pod.sh("two", "sleep 1000");
    one.exec_sh("echo changed > /etc/passwd; rm /etc/group; mkdir /new");
    assert!(two.exec_sh("cat /etc/passwd").contains("root:x:0:0"));
    two.exec_sh("test -e /etc/group && test ! -e /new");
}

#[test]
fn memory_beyond_the_limit_ends_as_oom_killed() {
    let node = Node::start();
    let pod = node.pod("oom");
    let mut config = container(
        "main",
        &["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=64M count=1"],
    );
    config.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        ..Default::default()
    });
    let container = pod.start(config);
    let exited = container.wait_exit();
    assert_eq!((exited.exit_code, exited.reason.as_str()), (137, "OOMKilled"));
    let info = container.info();
    assert_eq!((&info["oomKills"], &info["outputLost"]), (&1.into(), &0.into()));
}

#[test]
fn an_entrypoint_and_a_command_of_the_image_are_used_as_docker_does() {
    let node = Node::start();
    let mut built = corten_tests::image::busybox(std::path::Path::new("/bin/busybox")).unwrap();
    built.config["Entrypoint"] = serde_json::json!(["echo", "entrypoint"]);
    built.config["Cmd"] = serde_json::json!(["cmd"]);
    built.save(&node.dir().join("images"), &["entry:1"]).unwrap();
    let pod = node.pod("entrypoint");
    let reference = "127.0.0.1:5000/entry:1";
    node.pull(reference);
    for (name, command, args, expected) in [
        ("none", vec![], vec![], "entrypoint cmd\n"),
        ("args", vec![], vec!["args"], "entrypoint args\n"),
        ("command", vec!["echo", "command"], vec![], "command\n"),
        ("both", vec!["echo", "command"], vec!["args"], "command args\n"),
    ] {
        let mut config = container(name, &command);
        config.args = args.iter().map(|&word| word.to_owned()).collect();
        config.image = Some(corten_tests::pod::image(reference));
        let container = pod.start(config);
        container.wait_exit();
        assert_eq!(container.output("stdout"), expected, "{name}");
    }
}
