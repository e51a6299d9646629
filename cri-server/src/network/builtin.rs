//! The network of a node that has no CNI configuration: a bridge, addresses, host ports, without any program but this one.
//!
//! | module | owns |
//! |---|---|
//! | `prefix`, `addresses`, `port` | what is pure: subnets, who has which address, who has which port |
//! | `netlink` | messages and sockets |
//! | `link` | bridge, pairs, addresses, routes |
//! | `nft`, `ruleset` | the table of masquerading and host ports |
//! | `bandwidth` | limits of what a pod sends and receives |
//! | `conntrack` | connections that a port's change makes stale |
//! | `sysctl` | kernel parameters |
//! | `prepare` | the node's side, once for all pods: bridge, gateways, parameters, table |
//! | `repair`, `show` | what the kernel has against what the records say |
//!
//! ```text
//! add      address, ports (memory) ──> pair, with eth0 in the pod ──> addresses, routes ──> ports (table)
//! remove   ports ──> pair ──> address (memory): free when the call that stops the pod answers
//! ```
//!
//! **The records of the pods are all there is on disk**: what an attachment says there is read at the start, and nothing
//! else remembers an address. What a killed server has begun has a record without attachment, or none: its link is found
//! by its alias, its ports are not in the table that the next server installs.
//!
//! A batch of messages has a socket of its own, which takes some microseconds: one that is kept would have pods wait for
//! each other, above all for the removal of a link, which takes the kernel milliseconds.

mod addresses;
mod bandwidth;
mod conntrack;
mod link;
mod netlink;
mod nft;
mod port;
mod prefix;
mod prepare;
mod repair;
mod ruleset;
mod show;
mod sysctl;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use anyhow::{Context, Result};
use corten_proto::id::SandboxId;
use serde::{Deserialize, Serialize};

use self::addresses::Addresses;
pub(super) use self::link::bring_up_loopback;
use self::link::{INTERFACE, Link};
use self::netlink::{Batch, Socket};
use self::port::{Owner, Ports, host_ports};
pub use self::prefix::{Prefix, check_subnets};
use self::prepare::Prepared;
pub(crate) use self::repair::remove;
use super::netns;
use super::{Bandwidth, PodNetwork};
use crate::config;
use crate::error::Error;
use crate::node::blocking;
use crate::stage::stage;

/// Bytes of a mark.
const LONGEST_MARK: usize = 240;

/// What a pod has of this network: part of its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The pod's link on the node.
    pub link: String,
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<Prefix>,
}

/// The node's built-in network.
pub struct Builtin {
    config: config::Network,
    /// What the bridge has as its alias: no other server takes it for its own, nor does this one take another's.
    mark: String,
    state: Mutex<State>,
    /// Shared by pods that come and go, exclusive for the repair of all that are there.
    turn: RwLock<()>,
    /// What the node's side was like when it was last looked at; held while it changes.
    prepared: Mutex<Option<Prepared>>,
}

#[derive(Default)]
struct State {
    /// The kubelet's ranges, which count before those of the configuration.
    pod_cidrs: Vec<Prefix>,
    addresses: Addresses,
    ports: Ports,
    attached: BTreeMap<SandboxId, Attached>,
}

/// A pod of this network.
#[derive(Clone)]
struct Attached {
    owner: Owner,
    netns: PathBuf,
    addresses: Vec<Prefix>,
    bandwidth: Bandwidth,
}

impl Builtin {
    /// Does nothing yet. `root` is the server's directory, by which its bridge is known.
    #[must_use]
    pub fn new(config: &config::Network, root: &Path) -> Arc<Builtin> {
        Arc::new(Builtin {
            config: config.clone(),
            mark: mark_of(root),
            state: Mutex::default(),
            turn: RwLock::default(),
            prepared: Mutex::default(),
        })
    }

    /// Takes the kubelet's ranges: pods get addresses of them from now on. Those that no pod can have are passed over.
    pub fn set_pod_cidrs(&self, cidrs: &[String]) {
        let parsed = cidrs.iter().map(|cidr| cidr.parse::<Prefix>().map(Prefix::network));
        self.state().pod_cidrs = parsed.filter_map(Result::ok).collect();
    }

    /// Attaches the pod.
    pub(super) async fn add(self: &Arc<Self>, pod: &PodNetwork) -> Result<Attachment, Error> {
        let _stage = stage(|| "the built-in network".to_owned());
        let (network, pod) = (self.clone(), pod.clone());
        // Two results: the inner one keeps the kind of the refusal.
        blocking(move || {
            let _turn = network.turn();
            Ok(network.attach(&pod))
        })
        .await?
    }

    /// Detaches the pod, whatever there is of it; doing it again is fine.
    pub(super) async fn remove(self: &Arc<Self>, id: &SandboxId) -> Result<()> {
        let _stage = stage(|| "the built-in network".to_owned());
        let (network, id) = (self.clone(), id.clone());
        blocking(move || {
            let _turn = network.turn();
            network.detach(&id)
        })
        .await
    }

