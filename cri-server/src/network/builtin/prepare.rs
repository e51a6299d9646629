//! The node's side of the network: the bridge with the gateways' addresses, kernel parameters, the table.
//!
//! It is looked at before every pod and made only where something is missing. Subnets that pods still have addresses of
//! stay, whatever new pods get theirs from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use corten_proto::id::SandboxId;
use nix::errno::Errno;

use super::link::{self, Link, Route};
use super::netlink::{Batch, Socket, is_refusal};
use super::port::HostPort;
use super::prefix::{Prefix, check_subnets, octets};
use super::ruleset::{self, Ruleset};
use super::{Builtin, conntrack, sysctl};

/// The MTU where nothing says another.
const MTU: u32 = 1500;

/// What the node's side was found, or made, to be.
#[derive(Clone)]
pub(super) struct Prepared {
    bridge: Link,
    subnets: BTreeSet<Prefix>,
}

impl Builtin {
    /// The same after everything was looked at again.
    pub(super) fn prepare_anew(&self) -> Result<Link> {
        *self.prepared.lock().expect("no holder panics") = None;
        self.prepare()
    }

    /// The bridge, with everything around it as it must be for the next pod.
    pub(super) fn prepare(&self) -> Result<Link> {
        let mut prepared = self.prepared.lock().expect("no holder panics");
        let current = self.subnets(&self.state());
        let all = self.all_subnets();
        let socket = Socket::route()?;
        let name = &self.config.bridge;
        let found = link::find(&socket, name)?;
        if let (Some(known), Some(found)) = (&*prepared, &found)
            && *found == known.bridge
            && all == known.subnets
            && ruleset::is_installed(name)?
        {
            return Ok(known.bridge.clone());
        }
        *prepared = None;
        let made = self.make(&socket, found, &current, &all);
        let bridge = made.with_context(|| format!("prepare bridge {name} for pods"))?;
        *prepared = Some(Prepared {
            bridge: bridge.clone(),
            subnets: all,
        });
        Ok(bridge)
    }

    fn make(&self, socket: &Socket, found: Option<Link>, current: &[Prefix], all: &BTreeSet<Prefix>) -> Result<Link> {
        if let Err(rule) = check_subnets(current) {
            bail!("subnet {rule}");
        }
        let name = &self.config.bridge;
        if let Some(found) = found.as_ref().filter(|found| found.kind != "bridge") {
            bail!("there is a link of this name of kind {:?}", found.kind);
        }
        let routes = link::routes(socket)?;
        let own = found.as_ref().map(|found| found.index);
        if let Some((subnet, route)) = collision(all, &routes, own) {
            bail!("subnet {subnet}: the node has a route to {} already", route.to);
        }
        if found.is_none() {
            link::make_bridge(socket, name, self.mtu(socket, &routes)?, hardware_address(current))?;
        }
        let has = |version: fn(&IpAddr) -> bool| all.iter().any(|subnet| version(&subnet.address));
        sysctl::prepare_node(name, has(IpAddr::is_ipv4), has(IpAddr::is_ipv6))?;
        let bridge = link::find(socket, name)?.context("it has gone again")?;
        set_gateways(socket, &bridge, all)?;
        self.install_rules(all)?;
        Ok(bridge)
    }

    /// The largest packet that leaves the node in one piece.
    fn mtu(&self, socket: &Socket, routes: &[Route]) -> Result<u32> {
        if self.config.mtu != 0 {
            return Ok(self.config.mtu);
        }
        let default = routes.iter().find(|route| route.to.length == 0);
        let links = link::list(socket)?;
        let uplink = default.and_then(|route| links.iter().find(|link| link.index == route.link));
        Ok(uplink.map_or(MTU, |link| link.mtu))
    }

    /// Puts the table in place, with all ports that pods have now. The caller holds `prepared`, so that no port comes or
    /// goes meanwhile.
    fn install_rules(&self, subnets: &BTreeSet<Prefix>) -> Result<()> {
        let ports: Vec<HostPort> = self.state().ports.iter().map(|(port, _)| port).collect();
        let subnets: Vec<Prefix> = subnets.iter().copied().collect();
        let rules = Ruleset {
            bridge: &self.config.bridge,
            subnets: &subnets,
            ports: &ports,
        };
        rules.install()
    }

    /// Has the pod's ports lead to it.
    pub(super) fn open_ports(&self, id: &SandboxId) -> Result<()> {
        let ports = self.state().ports.of(id);
        if ports.is_empty() {
            return Ok(());
        }
        let _installed = self.prepared.lock().expect("no holder panics");
        self.or_install(ruleset::add_ports(&self.config.bridge, &ports))?;
        conntrack::forget_udp(&ports)
    }

