//! TLS of the streaming server: its certificate, and clients' certificates.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use corten_tests::node::Node;
use corten_tests::stream::{STDIN, STDOUT, Stream, connect};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::streaming::{V5, descriptors, exec_request, long_time, running, wait_until};

/// An authority.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        Ok(Authority { certificate, issuer })
    }

    fn sign(&self, name: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate, key })
    }

    /// A client that trusts this authority, and shows a certificate.
    fn client(&self, shown: Option<&Identity>) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(Arc::new(match shown {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::try_from(identity.key.serialize_der()).map_err(anyhow::Error::msg)?;
                let chain: Vec<CertificateDer<'static>> = vec![identity.certificate.der().clone()];
                builder.with_client_auth_cert(chain, key)?
            }
        }))
    }
}

/// A node whose streaming server has a certificate of `authority`, and asks for clients' of `clients`.
fn node(files: &Path, authority: &Authority, clients: Option<&Authority>) -> Result<Node> {
    let own = authority.sign("127.0.0.1")?;
    let mut streaming = toml::Table::new();
    let mut file = |key: &str, pem: String| {
        let path = files.join(key);
        streaming.insert(key.to_owned(), path.display().to_string().into());
        fs::write(path, pem)
    };
    file("tls_cert", own.certificate.pem())?;
    file("tls_key", own.key.serialize_pem())?;
    if let Some(clients) = clients {
        file("client_ca", clients.certificate.pem())?;
    }
    Ok(Node::with(|config| {
        config.insert("streaming".into(), streaming.into());
    }))
}

#[test]
fn streams_by_tls() -> Result<()> {
    let files = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let node = node(files.path(), &authority, None)?;
    let pod = node.pod("tls");
    let container = pod.sh("main", "sleep 1000");
    let url = |script: &str| node.cri.exec(exec_request(&container, script)).expect("Exec").url;
    let client = authority.client(None)?;
    let trusting = |script: &str| Stream::open_tls(&node, &url(script), V5, client.clone());
    assert!(url("true").starts_with("https://127.0.0.1:"), "{}", url("true"));
    let mut stream = trusting("cat; exit 3")?;
    stream.send(STDIN, b"over TLS");
    stream.send(255, &[STDIN]);
    let received = stream.rest();
    assert_eq!(received.text(STDOUT), "over TLS");
    assert_eq!(received.status()["reason"], "NonZeroExitCode");
    // Who does not trust the server's authority does not get that far, nor does a client without TLS.
    let strange = Authority::new()?.client(None)?;
    assert!(Stream::open_tls(&node, &url("true"), V5, strange).is_err());
    assert!(Stream::open(&node, &url("true"), V5).is_err());
    Ok(())
}

#[test]
fn a_client_by_tls_that_vanishes_behind_full_input_takes_its_command_along() -> Result<()> {
    let files = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let node = node(files.path(), &authority, None)?;
    let pod = node.pod("tls");
    let container = pod.sh("main", "sleep 1000");
    let client = authority.client(None)?;
    let open = |script: &str| {
        let url = node.cri.exec(exec_request(&container, script)).expect("Exec").url;
        Stream::open_tls(&node, &url, V5, client.clone())
    };
    open("true")?.rest();
    let (before, time) = (descriptors(&node), long_time(7));
    let mut stream = open(&format!("echo unread; sleep {time}"))?;
    wait_until(&1, || running(&time));
    stream.fill(STDIN);
    stream.vanish();
    wait_until(&0, || running(&time));
    wait_until(&true, || descriptors(&node) <= before);
    Ok(())
}

#[test]
fn only_clients_of_the_authority_are_served() -> Result<()> {
    let files = tempfile::tempdir()?;
    let (authority, clients, others) = (Authority::new()?, Authority::new()?, Authority::new()?);
    let node = node(files.path(), &authority, Some(&clients))?;
    let pod = node.pod("mutual");
    let container = pod.sh("main", "sleep 1000");
    let url = node
        .cri
        .exec(exec_request(&container, "echo served"))
        .expect("Exec")
        .url;
    let stranger = others.sign("client")?;
    // The server's own authority is not the clients'.
    let own = authority.sign("client")?;
    for shown in [None, Some(&stranger), Some(&own)] {
        let opened = Stream::open_tls(&node, &url, V5, authority.client(shown)?);
        assert!(opened.is_err(), "served: {:?}", shown.map(|it| it.certificate.pem()));
    }
    let mut plain = connect(&node, &url)?;
    write!(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).context("read what is no TLS")?;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // None of them has spent the token.
    let shown = clients.sign("client")?;
    let stream = Stream::open_tls(&node, &url, V5, authority.client(Some(&shown))?)?;
    assert_eq!(stream.rest().text(STDOUT), "served\n");
    Ok(())
}
