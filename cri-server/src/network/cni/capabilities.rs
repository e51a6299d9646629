//! What plugins are told of a pod when they declare a capability for it (CNI conventions, "Dynamic plugin specific fields").
//! Pure.
//!
//! | capability | from |
//! |---|---|
//! | `portMappings` | the pod's port mappings; one with host port 0 maps nothing |
//! | `bandwidth` | the annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth` |
//! | `dns` | the pod's DNS configuration |
//! | `ipRanges` | the node's pod CIDR, as UpdateRuntimeConfig told it |
//! | `aliases` | the pod's name, and its hostname if that is another |

use std::collections::BTreeMap;

use corten_proto::cri::{DnsConfig, PortMapping, Protocol};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Values by the name of the capability.
pub(super) type Capabilities = Map<String, Value>;

/// The annotation that limits what a pod receives.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// The annotation that limits what a pod sends.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Limits that make sense, in bits per second: as the kubelet's own network plugins had them.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Bits that may pass at once: as much as every version of the bandwidth plugin takes, so that only the rate limits.
const BURST: u64 = i32::MAX as u64;

/// Limits in bits per second; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What the pod receives.
    pub ingress: u64,
    /// What the pod sends.
    pub egress: u64,
}

impl Bandwidth {
    /// The limits of a pod's annotations; an error is the annotation, its value and the rule that it breaks.
    pub fn of(annotations: &std::collections::HashMap<String, String>) -> Result<Self, (&'static str, String, String)> {
        let limit = |name: &'static str| match annotations.get(name) {
            None => Ok(0),
            Some(text) => match quantity(text).filter(|rate| RATES.contains(rate)) {
                Some(rate) => Ok(rate),
                None => {
                    let rule = "must be a quantity of bits per second from 1k to 1P, such as 10M";
                    Err((name, text.clone(), rule.to_owned()))
                }
            },
        };
        Ok(Bandwidth {
            ingress: limit(INGRESS)?,
            egress: limit(EGRESS)?,
        })
    }

    fn value(self) -> Option<Value> {
        let mut value = Map::new();
        for (rate, burst, limit) in [
            ("ingressRate", "ingressBurst", self.ingress),
            ("egressRate", "egressBurst", self.egress),
        ] {
            if limit > 0 {
                value.insert(rate.into(), json!(limit));
                value.insert(burst.into(), json!(BURST));
            }
        }
        (!value.is_empty()).then_some(Value::Object(value))
    }
}

/// A Kubernetes quantity (`resource.Quantity`) as a whole number, rounded up; none if it is none, is negative or does not
/// fit.
fn quantity(text: &str) -> Option<u64> {
    let number = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 20 {
        return None;
    }
    let (factor, divisor) = scale(suffix)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10u128
        .checked_pow(u32::try_from(fraction.len()).ok()?)?
        .checked_mul(divisor)?;
    digits.checked_mul(factor)?.div_ceil(divisor).try_into().ok()
}

/// What a quantity's suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(power) = (1..)
        .zip(binary)
        .find_map(|(power, it)| (it == suffix).then_some(power))
    {
        return Some((1 << (10 * power), 1));
    }
    let decimal = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    let known = decimal.iter().find(|(it, _)| *it == suffix).map(|(_, power)| *power);
    let power = known.or_else(|| suffix.strip_prefix(['e', 'E'])?.parse().ok())?;
    let of = |power: i32| 10u128.checked_pow(u32::try_from(power).ok()?);
    if power < 0 {
        Some((1, of(-power)?))
    } else {
        Some((of(power)?, 1))
    }
}

/// What is known of a pod, for plugins that declare it.
pub(super) struct Known<'a> {
    pub(super) port_mappings: &'a [PortMapping],
    pub(super) bandwidth: Bandwidth,
    pub(super) dns: Option<&'a DnsConfig>,
    pub(super) pod_cidrs: &'a [String],
    pub(super) name: &'a str,
    pub(super) hostname: &'a str,
}

