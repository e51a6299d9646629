//! One request and the redirects it leads to.
//!
//! Redirects are followed by hand, because what may go along is ours to decide: credentials, configured headers and the
//! client's certificate stay with the host they are for. From HTTPS nothing leads to HTTP, and no host that is not of this
//! machine leads to an address that only this machine can ask (loopback, link-local).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Method, Response, Url};

use super::super::error::{Cause, PullError};
use super::client::{Clients, Transport, is_loopback};
use super::failure::Failure;

/// Redirects followed in a row.
const MAX_REDIRECTS: usize = 5;

/// Sends requests.
#[derive(Clone)]
pub(super) struct Http {
    pub(super) clients: Arc<Clients>,
    /// Longest time until the head of a reply.
    pub(super) answer_timeout: Duration,
}

/// A request.
pub(super) struct Ask<'a> {
    pub(super) url: Url,
    pub(super) transport: &'a Transport,
    /// Of the request itself; they go wherever it goes.
    pub(super) headers: HeaderMap,
    /// For this host only: credentials, and what the configuration adds.
    pub(super) own_headers: HeaderMap,
}

/// A reply, whatever its status.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Another host's than the one that was asked.
    pub(super) is_foreign: bool,
}

impl Http {
    /// Sends a GET and follows redirects.
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Reply, Failure> {
        let origin = ask.url.origin();
        let mut url = ask.url;
        let mut is_foreign = false;
        for _ in 0..=MAX_REDIRECTS {
            // Once it has left it stays a stranger's request, even where it comes back to.
            is_foreign |= url.origin() != origin;
            let mut headers = ask.headers.clone();
            let transport = if is_foreign {
                ask.transport.for_others()
            } else {
                headers.extend(ask.own_headers.clone());
                ask.transport.clone()
            };
            let response = self.send(Method::GET, &url, &transport, headers, None).await?;
            if !response.status().is_redirection() {
                return Ok(Reply { response, is_foreign });
            }
            url = redirected(&response, &url)?;
        }
        let what = format!("registry {}: more than {MAX_REDIRECTS} redirects", host_of(&url));
        Err(PullError::new(Cause::Unreachable, what).into())
    }

    /// Sends a form; a redirect is the answer.
    pub(super) async fn post(&self, ask: Ask<'_>, form: String) -> Result<Response, Failure> {
        let mut headers = ask.headers;
        headers.extend(ask.own_headers);
        self.send(Method::POST, &ask.url, ask.transport, headers, Some(form))
            .await
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        transport: &Transport,
        headers: HeaderMap,
        body: Option<String>,
    ) -> Result<Response, Failure> {
        let host = host_of(url);
        let client = self.clients.get(transport, url).await;
        let client = client
            .with_context(|| format!("set up the connection to registry {host}"))
            .map_err(|error| PullError::local(&error))?;
        let mut request = client.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let sent = match tokio::time::timeout(self.answer_timeout, request.send()).await {
            Ok(sent) => sent.map_err(|error| Failure::of_client(&error)),
            Err(_elapsed) => Err(Failure::broken(format!(
                "no answer in {} s",
                self.answer_timeout.as_secs()
            ))),
        };
        sent.map_err(|failure| failure.context(format!("registry {host}")))
    }
}

/// Where a redirect leads, if it may.
fn redirected(response: &Response, from: &Url) -> Result<Url, Failure> {
    let refused = |rule: &str| {
        let what = format!("registry {}: its redirect {rule}", host_of(from));
        Failure::from(PullError::new(Cause::Unreachable, what))
    };
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else {
        return Err(refused("names no place to go to"));
    };
    let Ok(to) = from.join(location) else {
        return Err(refused("leads to no valid address"));
    };
    match broken_rule(from, &to) {
        None => Ok(to),
        Some(rule) => Err(refused(rule)),
    }
}

/// Why a host must not send us from `from` to `to`, be it by redirect or as its token service.
pub(super) fn broken_rule(from: &Url, to: &Url) -> Option<&'static str> {
    if !matches!(to.scheme(), "http" | "https") || to.host_str().is_none() {
        return Some("leads to what is neither HTTP nor HTTPS");
    }
    if from.scheme() == "https" && to.scheme() == "http" {
        return Some("leads from HTTPS to HTTP");
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Some("brings credentials along");
    }
    if from.host_str() == to.host_str() {
        return None;
    }
    if is_loopback(to) && !is_loopback(from) {
        return Some("leads to this machine");
    }
    let host = to.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host.parse().is_ok_and(is_link_local);
    is_local.then_some("leads to a link-local address")
}

/// Addresses that nobody routes: a cloud's metadata service listens at one.
fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => {
            // The last: the metadata service's of one cloud, within the private range.
            let metadata = v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
            v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || metadata
        }
    }
}

/// Host and port, as errors name a registry.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_host_may_send_us() {
        let (outside, inside) = ("https://registry.example/v2/", "http://127.0.0.1:5000/v2/");
        let table = [
            (outside, "https://cdn.example/x?signature=y", None),
            (outside, "https://registry.example:444/x", None),
            (outside, "https://10.0.0.1/x", None),
            (outside, "http://cdn.example/x", Some("HTTP")),
            (outside, "http://registry.example/x", Some("HTTP")),
            (outside, "file:///etc/shadow", Some("neither")),
            (outside, "ftp://cdn.example/x", Some("neither")),
            (outside, "data:text/plain,x", Some("neither")),
            (outside, "https://user:pw@cdn.example/x", Some("credentials")),
            (outside, "https://169.254.169.254/latest/meta-data", Some("link-local")),
            (outside, "https://2852039166/latest", Some("link-local")),
            (outside, "https://0xa9fea9fe/latest", Some("link-local")),
            (outside, "https://[::ffff:169.254.169.254]/", Some("link-local")),
            (outside, "https://[fe80::1]/", Some("link-local")),
            (outside, "https://[fd00:ec2::254]/", Some("link-local")),
            (outside, "https://0.0.0.0:10250/", Some("link-local")),
            (outside, "https://127.0.0.1:10250/", Some("this machine")),
            (outside, "https://127.1/", Some("this machine")),
            (outside, "https://localhost:10250/", Some("this machine")),
            (outside, "https://[::1]/", Some("this machine")),
            (outside, "https://[::ffff:127.0.0.1]/", Some("this machine")),
            (inside, "http://127.0.0.1:5001/x", None),
            (inside, "https://cdn.example/x", None),
            (inside, "http://169.254.169.254/", Some("link-local")),
            ("https://169.254.1.1/v2/", "https://169.254.1.1/x", None),
        ];
        for (from, to, rule) in table {
            let found = broken_rule(&from.parse().unwrap(), &to.parse().unwrap());
            assert_eq!(found.is_some(), rule.is_some(), "{from} -> {to}: {found:?}");
            assert!(
                found.unwrap_or_default().contains(rule.unwrap_or_default()),
                "{to}: {found:?}"
            );
        }
    }
}
