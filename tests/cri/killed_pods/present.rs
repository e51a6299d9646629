//! What a node says it has, held against what there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::is_alive;

use super::sessions::word;
use crate::streaming::running;

/// What the server says there is.
pub(super) struct Listed {
    sandboxes: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
}

impl Listed {
    pub(super) fn of(node: &Node) -> Listed {
        let sandboxes = node.cri.list_pod_sandbox(cri::ListPodSandboxRequest::default());
        let containers = node.cri.list_containers(cri::ListContainersRequest::default());
        Listed {
            sandboxes: sandboxes.expect("ListPodSandbox").items,
            containers: containers.expect("ListContainers").containers,
        }
    }

    pub(super) fn ids(&self) -> BTreeSet<String> {
        let sandboxes = self.sandboxes.iter().map(|it| it.id.clone());
        sandboxes
            .chain(self.containers.iter().map(|it| it.id.clone()))
            .collect()
    }

    /// What is wrong with it by itself.
    fn wrong(&self, node: &Node) -> Vec<String> {
        let mut wrong = Vec::new();
        let keys = self.sandboxes.iter().map(|it| format!("{:?}", it.metadata));
        let own = |it: &cri::Container| format!("{} {:?}", it.pod_sandbox_id, it.metadata);
        let keys: Vec<_> = keys.chain(self.containers.iter().map(own)).collect();
        let distinct: BTreeSet<_> = keys.iter().collect();
        if distinct.len() < keys.len() {
            wrong.push(format!("doubled: {keys:?}"));
        }
        for it in &self.containers {
            if !self.sandboxes.iter().any(|sandbox| sandbox.id == it.pod_sandbox_id) {
                wrong.push(format!("container {} of no pod", it.id));
            }
            let runs = pid_of_container(node, &it.id).is_some_and(is_alive);
            let should = matches!(
                it.state(),
                cri::ContainerState::ContainerRunning | cri::ContainerState::ContainerCreated
            );
            // One that has ended meanwhile is told a moment later.
            if runs != should || it.state() == cri::ContainerState::ContainerUnknown {
                wrong.push(format!(
                    "container {} is {:?}, its process runs: {runs}",
                    it.id,
                    it.state()
                ));
            }
        }
        for it in &self.sandboxes {
            let runs = pid_of_sandbox(node, &it.id).is_some_and(is_alive);
            if runs != (it.state() == cri::PodSandboxState::SandboxReady) {
                wrong.push(format!("pod {} is {:?}, its process runs: {runs}", it.id, it.state()));
            }
        }
        wrong
    }
}

fn pid_of_container(node: &Node, id: &str) -> Option<i64> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    pid(&node.cri.container_status(request).ok()?.info)
}

fn pid_of_sandbox(node: &Node, id: &str) -> Option<i64> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    pid(&node.cri.pod_sandbox_status(request).ok()?.info)
}

fn pid(info: &std::collections::HashMap<String, String>) -> Option<i64> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    info["pid"].as_i64().filter(|&pid| pid > 0)
}

/// Names in a directory; none where there is none.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What the node has of pods and containers, by id, wherever it is.
fn present(node: &Node) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    let is_id = |name: &String| name.len() == 64;
    for directory in [
        "lib/containers",
        "run/sandboxes",
        "run/containers",
        "run/netns",
        "run/runtime",
    ] {
        let ids = names(&node.dir().join(directory)).into_iter().filter(is_id);
        found.push((directory.to_owned(), ids.collect()));
    }
    for hierarchy in ["pids", "memory", ""] {
        let directory = Path::new("/sys/fs/cgroup").join(hierarchy).join(node.marker());
        found.push((
            format!("cgroup {hierarchy}"),
            names(&directory).into_iter().filter(is_id).collect(),
        ));
    }
    // Sockets of execs that began, of which a new server has none.
    found.push(("run/consoles".to_owned(), names(&node.dir().join("run/consoles"))));
    let stuck = stuck_networks(node);
    let leases = node.leases().into_iter().filter_map(|address| {
        let text = fs::read_to_string(node.dir().join("leases/ct").join(address)).ok()?;
        text.lines().next().map(str::to_owned)
    });
    let leases = leases.filter(|id| !stuck.contains(id));
    found.push(("addresses".to_owned(), leases.collect()));
    found
}

/// Pods that were let go although their network was not taken down; it keeps its address meanwhile.
pub(super) fn stuck_networks(node: &Node) -> BTreeSet<String> {
    let networks = names(&node.dir().join("lib/networks"));
    let ids = networks.iter().map(|name| name.strip_suffix(".json").unwrap_or(name));
    ids.map(str::to_owned).collect()
}

/// What does not fit together, while no client calls.
pub(super) fn contradictions(node: &Node) -> Vec<String> {
    let listed = Listed::of(node);
    let ids = listed.ids();
    let mut wrong = listed.wrong(node);
    // Commands go with the server whose clients began them.
    let commands = running(&word(node));
    if commands > 0 {
        wrong.push(format!("{commands} processes of commands whose clients have gone"));
    }
    for (place, found) in present(node) {
        let strangers: Vec<_> = found.difference(&ids).collect();
        if !strangers.is_empty() {
            wrong.push(format!("{place}: of nothing that is listed: {strangers:?}"));
        }
    }
    wrong
}
