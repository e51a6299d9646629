//! The registry's side of a pull: HTTP requests for manifests and blobs, and their authorisation.
//!
//! Plain HTTP is spoken to a registry only where the configuration says so; there is no falling back to it. Redirects
//! are followed a few times, never from HTTPS to HTTP, and lose the `Authorization` header when they leave the host.
//! Every wait has a limit, and a reply that trickles is given up. Left out: pushes, mirrors tried in turn, resuming a broken download.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use serde::{Deserialize, Serialize};

use super::auth::{Challenge, Credentials};
use super::error::{Cause, PullError};
use super::manifest;
use super::pace::Pace;
use super::reference::Reference;
use crate::node::blocking;

/// Largest manifest or index, in bytes: what the distribution API obliges registries to take.
const MAX_MANIFEST: usize = 4 << 20;

/// Largest reply of a token service, in bytes.
const MAX_TOKEN_REPLY: usize = 1 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest silence in the middle of a reply.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How one registry is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Speak HTTP instead of HTTPS.
    pub plain_http: bool,
    /// `host:port` of a mirror that is asked instead, for the same repositories.
    pub endpoint: Option<String>,
    /// A PEM file of certificate authorities trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Do not check the registry's certificate.
    pub skip_verify: bool,
}

/// The registries by the host that references name; `*` stands for every other.
pub type RegistryConfigs = BTreeMap<String, RegistryConfig>;

/// All registries: their configuration, and the connections kept to them.
pub(super) struct Registries {
    configs: RegistryConfigs,
    /// Kept because a client keeps its idle connections, and building one reads the system's certificates. As many as the
    /// configuration tells apart and no more: registries are named by whoever names images.
    clients: Mutex<HashMap<ClientKey, Client>>,
}

/// What makes one client unlike another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClientKey {
    /// Name of the configuration's entry; `None` for registries without one.
    entry: Option<String>,
    /// Loopback is reached without a proxy.
    loopback: bool,
}

/// One repository of one registry, and what this pull may show it.
pub(super) struct Repository {
    /// As references name it.
    pub(super) registry: String,
    pub(super) credentials: Credentials,
    client: Client,
    /// `https://host/v2/library/busybox/`
    base: Url,
    /// The `Authorization` header that last worked, or is worth trying first.
    authorization: Mutex<Option<String>>,
}

/// The content of a reply, as it arrives.
pub(super) struct Body {
    response: Response,
    pace: Pace,
}

impl From<Response> for Body {
    fn from(response: Response) -> Self {
        Body {
            response,
            pace: Pace::default(),
        }
    }
}

impl Registries {
    pub(super) fn new(configs: RegistryConfigs) -> Self {
        Registries {
            configs,
            clients: Mutex::default(),
        }
    }

    /// Where `reference` is fetched from.
    pub(super) async fn repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Repository, PullError> {
        let registry = reference.registry.as_str();
        let (entry, config) = self.config(registry);
        let host = match (&config.endpoint, registry) {
            (Some(endpoint), _) => endpoint,
            // Docker Hub answers its API under another name than its references have.
            (None, "docker.io") => "registry-1.docker.io",
            (None, registry) => registry,
        };
        let scheme = if config.plain_http { "http" } else { "https" };
        let address = format!("{scheme}://{host}/v2/{}/", reference.repository);
        let base = Url::parse(&address)
            .map_err(|error| PullError::new(Cause::Invalid, format!("registry address {address:?}: {error}")))?;
        let key = ClientKey {
            entry,
            loopback: is_loopback(&base),
        };
        let client = self
            .client(key, config)
            .await
            .with_context(|| format!("set up the connection to registry {registry}"))
            .map_err(|error| PullError::local(&error))?;
        // A token can go out at once; a login waits until the registry asks for it, because many want a token instead.
        let authorization = match &credentials {
            Credentials::Bearer(_) => credentials.header(),
            Credentials::Anonymous | Credentials::Basic { .. } => None,
        };
        Ok(Repository {
            registry: registry.to_owned(),
            credentials,
            client,
            base,
            authorization: Mutex::new(authorization),
        })
    }

