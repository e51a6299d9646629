//! Ports of the node that lead to pods: what requests ask for, and who has which. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use corten_proto::cri::{PortMapping, Protocol};
use corten_proto::id::SandboxId;
use nix::libc;

use super::prefix::octets;
use crate::spec::SpecError;

/// A port of the node, on one address of it or on all of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listen {
    /// Whether it is of version 4.
    pub(super) is_ipv4: bool,
    /// IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
    pub(super) protocol: u8,
    /// The port.
    pub(super) port: u16,
    /// The only address where it counts.
    pub(super) address: Option<IpAddr>,
}

/// A port of the node and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    /// The node's side.
    pub(super) listen: Listen,
    /// The pod's side.
    pub(super) target: SocketAddr,
}

impl Listen {
    /// The protocol's name.
    pub(super) fn protocol_name(&self) -> &'static str {
        match i32::from(self.protocol) {
            libc::IPPROTO_UDP => "UDP",
            libc::IPPROTO_SCTP => "SCTP",
            _ => "TCP",
        }
    }

    /// Address and port of the node; the unspecified address for all.
    pub(super) fn socket(&self) -> SocketAddr {
        let any = if self.is_ipv4 {
            IpAddr::from([0; 4])
        } else {
            IpAddr::from([0u8; 16])
        };
        SocketAddr::new(self.address.unwrap_or(any), self.port)
    }

    /// The key of the map that it is in: address if it has one, protocol, port; each in words.
    pub(super) fn key(&self) -> Vec<u8> {
        let mut key = self.address.map(octets).unwrap_or_default();
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(self.port.to_be_bytes());
        key.extend([0; 2]);
        key
    }

    /// Whether a packet could be meant for both.
    fn meets(&self, other: &Listen) -> bool {
        let same = (self.is_ipv4, self.protocol, self.port) == (other.is_ipv4, other.protocol, other.port);
        same && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol_name(), self.socket())
    }
}

impl HostPort {
    /// What the map has for the key: address, port; each in words.
    pub(super) fn data(&self) -> Vec<u8> {
        let mut data = octets(self.target.ip());
        data.extend(self.target.port().to_be_bytes());
        data.extend([0; 2]);
        data
    }
}

/// The ports that a pod with these addresses is to have.
///
/// # Errors
/// The field, its value and the rule that it breaks.
pub(super) fn host_ports(mappings: &[PortMapping], addresses: &[IpAddr]) -> Result<Vec<HostPort>, SpecError> {
    let mut ports: Vec<HostPort> = Vec::new();
    // A mapping without a host port maps nothing.
    for (index, mapping) in mappings
        .iter()
        .enumerate()
        .filter(|(_, mapping)| mapping.host_port != 0)
    {
        let field = |name: &str| format!("port_mappings[{index}].{name}");
        let number = |name: &str, value: i32| match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(SpecError::invalid(field(name), value, "must be 1 to 65535")),
        };
        let port = number("host_port", mapping.host_port)?;
        let target = number("container_port", mapping.container_port)?;
        let protocol = protocol(mapping.protocol)
            .ok_or_else(|| SpecError::invalid(field("protocol"), mapping.protocol, "must be TCP, UDP or SCTP"))?;
        let found = listens(&mapping.host_ip, addresses)
            .map_err(|rule| SpecError::invalid(field("host_ip"), &mapping.host_ip, rule))?;
        for (address, pod) in found {
            let listen = Listen {
                is_ipv4: pod.is_ipv4(),
                protocol,
                port,
                address,
            };
            if ports.iter().any(|other| other.listen.meets(&listen)) {
                let rule = format!("must not be in two mappings: {listen} is");
                return Err(SpecError::invalid(field("host_port"), port, rule));
            }
            let target = SocketAddr::new(pod, target);
            ports.push(HostPort { listen, target });
        }
    }
    Ok(ports)
}

/// The addresses of the node that `host_ip` means, none for all, and the pod's address that each leads to.
fn listens(host_ip: &str, addresses: &[IpAddr]) -> Result<Vec<(Option<IpAddr>, IpAddr)>, &'static str> {
    if host_ip.is_empty() {
        return Ok(addresses.iter().map(|pod| (None, *pod)).collect());
    }
    let host: IpAddr = host_ip
        .parse()
        .map_err(|_no_address| "must be an address of the node")?;
    if host.is_ipv6() && host.is_loopback() {
        return Err("must not be ::1: the kernel sends nothing from there to another host");
    }
    let same = |pod: &&IpAddr| pod.is_ipv4() == host.is_ipv4();
    let pod = addresses.iter().find(same);
    let pod = pod.ok_or("must be of a version that the pods' subnets have")?;
    Ok(vec![((!host.is_unspecified()).then_some(host), *pod)])
}

fn protocol(value: i32) -> Option<u8> {
    let number = match Protocol::try_from(value).ok()? {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
        Protocol::Sctp => libc::IPPROTO_SCTP,
    };
    u8::try_from(number).ok()
}

/// A pod, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) id: SandboxId,
    /// Namespace and name.
    pub(super) name: String,
}

/// Which ports lead to which pod.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<Listen, (SocketAddr, Owner)>);

