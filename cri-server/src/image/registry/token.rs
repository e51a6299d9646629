//! Tokens: got from the service that a registry names, kept until shortly before they expire.
//!
//! A login or an identity token goes to the token service, never to the registry with it; the service is the registry's
//! word, under the rules for redirects. Nothing of a reply but its status is ever printed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::super::auth::Credentials;
use super::super::error::{Cause, PullError};
use super::client::Transport;
use super::failure::Failure;
use super::http::{Ask, Http, broken_rule, host_of};
use super::lock;

/// Largest reply of a token service, in bytes.
const MAX_REPLY: usize = 1 << 20;

/// Longest token, in bytes; what servers take as a header is less.
const MAX_TOKEN: usize = 64 << 10;

/// How long a token is good whose reply does not say it (distribution's token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// The longest that a token is kept, whatever its service says.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// A token is not used any more when it has only this long to live: a request takes its time.
const MARGIN: Duration = Duration::from_secs(5);

/// Tokens kept at once.
const MAX_KEPT: usize = 256;

/// The name this program gives itself at a token service.
const CLIENT_ID: &str = "corten";

/// What an `Authorization` header says, and until when.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    /// `None`: as long as it works.
    expires: Option<Instant>,
}

impl Authorization {
    /// One that does not expire by itself; an error where `text` cannot be a header.
    pub(super) fn lasting(text: &str) -> Result<Authorization, PullError> {
        let header = HeaderValue::from_str(text);
        let mut header = header.map_err(|_unprintable| {
            let rule = "credentials: a registry token must not hold control characters";
            PullError::new(Cause::Invalid, rule)
        })?;
        header.set_sensitive(true);
        Ok(Authorization { header, expires: None })
    }

    /// Whether it is worth showing.
    pub(super) fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

/// What a token is for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    /// Whose it is.
    pub(super) credentials: Credentials,
}

/// The tokens of all registries.
#[derive(Default)]
pub(super) struct Tokens {
    kept: Mutex<HashMap<Wanted, Authorization>>,
}

impl Tokens {
    /// A token that was got before, unless it is `refused`.
    pub(super) fn kept(&self, wanted: &Wanted, refused: Option<&Authorization>) -> Option<Authorization> {
        let kept = lock(&self.kept).get(wanted).cloned()?;
        let is_refused = refused.is_some_and(|refused| refused.header == kept.header);
        (kept.is_fresh() && !is_refused).then_some(kept)
    }

    /// Gets a token, for the registry at `registry`, and keeps it.
    pub(super) async fn fetch(
        &self,
        http: &Http,
        transport: &Transport,
        registry: &Url,
        wanted: Wanted,
    ) -> Result<Authorization, Failure> {
        let denied = |what: &str| {
            let error = PullError::new(
                Cause::Denied,
                format!("registry {}: its token service {what}", host_of(registry)),
            );
            Failure::from(error)
        };
        let realm = Url::parse(&wanted.realm).map_err(|_invalid| denied("has no valid address"))?;
        if let Some(rule) = broken_rule(registry, &realm) {
            return Err(denied(rule));
        }
        let is_own = realm.origin() == registry.origin();
        let transport = if is_own {
            transport.clone()
        } else {
            transport.for_others()
        };
        let who = format!("token service {}", host_of(&realm));
        let response = request(http, &transport, realm.clone(), &wanted).await?;
        if !response.status().is_success() {
            let (status, headers) = (response.status(), response.headers());
            return Err(Failure::of_status(&who, status, headers, realm.path()));
        }
        let content = read(http, response).await.map_err(|failure| failure.context(&who))?;
        let authorization = parse(&content, SystemTime::now(), Instant::now());
        let authorization =
            authorization.map_err(|what| Failure::from(PullError::new(Cause::Denied, format!("{who}: {what}"))))?;
        self.keep(wanted, authorization.clone());
        Ok(authorization)
    }

    fn keep(&self, wanted: Wanted, authorization: Authorization) {
        let mut kept = lock(&self.kept);
        kept.retain(|_, it| it.is_fresh());
        if kept.len() < MAX_KEPT && authorization.is_fresh() {
            kept.insert(wanted, authorization);
        }
    }
}

/// Asks as the credentials want: an identity token is exchanged by OAuth2's refresh, anything else by distribution's GET.
async fn request(http: &Http, transport: &Transport, mut realm: Url, wanted: &Wanted) -> Result<Response, Failure> {
    let mut ask = Ask {
        url: realm.clone(),
        transport,
        headers: HeaderMap::new(),
        own_headers: HeaderMap::new(),
    };
    if let Credentials::Identity(identity) = &wanted.credentials {
        let mut form = realm.clone();
        form.query_pairs_mut()
            .clear()
            .append_pair("grant_type", "refresh_token")
            .extend_pairs(wanted.service.as_deref().map(|service| ("service", service)))
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &wanted.scope)
            .append_pair("refresh_token", identity);
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        ask.headers.insert(CONTENT_TYPE, form_type);
        return http.post(ask, form.query().unwrap_or_default().to_owned()).await;
    }
    realm
        .query_pairs_mut()
        .extend_pairs(wanted.service.as_deref().map(|service| ("service", service)))
        .append_pair("scope", &wanted.scope);
    ask.url = realm;
    if let Some(login) = wanted.credentials.header() {
        ask.own_headers
            .insert(AUTHORIZATION, Authorization::lasting(&login)?.header);
    }
    Ok(http.get(ask).await?.response)
}

