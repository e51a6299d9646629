//! One repository, by whichever of its hosts answers.
//!
//! Hosts are asked in the order of the configuration, those that failed lately last. What one has not or will not
//! give, the next is asked for; if none has it and the last one's failure may pass, all are asked again after a pause.

use std::time::Duration;

use corten_proto::id::Digest;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;

use super::super::auth::Credentials;
use super::super::error::{Cause, PullError};
use super::download::Body;
use super::endpoint::{Content, Endpoint};
use super::failure::{Again, Failure, Retries};

/// Largest manifest or index, in bytes: what the distribution API obliges registries to take.
const MAX_MANIFEST: usize = 4 << 20;

/// One repository of one registry, and what this pull may show it.
pub(in super::super) struct Repository {
    /// As references name it.
    pub(in super::super) registry: String,
    pub(in super::super) credentials: Credentials,
    pub(super) endpoints: Vec<Endpoint>,
    /// Longest silence in the middle of a reply, other tries included.
    pub(super) progress_timeout: Duration,
}

/// A reply, and the number of the endpoint it is from.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) endpoint: usize,
}

impl Repository {
    /// Fetches the manifest of a tag or digest: its type and its bytes, those of the first host whose answer passes `check`.
    pub(in super::super) async fn manifest(
        &self,
        version: &str,
        check: impl Fn(&str, &[u8]) -> Result<(), PullError>,
    ) -> Result<(String, Vec<u8>), PullError> {
        let content = Content::Manifest(version.to_owned());
        let mut retries = Retries::default();
        loop {
            let answer = self.ask(&content).await?;
            let endpoint = answer.endpoint;
            let content_type = answer.response.headers().get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
            let content_type = content_type.to_owned();
            // A tag may move meanwhile, so that a broken reply is no beginning of the next.
            let mut body = Body::unresumable(answer, content.clone(), self.progress_timeout);
            let failure = match self.read_once(&mut body, MAX_MANIFEST).await {
                Ok(manifest) => match check(&content_type, &manifest) {
                    Ok(()) => return Ok((content_type, manifest)),
                    Err(error) => self.named(endpoint, error.context("manifest").into()),
                },
                Err(failure) => failure.context("manifest"),
            };
            if failure.error.cause == Cause::Refused && self.distrust(endpoint) {
                tracing::warn!(error = %failure.error, "a host sends what is not the manifest, asking the next");
                continue;
            }
            self.wait(&mut retries, failure).await?;
        }
    }

    /// Asks for a blob, whose content follows.
    pub(in super::super) async fn blob(&self, digest: &str) -> Result<Body, PullError> {
        let content = Content::Blob(digest.to_owned(), 0);
        let answer = self.ask(&content).await?;
        let endpoint = answer.endpoint;
        let body = Body::new(answer, content, self.progress_timeout);
        body.map_err(|failure| self.named(endpoint, failure).error)
    }

    /// The next piece of a reply; `None` after the last. A download that breaks is taken up again where it was.
    pub(in super::super) async fn chunk(&self, body: &mut Body) -> Result<Option<bytes::Bytes>, PullError> {
        loop {
            let failure = match body.next().await {
                Ok(chunk) => return Ok(chunk),
                Err(failure) => self.named(body.endpoint, failure),
            };
            let Some(content) = body.rest() else {
                return Err(failure.error);
            };
            // Whoever else has it is asked first.
            self.endpoints[body.endpoint].set_down(true);
            tracing::info!(error = %failure.error, "a download broke, going on where it was");
            self.wait(&mut body.retries, failure).await?;
            let answer = self.ask(&content).await?;
            let endpoint = answer.endpoint;
            body.go_on(answer)
                .map_err(|failure| self.named(endpoint, failure).error)?;
        }
    }

    /// Fetches a blob of at most `limit` bytes into memory, from one host after the other where what they send does not pass
    /// `check`.
    pub(in super::super) async fn whole(
        &self,
        digest: &Digest,
        limit: usize,
        check: impl Fn(&[u8]) -> Result<(), PullError>,
    ) -> Result<Vec<u8>, PullError> {
        let mut was_mixed = false;
        loop {
            let mut body = self.blob(digest.as_str()).await?;
            let content = self.read(&mut body, limit).await;
            let error = match content.and_then(|content| check(&content).map(|()| content)) {
                Ok(content) => return Ok(content),
                Err(error) if error.cause != Cause::Refused => return Err(error),
                Err(error) => self.named(body.endpoint, error.into()).error,
            };
            if !self.ask_again(&body, &mut was_mixed) {
                return Err(error);
            }
            tracing::warn!(%error, "what was sent is not the blob, asking for all of it again");
        }
    }

