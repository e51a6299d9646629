//! Retries and order: calls that are asked for twice, that wait, that give up, and what others see meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Pod, container, is_alive};
use nix::sys::signal::{Signal, kill};
use tonic::{Code, Status};

use crate::lost::{node_with_runtime, wait_for};
use crate::network::{install, node_with_scripts};
use crate::restart::shim_of;

/// How long an impatient caller waits.
const IMPATIENT: Duration = Duration::from_secs(3);

/// Runs as long as a file in the node's directory says; the calls that meet it must be those of `verb`.
fn slow(verb: &str) -> String {
    format!("[ $VERB = {verb} ] && while [ -e $DIR/slow ]; do sleep 0.05; done")
}

fn run_request(config: &cri::PodSandboxConfig) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    }
}

fn stop_request(pod: &Pod<'_>) -> cri::StopPodSandboxRequest {
    let pod_sandbox_id = pod.id.clone();
    cri::StopPodSandboxRequest { pod_sandbox_id }
}

/// The message says what was called, for how long, and each of `parts` of what it waits for.
#[track_caller]
fn assert_gave_up(status: &Status, call: &str, parts: &[&str]) {
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let began = format!("{call}: not done in ");
    for part in std::iter::once(began.as_str())
        .chain([" s: for "])
        .chain(parts.iter().copied())
    {
        assert!(status.message().contains(part), "{part:?} in {:?}", status.message());
    }
}

#[test]
fn a_run_and_a_creation_go_on_without_their_caller_and_a_retry_joins_them() {
    let node = node_with_runtime(&slow("create"));
    node.pull(BUSYBOX);
    let (config, file) = (node.pod_config("slow"), node.dir().join("slow"));
    fs::write(&file, "").unwrap();
    let error = node
        .cri
        .within(IMPATIENT)
        .run_pod_sandbox(run_request(&config))
        .unwrap_err();
    assert_gave_up(
        &error,
        "RunPodSandbox",
        &["the infra container", "the shim's answer to create"],
    );
    let ids = thread::scope(|scope| {
        let retries: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| node.run_pod(config.clone()).id))
            .collect();
        thread::sleep(Duration::from_millis(200));
        fs::remove_file(&file).unwrap();
        let ids = retries.into_iter().map(|retry| retry.join().unwrap());
        ids.collect::<BTreeSet<_>>()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    let pod = node.run_pod(config);
    assert_eq!(Some(&pod.id), ids.first(), "and the finished one is given again");

    fs::write(&file, "").unwrap();
    let request = pod.create_request(&container("main", &["sleep", "1000"]));
    let error = node
        .cri
        .within(IMPATIENT)
        .create_container(request.clone())
        .unwrap_err();
    assert_gave_up(&error, "CreateContainer", &["the shim's answer to create"]);
    let retry = thread::scope(|scope| {
        let retry = scope.spawn(|| node.cri.create_container(request.clone()).unwrap().container_id);
        thread::sleep(Duration::from_millis(200));
        fs::remove_file(&file).unwrap();
        retry.join().unwrap()
    });
    assert_eq!(node.cri.create_container(request).unwrap().container_id, retry);
    let listed = node.cri.list_containers(cri::ListContainersRequest::default()).unwrap();
    assert_eq!(listed.containers.len(), 1);
}

