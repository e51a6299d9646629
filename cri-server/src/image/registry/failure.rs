//! A request that failed, and whether it is worth another try.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::super::error::{Cause, PullError};

/// How often a request is sent at most.
pub(super) const TRIES: u32 = 3;

/// Pauses before a request is sent again. Without them one broken connection costs all layers of an image, because a
/// failed pull keeps nothing.
const PAUSES: [Duration; TRIES as usize - 1] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Longest wait that a registry can ask for; whoever asks for more is not asked again by the same pull.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It would fail again.
    Never,
    /// After a short pause.
    Soon,
    /// After the pause that the registry asks for.
    After(Duration),
}

/// A failed request.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: PullError,
    pub(super) again: Again,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Failure {
            error,
            again: Again::Never,
        }
    }
}

impl Failure {
    /// The network's failure, or a silence.
    pub(super) fn broken(what: impl Into<String>) -> Failure {
        Failure {
            error: PullError::new(Cause::Unreachable, what),
            again: Again::Soon,
        }
    }

    /// What `error` of the client means. Its address is left out: it may have been signed.
    pub(super) fn of_client(error: &reqwest::Error) -> Failure {
        // The outermost text of reqwest is "error sending request"; what happened is at the end of its chain.
        let mut causes = Vec::new();
        let mut is_tls = false;
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            is_tls |= kind == Some(std::io::ErrorKind::InvalidData);
            source = cause.source();
        }
        causes.dedup();
        let mut what = causes.join(": ");
        if what.is_empty() {
            what = "the request failed".to_owned();
        }
        if error.is_timeout() {
            what = format!("no answer in time ({what})");
        }
        Failure {
            error: PullError::new(Cause::Unreachable, what),
            // A certificate that is not trusted will not be a second later.
            again: if is_tls || error.is_builder() {
                Again::Never
            } else {
                Again::Soon
            },
        }
    }

    /// What a reply without success means.
    pub(super) fn of_status(who: &str, status: StatusCode, headers: &HeaderMap, path: &str) -> Failure {
        let cause = match status {
            StatusCode::NOT_FOUND => Cause::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::Denied,
            _ => Cause::Unreachable,
        };
        let (again, asks) = match status.as_u16() {
            408 | 429 | 500 | 502 | 503 | 504 => when(headers),
            _ => (Again::Never, String::new()),
        };
        Failure {
            error: PullError::new(cause, format!("{who}: {status} for {path}{asks}")),
            again,
        }
    }

    /// The same failure, seen from one layer further out.
    pub(super) fn context(self, doing: impl std::fmt::Display) -> Failure {
        Failure {
            error: self.error.context(doing),
            again: self.again,
        }
    }

    /// This one and then another host's: the last host's word counts, because it knows all images.
    pub(super) fn then(self, later: Failure) -> Failure {
        Failure {
            error: PullError::after(Some(self.error), later.error),
            again: later.again,
        }
    }
}

/// When a registry that is overburdened wants to be asked again.
fn when(headers: &HeaderMap) -> (Again, String) {
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    match asked.and_then(|value| retry_after(value, SystemTime::now())) {
        None => (Again::Soon, String::new()),
        Some(wait) if wait <= MAX_WAIT => (Again::After(wait), String::new()),
        Some(wait) => (Again::Never, format!(", to be asked again in {} s", wait.as_secs())),
    }
}

/// Seconds or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The tries that a request has left.
pub(super) struct Retries {
    pauses: std::array::IntoIter<Duration, { PAUSES.len() }>,
}

impl Default for Retries {
    fn default() -> Self {
        Retries {
            pauses: PAUSES.into_iter(),
        }
    }
}

impl Retries {
    /// How long to wait before trying again after `failure`; `None`: give up.
    pub(super) fn pause(&mut self, failure: &Failure) -> Option<Duration> {
        match failure.again {
            Again::Never => None,
            Again::Soon => self.pauses.next(),
            Again::After(wait) => self.pauses.next().map(|pause| pause.max(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, seconds) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:57 GMT", Some(20)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn what_is_tried_again_and_when() {
        let failed = |status: u16, wait: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(wait) = wait {
                headers.insert(RETRY_AFTER, wait.parse().unwrap());
            }
            Failure::of_status("registry r", StatusCode::from_u16(status).unwrap(), &headers, "/p")
        };
        for (status, wait, again, cause) in [
            (404, None, Again::Never, Cause::NotFound),
            (401, None, Again::Never, Cause::Denied),
            (403, Some("1"), Again::Never, Cause::Denied),
            (400, None, Again::Never, Cause::Unreachable),
            (501, None, Again::Never, Cause::Unreachable),
            (429, None, Again::Soon, Cause::Unreachable),
            (429, Some("3"), Again::After(Duration::from_secs(3)), Cause::Unreachable),
            (429, Some("30"), Again::After(MAX_WAIT), Cause::Unreachable),
            (429, Some("31"), Again::Never, Cause::Unreachable),
            (503, Some("nonsense"), Again::Soon, Cause::Unreachable),
        ] {
            let failure = failed(status, wait);
            assert_eq!(
                (failure.again, failure.error.cause),
                (again, cause),
                "{status} {wait:?}"
            );
        }
        let text = failed(429, Some("3600")).error.to_string();
        assert!(text.contains("429") && text.contains("in 3600 s"), "{text}");
    }

    #[test]
    fn tries_end_and_waits_are_at_least_what_is_asked_for() {
        let failure = |again| Failure {
            again,
            ..Failure::broken("x")
        };
        let mut retries = Retries::default();
        assert_eq!(retries.pause(&failure(Again::Never)), None);
        let wait = Duration::from_secs(9);
        assert_eq!(retries.pause(&failure(Again::After(wait))), Some(wait));
        assert_eq!(retries.pause(&failure(Again::Soon)), Some(PAUSES[1]));
        assert_eq!(retries.pause(&failure(Again::Soon)), None);
    }

    #[test]
    fn the_last_host_decides() {
        let not_found = Failure::from(PullError::new(Cause::NotFound, "upstream: 404"));
        let both = Failure::broken("mirror: refused").then(not_found);
        assert_eq!((both.error.cause, both.again), (Cause::NotFound, Again::Never));
        assert_eq!(both.error.to_string(), "mirror: refused; upstream: 404");
    }
}
