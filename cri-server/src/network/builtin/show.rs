//! The network as `corten-cri network show` tells it: what the records say, and what the kernel has of it.

use anyhow::Result;
use corten_proto::networks::{Pod, Port, Shown};

use super::link::{self, Link};
use super::netlink::Socket;
use super::prefix::Prefix;
use super::{Builtin, ruleset};

impl Builtin {
    /// Everything but who gets this network. Blocks.
    pub(crate) fn show(&self) -> Result<Shown> {
        let links = link::list(&Socket::route()?)?;
        let bridge = links.iter().find(|link| link.name == self.config.bridge);
        let table = ruleset::is_installed(&self.config.bridge)?;
        let dropping_chains = ruleset::dropping_chains()?;
        let state = self.state();
        let mut pods: Vec<_> = state.attached.values().collect();
        pods.sort_by_key(|pod| pod.addresses.first().map(|prefix| prefix.address));
        let link_of = |name: String| links.iter().any(|link: &Link| link.name == name).then_some(name);
        let pods = pods.into_iter().map(|pod| Pod {
            name: pod.owner.name.clone(),
            sandbox: pod.owner.id.to_string(),
            addresses: pod.addresses.iter().map(Prefix::to_string).collect(),
            link: link_of(link::name_of(&pod.owner.id)).unwrap_or_default(),
        });
        let ports = state.ports.iter().map(|(port, owner)| Port {
            protocol: port.listen.protocol_name().to_owned(),
            listen: port.listen.socket().to_string(),
            target: port.target.to_string(),
            pod: owner.name.clone(),
        });
        Ok(Shown {
            unused_because: String::new(),
            bridge: self.config.bridge.clone(),
            mtu: bridge.map_or(0, |bridge| bridge.mtu),
            subnets: self.subnets(&state).iter().map(Prefix::to_string).collect(),
            table,
            pods: pods.collect(),
            ports: ports.collect(),
            dropping_chains,
        })
    }
}