#[test]
fn a_plugin_that_hangs_is_named_and_keeps_no_other_call_waiting() {
    let node = node_with_scripts();
    let pod = node.pod("other");
    let running = pod.sh("main", "sleep 1000");
    let plugins = node.dir().join("cni");
    let script = "#!/bin/sh\nwhile [ -e \"${0%/*}/hangs\" ]; do sleep 0.05; done\nexec /usr/lib/cni/portmap\n";
    install(&plugins.join("hanging"), script);
    fs::write(plugins.join("hangs"), "").unwrap();
    let list = plugins.join("10-ct.conflist");
    let text = fs::read_to_string(&list).unwrap().replace("\"portmap\"", "\"hanging\"");
    fs::write(&list, text).unwrap();

    let request = run_request(&node.pod_config("hangs"));
    let error = node.cri.within(IMPATIENT).run_pod_sandbox(request.clone()).unwrap_err();
    assert_gave_up(
        &error,
        "RunPodSandbox",
        &["set up the pod's network: CNI plugin hanging ADD"],
    );
    // Lists and statuses of everything, while it hangs on.
    assert_eq!(
        node.cri
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .unwrap()
            .items
            .len(),
        1
    );
    assert_eq!(
        node.cri
            .list_containers(cri::ListContainersRequest::default())
            .unwrap()
            .containers
            .len(),
        1
    );
    assert_eq!(running.status().state(), cri::ContainerState::ContainerRunning);
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxReady);
    node.cri.status(cri::StatusRequest::default()).unwrap();
    // Nor other pods: this one's network was made by the other chain, and is taken down by it.
    running.stop(0);
    pod.stop();
    fs::remove_file(plugins.join("hangs")).unwrap();
    node.cri
        .run_pod_sandbox(request)
        .expect("joins the first one, which ends well");
}

#[test]
fn a_runtime_that_hangs_in_a_deletion_is_named_and_the_stop_can_be_repeated() {
    let node = node_with_runtime(&slow("delete"));
    let pod = node.pod("hangs");
    let running = pod.sh("main", "sleep 1000");
    fs::write(node.dir().join("slow"), "").unwrap();
    let request = || cri::StopContainerRequest {
        container_id: running.id.clone(),
        timeout: 0,
    };
    let error = node.cri.within(IMPATIENT).stop_container(request()).unwrap_err();
    assert_gave_up(&error, "StopContainer", &["the shim's answer to delete"]);
    assert_eq!(
        running.status().state(),
        cri::ContainerState::ContainerExited,
        "that much is known"
    );
    assert_eq!(
        node.cri
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .unwrap()
            .items
            .len(),
        1
    );
    fs::remove_file(node.dir().join("slow")).unwrap();
    node.cri.stop_container(request()).unwrap();
}

#[test]
fn a_shim_that_hangs_is_named() {
    let node = Node::start();
    let pod = node.pod("hung");
    let running = pod.sh("main", "sleep 1000");
    let shim = shim_of(&pod.id);
    kill(shim, Signal::SIGSTOP).unwrap();
    let request = pod.create_request(&container("late", &["true"]));
    let error = node.cri.within(IMPATIENT).create_container(request).unwrap_err();
    assert_gave_up(&error, "CreateContainer", &["the shim's answer to create"]);
    assert_eq!(
        running.status().state(),
        cri::ContainerState::ContainerRunning,
        "its status is told all the same"
    );
    kill(shim, Signal::SIGCONT).unwrap();
    wait_for("the creation goes on", || {
        let listed = node.cri.list_containers(cri::ListContainersRequest::default()).unwrap();
        listed.containers.len() == 2
    });
}

#[test]
fn removals_at_once_all_succeed() {
    let node = node_with_runtime("[ $VERB = delete ] && sleep 0.3");
    let pod = node.pod("often");
    let main = pod.sh("main", "sleep 1000");
    let remove = cri::RemoveContainerRequest {
        container_id: main.id.clone(),
    };
    let stop = cri::StopContainerRequest {
        container_id: main.id.clone(),
        timeout: 0,
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| node.cri.remove_container(remove.clone()).expect("RemoveContainer"));
            scope.spawn(|| node.cri.stop_container(stop.clone()).expect("StopContainer"));
        }
    });
    pod.sh("other", "sleep 1000");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pod.remove());
            scope.spawn(|| pod.stop());
        }
    });
    node.assert_no_pods_left();
}

