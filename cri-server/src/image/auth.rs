//! Credentials, and the CRI's form of them. Pure. Those of the node are `registry`'s.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_proto::cri::AuthConfig;

use super::error::{Cause, PullError};
use super::reference::DEFAULT_REGISTRY;

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
    /// A token that the registry's token service exchanges for one of those (OAuth2's refresh token).
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets never reach a log.
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(..)",
            Credentials::Bearer(_) => "Bearer(..)",
            Credentials::Identity(_) => "Identity(..)",
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
        if !auth.server_address.is_empty() && !is_for(&auth.server_address, registry) {
            // Not repeated: an address can hold a password.
            return invalid("server_address", &format!("is not the image's registry {registry:?}"));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Credentials::Identity(auth.identity_token.clone()));
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
        match decode_login(&auth.auth) {
            Some(login) => Ok(login),
            None => invalid("auth", "must be the base64 form of user:password"),
        }
    }

    /// The CRI's form, for one of the registries that a name without registry is looked for at. Without a `server_address`
    /// it is Docker Hub's: that is what the kubelet takes such a name for when it looks for credentials.
    pub fn for_one_of_several(auth: Option<&AuthConfig>, registry: &str) -> Result<Credentials, PullError> {
        let owner = auth.map_or("", |auth| auth.server_address.as_str());
        let owner = if owner.is_empty() { DEFAULT_REGISTRY } else { owner };
        if is_for(owner, registry) {
            return Credentials::from_cri(auth, registry);
        }
        Ok(Credentials::Anonymous)
    }

    /// The `Authorization` header a request can carry before the registry asked for anything.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Credentials::Anonymous | Credentials::Identity(_) => None,
            Credentials::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Bearer(token) => Some(format!("Bearer {token}")),
        }
    }
}

/// `user:password` in base64.
pub(super) fn decode_login(encoded: &str) -> Option<Credentials> {
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    // Docker's config writes a NUL at the end of some passwords.
    let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
    Some(Credentials::Basic {
        user: user.into(),
        password: password.into(),
    })
}

/// Whether a server address, which may have scheme and path, is `registry`'s.
pub(super) fn is_for(server_address: &str, registry: &str) -> bool {
    let rest = server_address
        .split_once("://")
        .map_or(server_address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or_default()) == canonical(registry)
}

/// Docker Hub under its one name.
pub(super) fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let token = AuthConfig {
            identity_token: "t".into(),
            ..login.clone()
        };
        assert_eq!(parse(&token).unwrap(), Credentials::Identity("t".into()));
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
        ] {
            assert_eq!(parse(&bad).unwrap_err().cause, Cause::Invalid);
        }
        for secret in [
            basic,
            Credentials::Bearer("p:w".into()),
            Credentials::Identity("p:w".into()),
        ] {
            assert!(!format!("{secret:?}").contains("p:w"));
        }
    }

    #[test]
    fn a_login_is_for_one_of_several_registries() {
        let login = |server_address: &str| AuthConfig {
            username: "u".into(),
            server_address: server_address.into(),
            ..AuthConfig::default()
        };
        for (server, registry, is_shown) in [
            ("", "docker.io", true),
            ("", "r.example", false),
            ("r.example", "r.example", true),
            ("https://r.example/v2/", "r.example", true),
            ("r.example", "docker.io", false),
            ("https://index.docker.io/v1/", "docker.io", true),
        ] {
            let shown = Credentials::for_one_of_several(Some(&login(server)), registry).unwrap();
            assert_eq!(shown != Credentials::Anonymous, is_shown, "{server:?} {registry}");
        }
        let none = Credentials::for_one_of_several(None, "docker.io").unwrap();
        assert_eq!(none, Credentials::Anonymous);
    }
}
