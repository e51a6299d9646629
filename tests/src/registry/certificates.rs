//! Certificates of registries, and of those who may ask one.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// The names that the certificates are for; the second is one that no resolver knows.
const NAMES: [&str; 2] = ["127.0.0.1", "registry.test"];

/// What a client of a registry needs that asks for a certificate, in PEM form.
pub struct ClientFiles {
    /// The authority of the registry's certificate.
    pub authority: String,
    /// The client's certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A server with a certificate that is its own authority, which is returned in PEM form.
pub(super) fn server() -> Result<(ServerConfig, String)> {
    let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = builder()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((config, made.cert.pem()))
}

/// A server that asks its clients for a certificate.
pub(super) fn mutual() -> Result<(ServerConfig, ClientFiles)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);
    let (own_key, client_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let own = CertificateParams::new(NAMES.map(str::to_owned))?.signed_by(&own_key, &issuer)?;
    let client = CertificateParams::new(vec!["client".to_owned()])?.signed_by(&client_key, &issuer)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let key = PrivateKeyDer::try_from(own_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = builder()?
        .with_client_cert_verifier(verifier.context("verify clients")?)
        .with_single_cert(vec![own.der().clone()], key)?;
    let files = ClientFiles {
        authority: authority.pem(),
        certificate: client.pem(),
        key: client_key.serialize_pem(),
    };
    Ok((config, files))
}

fn builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}
