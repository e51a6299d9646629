//! Checkpoint and restore by CRIU itself, where the kernel lets it work: memory goes on, not only files.

use std::fs;
use std::path::Path;
use std::process::Command;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, Pod, container, image};

use crate::checkpoint::{checkpoint, names, place};
use crate::lost::wait_for;

/// Counts in memory; the file only shows how far it is. It begins at 1000 where there is nothing to go on from.
const COUNT: &str =
    "exec </dev/null >/dev/null 2>&1; n=1000; while :; do n=$((n + 1)); echo $n >/count; sleep 0.2; done";

/// Whether CRIU works; if not, the test says that it is skipped.
fn works() -> bool {
    let mut check = Command::new("criu");
    let works = check.arg("check").output().is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("SKIP: criu check fails on this machine");
    }
    works
}

/// What the file says; its writer may be in the middle of it.
fn count(container: &Container<'_>) -> i64 {
    container.exec_sh("cat /count").trim().parse().unwrap_or(0)
}

#[track_caller]
fn assert_counts_on(container: &Container<'_>, from: i64) {
    wait_for("it counts on", || count(container) > from);
}

fn counter<'n>(pod: &Pod<'n>, name: &str) -> Container<'n> {
    let counter = pod.sh(name, COUNT);
    wait_for("it counts", || count(&counter) >= 1010);
    counter
}

fn restored(name: &str, archive: &Path) -> cri::ContainerConfig {
    cri::ContainerConfig {
        image: Some(image(&archive.display().to_string())),
        ..container(name, &["sh", "-c", COUNT])
    }
}

#[test]
fn memory_goes_on_in_a_new_container() {
    if !works() {
        return;
    }
    let node = Node::start();
    let place = place(&node);
    let archive = place.join("counter.tar");
    let pod = node.pod("p");
    let old = counter(&pod, "old");
    checkpoint(&node, &old.id, &archive).expect("CheckpointContainer");
    let before = count(&old);
    assert_counts_on(&old, before);
    assert_eq!(names(&place), ["counter.tar"]);
    old.remove();

    let new = pod.create(restored("new", &archive));
    assert_eq!(new.status().state(), cri::ContainerState::ContainerCreated);
    new.start();
    assert_eq!(new.status().state(), cri::ContainerState::ContainerRunning);
    let first = count(&new);
    assert!(first >= 1010, "{first}: not from the beginning");
    assert_counts_on(&new, first);
    assert_eq!(new.exec_sh("cat /proc/1/comm").trim(), "sh");
    // In another pod, and from there once more.
    let other = node.pod("other");
    let again = other.start(restored("again", &archive));
    assert_counts_on(&again, count(&again).max(1010));
    let second = place.join("second.tar");
    checkpoint(&node, &again.id, &second).expect("a restored one is saved");
    new.stop(0);
    assert_eq!(new.status().exit_code, 137);
}

#[test]
fn a_terminal_and_output_go_to_the_new_log() {
    if !works() {
        return;
    }
    let node = Node::start();
    let archive = place(&node).join("talker.tar");
    let pod = node.pod("p");
    let script = "n=0; while :; do n=$((n + 1)); echo line $n; sleep 0.2; done";
    let old = pod.sh("old", script);
    old.wait_output("line 5\n");
    checkpoint(&node, &old.id, &archive).expect("CheckpointContainer");
    old.remove();
    let config = cri::ContainerConfig {
        image: Some(image(&archive.display().to_string())),
        ..container("new", &["sh", "-c", script])
    };
    let new = pod.start(config);
    new.wait_output("line 15\n");
    assert!(!new.output("stdout").contains("line 1\n"), "{}", new.output("stdout"));
}

#[test]
fn a_checkpoint_with_more_than_the_request_allows_is_not_restored() {
    if !works() {
        return;
    }
    let node = Node::start();
    let archive = place(&node).join("counter.tar");
    let pod = node.pod("p");
    let old = counter(&pod, "old");
    checkpoint(&node, &old.id, &archive).expect("CheckpointContainer");
    old.remove();
    let change = |words: &'static str, change: fn(&mut cri::LinuxContainerSecurityContext)| {
        let mut config = restored(words, &archive);
        change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        (words, pod.create(config))
    };
    let table = [
        change("process.noNewPrivileges", |security| security.no_new_privs = true),
        change("process", |security| {
            security.run_as_user = Some(cri::Int64Value { value: 1000 })
        }),
        change("linux.seccomp", |security| {
            security.seccomp = Some(cri::SecurityProfile::default())
        }),
        change("process.capabilities", |security| {
            security.capabilities = Some(cri::Capability {
                drop_capabilities: vec!["ALL".to_owned()],
                ..Default::default()
            });
        }),
    ];
    for (words, refused) in table {
        let start = cri::StartContainerRequest {
            container_id: refused.id.clone(),
        };
        let answer = node.cri.start_container(start);
        let status = answer.err().unwrap_or_else(|| panic!("{words}: it was restored"));
        assert!(status.message().contains(words), "{words} in {status}");
        let status = refused.status();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError"),
            "{status:?}"
        );
    }
}

#[test]
fn a_pod_of_two_goes_on_as_a_new_pod() {
    if !works() {
        return;
    }
    let node = Node::start();
    let output = place(&node);
    let pod = node.pod("old");
    let counters = ["a", "b"].map(|name| counter(&pod, name));
    let request = cri::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: counters.iter().map(|counter| counter.id.clone()).collect(),
        options: Default::default(),
    };
    node.cri.checkpoint_pod(request).expect("CheckpointPod");
    for counter in &counters {
        assert_counts_on(counter, count(counter));
    }
    pod.stop();
    pod.remove();
    let request = cri::RestorePodRequest {
        checkpoint_path: output.display().to_string(),
        config: Some(node.pod_config("new")),
        container_configs: ["a", "b"].map(|name| container(name, &["sh", "-c", COUNT])).into(),
        ..Default::default()
    };
    let reply = node.cri.restore_pod(request).expect("RestorePod");
    for restored in &reply.restored_containers {
        let container_id = restored.container_id.clone();
        node.cri
            .start_container(cri::StartContainerRequest { container_id })
            .expect("StartContainer");
        let count = || {
            let reply = node.cri.exec_sync(cri::ExecSyncRequest {
                container_id: restored.container_id.clone(),
                cmd: vec!["cat".to_owned(), "/count".to_owned()],
                timeout: 0,
            });
            String::from_utf8_lossy(&reply.expect("ExecSync").stdout)
                .trim()
                .parse::<i64>()
                .unwrap_or(0)
        };
        let first = count();
        assert!(first >= 1010, "{}: {first}: not from the beginning", restored.name);
        wait_for("it counts on", || count() > first);
    }
    assert!(
        fs::metadata(output.join("pod.dump")).is_ok(),
        "the checkpoint is only read"
    );
}