    /// Ends the pod's ports. Where that fails it has them still.
    pub(super) fn close_ports(&self, id: &SandboxId) -> Result<()> {
        // Held from before they are nobody's until they are out of the table: it could be installed anew in between.
        let _installed = self.prepared.lock().expect("no holder panics");
        let (ports, owner) = {
            let mut state = self.state();
            let ports = state.ports.of(id);
            let owner = state.attached.get(id).map(|pod| pod.owner.clone());
            state.ports.release(id);
            (ports, owner)
        };
        let (false, Some(owner)) = (ports.is_empty(), owner) else {
            return Ok(());
        };
        let closed = self.or_install(ruleset::remove_ports(&self.config.bridge, &ports));
        if closed.is_err()
            && let Err(problem) = self.state().ports.take(&ports, &owner)
        {
            tracing::error!(sandbox = %id, "{problem}");
        }
        closed?;
        conntrack::forget_udp(&ports)
    }

    /// Installs the whole table where a change of it has not found what it was to change: somebody has flushed it.
    fn or_install(&self, changed: Result<()>) -> Result<()> {
        match changed {
            Err(error) if is_refusal(&error, Errno::ENOENT) => {
                let subnets = self.all_subnets();
                self.install_rules(&subnets)
            }
            changed => changed,
        }
    }

    /// The subnets of new pods and those that pods have addresses of.
    fn all_subnets(&self) -> BTreeSet<Prefix> {
        let state = self.state();
        let used = state.attached.values().flat_map(|pod| &pod.addresses);
        self.subnets(&state)
            .into_iter()
            .chain(used.map(|prefix| prefix.network()))
            .collect()
    }
}

/// A subnet that another link of the node has a part of, and the route that says so. A wider route is no collision: ours
/// is the better one.
fn collision(subnets: &BTreeSet<Prefix>, routes: &[Route], own: Option<u32>) -> Option<(Prefix, Route)> {
    let others = || {
        routes
            .iter()
            .filter(|route| Some(route.link) != own && route.to.length > 0)
    };
    subnets.iter().find_map(|subnet| {
        let inside = |route: &&Route| route.to.length >= subnet.length && subnet.contains(route.to.address);
        others().find(inside).map(|route| (*subnet, *route))
    })
}

/// Gives the bridge the gateways' addresses, and no others.
fn set_gateways(socket: &Socket, bridge: &Link, subnets: &BTreeSet<Prefix>) -> Result<()> {
    let gateways: BTreeSet<Prefix> = subnets.iter().map(|subnet| subnet.gateway()).collect();
    let present = link::addresses(socket, bridge.index)?;
    let mut batch = Batch::default();
    for old in present.iter().filter(|old| !gateways.contains(old)) {
        link::remove_address(&mut batch, bridge.index, *old);
    }
    for gateway in gateways {
        link::add_address(&mut batch, bridge.index, gateway);
    }
    link::bring_up(&mut batch, bridge.index, &bridge.name);
    socket.run(&batch)
}

/// A hardware address of the node's own making (the second bit of the first byte), the same as long as the subnets are.
fn hardware_address(subnets: &[Prefix]) -> [u8; 6] {
    let gateway = subnets
        .first()
        .map(|subnet| octets(subnet.gateway().address))
        .unwrap_or_default();
    let mut address = [0x0a, 0x58, 0, 0, 0, 0];
    let tail = gateway.len().saturating_sub(4);
    for (to, from) in address[2..].iter_mut().zip(&gateway[tail..]) {
        *to = *from;
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_collide() {
        let subnets = BTreeSet::from(["10.87.0.0/16".parse().unwrap(), "fd00:87::/64".parse().unwrap()]);
        for (to, link, collides) in [
            ("10.87.0.0/16", 7, false),
            ("10.87.0.0/16", 8, true),
            ("10.87.5.0/24", 8, true),
            ("10.0.0.0/8", 8, false),
            ("0.0.0.0/0", 8, false),
            ("10.88.0.0/16", 8, false),
            ("fd00:87::/96", 8, true),
            ("::/0", 8, false),
        ] {
            let to = to.parse().unwrap();
            assert_eq!(
                collision(&subnets, &[Route { to, link }], Some(7)).is_some(),
                collides,
                "{to}"
            );
        }
    }

    #[test]
    fn the_bridges_hardware_address() {
        for (subnets, expected) in [
            (&["10.87.0.0/16"][..], [0x0a, 0x58, 10, 87, 0, 1]),
            (&["fd00::/64", "10.87.0.0/16"], [0x0a, 0x58, 0, 0, 0, 1]),
            (&[], [0x0a, 0x58, 0, 0, 0, 0]),
        ] {
            let subnets: Vec<Prefix> = subnets.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(hardware_address(&subnets), expected);
        }
    }
}