#[test]
fn an_update_goes_on_without_its_caller_and_is_told_apart_from_one_that_is_refused() {
    let node = node_with_runtime(&slow("update"));
    let pod = node.pod("updated");
    let container = pod.sh("main", "sleep 1000");
    let file = node.dir().join("slow");
    fs::write(&file, "").unwrap();
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(cri::LinuxContainerResources {
            cpu_shares: 77,
            ..Default::default()
        }),
        ..Default::default()
    };
    let impatient = node.cri.within(IMPATIENT);
    let error = impatient.update_container_resources(request.clone()).unwrap_err();
    assert_gave_up(&error, "UpdateContainerResources", &["update", &container.id]);
    let error = impatient.update_container_resources(request).unwrap_err();
    assert_gave_up(
        &error,
        "UpdateContainerResources",
        &["wait for other calls of container"],
    );
    fs::remove_file(&file).unwrap();
    let shares = || Some(container.status().resources?.linux?.cpu_shares);
    wait_for("the update", || shares() == Some(77));
}

#[test]
fn a_pod_that_is_being_stopped_refuses_an_update_at_once() {
    let node = node_with_runtime(&slow("delete"));
    let pod = node.pod("stopping");
    let file = node.dir().join("slow");
    fs::write(&file, "").unwrap();
    thread::scope(|scope| {
        let stop = scope.spawn(|| node.cri.stop_pod_sandbox(stop_request(&pod)));
        wait_for("the stop does not begin", || {
            pod.status().state() == cri::PodSandboxState::SandboxNotready
        });
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            ..Default::default()
        };
        let refused = node.cri.within(IMPATIENT).update_pod_sandbox_resources(request);
        fs::remove_file(&file).unwrap();
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        stop.join().unwrap().unwrap();
    });
}

/// Takes its time to end, and says whether it had a network meanwhile.
const LAST_WORDS: &str = "trap 'ip -4 addr show eth0 | grep inet; usleep 500000; echo bye; exit 3' TERM; echo ready; \
    while :; do usleep 20000; done";

#[test]
fn stopping_a_pod_lets_containers_end_with_their_network_and_refuses_new_ones_at_once() {
    let node = Node::start();
    let pod = node.pod("graceful");
    let polite: Vec<_> = (0..3)
        .map(|number| pod.sh(&format!("polite-{number}"), LAST_WORDS))
        .collect();
    let deaf = pod.start(container("deaf", &["sleep", "1000"]));
    polite.iter().for_each(|container| container.wait_output("ready"));
    let pid = deaf.pid();
    thread::scope(|scope| {
        let stop = scope.spawn(|| node.cri.stop_pod_sandbox(stop_request(&pod)));
        wait_for("the stop does not begin", || {
            pod.status().state() == cri::PodSandboxState::SandboxNotready
        });
        let request = pod.create_request(&container("late", &["true"]));
        let refused = node
            .cri
            .within(Duration::from_secs(20))
            .create_container(request)
            .unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        stop.join().unwrap().unwrap();
    });
    for container in &polite {
        let output = container.output("stdout");
        assert!(output.contains("inet ") && output.contains("bye"), "{output}");
        assert_eq!(container.status().exit_code, 3);
    }
    assert!(!is_alive(pid), "no grace for one that cannot hear");
    assert_eq!(deaf.status().exit_code, 137);
    assert!(node.leases().is_empty(), "the address is free when the call answers");
}

#[test]
fn stopping_a_pod_takes_no_longer_than_its_caller_has() {
    let node = Node::start();
    let pod = node.pod("stubborn");
    // It has a handler, so that it could end, and does not.
    let stubborn = pod.sh(
        "main",
        "trap 'echo no' TERM; echo ready; while :; do usleep 20000; done",
    );
    stubborn.wait_output("ready");
    node.cri
        .within(Duration::from_secs(8))
        .stop_pod_sandbox(stop_request(&pod))
        .unwrap();
    assert_eq!(stubborn.status().exit_code, 137);
    assert!(stubborn.output("stdout").contains("no"), "it was asked first");
}
