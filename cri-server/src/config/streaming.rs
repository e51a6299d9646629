//! `[streaming]`: the server behind the URLs of Exec, Attach and PortForward.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The server behind the URLs of Exec, Attach and PortForward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Where it listens.
    pub address: IpAddr,
    /// Its port; 0: whichever is free.
    pub port: u16,
    /// Its certificate, with those that lead to a root; absent: no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// The authorities of clients' certificates; absent: clients need none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// A session in which nothing has moved for so many seconds is ended.
    pub idle_timeout_s: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            idle_timeout_s: 4 * 60 * 60,
        }
    }
}
