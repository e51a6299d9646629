//! Credentials, and how a registry asks for them (RFC 7617 Basic, distribution's Bearer tokens).
//!
//! Left out: identity tokens (OAuth2 refresh) and credential files of the node; whoever sends one is told.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_proto::cri::AuthConfig;

use super::error::{Cause, PullError};

/// What a pull shows the registry.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A login, to the registry or to its token service.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token for the registry itself.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets never reach a log.
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(..)",
            Credentials::Bearer(_) => "Bearer(..)",
        })
    }
}

impl Credentials {
    /// The CRI's form, for an image of `registry`. A `server_address` of another registry is an error: the credentials
    /// would go where they do not belong.
    pub fn from_cri(auth: Option<&AuthConfig>, registry: &str) -> Result<Credentials, PullError> {
        let invalid = |field: &str, rule: &str| Err(PullError::new(Cause::Invalid, format!("auth.{field}: {rule}")));
        let Some(auth) = auth else {
            return Ok(Credentials::Anonymous);
        };
        if !auth.server_address.is_empty() && host_of(&auth.server_address) != alias(registry) {
            let rule = format!("{:?} is not the image's registry {registry:?}", auth.server_address);
            return invalid("server_address", &rule);
        }
        if !auth.identity_token.is_empty() {
            return invalid("identity_token", "is not supported; send username and password");
        }
        if !auth.registry_token.is_empty() {
            return Ok(Credentials::Bearer(auth.registry_token.clone()));
        }
        if !auth.username.is_empty() || !auth.password.is_empty() {
            return Ok(Credentials::Basic {
                user: auth.username.clone(),
                password: auth.password.clone(),
            });
        }
        if auth.auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        let decoded = STANDARD
            .decode(&auth.auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        // Docker's config writes a NUL at the end of some passwords.
        match decoded
            .as_deref()
            .map(|login| login.trim_end_matches('\0'))
            .and_then(|login| login.split_once(':'))
        {
            Some((user, password)) => Ok(Credentials::Basic {
                user: user.into(),
                password: password.into(),
            }),
            None => invalid("auth", "must be the base64 form of user:password"),
        }
    }

    /// The `Authorization` header a request can carry before the registry asked for anything.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Credentials::Anonymous => None,
            Credentials::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Bearer(token) => Some(format!("Bearer {token}")),
        }
    }
}

/// The host of a server address, which may be an address with scheme and path.
fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    alias(rest.split('/').next().unwrap_or_default())
}

/// Docker Hub under its one name.
fn alias(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// What a registry demands in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// The login with every request.
    Basic,
    /// A token of the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one header's value; `None` where it is of another scheme or malformed.
    pub(super) fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// `name="value", name=value`: a comma inside quotes belongs to the value.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((name.trim_matches([' ', ',']).to_owned(), value.to_owned()));
        text = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let table = [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push""#,
                bearer("https://a/token", Some("s"), Some("repository:a/b:pull,push")),
            ),
            (r#"bearer scope=x, realm="r""#, bearer("r", None, Some("x"))),
            (r#"Bearer service="s""#, None),
            ("Bearer", None),
            ("Negotiate", None),
            ("", None),
        ];
        for (header, challenge) in table {
            assert_eq!(Challenge::parse(header), challenge, "{header}");
        }
    }

    #[test]
    fn the_fields_of_the_cri() {
        let parse = |auth: &AuthConfig| Credentials::from_cri(Some(auth), "docker.io");
        let basic = Credentials::Basic {
            user: "u".into(),
            password: "p:w".into(),
        };
        let login = AuthConfig {
            username: "u".into(),
            password: "p:w".into(),
            ..AuthConfig::default()
        };
        assert_eq!(parse(&login).unwrap(), basic);
        assert_eq!(
            parse(&AuthConfig {
                auth: "dTpwOnc=".into(),
                ..AuthConfig::default()
            })
            .unwrap(),
            basic
        );
        let address = "https://index.docker.io/v1/".to_owned();
        assert_eq!(
            parse(&AuthConfig {
                server_address: address,
                ..login.clone()
            })
            .unwrap(),
            basic
        );
        assert_eq!(parse(&AuthConfig::default()).unwrap(), Credentials::Anonymous);
        for bad in [
            AuthConfig {
                server_address: "other.io".into(),
                ..login
            },
            AuthConfig {
                auth: "%%%".into(),
                ..AuthConfig::default()
            },
            AuthConfig {
                auth: "dXNlcg==".into(),
                ..AuthConfig::default()
            },
            AuthConfig {
                identity_token: "t".into(),
                ..AuthConfig::default()
            },
        ] {
            assert_eq!(parse(&bad).unwrap_err().cause, Cause::Invalid);
        }
        assert!(!format!("{basic:?}").contains("p:w"));
    }
}
