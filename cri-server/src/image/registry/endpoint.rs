//! One host of a repository: its address, and what it is shown.
//!
//! Credentials are looked for when the host asks, because that may mean to run a program. What it accepted once is shown
//! with every further request, until it expires or is refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::OnceCell;

use super::super::auth::Credentials;
use super::super::error::{Cause, PullError};
use super::super::manifest;
use super::challenge::Challenge;
use super::docker_config::DockerConfig;
use super::failure::Failure;
use super::hosts::{Host, Login};
use super::http::{Ask, Http, Reply, host_of};
use super::lock;
use super::token::{Authorization, Tokens, Wanted};

/// Demands that are met in a row: a token that was kept may be refused, and then a new one is got.
const MAX_CHALLENGES: usize = 2;

/// Where the node keeps credentials.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeCredentials {
    /// Docker's `config.json`.
    pub(super) file: Option<PathBuf>,
    /// Directories of credential helpers.
    pub(super) helper_dirs: Vec<PathBuf>,
}

/// A host that serves a repository.
pub(super) struct Endpoint {
    host: Host,
    /// `library/busybox`.
    repository: String,
    http: Http,
    tokens: Arc<Tokens>,
    /// The caller's; for the registry itself, and nothing for its mirrors.
    given: Credentials,
    node: Arc<NodeCredentials>,
    found: OnceCell<Credentials>,
    shown: Mutex<Option<Authorization>>,
    /// Held while a token is got: several layers ask for the same at once.
    getting: tokio::sync::Mutex<()>,
    is_down: AtomicBool,
    is_distrusted: AtomicBool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A manifest, by tag or digest.
    Manifest(String),
    /// A blob by digest, from this byte on.
    Blob(String, u64),
}

impl Content {
    fn path(&self) -> String {
        match self {
            Content::Manifest(version) => format!("manifests/{version}"),
            Content::Blob(digest, _) => format!("blobs/{digest}"),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Content::Manifest(_) => {
                headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPTED));
            }
            Content::Blob(_, 0) => {}
            Content::Blob(_, from) => {
                let range = HeaderValue::try_from(format!("bytes={from}-"));
                headers.insert(RANGE, range.expect("digits and dashes"));
            }
        }
        headers
    }
}

impl Endpoint {
    pub(super) fn new(
        host: Host,
        repository: &str,
        http: Http,
        tokens: Arc<Tokens>,
        given: Credentials,
        node: Arc<NodeCredentials>,
    ) -> Result<Self, PullError> {
        let given = if host.is_upstream {
            given
        } else {
            Credentials::Anonymous
        };
        // A token can go out at once; a login waits until the registry asks for it, because many want a token instead.
        let shown = match (&given, given.header()) {
            (Credentials::Bearer(_), Some(header)) => Some(Authorization::lasting(&header)?),
            _ => None,
        };
        Ok(Endpoint {
            host,
            repository: repository.to_owned(),
            http,
            tokens,
            given,
            node,
            found: OnceCell::new(),
            shown: Mutex::new(shown),
            getting: tokio::sync::Mutex::new(()),
            is_down: AtomicBool::new(false),
            is_distrusted: AtomicBool::new(false),
        })
    }

    /// Host and port, as errors name it.
    pub(super) fn name(&self) -> String {
        host_of(&self.host.api)
    }

    /// Whether the host is for this: tags are looked up only where the configuration says that they are right.
    pub(super) fn serves(&self, content: &Content) -> bool {
        self.is_trusted()
            && match content {
                Content::Manifest(version) if !version.contains(':') => self.host.capabilities.resolve,
                Content::Manifest(_) | Content::Blob(..) => self.host.capabilities.pull,
            }
    }

    /// Asks it for nothing any more.
    pub(super) fn distrust(&self) {
        self.is_distrusted.store(true, Ordering::Relaxed);
    }

    /// Whether what it sent was right so far.
    pub(super) fn is_trusted(&self) -> bool {
        !self.is_distrusted.load(Ordering::Relaxed)
    }

    /// Whether it failed lately; it is asked last then.
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// Notes whether it failed.
    pub(super) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    /// One request; where the host asks for credentials, these are got and the request is sent once more.
    pub(super) async fn get(&self, content: &Content) -> Result<Response, Failure> {
        let url = self.url(content)?;
        let mut shown = lock(&self.shown).clone().filter(Authorization::is_fresh);
        for _ in 0..MAX_CHALLENGES {
            let reply = self.send(&url, content, shown.as_ref()).await?;
            // Another host, where a redirect led to, is not to be shown anything.
            if reply.response.status() != StatusCode::UNAUTHORIZED || reply.is_foreign {
                return check(reply);
            }
            let Some(challenge) = Challenge::of(reply.response.headers()) else {
                return check(reply);
            };
            let Some(authorization) = self.answer(challenge, shown.as_ref()).await? else {
                return check(reply);
            };
            shown = Some(authorization);
        }
        check(self.send(&url, content, shown.as_ref()).await?)
    }

