//! `create` and `run`.

use std::path::PathBuf;

use anyhow::Result;
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::definition::{Definition, Flag, Operand};

pub(super) const BUNDLE: Flag = Flag::directory(
    "bundle",
    "the directory with config.json (default: the working directory)",
)
.or('b');
pub(super) const CONSOLE_SOCKET: Flag = Flag::socket(
    "console-socket",
    "the unix socket that is sent the outer end of the process's terminal",
);
pub(super) const PIDFD_SOCKET: Flag =
    Flag::socket("pidfd-socket", "the unix socket that is sent a pidfd of the process");
pub(super) const PID_FILE: Flag = Flag::file("pid-file", "where to write the process's pid");
pub(super) const PRESERVE_FDS: Flag = Flag::text(
    "preserve-fds",
    "N",
    "how many descriptors after the standard streams and $LISTEN_FDS are passed on",
);
pub(super) const NO_PIVOT: Flag = Flag::switch(
    "no-pivot",
    "move the root over / and chroot instead of pivot_root, for a host whose root is an initramfs",
);
pub(super) const DETACH: Flag = Flag::switch("detach", "do not wait for the end of the process").or('d');
pub(super) const NO_SUBREAPER: Flag = Flag::switch(
    "no-subreaper",
    "has no effect: corten never makes itself the reaper of other processes",
);

const CREATE_FLAGS: &[Flag] = &[
    BUNDLE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    PID_FILE,
    NO_PIVOT,
    Flag::switch("no-new-keyring", "leave the process in the caller's session keyring"),
    PRESERVE_FDS,
];

pub(super) const CREATE: Definition = Definition {
    name: "create",
    about: "create a container",
    details: "Makes a container of a bundle and leaves its process waiting until `corten start ID`.",
    flags: &[CREATE_FLAGS],
    operands: &[Operand::ID],
    ends_options: false,
};

pub(super) const RUN: Definition = Definition {
    name: "run",
    about: "create and start a container",
    details: "Makes a container of a bundle, starts it, waits for its end, deletes it, and exits with its code.",
    flags: &[
        CREATE_FLAGS,
        &[
            DETACH,
            Flag::switch("keep", "do not delete the container at its end"),
            NO_SUBREAPER,
        ],
    ],
    operands: &[Operand::ID],
    ends_options: false,
};

/// `create`.
#[derive(Debug, PartialEq, Eq)]
pub struct Create {
    /// The new container's id.
    pub id: ContainerId,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// The unix socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// The unix socket that gets a pidfd of init.
    pub pidfd_socket: Option<PathBuf>,
    /// How many descriptors from 3 on are sockets that a service manager passes on.
    pub listen_fds: i32,
    /// How many descriptors after those are passed on.
    pub preserve_fds: i32,
    /// Whether the session keyring stays the caller's.
    pub no_new_keyring: bool,
    /// Whether the root is moved over `/` rather than pivoted to.
    pub no_pivot: bool,
}

/// `run`.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The container.
    pub create: Create,
    /// Do not wait for its end.
    pub detach: bool,
    /// Do not remove it at its end.
    pub keep: bool,
}

impl Create {
    pub(super) fn new(arguments: &Arguments) -> Result<Create> {
        let listen_fds = crate::activation::listen_fds()?;
        Ok(Create {
            id: arguments.id()?,
            bundle: arguments.path("bundle").unwrap_or_else(|| ".".into()),
            pid_file: arguments.path("pid-file"),
            console_socket: arguments.path("console-socket"),
            pidfd_socket: arguments.path("pidfd-socket"),
            listen_fds,
            preserve_fds: arguments.preserve_fds(3 + listen_fds)?,
            no_new_keyring: arguments.has("no-new-keyring"),
            no_pivot: arguments.has("no-pivot"),
        })
    }
}

impl Run {
    pub(super) fn new(arguments: &Arguments) -> Result<Run> {
        Ok(Run {
            create: Create::new(arguments)?,
            detach: arguments.has("detach"),
            keep: arguments.has("keep"),
        })
    }
}