impl Ports {
    /// Gives the pod all of these ports, or none.
    ///
    /// # Errors
    /// Which one another pod has.
    pub(super) fn take(&mut self, ports: &[HostPort], owner: &Owner) -> Result<(), String> {
        for port in ports {
            let taken = self
                .0
                .iter()
                .find(|(listen, (_, of))| listen.meets(&port.listen) && of.id != owner.id);
            if let Some((listen, (_, of))) = taken {
                let wanted = port.listen;
                return Err(format!(
                    "host port {wanted}: pod {} (sandbox {}) has {listen}",
                    of.name, of.id
                ));
            }
        }
        let entries = ports.iter().map(|port| (port.listen, (port.target, owner.clone())));
        self.0.extend(entries);
        Ok(())
    }

    /// The ports that lead to the pod.
    pub(super) fn of(&self, owner: &SandboxId) -> Vec<HostPort> {
        self.iter()
            .filter(|(_, of)| of.id == *owner)
            .map(|(port, _)| port)
            .collect()
    }

    /// Frees all that lead to the pod.
    pub(super) fn release(&mut self, owner: &SandboxId) {
        self.0.retain(|_, (_, of)| of.id != *owner);
    }

    /// Every port and whom it leads to, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (HostPort, &Owner)> {
        self.0.iter().map(|(listen, (target, owner))| {
            let port = HostPort {
                listen: *listen,
                target: *target,
            };
            (port, owner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: i32, container_port: i32, protocol: Protocol) -> PortMapping {
        PortMapping {
            protocol: protocol.into(),
            container_port,
            host_port,
            host_ip: host_ip.to_owned(),
        }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_mapping_comes_to() {
        let dual = &["10.87.0.2", "fd00::2"][..];
        for (host_ip, protocol, addresses, expected) in [
            (
                "",
                Protocol::Tcp,
                dual,
                &["TCP 0.0.0.0:80 10.87.0.2:8080", "TCP [::]:80 [fd00::2]:8080"][..],
            ),
            ("0.0.0.0", Protocol::Udp, dual, &["UDP 0.0.0.0:80 10.87.0.2:8080"]),
            ("::", Protocol::Sctp, dual, &["SCTP [::]:80 [fd00::2]:8080"]),
            ("192.0.2.1", Protocol::Tcp, dual, &["TCP 192.0.2.1:80 10.87.0.2:8080"]),
            ("", Protocol::Tcp, &["10.87.0.2"], &["TCP 0.0.0.0:80 10.87.0.2:8080"]),
        ] {
            let ports = host_ports(&[mapping(host_ip, 80, 8080, protocol)], &ips(addresses)).unwrap();
            let shown: Vec<_> = ports
                .iter()
                .map(|port| format!("{} {}", port.listen, port.target))
                .collect();
            assert_eq!(shown, expected, "{host_ip:?}");
        }
        assert!(
            host_ports(&[mapping("", 0, 80, Protocol::Tcp)], &ips(dual))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn mappings_that_break_a_rule() {
        let v4 = ips(&["10.87.0.2"]);
        let twice = [
            mapping("", 80, 1, Protocol::Tcp),
            mapping("127.0.0.1", 80, 2, Protocol::Tcp),
        ];
        for (mappings, field) in [
            (
                &[mapping("", 70000, 1, Protocol::Tcp)][..],
                "port_mappings[0].host_port",
            ),
            (&[mapping("", 1, 0, Protocol::Tcp)], "port_mappings[0].container_port"),
            (&[mapping("node", 1, 1, Protocol::Tcp)], "port_mappings[0].host_ip"),
            (&[mapping("fd00::1", 1, 1, Protocol::Tcp)], "port_mappings[0].host_ip"),
            (&[mapping("::1", 1, 1, Protocol::Tcp)], "port_mappings[0].host_ip"),
            (&twice, "port_mappings[1].host_port"),
        ] {
            let error = host_ports(mappings, &v4).unwrap_err();
            assert_eq!(error.field, field, "{error}");
        }
    }

    #[test]
    fn a_port_is_one_pods() {
        let mut ports = Ports::default();
        let owner = |name: &str| Owner {
            id: name.parse().unwrap(),
            name: format!("default/{name}"),
        };
        let at = |host_ip: &str, protocol| {
            host_ports(&[mapping(host_ip, 80, 8080, protocol)], &ips(&["10.87.0.2"])).unwrap()
        };
        ports.take(&at("192.0.2.1", Protocol::Tcp), &owner("a")).unwrap();
        ports.take(&at("192.0.2.2", Protocol::Tcp), &owner("b")).unwrap();
        ports.take(&at("", Protocol::Udp), &owner("b")).unwrap();
        let error = ports.take(&at("", Protocol::Tcp), &owner("c")).unwrap_err();
        assert_eq!(
            error,
            "host port TCP 0.0.0.0:80: pod default/a (sandbox a) has TCP 192.0.2.1:80"
        );
        ports.release(&owner("a").id);
        ports.release(&owner("b").id);
        ports.take(&at("", Protocol::Tcp), &owner("c")).unwrap();
        assert_eq!(ports.of(&owner("c").id).len(), 1);
        assert_eq!(ports.iter().count(), 1);
    }

    #[test]
    fn keys_and_data_in_words() {
        let port = host_ports(&[mapping("192.0.2.1", 80, 8080, Protocol::Udp)], &ips(&["10.87.0.2"])).unwrap()[0];
        assert_eq!(port.listen.key(), [192, 0, 2, 1, 17, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(port.data(), [10, 87, 0, 2, 0x1f, 0x90, 0, 0]);
    }
}
