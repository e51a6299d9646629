//! The commands that take a container's id and little else: `start`, `state`, `kill`, `delete`, `pause`, `resume`.

use anyhow::Result;
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::definition::{Count, Definition, Flag, Operand};

/// A command with an id and nothing else.
const fn plain(name: &'static str, about: &'static str, details: &'static str) -> Definition {
    Definition {
        name,
        about,
        details,
        flags: &[],
        operands: &[Operand::ID],
        ends_options: false,
    }
}

pub(super) const START: Definition = plain("start", "start a created container", "");
pub(super) const STATE: Definition = plain("state", "print the state of a container, as JSON", "");
pub(super) const PAUSE: Definition = plain("pause", "suspend all processes of a container", "");
pub(super) const RESUME: Definition = plain("resume", "let the processes of a paused container run on", "");

pub(super) const KILL: Definition = Definition {
    name: "kill",
    about: "send a signal to the process of a container",
    details: "SIGNAL is a name, with or without SIG, or a number; TERM if there is none.",
    flags: &[&[Flag::switch("all", "send it to every process of the container").or('a')]],
    operands: &[
        Operand::ID,
        Operand {
            name: "SIGNAL",
            what: "the signal",
            count: Count::AtMostOne,
        },
    ],
    ends_options: false,
};

pub(super) const DELETE: Definition = Definition {
    name: "delete",
    about: "remove a container that has stopped",
    details: "",
    flags: &[&[Flag::switch("force", "kill it before, and succeed where there is none").or('f')]],
    operands: &[Operand::ID],
    ends_options: false,
};

/// `kill`.
#[derive(Debug, PartialEq, Eq)]
pub struct Kill {
    /// Which container.
    pub id: ContainerId,
    /// The signal's number.
    pub signal: i32,
    /// Every process, not init alone.
    pub all: bool,
}

/// `delete`.
#[derive(Debug, PartialEq, Eq)]
pub struct Delete {
    /// Which container.
    pub id: ContainerId,
    /// Whatever it is doing, and even if there is none.
    pub force: bool,
}

impl Kill {
    pub(super) fn new(arguments: &Arguments) -> Result<Kill> {
        let signal = arguments.operand(1)?.map(|text| crate::signal::parse(&text));
        Ok(Kill {
            id: arguments.id()?,
            signal: signal.transpose()?.unwrap_or(libc::SIGTERM),
            all: arguments.has("all"),
        })
    }
}

impl Delete {
    pub(super) fn new(arguments: &Arguments) -> Result<Delete> {
        Ok(Delete {
            id: arguments.id()?,
            force: arguments.has("force"),
        })
    }
}
