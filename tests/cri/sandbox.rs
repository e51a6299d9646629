//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox.

use std::collections::BTreeSet;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{is_alive, map};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

fn list(node: &Node, filter: cri::PodSandboxFilter) -> BTreeSet<String> {
    let request = cri::ListPodSandboxRequest { filter: Some(filter) };
    let items = node.cri.list_pod_sandbox(request).expect("ListPodSandbox").items;
    items.into_iter().map(|sandbox| sandbox.id).collect()
}

/// A filesystem on which nothing can be executed, as Debian mounts /run.
struct Noexec(tempfile::TempDir);

impl Noexec {
    fn new() -> Noexec {
        let dir = tempfile::Builder::new().prefix("nx-").tempdir_in("/tmp").unwrap();
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("nx"), dir.path(), Some("tmpfs"), flags, None::<&str>).unwrap();
        Noexec(dir)
    }
}

impl Drop for Noexec {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).expect("umount");
    }
}

#[test]
fn a_state_directory_without_execution() {
    let run = Noexec::new();
    let state = run.0.path().join("state");
    let node = Node::with(|config| {
        config.insert("state".to_owned(), state.to_str().unwrap().into());
    });
    let pod = node.pod("noexec");
    let container = pod.sh("main", "echo here; sleep 1000");
    container.wait_output("here");
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(container.exec_sh("echo exec").trim(), "exec");
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

#[test]
fn a_pod_from_run_to_removal() {
    let node = Node::start();
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let pod = node.pod("life");
    let status = pod.status();
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert!(u128::try_from(status.created_at).unwrap() >= before, "nanoseconds");
    assert_eq!(status.runtime_handler, "");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(
        options.network(),
        cri::NamespaceMode::Pod,
        "kubelet recreates a pod whose mode is not echoed"
    );
    assert_eq!(options.pid(), cri::NamespaceMode::Container);
    let info = pod.info();
    let pid = info["pid"].as_i64().expect("pid of the infra container");
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(comm.trim(), "pause");

    pod.stop();
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxNotready);
    assert!(!is_alive(pid), "the infra container is gone");
    pod.stop();
    pod.remove();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    assert_eq!(node.cri.pod_sandbox_status(request).unwrap_err().code(), Code::NotFound);
    pod.remove();
    pod.stop();
    node.assert_no_pods_left();
}

#[test]
fn the_list_can_be_filtered() {
    let node = Node::start();
    let mut config = node.pod_config("one");
    config.labels = map(&[("app", "one"), ("tier", "front")]);
    let one = node.run_pod(config);
    let mut config = node.pod_config("two");
    config.labels = map(&[("app", "two"), ("tier", "front")]);
    let two = node.run_pod(config);
    two.stop();

    let by_label = |pairs: &[(&str, &str)]| cri::PodSandboxFilter {
        label_selector: map(pairs),
        ..Default::default()
    };
    let by_state = |state: cri::PodSandboxState| cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue { state: state.into() }),
        ..Default::default()
    };
    let by_id = |id: &str| cri::PodSandboxFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    assert_eq!(list(&node, cri::PodSandboxFilter::default()), set(&[&one.id, &two.id]));
    assert_eq!(list(&node, by_label(&[("tier", "front")])), set(&[&one.id, &two.id]));
    assert_eq!(
        list(&node, by_label(&[("tier", "front"), ("app", "two")])),
        set(&[&two.id])
    );
    assert_eq!(list(&node, by_label(&[("tier", "fron")])), set(&[]));
    assert_eq!(
        list(&node, by_state(cri::PodSandboxState::SandboxReady)),
        set(&[&one.id])
    );
    assert_eq!(
        list(&node, by_state(cri::PodSandboxState::SandboxNotready)),
        set(&[&two.id])
    );
    assert_eq!(list(&node, by_id(&one.id)), set(&[&one.id]));
    assert_eq!(
        list(&node, by_id(&one.id[..12])),
        set(&[&one.id]),
        "crictl sends what the user typed"
    );
    assert_eq!(list(&node, by_id("ffffffffffff0000")), set(&[]));
    let mut both = by_id(&one.id);
    both.state = by_state(cri::PodSandboxState::SandboxNotready).state;
    assert_eq!(list(&node, both), set(&[]), "all parts must match");
}