    /// The entry of the configuration that is about `registry`, and its name.
    fn config(&self, registry: &str) -> (Option<String>, RegistryConfig) {
        let entry = self.configs.get_key_value(registry);
        match entry.or_else(|| self.configs.get_key_value("*")) {
            Some((name, config)) => (Some(name.clone()), config.clone()),
            None => (None, RegistryConfig::default()),
        }
    }

    async fn client(&self, key: ClientKey, config: RegistryConfig) -> anyhow::Result<Client> {
        if let Some(client) = lock(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let loopback = key.loopback;
        let client = blocking(move || build_client(&config, loopback)).await?;
        lock(&self.clients).insert(key, client.clone());
        Ok(client)
    }
}

/// Blocks: reads certificates.
fn build_client(config: &RegistryConfig, loopback: bool) -> anyhow::Result<Client> {
    // Fails only where a provider is installed already, which is then this one: nothing else in the process does TLS.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut authorities = Vec::new();
    if let Some(path) = &config.ca {
        authorities = certificates(path)?;
    }
    let built = client_builder(config, loopback).tls_certs_merge(authorities).build();
    match built {
        // A machine without any authority, ca-certificates not installed, needs none for this.
        Err(_) if config.plain_http => client_builder(config, loopback).tls_certs_only([]).build(),
        built => built,
    }
    .context("build the HTTP client")
}

fn client_builder(config: &RegistryConfig, loopback: bool) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .redirect(redirect::Policy::limited(5))
        .referer(false)
        .https_only(!config.plain_http)
        .tls_danger_accept_invalid_certs(config.skip_verify);
    // A proxy's loopback is not ours; Go's clients have the same rule.
    if loopback { builder.no_proxy() } else { builder }
}

fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn certificates(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let reading = || format!("read certificate authorities from {}", path.display());
    let pem = std::fs::read(path).with_context(reading)?;
    reqwest::Certificate::from_pem_bundle(&pem).with_context(reading)
}

impl Repository {
    /// Fetches the manifest of a tag or digest: its type and its bytes.
    pub(super) async fn manifest(&self, version: &str) -> Result<(String, Vec<u8>), PullError> {
        let response = self
            .get(&format!("manifests/{version}"), Some(manifest::ACCEPTED))
            .await?;
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let content = self
            .read(response.into(), MAX_MANIFEST)
            .await
            .map_err(|error| error.context("manifest"))?;
        Ok((content_type, content))
    }

    /// Asks for a blob, whose content follows.
    pub(super) async fn blob(&self, digest: &str) -> Result<Body, PullError> {
        let response = self.get(&format!("blobs/{digest}"), None).await?;
        Ok(response.into())
    }

    /// The next piece of a reply; `None` after the last.
    pub(super) async fn chunk(&self, body: &mut Body) -> Result<Option<bytes::Bytes>, PullError> {
        let asked = Instant::now();
        let chunk = body.response.chunk().await;
        let chunk = chunk.map_err(|error| self.unreachable(&error))?;
        if let Some(chunk) = &chunk {
            let slow = body.pace.note(asked.elapsed(), chunk.len());
            slow.map_err(|what| PullError::new(Cause::Unreachable, format!("registry {}: {what}", self.host())))?;
        }
        Ok(chunk)
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(super) async fn read(&self, mut body: Body, limit: usize) -> Result<Vec<u8>, PullError> {
        let mut content = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if content.len() + chunk.len() > limit {
                return Err(PullError::refused(format!("larger than {limit} bytes")));
            }
            content.extend_from_slice(&chunk);
        }
        Ok(content)
    }

