//! The node's side of the network: the bridge with the gateways' addresses, kernel parameters, the table.
//!
//! It is looked at before every pod and made only where something is missing. Subnets that pods still have addresses of
//! stay, whatever new pods get theirs from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use corten_proto::id::SandboxId;
use nix::errno::Errno;

use super::conntrack::{self, Change};
use super::link::{self, Link, Route};
use super::netlink::{Batch, Socket, is_refusal};
use super::port::HostPort;
use super::prefix::{Prefix, check_subnets, octets};
use super::ruleset::{self, Ruleset};
use super::{Builtin, sysctl};

/// The MTU where nothing says another.
const MTU: u32 = 1500;

/// What the node's side was found, or made, to be.
#[derive(Clone)]
pub(super) struct Prepared {
    bridge: Link,
    subnets: BTreeSet<Prefix>,
}

impl Builtin {
    /// The bridge for pods that are there, after everything was looked at again. Subnets that no new pod could have an
    /// address of are passed over.
    pub(super) fn prepare_anew(&self) -> Result<Link> {
        let mut prepared = self.prepared.lock().expect("no holder panics");
        let socket = Socket::route()?;
        let subnets = match self.check_current(&socket) {
            Ok(()) => self.all_subnets(),
            Err(problem) => {
                tracing::warn!("no new pods can have this network: {problem:#}");
                self.used_subnets()
            }
        };
        self.make_known(&mut prepared, &socket, subnets)
    }

    /// The bridge, with everything around it as it must be for the next pod.
    pub(super) fn prepare(&self) -> Result<Link> {
        let mut prepared = self.prepared.lock().expect("no holder panics");
        let all = self.all_subnets();
        let socket = Socket::route()?;
        if let Some(known) = &*prepared
            && all == known.subnets
            && known.is_intact(&socket)?
        {
            return Ok(known.bridge.clone());
        }
        *prepared = None;
        let checked = self.check_current(&socket);
        checked.with_context(|| format!("prepare bridge {} for pods", self.config.bridge))?;
        self.make_known(&mut prepared, &socket, all)
    }

    fn make_known(&self, prepared: &mut Option<Prepared>, socket: &Socket, subnets: BTreeSet<Prefix>) -> Result<Link> {
        *prepared = None;
        let made = self.make(socket, &subnets);
        let bridge = made.with_context(|| format!("prepare bridge {} for pods", self.config.bridge))?;
        *prepared = Some(Prepared {
            bridge: bridge.clone(),
            subnets,
        });
        Ok(bridge)
    }

    /// Refuses subnets of new pods that break a rule or meet what the node has.
    fn check_current(&self, socket: &Socket) -> Result<()> {
        let current = self.subnets(&self.state());
        if let Err(rule) = check_subnets(&current) {
            bail!("subnet {rule}");
        }
        let own = link::find(socket, &self.config.bridge)?.map(|found| found.index);
        match collision(&current, &link::routes(socket)?, &link::addresses(socket)?, own) {
            Some((subnet, problem)) => bail!("subnet {subnet}: {problem}"),
            None => Ok(()),
        }
    }

    fn make(&self, socket: &Socket, subnets: &BTreeSet<Prefix>) -> Result<Link> {
        let name = &self.config.bridge;
        let find = || link::find(socket, name)?.context("it has gone again");
        match link::find(socket, name)? {
            Some(found) => check_owner(socket, &found, &self.mark)?,
            None => {
                let current = self.subnets(&self.state());
                link::make_bridge(socket, name, hardware_address(&current))?;
                check_owner(socket, &find()?, &self.mark)?;
            }
        }
        let (routes, links) = (link::routes(socket)?, link::list(socket)?);
        link::set_bridge(socket, &find()?, &self.mark, self.mtu(&links, &routes))?;
        let learned = |link: &&Link| {
            let by_it = |route: &Route| route.link == link.index && route.is_learned && route.to.length == 0;
            routes.iter().any(by_it)
        };
        let learners: Vec<_> = links.iter().filter(learned).map(|link| link.name.as_str()).collect();
        let (ipv4, ipv6) = versions(subnets);
        sysctl::prepare_node(name, ipv4, ipv6, &learners)?;
        set_gateways(socket, &find()?, subnets)?;
        if let Err(error) = self.install_rules(subnets) {
            // What the rules would have kept out must not come in.
            sysctl::route_localnet(name, false)?;
            return Err(error);
        }
        if ipv4 {
            sysctl::route_localnet(name, true)?;
        }
        find()
    }

    /// The largest packet that leaves the node in one piece.
    fn mtu(&self, links: &[Link], routes: &[Route]) -> u32 {
        if self.config.mtu != 0 {
            return self.config.mtu;
        }
        let default = routes.iter().find(|route| route.to.length == 0);
        let uplink = default.and_then(|route| links.iter().find(|link| link.index == route.link));
        uplink.map_or(MTU, |link| link.mtu)
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
        {
            let _installed = self.prepared.lock().expect("no holder panics");
            self.or_install(ruleset::add_ports(&self.config.bridge, &ports))?;
        }
        forget_udp(&ports, Change::Opened);
        Ok(())
    }

    /// Ends the pod's ports. Where that fails it has them still.
    pub(super) fn close_ports(&self, id: &SandboxId) -> Result<()> {
        if self.state().ports.of(id).is_empty() {
            return Ok(());
        }
        // Held from before they are nobody's until they are out of the table: it could be installed anew in between.
        let installed = self.prepared.lock().expect("no holder panics");
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
        drop(installed);
        closed?;
        forget_udp(&ports, Change::Closed);
        Ok(())
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
        let mut subnets = self.used_subnets();
        subnets.extend(self.subnets(&self.state()));
        subnets
    }