#[test]
fn the_same_metadata_again_is_the_same_pod() {
    let node = Node::start();
    let pod = node.pod("again");
    assert_eq!(node.run_pod(pod.config.clone()).id, pod.id, "a retry of the kubelet's");
    let mut next = pod.config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.run_pod(next).id, pod.id, "another attempt is another sandbox");
}

#[test]
fn removal_takes_running_containers_along() {
    let node = Node::start();
    let pod = node.pod("forced");
    let container = pod.sh("main", "sleep 1000");
    let pid = container.pid();
    pod.remove();
    assert!(!is_alive(pid));
    let request = cri::ContainerStatusRequest {
        container_id: container.id,
        verbose: false,
    };
    assert_eq!(node.cri.container_status(request).unwrap_err().code(), Code::NotFound);
    node.assert_no_pods_left();
}

#[test]
fn a_stopped_pod_takes_no_container() {
    let node = Node::start();
    let pod = node.pod("stopped");
    let container = pod.sh("main", "sleep 1000");
    pod.stop();
    assert_eq!(container.status().state(), cri::ContainerState::ContainerExited);
    let request = pod.create_request(&corten_tests::pod::container("late", &["true"]));
    let error = node.cri.create_container(request).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains(&pod.id), "{error}");
}

#[test]
fn an_id_may_be_given_by_its_beginning() {
    let node = Node::start();
    let pod = node.pod("prefix");
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id[..13].to_owned(),
        verbose: false,
    };
    assert_eq!(node.cri.pod_sandbox_status(request).unwrap().status.unwrap().id, pod.id);
}

#[test]
fn cgroups_lie_where_the_kubelet_asked() {
    let node = Node::start();
    let mut config = node.pod_config("cgroup");
    let parent = format!("/{}/kubepods/pod1", node.marker());
    config.linux.as_mut().unwrap().cgroup_parent.clone_from(&parent);
    node.pull(corten_tests::node::BUSYBOX);
    let pod = node.run_pod(config);
    let container = pod.sh("main", "sleep 1000");
    let own = format!("{parent}/{}", container.id);
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let memory = membership
        .lines()
        .find(|line| line.contains(":memory:") || line.starts_with("0::/"));
    assert!(memory.is_some_and(|line| line.ends_with(&own)), "{own}: {membership}");
    pod.remove();
    let left: Vec<String> = node
        .watch
        .left()
        .into_iter()
        .filter(|line| line.contains(&container.id))
        .collect();
    assert!(
        left.is_empty(),
        "kubelet removes the parent, so it must be empty: {left:?}"
    );
    corten_tests::leak::remove_cgroup(&parent);
    corten_tests::leak::remove_cgroup(&format!("/{}/kubepods", node.marker()));
}

#[test]
fn a_shared_process_namespace_has_the_infra_container_as_its_init() {
    let node = Node::start();
    let mut config = node.pod_config("shared-pid");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context
        .namespace_options
        .as_mut()
        .unwrap()
        .set_pid(cri::NamespaceMode::Pod);
    node.pull(corten_tests::node::BUSYBOX);
    let pod = node.run_pod(config);
    let mut config = corten_tests::pod::container("main", &["sleep", "1000"]);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context
        .namespace_options
        .as_mut()
        .unwrap()
        .set_pid(cri::NamespaceMode::Pod);
    let container = pod.start(config);
    assert_eq!(container.exec_sh("cat /proc/1/comm").trim(), "pause");
    // An orphan goes to pause, which reaps it: no zombie stays.
    container.exec_sh("sh -c 'sleep 0.1 &'; sleep 0.5");
    assert_eq!(container.exec_sh("grep -l '^State:.Z' /proc/[0-9]*/status || true"), "");
}
