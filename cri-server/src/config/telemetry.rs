//! `[metrics]` and `[tracing]`: what the server tells of itself, and to whom.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Metrics of the server itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where they are to be had; absent: nowhere, and none are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<MetricsAddress>,
}

/// Where metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MetricsAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Socket(PathBuf),
}

/// Traces of the calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// The collector; absent: there are no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<Collector>,
    /// How it is spoken to.
    pub otlp_protocol: OtlpProtocol,
    /// The share of the calls that are traced, of those whose callers do not say.
    pub sample_ratio: f64,
}

/// The address of a collector, `http://ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector(pub SocketAddr);

/// The two ways in which OTLP travels here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    /// A gRPC call.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// A POST to /v1/traces.
    #[serde(rename = "http/protobuf")]
    Http,
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing {
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Grpc,
            sample_ratio: 1.0,
        }
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(MetricsAddress::Socket(text.into()));
        }
        text.parse().map(MetricsAddress::Tcp).map_err(|_not_one| {
            format!("{text:?}: must be ADDRESS:PORT with a numeric address, or the absolute path of a unix socket")
        })
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Tcp(address) => address.fmt(f),
            MetricsAddress::Socket(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        address
            .and_then(|address| address.parse().ok())
            .map(Collector)
            .ok_or_else(|| format!("{text:?}: must be http://ADDRESS:PORT with a numeric address and without a path"))
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> String {
        address.to_string()
    }
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> String {
        collector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for text in ["127.0.0.1:9095", "[::1]:9095", "0.0.0.0:1", "/run/corten/metrics.sock"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
        for text in ["", "localhost:9095", "127.0.0.1", ":9095", "metrics.sock", "unix:/x"] {
            let rule = text.parse::<MetricsAddress>().unwrap_err();
            assert!(rule.contains("must be ADDRESS:PORT"), "{rule}");
        }
    }

    #[test]
    fn collectors_are_plain_addresses() {
        for (text, printed) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
            ("http://[::1]:4318/", "http://[::1]:4318"),
        ] {
            assert_eq!(text.parse::<Collector>().unwrap().to_string(), printed);
        }
        for text in [
            "",
            "127.0.0.1:4317",
            "https://127.0.0.1:4317",
            "http://collector:4317",
            "http://127.0.0.1:4318/v1/traces",
            "http://127.0.0.1",
        ] {
            let rule = text.parse::<Collector>().unwrap_err();
            assert!(rule.contains("must be http://ADDRESS:PORT"), "{rule}");
        }
    }
}
