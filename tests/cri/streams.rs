//! StreamPodSandboxes and StreamContainers: what the unary calls list, in messages that a client takes.

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{container, map};
use prost::Message;

fn sandboxes(node: &Node, filter: &cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
    let messages = node.cri.pod_sandbox_messages(Some(filter.clone())).unwrap();
    assert!(messages.iter().all(|message| !message.pod_sandboxes.is_empty()));
    messages.into_iter().flat_map(|message| message.pod_sandboxes).collect()
}

fn containers(node: &Node, filter: &cri::ContainerFilter) -> Vec<cri::Container> {
    let messages = node.cri.container_messages(Some(filter.clone())).unwrap();
    assert!(messages.iter().all(|message| !message.containers.is_empty()));
    messages.into_iter().flat_map(|message| message.containers).collect()
}

#[test]
fn an_empty_list_has_no_message() {
    let node = Node::start();
    assert_eq!(node.cri.pod_sandbox_messages(None).unwrap(), []);
    assert_eq!(node.cri.container_messages(None).unwrap(), []);
}

#[test]
fn streams_hold_what_the_lists_hold_whatever_the_filter() {
    let node = Node::start();
    let mut config = node.pod_config("one");
    config.labels = map(&[("tier", "front")]);
    let (one, two) = (node.pod("two"), node.run_pod(config));
    two.stop();
    let first = one.sh("first", "sleep 1000");
    let second = one.create(container("second", &["true"]));

    let ready = cri::PodSandboxState::SandboxReady.into();
    let filters = [
        (cri::PodSandboxFilter::default(), 2),
        (
            cri::PodSandboxFilter {
                id: one.id[..12].to_owned(),
                ..Default::default()
            },
            1,
        ),
        (
            cri::PodSandboxFilter {
                state: Some(cri::PodSandboxStateValue { state: ready }),
                label_selector: map(&[("tier", "front")]),
                ..Default::default()
            },
            0,
        ),
    ];
    for (filter, count) in filters {
        let streamed = sandboxes(&node, &filter);
        let filter = Some(filter);
        let listed = node
            .cri
            .list_pod_sandbox(cri::ListPodSandboxRequest { filter })
            .unwrap();
        assert_eq!(streamed, listed.items);
        assert_eq!(streamed.len(), count);
    }
    let created = cri::ContainerState::ContainerCreated.into();
    let filters = [
        (cri::ContainerFilter::default(), 2),
        (
            cri::ContainerFilter {
                pod_sandbox_id: two.id.clone(),
                ..Default::default()
            },
            0,
        ),
        (
            cri::ContainerFilter {
                state: Some(cri::ContainerStateValue { state: created }),
                ..Default::default()
            },
            1,
        ),
    ];
    for (filter, count) in filters {
        let streamed = containers(&node, &filter);
        let filter = Some(filter);
        let listed = node.cri.list_containers(cri::ListContainersRequest { filter }).unwrap();
        assert_eq!(streamed, listed.containers);
        assert_eq!(streamed.len(), count, "of {} and {}", first.id, second.id);
    }
}

#[test]
fn large_lists_come_in_several_messages() {
    let node = Node::start();
    // Each within what a pod's labels and annotations may have.
    for number in 0..8 {
        let mut config = node.pod_config(&format!("large-{number}"));
        config.annotations = map(&[("large", &"x".repeat(440 << 10))]);
        node.run_pod(config);
    }
    let messages = node.cri.pod_sandbox_messages(None).unwrap();
    assert!(messages.len() >= 3, "{} messages", messages.len());
    assert!(messages.iter().all(|message| message.encoded_len() < 2 << 20));
    let streamed: Vec<_> = messages.into_iter().flat_map(|message| message.pod_sandboxes).collect();
    let listed = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap();
    assert_eq!(streamed, listed.items, "each once and in order");
}
