//! What is read of the node when somebody scrapes: from memory, and the account of containers' files.

use corten_proto::cri::{ContainerState, PodSandboxState};

use super::metrics::{Metrics, NodeGauges};
use super::process;
use crate::node::{MAX_LOOKS, Node};

/// The metrics' text, with the node as it is now. Blocks for a few calls of the filesystem.
pub(super) fn text(metrics: &Metrics, node: &Node) -> anyhow::Result<Vec<u8>> {
    let gauges = &metrics.node;
    sandboxes(gauges, node);
    containers(gauges, node);
    storage(gauges, node);
    queues(gauges, node);
    process::read(&metrics.process);
    metrics.text()
}

fn sandboxes(gauges: &NodeGauges, node: &Node) {
    let all = node.store.sandboxes();
    let states = [
        (PodSandboxState::SandboxReady, "ready"),
        (PodSandboxState::SandboxNotready, "not_ready"),
    ];
    for (state, name) in states {
        let count = all.iter().filter(|sandbox| sandbox.status().state() == state).count();
        gauges.sandboxes.with_label_values(&[name]).set(number(count));
    }
}

fn containers(gauges: &NodeGauges, node: &Node) {
    let all = node.store.containers();
    let states = [
        (ContainerState::ContainerCreated, "created"),
        (ContainerState::ContainerRunning, "running"),
        (ContainerState::ContainerExited, "exited"),
        (ContainerState::ContainerUnknown, "unknown"),
    ];
    for (state, name) in states {
        let count = all.iter().filter(|it| it.status().state() == state).count();
        gauges.containers.with_label_values(&[name]).set(number(count));
    }
}

fn storage(gauges: &NodeGauges, node: &Node) {
    gauges.images.set(number(node.images.list().len()));
    let (layers, _inodes) = node.images.usage();
    let (writable, _found_at) = node.snapshots.total_usage();
    for (kind, bytes) in [("layers", layers), ("writable_layers", writable.bytes)] {
        gauges.storage_bytes.with_label_values(&[kind]).set(number(bytes));
    }
    gauges.layers_in_flight.set(number(node.images.layers_in_flight()));
}

fn queues(gauges: &NodeGauges, node: &Node) {
    for (owner, tasks) in [("calls", &node.work), ("shims", &node.supervisors)] {
        gauges.tasks.with_label_values(&[owner]).set(number(tasks.count()));
    }
    gauges
        .looks
        .set(number(MAX_LOOKS.saturating_sub(node.looks.available_permits())));
    let (subscribers, queued) = node.events.lock().lengths();
    gauges.event_subscribers.set(number(subscribers));
    gauges.events_queued.set(number(queued));
}

/// As a gauge has it.
pub(super) fn number<N>(value: N) -> i64
where
    i64: TryFrom<N>,
{
    i64::try_from(value).unwrap_or(i64::MAX)
}
