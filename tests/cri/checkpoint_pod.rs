//! CheckpointPod and RestorePod, with the runtime that stands in for CRIU (`checkpoint`).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, Pod, container, image};
use tonic::{Code, Status};

use crate::checkpoint::{COUNT, assert_goes_on, assert_refused, count_of, names, node, place};
use crate::lost::wait_for;

fn save(node: &Node, pod: &Pod<'_>, ids: &[&str], output: &Path) -> Result<(), Status> {
    let request = cri::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: ids.iter().map(|&id| id.to_owned()).collect(),
        options: HashMap::new(),
    };
    node.cri.checkpoint_pod(request).map(drop)
}

/// The request that restores two counters into a pod of this name.
fn request(node: &Node, from: &Path, name: &str) -> cri::RestorePodRequest {
    cri::RestorePodRequest {
        checkpoint_path: from.display().to_string(),
        config: Some(node.pod_config(name)),
        container_configs: ["a", "b"].map(|name| container(name, &["sh", "-c", COUNT])).into(),
        ..Default::default()
    }
}

fn two_counters<'n>(pod: &Pod<'n>) -> [Container<'n>; 2] {
    let counters = ["a", "b"].map(|name| pod.sh(name, COUNT));
    for counter in &counters {
        wait_for("it counts", || count_of(counter) >= 3);
    }
    counters
}

#[test]
fn the_counters_of_a_pod_go_on_in_a_new_one() {
    let node = node();
    let output = place(&node);
    let pod = node.pod("old");
    let [a, b] = two_counters(&pod);
    save(&node, &pod, &[&a.id, &b.id], &output).expect("CheckpointPod");
    let calls = fs::read_to_string(node.dir().join("calls")).unwrap();
    let expected = "pause\npause\ncheckpoint\ncheckpoint\nresume\nresume\n";
    assert_eq!(calls, expected, "all are held before any is saved");
    assert_eq!(
        names(&output),
        ["a.tar", "b.tar", "pod.containers", "pod.dump", "pod.options"]
    );
    for counter in [&a, &b] {
        assert_goes_on(counter);
    }
    pod.stop();
    pod.remove();

    let request = request(&node, &output, "new");
    let reply = node.cri.restore_pod(request.clone()).expect("RestorePod");
    assert_ne!(reply.pod_sandbox_id, pod.id);
    let restored = &reply.restored_containers;
    let restored: Vec<_> = restored
        .iter()
        .map(|one| (one.name.as_str(), one.container_id.clone()))
        .collect();
    assert_eq!(restored.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["a", "b"]);
    let list = node
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .unwrap()
        .containers;
    assert!(
        list.iter()
            .all(|one| one.state() == cri::ContainerState::ContainerCreated),
        "{list:?}"
    );
    for (_name, id) in &restored {
        let container_id = id.clone();
        node.cri
            .start_container(cri::StartContainerRequest { container_id })
            .expect("StartContainer");
        let count = || {
            let reply = node.cri.exec_sync(cri::ExecSyncRequest {
                container_id: id.clone(),
                cmd: vec!["cat".to_owned(), "/count".to_owned()],
                timeout: 0,
            });
            String::from_utf8_lossy(&reply.unwrap().stdout)
                .trim()
                .parse::<i64>()
                .unwrap_or(0)
        };
        let first = count();
        assert!(first >= 3, "{first}: not from the beginning");
        wait_for("it counts on", || count() > first);
    }
    assert_refused(node.cri.restore_pod(request), Code::AlreadyExists, "has it");
}

#[test]
fn a_failure_resumes_all_and_leaves_the_directory_empty() {
    let node = node();
    let output = place(&node);
    let pod = node.pod("p");
    let [a, b] = two_counters(&pod);
    for verb in ["pause", "checkpoint"] {
        let switch = node.dir().join(format!("fails-{verb}"));
        fs::write(&switch, "").unwrap();
        assert_refused(
            save(&node, &pod, &[&a.id, &b.id], &output),
            Code::Internal,
            "told to fail",
        );
        fs::remove_file(switch).unwrap();
        assert_eq!(names(&output), [] as [&str; 0]);
        assert_goes_on(&a);
        assert_goes_on(&b);
    }
    save(&node, &pod, &[&a.id], &output).expect("one of two");
    assert_eq!(names(&output), ["a.tar", "pod.containers", "pod.dump", "pod.options"]);
}

