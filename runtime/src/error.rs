//! The few errors somebody acts on; everything else is an `anyhow` chain for a human.

use std::fmt;

use corten_proto::id::ContainerId;

/// An answer of the runtime that a caller tells apart from a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No container of this id under this root. `delete --force` takes it for success.
    NotFound(ContainerId),
    /// The id is taken.
    Exists(ContainerId),
    /// There is no process left to signal. Supervisors know runc's words for it and take them for "already over".
    NotRunning,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound(id) => write!(f, "container {id:?} does not exist", id = id.as_str()),
            Error::Exists(id) => write!(f, "container with given ID already exists: {id}"),
            Error::NotRunning => f.write_str("container not running"),
        }
    }
}

impl std::error::Error for Error {}
