//! A pod sandbox in memory: its metadata, which never changes, its status, an enum with pure transitions, and what updates
//! have made of its resources.
//!
//! ```text
//!   Starting --started--> Ready --infra_exited--> NotReady
//!      |                    |                        |
//!      '--------------------'-------- stopping ------'--> Stopping --stopped--> Stopped
//! ```
//!
//! CRI knows two states: `Ready` is READY, everything else is NOTREADY. `Starting` exists on disk only: a sandbox enters
//! memory once it is ready, and one that a dead server left at `Starting` is undone at the next start.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_proto::id::SandboxId;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, Semaphore, watch};

use crate::network::Attachment;
use crate::shim::Shim;
use crate::stats::Rate;

/// What is decided when a sandbox is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// The sandbox's id and its infra container's.
    pub id: SandboxId,
    /// The configuration exactly as it was asked for.
    pub config: cri::PodSandboxConfig,
    /// Name of the runtime as it was asked for: empty for the default.
    pub runtime_handler: String,
    /// Name of the runtime that was chosen.
    pub runtime: String,
    /// Nanoseconds since the epoch; unique among sandboxes and containers.
    pub created_at: i64,
    /// The network namespace; none when the pod uses the node's.
    pub netns: Option<PathBuf>,
    /// What attaching it came to; none when the pod uses the node's network.
    pub network: Option<Attachment>,
}

impl Metadata {
    /// The pod's addresses, the primary one first.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.network.as_ref().map(Attachment::ips).unwrap_or_default()
    }

    /// The namespaces the pod asked for; POD throughout where it said nothing.
    pub fn namespace_options(&self) -> cri::NamespaceOption {
        self.config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|security| security.namespace_options.clone())
            .unwrap_or_default()
    }

    /// Whether the pod uses the node's network.
    pub fn host_network(&self) -> bool {
        self.namespace_options().network() == cri::NamespaceMode::Node
    }
}

/// What a pod may use, for whoever wants to know: its cgroup is the kubelet's to set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// What the sandbox itself costs.
    pub overhead: Option<cri::LinuxContainerResources>,
    /// Sum of its containers' resources.
    pub resources: Option<cri::LinuxContainerResources>,
}

impl Resources {
    /// These with an update in them; what it does not name stays.
    pub(crate) fn updated(self, change: Resources) -> Resources {
        Resources {
            overhead: change.overhead.or(self.overhead),
            resources: change.resources.or(self.resources),
        }
    }
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Being built; seen in a record only.
    Starting,
    /// The infra container runs.
    Ready {
        /// Host pid of the infra container's init.
        pid: i32,
    },
    /// The infra container is gone; network and files are still held.
    NotReady,
    /// StopPodSandbox has begun: no new containers.
    Stopping,
    /// Nothing runs and the network is given back.
    Stopped,
}

impl Status {
    /// The infra container runs.
    pub(crate) fn started(self, pid: i32) -> Status {
        match self {
            Status::Starting => Status::Ready { pid },
            other => other,
        }
    }

    /// The infra container, its shim or the whole machine has gone.
    pub(crate) fn infra_exited(self) -> Status {
        match self {
            Status::Starting | Status::Ready { .. } => Status::NotReady,
            other => other,
        }
    }

    /// StopPodSandbox begins. One that is stopped stays so: the call may be repeated.
    pub(crate) fn stopping(self) -> Status {
        match self {
            Status::Stopped => Status::Stopped,
            _ => Status::Stopping,
        }
    }

    /// StopPodSandbox has ended well.
    pub(crate) fn stopped(self) -> Status {
        Status::Stopped
    }

    /// The state as CRI has it.
    pub fn state(self) -> cri::PodSandboxState {
        match self {
            Status::Ready { .. } => cri::PodSandboxState::SandboxReady,
            _ => cri::PodSandboxState::SandboxNotready,
        }
    }
}

/// A sandbox the server knows.
pub struct Sandbox {
    /// What never changes.
    pub metadata: Metadata,
    /// The status; a watch, so that a call can wait for it to change.
    pub status: watch::Sender<Status>,
    /// Shared by the calls that add to the sandbox, exclusive for those that end it.
    pub operations: RwLock<()>,
    /// Orders the writes of the record.
    pub record: tokio::sync::Mutex<()>,
    /// One look at the pod's host paths at a time: see `Node::looks`.
    pub look: Arc<Semaphore>,
    /// The pod's processor time per second.
    pub(crate) rate: Rate,
    /// The shim's client; none once the shim has gone.
    shim: Mutex<Option<Arc<Shim>>>,
    /// When the network could first not be taken down.
    network_stuck: Mutex<Option<Instant>>,
    /// The resources since the first update; none before it.
    resources: Mutex<Option<Resources>>,
}

