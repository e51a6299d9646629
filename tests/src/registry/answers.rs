//! What a registry answers, before or after something is made to go wrong with it.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{Access, Fault, Request, Shared, Tokens, lock};

/// The token that every registry takes; those that the token service hands out have a number besides.
const TOKEN: &str = "a-token-for-tests";

/// A reply on its way.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

pub(super) fn spoil(reply: &mut Reply, fault: Option<&Fault>) {
    match fault {
        Some(Fault::Status(status)) => *reply = Reply::status(*status),
        Some(Fault::Corrupt) => {
            if let Some(last) = reply.body.last_mut() {
                *last ^= 1;
            }
        }
        Some(Fault::ContentType(value)) => {
            reply.headers.retain(|(name, _)| *name != "Content-Type");
            reply.headers.push(("Content-Type", value.clone()));
        }
        Some(Fault::Redirect(target)) => {
            *reply = Reply::status(307);
            reply.headers.push(("Location", target.clone()));
        }
        Some(Fault::StatusWith(status, name, value)) => {
            *reply = Reply::status(*status);
            reply.headers.push((name, value.clone()));
        }
        Some(Fault::Shift(bytes)) if reply.status == 206 => {
            let range = format!("bytes {bytes}-{}/*", bytes + reply.body.len());
            reply.headers.retain(|(name, _)| *name != "Content-Range");
            reply.headers.push(("Content-Range", range));
        }
        // What happens to the content on its way is `serve`'s.
        _ => {}
    }
}

pub(super) fn answer(request: &Request, shared: &Shared) -> Reply {
    let access = lock(&shared.access).clone();
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/token" {
        return token(request, &access, shared);
    }
    if let Some(refusal) = refusal(request, &access, shared) {
        return refusal;
    }
    let Some(path) = path.strip_prefix("/v2/") else {
        return Reply::status(404);
    };
    if path.is_empty() {
        return Reply::json(b"{}".to_vec());
    }
    let found = if let Some((_, digest)) = path.rsplit_once("/blobs/") {
        blob(&shared.dir, digest).map(|body| {
            let headers = vec![("Content-Type", "application/octet-stream".to_owned())];
            let reply = Reply {
                status: 200,
                headers,
                body,
            };
            match range(request).filter(|_| shared.has_ranges.load(Ordering::Relaxed)) {
                Some(first) => part(reply, first),
                None => reply,
            }
        })
    } else if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        manifest(&shared.dir, repository, reference)
    } else {
        None
    };
    found.unwrap_or_else(|| Reply::status(404))
}

/// The answer to a request without the credentials that `access` asks for.
fn refusal(request: &Request, access: &Access, shared: &Shared) -> Option<Reply> {
    let (wanted, challenge) = match access {
        Access::Open => return None,
        Access::Login(user, password) => (basic(user, password), r#"Basic realm="test""#.to_owned()),
        Access::Token | Access::TokenForLogin(..) | Access::TokenForIdentity(_) => {
            let repository = request
                .path
                .trim_start_matches("/v2/")
                .split("/manifests/")
                .next()
                .unwrap_or_default();
            let repository = repository.split("/blobs/").next().unwrap_or_default();
            let tokens = lock(&shared.tokens);
            if request
                .authorization
                .as_ref()
                .is_some_and(|shown| tokens.is_good(shown, shared.address.port()))
            {
                return None;
            }
            let own = format!("http://{}/token", shared.address);
            let realm = tokens.realm.as_ref().unwrap_or(&own);
            let challenge = format!(r#"Bearer realm="{realm}",service="test",scope="repository:{repository}:pull""#);
            (format!("Bearer {TOKEN}"), challenge)
        }
    };
    if request.authorization.as_ref() == Some(&wanted) {
        return None;
    }
    let mut reply = Reply::status(401);
    reply.headers.push(("WWW-Authenticate", challenge));
    Some(reply)
}

impl Tokens {
    /// Whether an `Authorization` header is one of the tokens that were given and are good.
    fn is_good(&self, authorization: &str, port: u16) -> bool {
        let number = authorization.strip_prefix(&format!("Bearer {TOKEN}-{port}-"));
        number
            .and_then(|number| number.parse().ok())
            .is_some_and(|number: usize| (self.oldest..self.given).contains(&number))
    }
}

/// The token service.
fn token(request: &Request, access: &Access, shared: &Shared) -> Reply {
    let is_allowed = match access {
        Access::TokenForLogin(user, password) => request.authorization == Some(basic(user, password)),
        Access::TokenForIdentity(identity) => {
            let fields: Vec<&str> = request.body.split('&').collect();
            let refresh = format!("refresh_token={identity}");
            request.method == "POST"
                && fields.contains(&"grant_type=refresh_token")
                && fields.contains(&"service=test")
                && fields.contains(&refresh.as_str())
        }
        Access::Open | Access::Token | Access::Login(..) => true,
    };
    if !is_allowed {
        return Reply::status(401);
    }
    let mut tokens = lock(&shared.tokens);
    let number = tokens.given;
    tokens.given += 1;
    let life = tokens.life_s.unwrap_or(300);
    let token = format!("{TOKEN}-{}-{number}", shared.address.port());
    Reply::json(format!(r#"{{"token":"{token}","expires_in":{life}}}"#).into_bytes())
}

/// The first byte that is asked for.
fn range(request: &Request) -> Option<usize> {
    let range = request.header("range")?.strip_prefix("bytes=")?;
    range.strip_suffix('-')?.parse().ok()
}

/// The reply from byte `first` on.
fn part(mut reply: Reply, first: usize) -> Reply {
    let whole = reply.body.len();
    if first >= whole {
        return Reply::status(416);
    }
    reply.body.drain(..first);
    reply.status = 206;
    let range = format!("bytes {first}-{}/{whole}", whole - 1);
    reply.headers.push(("Content-Range", range));
    reply
}

fn blob(dir: &Path, digest: &str) -> Option<Vec<u8>> {
    let digest: corten_proto::id::Digest = digest.parse().ok()?;
    fs::read(crate::image::blob_path(dir, &digest)).ok()
}

/// A manifest by tag, through the layout's index, or by digest: then its own `mediaType` is its type.
fn manifest(dir: &Path, repository: &str, reference: &str) -> Option<Reply> {
    let (digest, media_type) = if reference.contains(':') {
        let document: Value = serde_json::from_slice(&blob(dir, reference)?).ok()?;
        (reference.to_owned(), document["mediaType"].as_str()?.to_owned())
    } else {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).ok()?).ok()?;
        let name = format!("{repository}:{reference}");
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == *name;
        let entry = index["manifests"].as_array()?.iter().find(named)?;
        (
            entry["digest"].as_str()?.to_owned(),
            entry["mediaType"].as_str()?.to_owned(),
        )
    };
    let body = blob(dir, &digest)?;
    let headers = vec![("Content-Type", media_type), ("Docker-Content-Digest", digest)];
    Some(Reply {
        status: 200,
        headers,
        body,
    })
}

impl Reply {
    pub(super) fn status(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    fn json(body: Vec<u8>) -> Reply {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Reply {
            status: 200,
            headers,
            body,
        }
    }
}

/// The `Authorization` header of a user and password (RFC 7617).
fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// RFC 4648 base64: ten lines, for one header of a test server.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let index = (bits >> (18 - 6 * position) & 63) as usize;
            text.push(if position <= group.len() {
                char::from(ALPHABET[index])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