    fn url(&self, content: &Content) -> Result<Url, PullError> {
        let path = format!("{}/{}", self.repository, content.path());
        let mut url = self.host.api.join(&path).map_err(|error| {
            PullError::new(
                Cause::Invalid,
                format!("registry address {}{path}: {error}", self.host.api),
            )
        })?;
        if let Some(namespace) = &self.host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    async fn send(&self, url: &Url, content: &Content, shown: Option<&Authorization>) -> Result<Reply, Failure> {
        let mut own_headers = self.host.headers.clone();
        if let Some(shown) = shown {
            own_headers.insert(AUTHORIZATION, shown.header.clone());
        }
        let ask = Ask {
            url: url.clone(),
            transport: &self.host.transport,
            headers: content.headers(),
            own_headers,
        };
        self.http.get(ask).await
    }

    /// What meets the host's demand; `refused` does not. `None`: there is nothing to show.
    async fn answer(
        &self,
        challenge: Challenge,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, Failure> {
        let _getting = self.getting.lock().await;
        // Another request may have got it while this one waited.
        let shown = lock(&self.shown).clone().filter(Authorization::is_fresh);
        if let Some(shown) = shown
            && refused.is_none_or(|refused| refused.header != shown.header)
        {
            return Ok(Some(shown));
        }
        let credentials = self.credentials().await?;
        let authorization = match (challenge, credentials) {
            (_, Credentials::Bearer(_)) | (Challenge::Basic, Credentials::Basic { .. }) => {
                let header = credentials.header().unwrap_or_default();
                Authorization::lasting(&header)?
            }
            (Challenge::Basic, Credentials::Anonymous | Credentials::Identity(_)) => return Ok(None),
            (Challenge::Bearer { realm, service, scope }, _) => {
                let wanted = Wanted {
                    realm,
                    service,
                    scope: scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository)),
                    credentials: credentials.clone(),
                };
                self.token(wanted, refused).await?
            }
        };
        if refused.is_some_and(|refused| refused.header == authorization.header) {
            return Ok(None);
        }
        *lock(&self.shown) = Some(authorization.clone());
        Ok(Some(authorization))
    }

    async fn token(&self, wanted: Wanted, refused: Option<&Authorization>) -> Result<Authorization, Failure> {
        if let Some(kept) = self.tokens.kept(&wanted, refused) {
            return Ok(kept);
        }
        let (host, http) = (&self.host, &self.http);
        self.tokens.fetch(http, &host.transport, &host.api, wanted).await
    }

    /// The caller's credentials, else the host's configuration's, else the node's.
    async fn credentials(&self) -> Result<&Credentials, PullError> {
        if self.given != Credentials::Anonymous {
            return Ok(&self.given);
        }
        self.found.get_or_try_init(|| self.look_up()).await
    }

    async fn look_up(&self) -> Result<Credentials, PullError> {
        let file = match &self.host.login {
            Some(Login::Given(credentials)) => return Ok(credentials.clone()),
            Some(Login::File(file)) => Some(file),
            None => self.node.file.as_ref(),
        };
        let Some(file) = file else {
            return Ok(Credentials::Anonymous);
        };
        let found = self.read_credentials(file).await;
        found.map_err(|error| PullError::local(&error))
    }

    async fn read_credentials(&self, file: &Path) -> anyhow::Result<Credentials> {
        let Some(config) = DockerConfig::read(file).await? else {
            return Ok(Credentials::Anonymous);
        };
        // References and files name Docker Hub as the registry, its API has another name.
        let registry = if self.host.is_upstream {
            self.host.registry.clone()
        } else {
            self.name()
        };
        config
            .credentials(&registry, &self.repository, &self.node.helper_dirs)
            .await
    }
}

/// Turns a status that is no success into the failure it means.
fn check(reply: Reply) -> Result<Response, Failure> {
    let Reply { response, is_foreign } = reply;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url();
    let who = format!("registry {}", host_of(url));
    // Where a redirect leads to may be signed, path and all.
    let path = if is_foreign {
        "what it was redirected to"
    } else {
        url.path()
    };
    Err(Failure::of_status(&who, status, response.headers(), path))
}