impl Sandbox {
    /// A sandbox as it was made or read from its record.
    pub fn new(metadata: Metadata, status: Status, shim: Option<Arc<Shim>>) -> Arc<Self> {
        Arc::new(Sandbox {
            metadata,
            status: watch::Sender::new(status),
            operations: RwLock::new(()),
            record: tokio::sync::Mutex::new(()),
            look: Arc::new(Semaphore::new(1)),
            rate: Rate::default(),
            shim: Mutex::new(shim),
            network_stuck: Mutex::default(),
            resources: Mutex::new(None),
        })
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.metadata.id
    }

    /// The status now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// The resources that updates have left; none while they are those it was run with.
    pub(crate) fn updated(&self) -> Option<Resources> {
        self.resources.lock().expect("no holder panics").clone()
    }

    /// Replaces what updates have left.
    pub(crate) fn set_resources(&self, resources: Option<Resources>) {
        *self.resources.lock().expect("no holder panics") = resources;
    }

    /// The resources that count now.
    pub fn resources(&self) -> Resources {
        self.updated().unwrap_or_else(|| {
            let linux = self.metadata.config.linux.as_ref();
            Resources {
                overhead: linux.and_then(|linux| linux.overhead.clone()),
                resources: linux.and_then(|linux| linux.resources.clone()),
            }
        })
    }

    /// Host pid of the infra container's init while the sandbox is ready.
    pub fn pid(&self) -> Option<i32> {
        match self.status() {
            Status::Ready { pid } => Some(pid),
            _ => None,
        }
    }

    /// The shim's client, if the shim is there.
    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.shim.lock().expect("no holder panics").clone()
    }

    /// The network could not be taken down; how long that has been so.
    pub(crate) fn network_is_stuck(&self) -> Duration {
        let mut since = self.network_stuck.lock().expect("no holder panics");
        since.get_or_insert_with(Instant::now).elapsed()
    }

    /// Replaces the shim's client.
    pub(crate) fn set_shim(&self, shim: Option<Arc<Shim>>) {
        *self.shim.lock().expect("no holder panics") = shim;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_of_the_resources_keeps_what_it_does_not_name() {
        let shares = |cpu_shares| {
            Some(cri::LinuxContainerResources {
                cpu_shares,
                ..Default::default()
            })
        };
        let resources = |overhead, resources| Resources { overhead, resources };
        for (before, change, after) in [
            (
                resources(None, None),
                resources(shares(1), None),
                resources(shares(1), None),
            ),
            (
                resources(shares(1), shares(2)),
                resources(None, shares(3)),
                resources(shares(1), shares(3)),
            ),
            (
                resources(shares(1), shares(2)),
                resources(None, None),
                resources(shares(1), shares(2)),
            ),
        ] {
            assert_eq!(before.updated(change), after);
        }
    }

    #[test]
    fn transitions() {
        use Status::{NotReady, Ready, Starting, Stopped, Stopping};
        let ready = Ready { pid: 7 };
        //   before    started(7) infra_exited stopping  stopped
        let table = [
            (Starting, [ready, NotReady, Stopping, Stopped]),
            (ready, [ready, NotReady, Stopping, Stopped]),
            (NotReady, [NotReady, NotReady, Stopping, Stopped]),
            (Stopping, [Stopping, Stopping, Stopping, Stopped]),
            (Stopped, [Stopped, Stopped, Stopped, Stopped]),
        ];
        for (before, after) in table {
            let found = [
                before.started(7),
                before.infra_exited(),
                before.stopping(),
                before.stopped(),
            ];
            assert_eq!(found, after, "{before:?}");
        }
    }

    #[test]
    fn only_ready_is_ready() {
        for status in [Status::Starting, Status::NotReady, Status::Stopping, Status::Stopped] {
            assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
        }
        assert_eq!(Status::Ready { pid: 1 }.state(), cri::PodSandboxState::SandboxReady);
    }
}
