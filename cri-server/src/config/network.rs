//! The network of pods on a node without CNI configuration.

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::network::builtin::{Prefix, check_subnets};

/// Longest name of an interface, without its NUL (IFNAMSIZ).
const MAX_NAME: usize = 15;

/// The built-in network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Whether it serves where there is no CNI configuration.
    pub builtin: bool,
    /// Its bridge, and its table of the packet filter.
    pub bridge: String,
    /// Where pods get their addresses from, one subnet of a version; the first has the primary address.
    pub subnets: Vec<Prefix>,
    /// Largest packet of the pods, in bytes; 0: as the interface of the node's default route.
    pub mtu: u32,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            builtin: true,
            bridge: "corten0".to_owned(),
            subnets: vec![Prefix {
                address: [10, 87, 0, 0].into(),
                length: 16,
            }],
            mtu: 0,
        }
    }
}

impl Network {
    /// The rules that its values break.
    pub(super) fn check(&self, rules: &mut Rules) {
        let name = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let dots = self.bridge.bytes().all(|c| c == b'.');
        let is_name = self.bridge.bytes().all(name) && self.bridge.len() <= MAX_NAME && !dots;
        let rule = "must be 1 to 15 letters, digits, - _ and .";
        rules.check(is_name, &["network", "bridge"], rule);
        if let Err(rule) = check_subnets(&self.subnets) {
            rules.check(false, &["network", "subnets"], &rule);
        }
        // IPv6 does not go below 1280 (RFC 8200, section 5).
        let mtu = self.mtu == 0 || (1280..=65535).contains(&self.mtu);
        rules.check(mtu, &["network", "mtu"], "must be 1280 to 65535, or 0");
    }
}
