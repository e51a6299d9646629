//! One-time tokens: what the RPCs hand out, and the HTTP server takes back.
//!
//! A token is 128 random bits, good once and for [`LIFETIME`]. Whoever has it may do what the RPC was asked for, so it is
//! never logged. [`MAX_TOKENS`] may be out at once.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::Instant;

use super::session::Session;
use crate::error::Error;

/// How long a token is good.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that are out.
const MAX_TOKENS: usize = 1000;

/// The tokens that are out, and where they can be brought.
#[derive(Default)]
pub struct Tokens {
    base: OnceLock<String>,
    out: Mutex<HashMap<String, Issued>>,
}

struct Issued {
    session: Session,
    until: Instant,
}

impl Tokens {
    /// The server listens: URLs begin with `base` from here on.
    pub(super) fn open(&self, base: String) {
        // Set once, by the one server there is.
        self.base.get_or_init(|| base);
    }

    /// A URL at which `session` can be begun, once.
    pub(crate) fn issue(&self, session: Session) -> Result<String, Error> {
        let base = self
            .base
            .get()
            .ok_or_else(|| anyhow!("the streaming server does not listen yet"))?;
        let token = random()?;
        let url = format!("{base}/{}/{token}", session.path());
        let mut out = self.out.lock().expect("no holder panics");
        let now = Instant::now();
        out.retain(|_, issued| issued.until > now);
        if out.len() >= MAX_TOKENS {
            let text = format!("{MAX_TOKENS} streams have been asked for and not begun: try again in a minute");
            return Err(Error::Busy(text));
        }
        out.insert(
            token,
            Issued {
                session,
                until: now + LIFETIME,
            },
        );
        Ok(url)
    }

    /// The session of a token, which is spent by this.
    pub(super) fn take(&self, path: &str) -> Option<Session> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut out = self.out.lock().expect("no holder panics");
        if out.get(token)?.session.path() != kind {
            return None;
        }
        let issued = out.remove(token)?;
        (issued.until > Instant::now()).then_some(issued.session)
    }
}

fn random() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("read random bytes for a token: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::PortForward {
            sandbox: "s".to_owned(),
            ports: Vec::new(),
        }
    }

    fn open() -> Tokens {
        let tokens = Tokens::default();
        tokens.open("http://127.0.0.1:1".to_owned());
        tokens
    }

    fn path(url: &str) -> &str {
        url.strip_prefix("http://127.0.0.1:1").unwrap()
    }

    #[test]
    fn a_token_is_good_once_and_for_its_kind() {
        let tokens = open();
        let url = tokens.issue(session()).unwrap();
        let token = url.rsplit('/').next().unwrap();
        assert_eq!(token.len(), 32);
        for wrong in ["", "/", "/portforward", "/portforward/", "/portforward/0"] {
            assert!(tokens.take(wrong).is_none(), "{wrong:?}");
        }
        for wrong in ["exec", "attach", "portforward/x", ""] {
            assert!(tokens.take(&format!("/{wrong}/{token}")).is_none(), "{wrong:?}");
        }
        assert!(tokens.take(path(&url)).is_some());
        assert!(tokens.take(path(&url)).is_none());
    }

    #[test]
    fn tokens_expire_and_are_bounded() {
        let tokens = open();
        let urls: Vec<_> = (0..MAX_TOKENS).map(|_| tokens.issue(session()).unwrap()).collect();
        assert!(matches!(tokens.issue(session()), Err(Error::Busy(_))));
        for issued in tokens.out.lock().unwrap().values_mut() {
            issued.until = Instant::now();
        }
        assert!(tokens.take(path(&urls[0])).is_none());
        let url = tokens.issue(session()).unwrap();
        assert_eq!(tokens.out.lock().unwrap().len(), 1);
        assert!(tokens.take(path(&url)).is_some());
    }

    #[test]
    fn no_url_before_the_server_listens() {
        assert!(Tokens::default().issue(session()).is_err());
    }
}