    /// Reads a whole body of at most `limit` bytes.
    async fn read(&self, body: &mut Body, limit: usize) -> Result<Vec<u8>, PullError> {
        let mut content = Vec::new();
        while let Some(chunk) = self.chunk(body).await? {
            append(&mut content, &chunk, limit)?;
        }
        Ok(content)
    }

    /// After a `body` that was wrong: whether there is anyone to ask for it again.
    ///
    /// Of what several hosts have sent the wrong part may be anyone's: whoever did not break is asked for all of it, once,
    /// which `was_mixed` notes.
    pub(in super::super) fn ask_again(&self, body: &Body, was_mixed: &mut bool) -> bool {
        if !body.is_of_one_host() && !*was_mixed {
            *was_mixed = true;
            return true;
        }
        self.distrust(body.endpoint)
    }

    /// Asks a host no more, because what it sends is wrong; false where there is no other, and then it stays.
    fn distrust(&self, endpoint: usize) -> bool {
        let mut others = self.endpoints.iter().enumerate();
        let has_other = others.any(|(number, it)| number != endpoint && it.is_trusted());
        if has_other {
            self.endpoints[endpoint].distrust();
        }
        has_other
    }

    /// The name of a host, for errors.
    pub(in super::super) fn host(&self, endpoint: usize) -> String {
        self.endpoints[endpoint].name()
    }

    async fn read_once(&self, body: &mut Body, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut content = Vec::new();
        while let Some(chunk) = body
            .next()
            .await
            .map_err(|failure| self.named(body.endpoint, failure))?
        {
            append(&mut content, &chunk, limit)?;
        }
        Ok(content)
    }

    /// Asks until one answers or there is no use in asking.
    async fn ask(&self, content: &Content) -> Result<Answer, PullError> {
        let mut retries = Retries::default();
        loop {
            match self.ask_each(content).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.wait(&mut retries, failure).await?,
            }
        }
    }

    /// Asks one after the other.
    async fn ask_each(&self, content: &Content) -> Result<Answer, Failure> {
        let serving = self.endpoints.iter().enumerate().filter(|(_, it)| it.serves(content));
        let mut order: Vec<_> = serving.collect();
        order.sort_by_key(|(_, endpoint)| endpoint.is_down());
        let mut failed: Option<Failure> = None;
        for (number, endpoint) in order {
            let failure = match endpoint.get(content).await {
                Ok(response) => {
                    endpoint.set_down(false);
                    return Ok(Answer {
                        response,
                        endpoint: number,
                    });
                }
                Err(failure) => failure,
            };
            // An image that is not there says nothing about the next.
            endpoint.set_down(failure.error.cause != Cause::NotFound);
            failed = Some(match failed {
                Some(earlier) => earlier.then(failure),
                None => failure,
            });
        }
        Err(failed.unwrap_or_else(|| {
            let what = format!("registry {}: no host of its hosts.toml may do this", self.registry);
            PullError::new(Cause::Unreachable, what).into()
        }))
    }

    /// Waits before the next try; an error when there is to be none.
    async fn wait(&self, retries: &mut Retries, failure: Failure) -> Result<(), PullError> {
        let Some(pause) = retries.pause(&failure) else {
            return Err(failure.error);
        };
        if matches!(failure.again, Again::After(_)) {
            tracing::info!(registry = %self.registry, ?pause, "the registry asks to wait");
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn named(&self, endpoint: usize, failure: Failure) -> Failure {
        failure.context(format!("registry {}", self.endpoints[endpoint].name()))
    }
}

fn append(content: &mut Vec<u8>, chunk: &[u8], limit: usize) -> Result<(), PullError> {
    if content.len() + chunk.len() > limit {
        return Err(PullError::refused(format!("larger than {limit} bytes")));
    }
    content.extend_from_slice(chunk);
    Ok(())
}