    /// The subnets that pods have addresses of.
    fn used_subnets(&self) -> BTreeSet<Prefix> {
        let state = self.state();
        let used = state.attached.values().flat_map(|pod| &pod.addresses);
        used.map(|prefix| prefix.network()).collect()
    }
}

impl Prepared {
    /// Whether the node's side still is what it was made to be.
    fn is_intact(&self, socket: &Socket) -> Result<bool> {
        let name = &self.bridge.name;
        if link::find(socket, name)?.as_ref() != Some(&self.bridge) || !ruleset::is_installed(name)? {
            return Ok(false);
        }
        let present = link::addresses(socket)?;
        let has = |subnet: &Prefix| present.contains(&(self.bridge.index, subnet.gateway()));
        let (ipv4, ipv6) = versions(&self.subnets);
        Ok(self.subnets.iter().all(has) && sysctl::forwards(ipv4, ipv6)?)
    }
}

/// Whether there are subnets of version 4, and of 6.
fn versions(subnets: &BTreeSet<Prefix>) -> (bool, bool) {
    let has = |version: fn(&IpAddr) -> bool| subnets.iter().any(|subnet| version(&subnet.address));
    (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6))
}

/// Refuses a bridge that a server with this mark has not made.
///
/// One without a mark that is neither up nor has addresses passes: a server may have been killed before it put its mark there,
/// and there is nothing to be lost.
pub(super) fn check_owner(socket: &Socket, bridge: &Link, mark: &str) -> Result<()> {
    let Link { index, kind, alias, .. } = bridge;
    ensure!(kind == "bridge", "there is a link of this name of kind {kind:?}");
    if alias == mark {
        return Ok(());
    }
    let has_addresses = || Ok::<_, anyhow::Error>(link::addresses(socket)?.iter().any(|(of, _)| of == index));
    let is_new = alias.is_empty() && !bridge.is_up && !has_addresses()?;
    ensure!(
        is_new,
        "there is a bridge of this name that is another's (its alias is {alias:?}, not {mark:?}): choose another [network] bridge"
    );
    Ok(())
}

/// Has the kernel forget what it knows of UDP ports; without that some packets may go astray, which is no reason to fail.
fn forget_udp(ports: &[HostPort], change: Change) {
    if let Err(error) = conntrack::forget_udp(ports, change) {
        tracing::warn!("forget the connections of host ports: {error:#}");
    }
}

/// A subnet that another link of the node has a part of, and what says so. A wider route is no collision, ours is the better
/// one, unless a machine that the node needs, or it itself, is inside.
fn collision(
    subnets: &[Prefix],
    routes: &[Route],
    addresses: &[(u32, Prefix)],
    own: Option<u32>,
) -> Option<(Prefix, String)> {
    let routes = || routes.iter().filter(|route| Some(route.link) != own);
    let addresses = || addresses.iter().filter(|(link, _)| Some(*link) != own);
    subnets.iter().find_map(|subnet| {
        let inside = |to: Prefix| to.length >= subnet.length && subnet.contains(to.address);
        let route = routes().find(|route| inside(route.to));
        let route = route.map(|route| format!("the node has a route to {} already", route.to));
        let gateway = || {
            let mut gateways = routes().filter_map(|route| route.gateway);
            let gateway = gateways.find(|gateway| subnet.contains(*gateway))?;
            Some(format!("the node has a route by {gateway}"))
        };
        let address = || {
            let (_, address) = addresses().find(|(_, it)| subnet.contains(it.address))?;
            Some(format!("the node has the address {address} elsewhere"))
        };
        let problem = route.or_else(gateway).or_else(address)?;
        Some((*subnet, problem))
    })
}

/// Gives the bridge the gateways' addresses, and no others.
fn set_gateways(socket: &Socket, bridge: &Link, subnets: &BTreeSet<Prefix>) -> Result<()> {
    let gateways: BTreeSet<Prefix> = subnets.iter().map(|subnet| subnet.gateway()).collect();
    let present = link::addresses(socket)?;
    let mut batch = Batch::default();
    for (link, old) in present {
        if link == bridge.index && !gateways.contains(&old) {
            link::remove_address(&mut batch, link, old);
        }
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
    fn what_collides() {
        let subnets: [Prefix; 2] = ["10.87.0.0/16", "fd00:87::/64"].map(|text| text.parse().unwrap());
        for (to, link, gateway, collides) in [
            ("10.87.0.0/16", 7, None, false),
            ("10.87.0.0/16", 8, None, true),
            ("10.87.5.0/24", 8, None, true),
            ("10.0.0.0/8", 8, None, false),
            ("0.0.0.0/0", 8, Some("10.0.0.1"), false),
            ("0.0.0.0/0", 8, Some("10.87.0.1"), true),
            ("10.88.0.0/16", 8, None, false),
            ("fd00:87::/96", 8, None, true),
            ("::/0", 8, None, false),
        ] {
            let route = Route {
                to: to.parse().unwrap(),
                link,
                gateway: gateway.map(|it: &str| it.parse().unwrap()),
                is_learned: false,
            };
            let found = collision(&subnets, &[route], &[], Some(7));
            assert_eq!(found.is_some(), collides, "{to}");
        }
        for (address, link, collides) in [
            ("10.87.3.1/8", 8, true),
            ("10.87.0.1/16", 7, false),
            ("10.8.0.1/8", 8, false),
        ] {
            let found = collision(&subnets, &[], &[(link, address.parse().unwrap())], Some(7));
            assert_eq!(found.is_some(), collides, "{address}");
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