    /// Whether pods can have this network now; else why not. It is made ready for them.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<()> {
        let network = self.clone();
        blocking(move || network.prepare().map(drop)).await
    }

    /// Notes a pod that an earlier server attached.
    pub(super) fn adopt(&self, pod: &PodNetwork, attachment: &Attachment) {
        let mut state = self.state();
        for prefix in &attachment.addresses {
            state.addresses.adopt(*prefix, &pod.id);
        }
        let attached = Attached::new(pod, attachment.addresses.clone());
        let ports = host_ports(&pod.port_mappings, &attached.ips()).map_err(|error| error.to_string());
        if let Err(problem) = ports.and_then(|ports| state.ports.take(&ports, &attached.owner)) {
            tracing::warn!(sandbox = %pod.id, "{problem}");
        }
        state.attached.insert(pod.id.clone(), attached);
    }

    fn turn(&self) -> RwLockReadGuard<'_, ()> {
        self.turn.read().expect("no holder panics")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn attach(&self, pod: &PodNetwork) -> Result<Attachment, Error> {
        let attached = self.reserve(pod)?;
        // From here the pod is undone as a whole.
        let bridge = self.prepare();
        let connected = bridge.and_then(|bridge| attached.connect(&bridge));
        if let Err(error) = connected.and_then(|()| self.open_ports(&pod.id)) {
            if let Err(undo) = self.detach(&pod.id) {
                tracing::warn!(sandbox = %pod.id, "undo a failed attachment: {undo:#}");
            }
            return Err(error.into());
        }
        Ok(Attachment {
            link: link::name_of(&pod.id),
            addresses: attached.addresses,
        })
    }

    /// Addresses and ports of the pod, all of them or none.
    fn reserve(&self, pod: &PodNetwork) -> Result<Attached, Error> {
        let mut state = self.state();
        let taken = self.take(&mut state, pod);
        if taken.is_err() {
            state.addresses.release(&pod.id);
            state.ports.release(&pod.id);
        }
        taken
    }

    fn take(&self, state: &mut State, pod: &PodNetwork) -> Result<Attached, Error> {
        let mut addresses = Vec::new();
        for subnet in self.subnets(state) {
            addresses.push(state.addresses.take(subnet, &pod.id)?);
        }
        let attached = Attached::new(pod, addresses);
        let ports = host_ports(&pod.port_mappings, &attached.ips())?;
        state.ports.take(&ports, &attached.owner).map_err(Error::State)?;
        state.attached.insert(pod.id.clone(), attached.clone());
        Ok(attached)
    }

    fn detach(&self, id: &SandboxId) -> Result<()> {
        self.close_ports(id)?;
        let socket = Socket::route()?;
        link::remove(&socket, &link::name_of(id))?;
        let limited = self.state().attached.get(id).is_none_or(|pod| pod.bandwidth.egress > 0);
        if limited {
            link::remove(&socket, &bandwidth::ifb_of(id))?;
        }
        let mut state = self.state();
        state.attached.remove(id);
        state.addresses.release(id);
        Ok(())
    }

    /// The subnets that new pods get addresses of.
    fn subnets(&self, state: &State) -> Vec<Prefix> {
        match state.pod_cidrs.as_slice() {
            [] => self.config.subnets.clone(),
            cidrs => cidrs.to_vec(),
        }
    }
}

impl Attached {
    fn new(pod: &PodNetwork, addresses: Vec<Prefix>) -> Attached {
        Attached {
            owner: Owner {
                id: pod.id.clone(),
                name: format!("{}/{}", pod.namespace, pod.name),
            },
            netns: pod.netns.clone(),
            addresses,
            bandwidth: pod.bandwidth,
        }
    }

    /// Gives the pod its link with its limits, addresses and routes; what is there already stays.
    fn connect(&self, bridge: &Link) -> Result<()> {
        connect(&self.owner.id, &self.netns, &self.addresses, bridge)?;
        bandwidth::limit(&self.owner.id, bridge, self.bandwidth)
    }

    fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|prefix| prefix.address).collect()
    }
}

/// How the bridge of the server with this root is marked; an alias has 255 bytes at most.
fn mark_of(root: &Path) -> String {
    let mut mark = format!("corten-bridge:{}", root.display());
    mark.truncate(mark.floor_char_boundary(LONGEST_MARK));
    mark
}

/// Gives the pod its link, addresses and routes.
fn connect(id: &SandboxId, netns: &Path, addresses: &[Prefix], bridge: &Link) -> Result<()> {
    let node = Socket::route()?;
    netns::enter(netns, |namespace| {
        let pod = Socket::route()?;
        let index = match link::find(&pod, INTERFACE)? {
            Some(found) => {
                link::join_bridge(&node, id, bridge)?;
                found.index
            }
            None => {
                sysctl::prepare_pod()?;
                link::make_pair(&node, id, namespace.as_fd(), bridge)?;
                let made = link::find(&pod, INTERFACE)?;
                made.with_context(|| format!("{INTERFACE} is not there"))?.index
            }
        };
        let mut batch = Batch::default();
        for prefix in addresses {
            link::add_address(&mut batch, index, *prefix);
        }
        // Its neighbours are told of the addresses it then has.
        link::bring_up(&mut batch, index, INTERFACE);
        for prefix in addresses {
            link::add_default_route(&mut batch, index, prefix.gateway().address);
        }
        pod.run(&batch)
    })
    .with_context(|| format!("connect sandbox {id} to {}", bridge.name))
}
