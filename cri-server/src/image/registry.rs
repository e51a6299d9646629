//! Registries: how they are reached, and what they are shown.
//!
//! ```text
//! Registries --hosts.toml, [registries]--> Repository: its hosts in order --Endpoint--> Http --redirects--> reply
//!                                            manifest, blob, chunk           challenge, token, credentials
//! ```
//! Plain HTTP is spoken to a registry only where the configuration says so; there is no falling back to it. A host that
//! fails is followed by the next, and what may pass is tried again; a download that breaks goes on where it was. Every wait
//! has a limit, and a reply that trickles is given up.
//!
//! Whose credentials go where: the caller's to the registry that the reference names, wherever the configuration says it
//! is, and never to a mirror; a host's own from its hosts.toml; else the node's, by the name of the host that is asked.
//! None follows a redirect to another host, and none is in an error or a log.
//!
//! | module | owns |
//! |---|---|
//! | `hosts`, `hosts_toml` | which hosts serve a registry, and the file that says so |
//! | `repository`, `download` | asking one host after the other; a reply's content, taken up again |
//! | `endpoint`, `challenge`, `token` | one host: its demand, and what meets it |
//! | `docker_config`, `credential_helper` | credentials of the node |
//! | `http`, `client`, `failure` | one request and its redirects; the connections; what is tried again |
//!
//! Left out: pushes, and several client certificates for one host.

mod challenge;
mod client;
mod credential_helper;
mod docker_config;
mod download;
mod endpoint;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hosts;
mod hosts_toml;
mod http;
mod repository;
mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub(super) use download::Body;
pub(super) use repository::Repository;

use super::auth::Credentials;
use super::error::PullError;
use super::reference::Reference;
use super::slots::PullLimits;
use crate::node::blocking;
use client::Clients;
use endpoint::{Endpoint, NodeCredentials};
use http::Http;
use token::Tokens;

/// Longest wait for the head of a reply.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How one registry is reached; what hosts.toml cannot say better.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Speak HTTP instead of HTTPS.
    pub plain_http: bool,
    /// `host:port` that is asked instead, for the same repositories.
    pub endpoint: Option<String>,
    /// A PEM file of certificate authorities trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Do not check the registry's certificate.
    pub skip_verify: bool,
}

/// How images are pulled, from whichever registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PullConfig {
    /// Directories of `HOST/hosts.toml`, the first that has one counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json` with the node's credentials; it may be absent.
    pub auth_file: PathBuf,
    /// Where the programs are that it names.
    pub credential_helper_dirs: Vec<PathBuf>,
    /// Longest silence of a registry in the middle of a reply, in seconds.
    pub progress_timeout_s: u64,
    /// Layers that are fetched and unpacked at once.
    pub layers_at_once: usize,
    /// The same from one registry.
    pub layers_of_a_registry: usize,
    /// The registries that names without one are looked for at, in this order.
    pub short_name_registries: Vec<String>,
    /// Names that stand for others, without tag and digest.
    pub short_names: BTreeMap<String, String>,
}

impl Default for PullConfig {
    fn default() -> Self {
        let limits = PullLimits::default();
        PullConfig {
            hosts_dirs: vec!["/etc/corten/certs.d".into(), "/etc/containerd/certs.d".into()],
            auth_file: "/etc/corten/auth.json".into(),
            credential_helper_dirs: vec!["/usr/local/bin".into(), "/usr/bin".into()],
            progress_timeout_s: 300,
            layers_at_once: limits.layers,
            layers_of_a_registry: limits.layers_of_a_registry,
            short_name_registries: vec![super::reference::DEFAULT_REGISTRY.to_owned()],
            short_names: BTreeMap::new(),
        }
    }
}

impl PullConfig {
    /// How much is pulled at once.
    #[must_use]
    pub fn limits(&self) -> PullLimits {
        PullLimits {
            layers: self.layers_at_once,
            layers_of_a_registry: self.layers_of_a_registry,
        }
    }
}

/// All that is configured about registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfigs {
    /// By the host that references name; `*` stands for every other.
    pub by_name: BTreeMap<String, RegistryConfig>,
    /// What concerns all.
    pub pull: PullConfig,
}

impl<const N: usize> From<[(String, RegistryConfig); N]> for RegistryConfigs {
    /// These registries, and no file of the node.
    fn from(by_name: [(String, RegistryConfig); N]) -> Self {
        RegistryConfigs {
            by_name: by_name.into(),
            pull: PullConfig {
                hosts_dirs: Vec::new(),
                auth_file: PathBuf::new(),
                ..PullConfig::default()
            },
        }
    }
}

/// All registries: their configuration, the connections kept to them, and the tokens they gave.
pub(super) struct Registries {
    pub(super) configs: Arc<RegistryConfigs>,
    clients: Arc<Clients>,
    tokens: Arc<Tokens>,
    node: Arc<NodeCredentials>,
}

impl Registries {
    pub(super) fn new(configs: RegistryConfigs) -> Self {
        let file = Some(configs.pull.auth_file.clone()).filter(|file| !file.as_os_str().is_empty());
        let node = NodeCredentials {
            file,
            helper_dirs: configs.pull.credential_helper_dirs.clone(),
        };
        Registries {
            configs: Arc::new(configs),
            clients: Arc::default(),
            tokens: Arc::default(),
            node: Arc::new(node),
        }
    }

    /// Where `reference` is fetched from.
    pub(super) async fn repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Repository, PullError> {
        let (registry, configs) = (reference.registry.clone(), Arc::clone(&self.configs));
        let asked = registry.clone();
        let hosts = blocking(move || hosts::of(&asked, &configs)).await;
        let hosts = hosts
            .with_context(|| format!("find the hosts of registry {registry}"))
            .map_err(|error| PullError::local(&error))?;
        let progress_timeout = Duration::from_secs(self.configs.pull.progress_timeout_s);
        let http = Http {
            clients: Arc::clone(&self.clients),
            answer_timeout: progress_timeout.min(ANSWER_TIMEOUT),
        };
        let endpoints = hosts.into_iter().map(|host| {
            let (http, tokens, node) = (http.clone(), Arc::clone(&self.tokens), Arc::clone(&self.node));
            Endpoint::new(host, &reference.repository, http, tokens, credentials.clone(), node)
        });
        Ok(Repository {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            registry,
            credentials,
            progress_timeout,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is a look-up or an assignment: a panic elsewhere leaves the data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
