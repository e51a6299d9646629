//! Answers that do not come: a shim that hangs or has died, a server that dies in the middle of a call, a filesystem
//! that does not answer. Nothing may run on behind an answer, and everything can be removed.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{container, is_alive};
use corten_tests::{binary, cgroup};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};

use crate::restart::shim_of;

/// A node whose runtime is the real one behind a line of shell, which finds the verb in `$VERB` and the node's directory
/// in `$DIR`.
pub(crate) fn node_with_runtime(line: &str) -> Node {
    Node::with(|config| {
        let root = config["root"].as_str().unwrap().to_owned();
        let dir = Path::new(&root).parent().unwrap();
        let (script, runtime) = (dir.join("runtime.sh"), binary("corten"));
        let verbs = "for VERB; do case $VERB in create|start|update|delete) break;; esac; done";
        let text = format!(
            "#!/bin/sh\nDIR={}\n{verbs}\n{line}\nexec {} \"$@\"\n",
            dir.display(),
            runtime.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let path = toml::Value::String(script.display().to_string());
        let runtime = toml::Table::from_iter([("path".to_owned(), path)]);
        let runtimes = toml::Table::from_iter([("wrapped".to_owned(), runtime.into())]);
        config.insert("runtimes".to_owned(), runtimes.into());
        config.insert("default_runtime".to_owned(), "wrapped".into());
    })
}

/// Waits for something that comes true within 20 seconds.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stop_answers_for_what_a_dead_shim_has_left() {
    // The removal takes a while, so that an answer that does not wait for it is found out.
    let node = node_with_runtime("[ $VERB = delete ] && sleep 1");
    let pod = node.pod("dead");
    let stopped = pod.sh("stopped", "sleep 1000");
    let removed = pod.sh("removed", "sleep 1000");
    let (first, second) = (stopped.pid(), removed.pid());
    kill(shim_of(&pod.id), Signal::SIGKILL).unwrap();
    stopped.stop(0);
    assert!(!is_alive(first), "stopped means that nothing runs");
    removed.remove();
    assert!(!is_alive(second), "removed all the more");
    pod.stop();
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_pod_whose_shim_hangs_can_be_removed() {
    let node = Node::start();
    let pod = node.pod("hung");
    let container = pod.sh("main", "sleep 1000");
    let (init, shim) = (container.pid(), shim_of(&pod.id));
    kill(shim, Signal::SIGSTOP).unwrap();
    pod.stop();
    assert!(!is_alive(init));
    assert_eq!(container.status().state(), cri::ContainerState::ContainerExited);
    pod.remove();
    assert!(!is_alive(shim.as_raw().into()), "nor the shim");
    node.assert_no_pods_left();
}

#[test]
fn a_creation_cut_off_by_the_servers_end_does_not_hold_the_pod() {
    let node = node_with_runtime("[ $VERB = create ] && [ -e $DIR/slow ] && sleep 2");
    let pod = node.pod("cut-off");
    fs::write(node.dir().join("slow"), "").unwrap();
    let request = pod.create_request(&container("main", &["sleep", "1000"]));
    thread::scope(|scope| {
        let create = scope.spawn(|| node.cri.create_container(request));
        thread::sleep(Duration::from_millis(700));
        node.kill_server();
        create.join().unwrap().expect_err("the server has died");
    });
    node.launch().unwrap();
    let listed = node.cri.list_containers(cri::ListContainersRequest::default());
    assert!(listed.unwrap().containers.is_empty());
    pod.stop();
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_start_whose_answer_was_lost_is_known() {
    let node = node_with_runtime("[ $VERB = start ] && [ -e $DIR/slow ] && sleep 3");
    let pod = node.pod("late");
    let container = pod.create(container("main", &["sleep", "1000"]));
    fs::write(node.dir().join("slow"), "").unwrap();
    let request = cri::StartContainerRequest {
        container_id: container.id.clone(),
    };
    thread::scope(|scope| {
        let start = scope.spawn(|| node.cri.start_container(request));
        thread::sleep(Duration::from_millis(300));
        node.kill_server();
        start.join().unwrap().expect_err("the server has died");
    });
    node.launch().unwrap();
    wait_for("it runs, and nobody knows", || {
        container.status().state() == cri::ContainerState::ContainerRunning
    });
    assert!(container.status().started_at > 0);
}

#[test]
fn an_exec_ends_with_the_server_that_waits_for_it() {
    let node = Node::start();
    let pod = node.pod("exec");
    let container = pod.sh("main", "sleep 1000");
    let memberships = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let path = cgroup::membership(memberships.lines(), "pids").unwrap();
    let cgroup = cgroup::directory("pids", path);
    let count = || cgroup::all_processes(&cgroup).len();
    let before = count();
    let request = container.exec_request(&["sleep", "1000"], 0);
    thread::scope(|scope| {
        let exec = scope.spawn(|| node.cri.exec_sync(request));
        wait_for("the command runs", || count() > before);
        node.kill_server();
        exec.join().unwrap().expect_err("the server has died");
    });
    node.launch().unwrap();
    wait_for("the command has nobody and runs on", || count() == before);
}

#[test]
fn a_pod_whose_record_cannot_say_ready_is_not_run() {
    // The last write of the record is the one that fails: its temporary file's name is taken.
    let node =
        node_with_runtime("[ $VERB = start ] && for f in $DIR/lib/sandboxes/*.json; do mkdir ${f%.json}.partial; done");
    let request = cri::RunPodSandboxRequest {
        config: Some(node.pod_config("unrecorded")),
        runtime_handler: String::new(),
    };
    let error = node.cri.run_pod_sandbox(request).unwrap_err();
    assert!(error.message().contains("lib/sandboxes"), "{error:?}");
    for entry in fs::read_dir(node.dir().join("lib/sandboxes")).unwrap() {
        fs::remove_dir(entry.unwrap().path()).unwrap();
    }
    node.assert_no_pods_left();
}

#[test]
fn a_host_path_that_does_not_answer_holds_up_its_own_pod_only() {
    let node = Node::start();
    let (pod, healthy) = (node.pod("stuck"), node.pod("healthy"));
    // A FUSE filesystem that nobody serves: every look into it waits until its descriptor is closed.
    let (target, fuse) = (
        node.dir().join("dead"),
        File::options().read(true).write(true).open("/dev/fuse").unwrap(),
    );
    fs::create_dir(&target).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("dead"), &target, Some("fuse"), flags, Some(options.as_str())).unwrap();
    let request = |n: usize| {
        let mut config = container(&format!("c{n}"), &["true"]);
        config.mounts.push(cri::Mount {
            container_path: "/data".to_owned(),
            host_path: target.join("data").display().to_string(),
            ..Default::default()
        });
        pod.create_request(&config)
    };
    thread::scope(|scope| {
        for n in 0..40 {
            let (request, cri) = (request(n), &node.cri);
            // What becomes of them once the filesystem is gone is not the point.
            scope.spawn(move || cri.create_container(request).is_ok());
        }
        thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        healthy.sh("main", "sleep 1000").stop(0);
        let took = began.elapsed();
        drop(fuse);
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
        assert!(took < Duration::from_secs(20), "{took:?}");
    });
}
