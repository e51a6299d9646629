//! Many pods at once, and the same request from many clients.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Barrier, Mutex};
use std::thread;

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Pod, container};

const CLIENTS: usize = 8;
const PODS: usize = 20;

/// A pod of two containers, from its run to its removal.
fn live(node: &Node, number: usize) {
    let name = format!("pod-{number}");
    let pod = node.run_pod(node.pod_config(&name));
    let served = pod.sh("one", &format!("echo one of {name}; sleep 1000"));
    let ended = pod.sh("two", &format!("echo two of {name}; exit {number}"));
    served.wait_output(&format!("one of {name}"));
    assert_eq!(ended.wait_exit().exit_code, i32::try_from(number).unwrap());
    assert_eq!(ended.output("stdout"), format!("two of {name}\n"));
    assert_eq!(served.exec_sh("hostname"), format!("{name}\n"));
    served.stop(0);
    pod.stop();
    ended.remove();
    pod.remove();
}

#[test]
fn twenty_pods_by_eight_clients() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..PODS).collect());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some(number) = next else { return };
                    live(&node, number);
                }
            });
        }
    });
    let sandboxes = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap()
        .items;
    let containers = node
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .unwrap()
        .containers;
    assert!(sandboxes.is_empty() && containers.is_empty());
    node.assert_no_pods_left();
}

/// What `call` gives to each of eight clients that call at the same moment.
fn at_once<T: Send>(call: impl Fn() -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(|| {
                barrier.wait();
                call()
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(spawn).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn the_same_metadata_at_once_is_one_pod_and_one_container() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let config = node.pod_config("same");
    let pods: Vec<Pod<'_>> = at_once(|| node.run_pod(config.clone()));
    let ids: BTreeSet<&str> = pods.iter().map(|pod| pod.id.as_str()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let listed = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap()
        .items;
    assert_eq!(listed.len(), 1);
    assert_eq!(node.leases().len(), 1, "one network");

    let created = at_once(|| pods[0].create(container("same", &["sleep", "1000"])).id);
    let ids: BTreeSet<&String> = created.iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let listed = node
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .unwrap()
        .containers;
    assert_eq!(listed.len(), 1);
}

#[test]
fn the_same_pull_at_once_fetches_every_blob_once() {
    let node = Node::start();
    let ids: BTreeSet<String> = at_once(|| node.pull(BUSYBOX)).into_iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let blobs = node.registry().count("/blobs/");
    assert_eq!(blobs, 2, "one configuration, one layer");
}

#[test]
fn stop_and_removal_by_many_clients_are_done_once() {
    let node = Node::start();
    let pod = node.pod("popular");
    let container = pod.sh("main", "sleep 1000");
    at_once(|| container.stop(0));
    at_once(|| container.remove());
    at_once(|| pod.stop());
    at_once(|| pod.remove());
    node.assert_no_pods_left();
}
