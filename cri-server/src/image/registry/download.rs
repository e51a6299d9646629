//! The content of a reply as it arrives, and how it goes on in another reply when the connection breaks.

use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::super::error::{Cause, PullError};
use super::super::pace::Pace;
use super::endpoint::Content;
use super::failure::{Failure, Retries, TRIES};
use super::repository::Answer;

/// Whoever brought so many bytes since the last break has all tries again.
const RENEWED_AFTER: u64 = 1 << 20;

/// A reply's content.
pub(in super::super) struct Body {
    response: Response,
    /// Whose reply it is.
    pub(in super::super) endpoint: usize,
    /// Whose earlier replies it goes on from; other than `endpoint`.
    others: Vec<usize>,
    content: Content,
    can_resume: bool,
    /// How many bytes were handed out.
    received: u64,
    /// How many bytes to come were handed out already: the host does not know ranges.
    repeated: u64,
    /// `received` at the last break.
    broke_at: u64,
    pub(super) retries: Retries,
    pace: Pace,
    /// Longest silence of one connection.
    timeout: Duration,
}

impl Body {
    /// A blob from its beginning.
    pub(super) fn new(answer: Answer, content: Content, timeout: Duration) -> Result<Body, Failure> {
        if answer.response.status() == StatusCode::PARTIAL_CONTENT {
            return Err(not_asked_for().into());
        }
        let mut body = Body::unresumable(answer, content, timeout);
        body.can_resume = true;
        Ok(body)
    }

    /// Content that is whole or worth nothing.
    pub(super) fn unresumable(answer: Answer, content: Content, timeout: Duration) -> Body {
        Body {
            response: answer.response,
            endpoint: answer.endpoint,
            others: Vec::new(),
            content,
            can_resume: false,
            received: 0,
            repeated: 0,
            broke_at: 0,
            retries: Retries::default(),
            pace: Pace::new(timeout),
            // A connection that the network has forgotten is silent for ever: a new one helps, so each try has its share.
            timeout: timeout / TRIES,
        }
    }

    /// The next piece; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let asked = Instant::now();
            let mut chunk = match tokio::time::timeout(self.timeout, self.response.chunk()).await {
                Err(_elapsed) => return Err(Failure::broken(format!("no byte in {} s", self.timeout.as_secs()))),
                Ok(Err(error)) => return Err(Failure::of_client(&error)),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(chunk))) => chunk,
            };
            let slow = self.pace.note(asked.elapsed(), chunk.len());
            slow.map_err(|what| PullError::new(Cause::Unreachable, what))?;
            let repeated = self.repeated.min(chunk.len() as u64);
            self.repeated -= repeated;
            chunk.advance(usize::try_from(repeated).unwrap_or(usize::MAX));
            if !chunk.is_empty() {
                self.received += chunk.len() as u64;
                return Ok(Some(chunk));
            }
        }
    }

    /// What is still to be asked for after a break, if it can be had in parts.
    pub(super) fn rest(&mut self) -> Option<Content> {
        if self.received.saturating_sub(self.broke_at) >= RENEWED_AFTER {
            self.retries = Retries::default();
        }
        self.broke_at = self.received;
        match &self.content {
            Content::Blob(digest, _) if self.can_resume => Some(Content::Blob(digest.clone(), self.received)),
            _ => None,
        }
    }

    /// Goes on with the answer to what `rest` said.
    pub(super) fn go_on(&mut self, answer: Answer) -> Result<(), Failure> {
        self.repeated = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.response.headers().get(CONTENT_RANGE);
                let start = range.and_then(|value| value.to_str().ok()).and_then(start_of);
                if start != Some(self.received) {
                    return Err(not_asked_for().into());
                }
                0
            }
            // A whole blob for a part of it is what a server may send.
            _ => self.received,
        };
        self.response = answer.response;
        if answer.endpoint != self.endpoint && self.received > 0 {
            self.others.push(self.endpoint);
        }
        self.endpoint = answer.endpoint;
        Ok(())
    }

    /// Whether one host has sent all of it, so that what is wrong with it is that host's doing.
    pub(super) fn is_of_one_host(&self) -> bool {
        self.others.iter().all(|other| *other == self.endpoint)
    }
}

fn not_asked_for() -> PullError {
    PullError::new(Cause::Unreachable, "sends a part that was not asked for")
}

/// The first byte of `bytes FIRST-LAST/WHOLE` (RFC 9110, 14.4).
fn start_of(range: &str) -> Option<u64> {
    let range = range.trim().strip_prefix("bytes")?.trim_start();
    let (first, _) = range.split_once('-')?;
    first.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_part_starts() {
        for (range, start) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-9/*", Some(0)),
            (" bytes  7-", Some(7)),
            ("bytes */10", None),
            ("bytes -5/10", None),
            ("lines 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(start_of(range), start, "{range:?}");
        }
    }
}