#[test]
fn wrong_requests_to_save_a_pod() {
    let node = node();
    let output = place(&node);
    let (pod, other) = (node.pod("p"), node.pod("other"));
    let counter = pod.sh("a", COUNT);
    let stranger = other.sh("b", COUNT);
    let (id, of_other) = (counter.id.as_str(), stranger.id.as_str());
    assert_refused(
        save(&node, &pod, &[], &output),
        Code::InvalidArgument,
        "must not be empty",
    );
    assert_refused(save(&node, &pod, &[id, id], &output), Code::InvalidArgument, "twice");
    assert_refused(
        save(&node, &pod, &[id, of_other], &output),
        Code::InvalidArgument,
        "of the pod sandbox",
    );
    assert_refused(save(&node, &pod, &["none"], &output), Code::NotFound, "none");
    for wrong in [Path::new("relative"), &output.join("none"), node.dir()] {
        assert_refused(save(&node, &pod, &[id], wrong), Code::InvalidArgument, "output_path");
    }
    let option = cri::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: vec![counter.id.clone()],
        options: HashMap::from([("leave-paused".to_owned(), "1".to_owned())]),
    };
    assert_refused(node.cri.checkpoint_pod(option), Code::InvalidArgument, "leave-paused");
    counter.stop(0);
    assert_refused(
        save(&node, &pod, &[id], &output),
        Code::FailedPrecondition,
        "CONTAINER_EXITED",
    );
    assert_eq!(names(&output), [] as [&str; 0]);
}

/// What of a request to restore is changed, what the refusal says and its code.
type Change = (&'static str, Code, fn(&mut cri::RestorePodRequest));

#[test]
fn wrong_requests_to_restore_a_pod_leave_nothing() {
    let node = node();
    let output = place(&node);
    let pod = node.pod("old");
    let [a, b] = two_counters(&pod);
    save(&node, &pod, &[&a.id, &b.id], &output).expect("CheckpointPod");
    pod.stop();
    pod.remove();
    let table: [Change; 9] = [
        ("options", Code::InvalidArgument, |it| {
            drop(it.options.insert("x".to_owned(), String::new()))
        }),
        ("config", Code::InvalidArgument, |it| it.config = None),
        ("checkpoint_path", Code::InvalidArgument, |it| {
            it.checkpoint_path = "relative".to_owned()
        }),
        ("pod's checkpoint", Code::InvalidArgument, |it| {
            it.checkpoint_path = "/usr".to_owned()
        }),
        ("each container", Code::InvalidArgument, |it| {
            drop(it.container_configs.pop())
        }),
        ("container_configs[a].command", Code::InvalidArgument, |it| {
            it.container_configs[0].command = vec!["true".to_owned()];
        }),
        ("container_configs[b].envs", Code::InvalidArgument, |it| {
            it.container_configs[1].envs.push(cri::KeyValue {
                key: "NEW".to_owned(),
                ..Default::default()
            });
        }),
        ("runtime_handler", Code::InvalidArgument, |it| {
            it.runtime_handler = "none".to_owned()
        }),
        ("no such image", Code::NotFound, |it| {
            it.container_configs[1].image = Some(image("none.example/x:1"))
        }),
    ];
    for (words, code, change) in table {
        let mut request = request(&node, &output, "new");
        change(&mut request);
        assert_refused(node.cri.restore_pod(request), code, words);
        node.assert_no_pods_left();
    }
    // A checkpoint of which a piece is hostile.
    fs::remove_file(output.join("b.tar")).unwrap();
    std::os::unix::fs::symlink(output.join("a.tar"), output.join("b.tar")).unwrap();
    let answer = node.cri.restore_pod(request(&node, &output, "new"));
    assert_refused(answer, Code::InvalidArgument, "must be a checkpoint");
    node.assert_no_pods_left();
}
