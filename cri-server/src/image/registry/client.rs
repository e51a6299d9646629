//! The HTTP clients: one for every way in which hosts are reached.
//!
//! A client keeps its idle connections, and building one reads the system's certificates; so they are kept. As many as the
//! configuration tells apart and no more: registries are named by whoever names images. A client whose certificate files
//! have changed is built anew.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Url, redirect};

use super::lock;
use crate::node::blocking;

/// Longest time a connection may take to be made, unless a host's configuration says otherwise.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Clients kept; edited configurations leave old ones behind, and these are to be had again.
const MAX_KEPT: usize = 64;

/// How connections to a host are made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transport {
    /// HTTP besides HTTPS.
    pub(super) plain_http: bool,
    /// PEM files of certificate authorities trusted besides the system's.
    pub(super) ca: Vec<PathBuf>,
    /// What the host is shown as this client's own.
    pub(super) identity: Option<ClientCertificate>,
    /// Trust any certificate.
    pub(super) skip_verify: bool,
    /// Longest time a connection may take to be made.
    pub(super) dial_timeout: Duration,
}

/// The PEM files of a certificate and its key; one file may hold both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientCertificate {
    pub(super) certificate: PathBuf,
    pub(super) key: Option<PathBuf>,
}

impl Default for Transport {
    fn default() -> Self {
        Transport {
            plain_http: false,
            ca: Vec::new(),
            identity: None,
            skip_verify: false,
            dial_timeout: DIAL_TIMEOUT,
        }
    }
}

impl Transport {
    /// The same for a host that this one has named: it is not shown who we are.
    pub(super) fn for_others(&self) -> Transport {
        Transport {
            identity: None,
            ..self.clone()
        }
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|it| std::iter::once(&it.certificate).chain(&it.key));
        self.ca.iter().chain(identity).map(PathBuf::as_path)
    }
}

/// The clients in use.
#[derive(Default)]
pub(super) struct Clients {
    kept: Mutex<HashMap<Key, Kept>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    transport: Transport,
    /// Loopback is reached without a proxy.
    loopback: bool,
}

struct Kept {
    client: Client,
    stamps: Vec<Stamp>,
}

/// What changes when a file is written or replaced; `None` if it is not there.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

impl Clients {
    /// A client for `url`.
    pub(super) async fn get(&self, transport: &Transport, url: &Url) -> anyhow::Result<Client> {
        let key = Key {
            transport: transport.clone(),
            loopback: is_loopback(url),
        };
        let wanted = key.clone();
        let stamps = match transport.files().next() {
            None => Vec::new(),
            Some(_) => blocking(move || Ok(wanted.transport.files().map(stamp).collect())).await?,
        };
        if let Some(kept) = lock(&self.kept).get(&key).filter(|kept| kept.stamps == stamps) {
            return Ok(kept.client.clone());
        }
        let wanted = key.clone();
        let client = blocking(move || build(&wanted)).await?;
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let entry = Kept {
            client: client.clone(),
            stamps,
        };
        kept.insert(key, entry);
        Ok(client)
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.kept).len()
    }
}

fn stamp(path: &Path) -> Stamp {
    let it = path.metadata().ok()?;
    Some((it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.size()))
}

/// Blocks: reads certificates.
fn build(key: &Key) -> anyhow::Result<Client> {
    // Fails only where a provider is installed already, which is then this one: nothing else in the process does TLS.
    drop(rustls::crypto::ring::default_provider().install_default());
    let transport = &key.transport;
    let mut authorities = Vec::new();
    for path in &transport.ca {
        authorities.extend(certificates(path)?);
    }
    let built = builder(key)?.tls_certs_merge(authorities).build();
    match built {
        // A machine without any authority, ca-certificates not installed, needs none for this.
        Err(_) if transport.plain_http => builder(key)?.tls_certs_only([]).build(),
        built => built,
    }
    .context("build the HTTP client")
}

fn builder(key: &Key) -> anyhow::Result<ClientBuilder> {
    let transport = &key.transport;
    let mut builder = Client::builder()
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(transport.dial_timeout)
        // Followed by `http`, which decides what goes along.
        .redirect(redirect::Policy::none())
        .referer(false)
        .https_only(!transport.plain_http)
        .tls_danger_accept_invalid_certs(transport.skip_verify);
    if let Some(it) = &transport.identity {
        builder = builder.identity(identity(it)?);
    }
    // A proxy's loopback is not ours; Go's clients have the same rule.
    Ok(if key.loopback { builder.no_proxy() } else { builder })
}

/// Whether `url` leads to this machine by its very name.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let reading = || format!("read certificate authorities from {}", path.display());
    let pem = std::fs::read(path).with_context(reading)?;
    let found = Certificate::from_pem_bundle(&pem).with_context(reading)?;
    anyhow::ensure!(!found.is_empty(), "{}: there is no certificate in it", reading());
    Ok(found)
}

fn identity(it: &ClientCertificate) -> anyhow::Result<Identity> {
    let mut pem = Vec::new();
    for path in std::iter::once(&it.certificate).chain(&it.key) {
        let reading = || format!("read the client certificate or its key from {}", path.display());
        pem.extend(std::fs::read(path).with_context(reading)?);
        pem.push(b'\n');
    }
    let at = it.certificate.display();
    Identity::from_pem(&pem).with_context(|| format!("client certificate {at}: certificate and key in PEM form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_a_way_of_reaching_and_a_new_one_for_new_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let authority = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            std::fs::write(&ca, made.cert.pem()).unwrap();
        };
        let clients = Clients::default();
        let get = async |transport: &Transport, url: &str| clients.get(transport, &url.parse().unwrap()).await;
        let plain = Transport::default();
        for url in [
            "https://one.example/",
            "https://two.example/",
            "https://three.example:5/",
        ] {
            get(&plain, url).await.unwrap();
        }
        assert_eq!(clients.count(), 1);
        for url in ["https://127.0.0.1:1/", "https://localhost/", "https://[::1]:2/"] {
            get(&plain, url).await.unwrap();
        }
        assert_eq!(clients.count(), 2, "no proxy");
        let own = Transport {
            ca: vec![ca.clone()],
            ..Transport::default()
        };
        let error = format!("{:#}", get(&own, "https://a/").await.unwrap_err());
        assert!(error.contains("ca.pem"), "{error}");
        authority("first");
        get(&own, "https://a/").await.unwrap();
        let stamps = lock(&clients.kept)
            .values()
            .find(|it| !it.stamps.is_empty())
            .unwrap()
            .stamps
            .clone();
        authority("the second, of another length");
        get(&own, "https://a/").await.unwrap();
        assert_eq!(clients.count(), 3, "in the place of the old one");
        assert!(lock(&clients.kept).values().all(|it| it.stamps != stamps));
    }
}
