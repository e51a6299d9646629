//! Why a pull failed, by what its caller does about it.

use std::fmt;

use super::reference::ReferenceError;

/// Whose turn it is after a failed pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The caller's: the reference or the credentials have no valid form.
    Invalid,
    /// The registry answered: there is no such image.
    NotFound,
    /// The registry answered: not with these credentials.
    Denied,
    /// The network's or the registry's: no answer, a broken one, or one that it calls its own failure.
    Unreachable,
    /// The image's: its content is not what its digests say, or is of a form that is not supported.
    Refused,
    /// The policy's: the image is not one that it lets pass.
    Untrusted,
    /// This node's: a full disk, for example.
    Local,
}

/// A failed pull: its cause, and one line that says what was done to what. Cloned to everyone who waited for the pull.
#[derive(Clone, Debug)]
pub struct PullError {
    /// Whose turn it is.
    pub cause: Cause,
    message: String,
}

impl PullError {
    pub(super) fn new(cause: Cause, message: impl Into<String>) -> Self {
        PullError {
            cause,
            message: message.into(),
        }
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        PullError::new(Cause::Refused, message)
    }

    /// The caller stopped sending what it had begun to send.
    pub fn broken_off(why: &str) -> Self {
        PullError::new(Cause::Invalid, format!("archive: it broke off: {why}"))
    }

    pub(super) fn untrusted(message: impl Into<String>) -> Self {
        PullError::new(Cause::Untrusted, message)
    }

    pub(super) fn local(error: &anyhow::Error) -> Self {
        PullError::new(Cause::Local, format!("{error:#}"))
    }

    /// This failure, after `earlier` ones elsewhere: the last one's cause.
    pub fn after(earlier: Option<PullError>, last: PullError) -> Self {
        match earlier {
            Some(earlier) => PullError::new(last.cause, format!("{earlier}; {last}")),
            None => last,
        }
    }

    /// The same failure, seen from one layer further out.
    pub(super) fn context(self, doing: impl fmt::Display) -> Self {
        PullError {
            cause: self.cause,
            message: format!("{doing}: {}", self.message),
        }
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PullError {}

impl From<ReferenceError> for PullError {
    fn from(error: ReferenceError) -> Self {
        PullError::new(Cause::Invalid, error.to_string())
    }
}