    /// One request; where the registry asks for credentials, these are got and the request is sent once more.
    async fn get(&self, path: &str, accept: Option<&str>) -> Result<Response, PullError> {
        let url = self.base.join(path).map_err(|error| {
            PullError::new(Cause::Invalid, format!("registry address {}{path}: {error}", self.base))
        })?;
        let response = self.send(&url, accept).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.check(response, &url);
        }
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(Challenge::parse);
        let authorization = match challenge {
            Some(Challenge::Basic) => self.credentials.header(),
            Some(Challenge::Bearer { realm, service, scope }) => {
                Some(self.token(&realm, service.as_deref(), scope.as_deref()).await?)
            }
            None => None,
        };
        if authorization.is_none() {
            return self.check(response, &url);
        }
        *lock(&self.authorization) = authorization;
        let response = self.send(&url, accept).await?;
        self.check(response, &url)
    }

    async fn send(&self, url: &Url, accept: Option<&str>) -> Result<Response, PullError> {
        let mut request = self.client.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        let authorization = lock(&self.authorization).clone();
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    /// Gets a token; the login, if there is one, goes to the token service and not to the registry.
    async fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, PullError> {
        let denied = |what: String| PullError::new(Cause::Denied, format!("token service {realm:?}: {what}"));
        let mut url = Url::parse(realm).map_err(|error| denied(error.to_string()))?;
        let default_scope = self.base.path().trim_matches('/').trim_start_matches("v2/").to_owned();
        let scope = scope.map_or_else(|| format!("repository:{default_scope}:pull"), str::to_owned);
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &scope);
        let mut request = self.client.get(url.clone());
        if let Some(login) = self.credentials.header() {
            request = request.header(AUTHORIZATION, login);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let response = self.check(response, &url)?;
        let content = self.read(response.into(), MAX_TOKEN_REPLY).await?;
        #[derive(Deserialize)]
        struct Reply {
            token: Option<String>,
            access_token: Option<String>,
        }
        let reply: Reply = serde_json::from_slice(&content).map_err(|error| denied(error.to_string()))?;
        let token = reply
            .token
            .or(reply.access_token)
            .ok_or_else(|| denied("its reply has no token".into()))?;
        Ok(format!("Bearer {token}"))
    }

    /// Turns a status that is no success into the error it means.
    fn check(&self, response: Response, url: &Url) -> Result<Response, PullError> {
        let status = response.status();
        let cause = match status {
            status if status.is_success() => return Ok(response),
            StatusCode::NOT_FOUND => Cause::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::Denied,
            _ => Cause::Unreachable,
        };
        let host = self.host();
        Err(PullError::new(
            cause,
            format!("registry {host}: {status} for {}", url.path()),
        ))
    }

    fn unreachable(&self, error: &reqwest::Error) -> PullError {
        let host = self.host();
        // The outermost text of reqwest is "error sending request"; what happened is at the end of its chain.
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let mut what = if causes.is_empty() {
            error.to_string()
        } else {
            causes.join(": ")
        };
        if error.is_timeout() {
            what = format!("no answer in time ({what})");
        }
        PullError::new(Cause::Unreachable, format!("registry {host}: {what}"))
    }

    fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is one look-up or one assignment: a panic elsewhere leaves the data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_nobody_configured_share_a_client() {
        let plain = RegistryConfig {
            plain_http: true,
            ..RegistryConfig::default()
        };
        let configured = RegistryConfigs::from([("known.example".to_owned(), plain.clone())]);
        let registries = Registries::new(configured);
        let clients = async |names: &[&str]| {
            for name in names {
                let reference = format!("{name}/a:1").parse().unwrap();
                let repository = registries.repository(&reference, Credentials::Anonymous);
                assert_eq!(repository.await.unwrap().registry, *name);
            }
            lock(&registries.clients).len()
        };
        assert_eq!(clients(&["known.example"]).await, 1);
        assert_eq!(clients(&["one.example", "two.example", "three.example:5"]).await, 2);
        assert_eq!(clients(&["127.0.0.1:1", "localhost:2"]).await, 3, "no proxy");

        let mirror = Registries::new(RegistryConfigs::from([("*".to_owned(), plain)]));
        for name in ["a.example/a:1", "b.example/b:1"] {
            let reference = name.parse().unwrap();
            mirror.repository(&reference, Credentials::Anonymous).await.unwrap();
        }
        assert_eq!(lock(&mirror.clients).len(), 1);
    }
}
