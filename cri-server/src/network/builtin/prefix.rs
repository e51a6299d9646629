//! Addresses with the length of their network's prefix, `10.87.0.5/16`: one of a pod, or a whole subnet. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that all of the network share.
    pub length: u8,
}

impl Prefix {
    /// The network that the address is in.
    #[must_use]
    pub fn network(self) -> Prefix {
        Prefix {
            address: from_bits(bits(self.address) & !self.host_mask(), self.address.is_ipv4()),
            length: self.length,
        }
    }

    /// Whether an address is in the network.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Prefix { address, ..self }.network() == self.network()
    }

    /// The address so far into the network.
    #[must_use]
    pub(super) fn nth(self, offset: u128) -> IpAddr {
        let network = bits(self.network().address);
        from_bits(network | (offset & self.host_mask()), self.address.is_ipv4())
    }

    /// How far into the network an address of it is.
    #[must_use]
    pub(super) fn offset(self, address: IpAddr) -> u128 {
        bits(address) & self.host_mask()
    }

    /// The node's own address in the network, which pods send everything through: the first.
    #[must_use]
    pub fn gateway(self) -> Prefix {
        let address = self.nth(1);
        Prefix { address, ..self }
    }

    /// The offsets of addresses for pods: neither the network itself, nor the gateway, nor the broadcast address.
    #[must_use]
    pub(super) fn pods(self) -> std::ops::RangeInclusive<u128> {
        let last = self.host_mask();
        2..=if self.address.is_ipv4() {
            last.saturating_sub(1)
        } else {
            last
        }
    }

    fn host_mask(self) -> u128 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        let host = u32::from(bits - self.length);
        1u128.checked_shl(host).map_or(u128::MAX, |size| size - 1)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, is_ipv4: bool) -> IpAddr {
    match (is_ipv4, u32::try_from(bits)) {
        (true, Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

/// The bytes of an address as they travel.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (address, length) = text.split_once('/')?;
            let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse().ok()?);
            (length <= if address.is_ipv4() { 32 } else { 128 }).then_some(Prefix { address, length })
        };
        parsed().ok_or_else(|| format!("{text:?}: must be an address range like 10.1.2.0/24 or fd00::/64"))
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

/// The rule for subnets that pods get their addresses from, told where it is broken.
///
/// # Errors
/// The rule.
pub fn check_subnets(subnets: &[Prefix]) -> Result<(), String> {
    for (index, subnet) in subnets.iter().enumerate() {
        let lengths = if subnet.address.is_ipv4() { 8..=30 } else { 48..=126 };
        if !lengths.contains(&subnet.length) {
            return Err(format!(
                "{subnet}: must have a prefix of {} to {} bits",
                lengths.start(),
                lengths.end()
            ));
        }
        if subnet.network() != *subnet {
            return Err(format!("{subnet}: must be a network, such as {}", subnet.network()));
        }
        let same = |other: &Prefix| other.address.is_ipv4() == subnet.address.is_ipv4();
        if subnets[..index].iter().any(same) {
            return Err(format!("{subnet}: must be the only one of its version"));
        }
    }
    match subnets {
        [] => Err("must name a subnet".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn networks_gateways_and_what_is_left_for_pods() {
        for (subnet, network, gateway, first, last) in [
            (
                "10.87.3.9/16",
                "10.87.0.0/16",
                "10.87.0.1",
                "10.87.0.2",
                "10.87.255.254",
            ),
            ("10.87.3.9/29", "10.87.3.8/29", "10.87.3.9", "10.87.3.10", "10.87.3.14"),
            ("10.0.0.0/30", "10.0.0.0/30", "10.0.0.1", "10.0.0.2", "10.0.0.2"),
            (
                "fd00:1::5/64",
                "fd00:1::/64",
                "fd00:1::1",
                "fd00:1::2",
                "fd00:1::ffff:ffff:ffff:ffff",
            ),
            ("fd00::/126", "fd00::/126", "fd00::1", "fd00::2", "fd00::3"),
        ] {
            let subnet = prefix(subnet);
            assert_eq!(subnet.network().to_string(), network);
            assert_eq!(subnet.gateway().address.to_string(), gateway);
            let pods = subnet.pods();
            assert_eq!(subnet.nth(*pods.start()).to_string(), first);
            assert_eq!(subnet.nth(*pods.end()).to_string(), last);
            assert_eq!(subnet.offset(subnet.nth(*pods.end())), *pods.end());
            assert!(subnet.contains(subnet.gateway().address));
        }
        assert!(!prefix("10.0.0.0/8").contains("11.0.0.1".parse().unwrap()));
        assert!(!prefix("::/0").contains("11.0.0.1".parse().unwrap()), "another version");
    }

    #[test]
    fn texts() {
        for good in ["10.1.0.0/16", "fd00::/64", "0.0.0.0/0"] {
            assert_eq!(prefix(good).to_string(), good);
        }
        for bad in ["", "10.1.0.0", "10.1.0.0/33", "fd00::/129", "x/8", "10.1.0.0/-1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_for_pods() {
        let check = |list: &[&str]| check_subnets(&list.iter().map(|text| prefix(text)).collect::<Vec<_>>());
        assert_eq!(check(&["10.87.0.0/16", "fd00:87::/64"]), Ok(()));
        for (list, rule) in [
            (&[][..], "must name a subnet"),
            (&["10.87.0.0/31"], "must have a prefix of 8 to 30 bits"),
            (&["fd00::/32"], "must have a prefix of 48 to 126 bits"),
            (&["10.87.1.0/16"], "must be a network, such as 10.87.0.0/16"),
            (&["10.87.0.0/16", "10.88.0.0/16"], "must be the only one of its version"),
        ] {
            let error = check(list).unwrap_err();
            assert!(error.contains(rule), "{error}");
        }
    }
}
