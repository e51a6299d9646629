//! Why a CRI call failed, and the gRPC code the kubelet gets.
//!
//! The code is what callers match on (NOT_FOUND, DEADLINE_EXCEEDED, UNIMPLEMENTED); the message is for a person and
//! names field, value and rule, or the stage that failed and its cause.

use std::fmt;

use tonic::{Code, Status};

use crate::shim;
use crate::spec::{Kind, SpecError, shown};

/// Most bytes of an error's text. It travels in a header, where every byte that is not ASCII takes three, and a client
/// that finds its headers larger than it takes (16 KiB for many) drops the text and the code with it.
pub(crate) const MAX_TEXT: usize = 4096;

/// A text that fits into the answer.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// A failed call.
#[derive(Debug)]
pub enum Error {
    /// The request breaks a rule or asks for what is not built: field, value, rule.
    Request(SpecError),
    /// No object of this id.
    NotFound {
        /// `pod sandbox` or `container`.
        what: &'static str,
        /// As it was given.
        id: String,
    },
    /// The object's state does not allow it.
    State(String),
    /// An object with this metadata exists.
    Exists(String),
    /// Too much of it is under way.
    Busy(String),
    /// Not in time.
    Deadline(String),
    /// A call that is part of this one failed so.
    Status(Box<Status>),
    /// The node could not do its part.
    Failed(anyhow::Error),
}

impl Error {
    /// The request breaks `rule`.
    pub fn invalid(field: &str, value: impl fmt::Display, rule: &str) -> Self {
        Error::Request(SpecError::invalid(field, value, rule))
    }

    /// The gRPC code.
    fn code(&self) -> Code {
        match self {
            Error::Request(error) => match error.kind {
                Kind::Invalid => Code::InvalidArgument,
                Kind::Unimplemented => Code::Unimplemented,
                Kind::Failed => Code::Internal,
            },
            Error::NotFound { .. } => Code::NotFound,
            Error::State(_) => Code::FailedPrecondition,
            Error::Exists(_) => Code::AlreadyExists,
            Error::Busy(_) => Code::ResourceExhausted,
            Error::Deadline(_) => Code::DeadlineExceeded,
            Error::Status(status) => status.code(),
            Error::Failed(_) => Code::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Request(error) => error.fmt(f),
            Error::NotFound { what, id } => write!(f, "{what} {:?}: no such {what}", shown(id)),
            Error::State(text) | Error::Exists(text) | Error::Busy(text) | Error::Deadline(text) => f.write_str(text),
            Error::Status(status) => f.write_str(status.message()),
            Error::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Error::Request(error)
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Error::Failed(error)
    }
}

impl From<shim::Error> for Error {
    fn from(error: shim::Error) -> Self {
        Error::Failed(error.into())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), cut(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_fits_into_the_answers_headers() {
        assert_eq!(cut("ä".into()), "ä");
        assert_eq!(cut("x".repeat(MAX_TEXT)).len(), MAX_TEXT);
        let long = Status::from(Error::State("ä".repeat(9000)));
        assert!(long.message().len() <= MAX_TEXT + '…'.len_utf8());
    }

    #[test]
    fn codes_and_texts() {
        let missing = Error::NotFound {
            what: "container",
            id: "a\nb".to_owned(),
        };
        let invalid = Error::invalid("metadata.name", "", "must not be empty");
        let failed = Error::Failed(anyhow::anyhow!("EROFS").context("make the bundle"));
        let table = [
            (missing, Code::NotFound, r#"container "a\nb": no such container"#),
            (invalid, Code::InvalidArgument, r#"metadata.name "": must not be empty"#),
            (failed, Code::Internal, "make the bundle: EROFS"),
        ];
        for (error, code, text) in table {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }
}