impl Known<'_> {
    /// All of it by capability; what the pod does not ask for is left out.
    pub(super) fn capabilities(&self) -> Capabilities {
        let ranges = self.pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
        let values = BTreeMap::from([
            ("portMappings", non_empty(self.port_mappings())),
            ("bandwidth", self.bandwidth.value()),
            ("dns", self.dns.and_then(dns)),
            ("ipRanges", non_empty(ranges)),
            ("aliases", non_empty(self.aliases())),
        ]);
        let known = values
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        known.collect()
    }

    fn port_mappings(&self) -> Vec<Value> {
        let mapped = self.port_mappings.iter().filter(|mapping| mapping.host_port > 0);
        let value = |mapping: &PortMapping| {
            let protocol = Protocol::try_from(mapping.protocol).unwrap_or(Protocol::Tcp);
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": protocol.as_str_name().to_ascii_lowercase(),
                "hostIP": mapping.host_ip,
            })
        };
        mapped.map(value).collect()
    }

    fn aliases(&self) -> Vec<Value> {
        let mut names = vec![self.name, self.hostname];
        names.dedup();
        names
            .into_iter()
            .filter(|name| !name.is_empty())
            .map(Value::from)
            .collect()
    }
}

fn dns(config: &DnsConfig) -> Option<Value> {
    let said = !(config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty());
    said.then(|| json!({ "servers": config.servers, "searches": config.searches, "options": config.options }))
}

fn non_empty(values: Vec<Value>) -> Option<Value> {
    (!values.is_empty()).then_some(Value::Array(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1000", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("1.5M", Some(1_500_000)),
            (".5k", Some(500)),
            ("1Ki", Some(1024)),
            ("2Gi", Some(2 << 30)),
            ("1e6", Some(1_000_000)),
            ("1E3", Some(1_000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            ("5e-1", Some(1)),
            ("0", Some(0)),
            ("", None),
            ("M", None),
            (".", None),
            ("-1", None),
            ("1.2.3", None),
            ("10 M", None),
            ("10MB", None),
            ("1e99", None),
            ("99999999999999999999E", None),
        ] {
            assert_eq!(quantity(text), value, "{text:?}");
        }
    }

    #[test]
    fn bandwidths_of_annotations() {
        let of = |pairs: &[(&str, &str)]| {
            let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            Bandwidth::of(&pairs.iter().map(own).collect())
        };
        assert_eq!(of(&[]).unwrap().value(), None);
        let one = of(&[(INGRESS, "1M")]).unwrap().value().unwrap();
        assert_eq!(one, json!({ "ingressRate": 1_000_000, "ingressBurst": BURST }));
        let both = of(&[(INGRESS, "1M"), (EGRESS, "2M")]).unwrap();
        assert_eq!((both.ingress, both.egress), (1_000_000, 2_000_000));
        for bad in ["fast", "999", "2P", "0"] {
            let (name, value, rule) = of(&[(EGRESS, bad)]).unwrap_err();
            assert_eq!((name, value.as_str()), (EGRESS, bad));
            assert!(rule.contains("1k to 1P"), "{rule}");
        }
    }

    #[test]
    fn what_a_pod_does_not_ask_for_is_left_out() {
        let mapping = |host_port, protocol: Protocol| PortMapping {
            protocol: protocol.into(),
            container_port: 53,
            host_port,
            host_ip: String::new(),
        };
        let mut known = Known {
            port_mappings: &[mapping(0, Protocol::Tcp)],
            bandwidth: Bandwidth::default(),
            dns: Some(&DnsConfig::default()),
            pod_cidrs: &[],
            name: "web",
            hostname: "web",
        };
        assert_eq!(Value::Object(known.capabilities()), json!({ "aliases": ["web"] }));

        let (mappings, cidrs) = (
            [mapping(5353, Protocol::Sctp)],
            ["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()],
        );
        let servers = DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            ..Default::default()
        };
        known.port_mappings = &mappings;
        known.pod_cidrs = &cidrs;
        known.dns = Some(&servers);
        known.hostname = "other";
        let expected = json!({
            "aliases": ["web", "other"],
            "dns": { "servers": ["10.0.0.10"], "searches": [], "options": [] },
            "ipRanges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]],
            "portMappings": [{ "hostPort": 5353, "containerPort": 53, "protocol": "sctp", "hostIP": "" }],
        });
        assert_eq!(Value::Object(known.capabilities()), expected);
    }
}