async fn read(http: &Http, mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    let reading = async {
        while let Some(chunk) = response.chunk().await? {
            content.extend_from_slice(&chunk);
            if content.len() > MAX_REPLY {
                break;
            }
        }
        Ok::<(), reqwest::Error>(())
    };
    match tokio::time::timeout(http.answer_timeout, reading).await {
        Err(_elapsed) => return Err(Failure::broken("its reply does not come to an end")),
        Ok(Err(_broken)) => return Err(Failure::broken("its reply broke off")),
        Ok(Ok(())) => {}
    }
    if content.len() > MAX_REPLY {
        let what = format!("its reply is larger than {MAX_REPLY} bytes");
        return Err(PullError::new(Cause::Denied, what).into());
    }
    Ok(content)
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

/// The token of a reply that came at `now`. An error repeats nothing of the reply: it may hold what was sent.
fn parse(content: &[u8], clock: SystemTime, now: Instant) -> Result<Authorization, String> {
    let reply: Reply =
        serde_json::from_slice(content).map_err(|_repeats_values| "its reply is not a token's JSON form".to_owned())?;
    let token = reply.token.filter(|token| !token.is_empty());
    let token = token.or(reply.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or("its reply has no token")?;
    if token.len() > MAX_TOKEN {
        return Err(format!("its token is longer than {MAX_TOKEN} bytes"));
    }
    let header = Authorization::lasting(&format!("Bearer {token}"));
    let mut authorization = header.map_err(|_unprintable| "its token holds control characters".to_owned())?;
    let life = life(reply.expires_in, reply.issued_at.as_deref(), clock);
    authorization.expires = Some(now + life.saturating_sub(MARGIN));
    Ok(authorization)
}

/// How long a token has to live. An `issued_at` in the past shortens it; a service whose clock is ahead does not lengthen it.
fn life(expires_in: Option<u64>, issued_at: Option<&str>, clock: SystemTime) -> Duration {
    let whole = expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
    let issued = issued_at.and_then(|text| humantime::parse_rfc3339_weak(text).ok());
    let age = issued.and_then(|issued| clock.duration_since(issued).ok());
    whole.saturating_sub(age.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives() {
        let clock = humantime::parse_rfc3339("2026-01-02T03:04:05Z").unwrap();
        for (expires_in, issued_at, seconds) in [
            (None, None, 60),
            (Some(300), None, 300),
            (Some(300), Some("2026-01-02T03:03:05Z"), 240),
            (Some(300), Some("2026-01-02T03:03:05.000000000Z"), 240),
            (Some(300), Some("2026-01-02T03:05:05Z"), 300),
            (Some(300), Some("2025-01-02T03:05:05Z"), 0),
            (Some(300), Some("yesterday"), 300),
            (Some(u64::MAX), None, 3600),
            (Some(0), None, 0),
        ] {
            let found = life(expires_in, issued_at, clock).as_secs();
            assert_eq!(found, seconds, "{expires_in:?} {issued_at:?}");
        }
    }

    #[test]
    fn replies() {
        let long = format!(r#"{{"token":"{}"}}"#, "t".repeat(MAX_TOKEN + 1));
        let table = [
            (r#"{"token":"a","expires_in":60}"#, Ok("Bearer a")),
            (r#"{"access_token":"b"}"#, Ok("Bearer b")),
            (r#"{"token":"","access_token":"b"}"#, Ok("Bearer b")),
            (r#"{"token":"a","access_token":"b","more":[1]}"#, Ok("Bearer a")),
            ("{}", Err("no token")),
            (r#"{"token":""}"#, Err("no token")),
            (r#"{"token":17}"#, Err("not a token's JSON form")),
            (r#"{"token":"a\r\nX-Evil: 1"}"#, Err("control characters")),
            (&long, Err("longer than")),
            ("<html>", Err("not a token's JSON form")),
        ];
        for (content, expected) in table {
            let found = parse(content.as_bytes(), SystemTime::now(), Instant::now());
            match (found, expected) {
                (Ok(found), Ok(header)) => assert_eq!(found.header, header),
                (Err(error), Err(says)) => assert!(error.contains(says), "{error}"),
                (found, _) => panic!("{content}: {:?}", found.map(|it| it.header)),
            }
        }
    }

    #[test]
    fn tokens_are_kept_by_what_they_are_for_and_until_they_expire() {
        let tokens = Tokens::default();
        let wanted = |scope: &str, password: &str| Wanted {
            realm: "https://a/token".into(),
            service: None,
            scope: scope.into(),
            credentials: Credentials::Basic {
                user: "u".into(),
                password: password.into(),
            },
        };
        let token = |text: &str, seconds: u64| {
            let mut token = Authorization::lasting(text).unwrap();
            token.expires = Some(Instant::now() + Duration::from_secs(seconds));
            token
        };
        let first = token("Bearer 1", 100);
        tokens.keep(wanted("a", "x"), first.clone());
        tokens.keep(wanted("old", "x"), token("Bearer 2", 0));
        assert!(tokens.kept(&wanted("a", "x"), None).is_some());
        assert!(tokens.kept(&wanted("a", "x"), Some(&first)).is_none(), "refused");
        assert!(tokens.kept(&wanted("a", "x"), Some(&token("Bearer 9", 9))).is_some());
        for other in [wanted("b", "x"), wanted("a", "y"), wanted("old", "x")] {
            assert!(tokens.kept(&other, None).is_none());
        }
        for number in 0..2 * MAX_KEPT {
            tokens.keep(wanted(&number.to_string(), "x"), token("Bearer 3", 100));
        }
        assert_eq!(lock(&tokens.kept).len(), MAX_KEPT);
    }
}
