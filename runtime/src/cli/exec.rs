//! `exec`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::create::{CONSOLE_SOCKET, DETACH, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS};
use super::definition::{Count, Definition, Flag, Operand};

pub(super) const EXEC: Definition = Definition {
    name: "exec",
    about: "execute a process in a container",
    details: "\
Executes PROGRAM, or the process that --process describes, in a container that has been created or is
running, waits for its end, and exits with its code. What --process does not set, and what the other
options do not change, is as the container's own process has it.",
    flags: &[&[
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        Flag::text("cwd", "DIR", "the working directory in the container"),
        Flag::text("env", "NAME=VALUE", "one more environment variable").or('e'),
        Flag::switch("tty", "give the process a terminal").or('t'),
        Flag::text("user", "UID[:GID]", "the user and group, as numbers").or('u'),
        Flag::text("additional-gids", "GID", "one more group").or('g'),
        Flag::file("process", "the process as a JSON document, as `process` of config.json").or('p'),
        DETACH,
        PID_FILE,
        Flag::text("process-label", "LABEL", "the SELinux label of the process"),
        Flag::text("apparmor", "PROFILE", "the AppArmor profile of the process"),
        Flag::switch("no-new-privs", "let no program of the process raise its privileges"),
        Flag::text("cap", "CAPABILITY", "one more capability").or('c'),
        PRESERVE_FDS,
        Flag::text(
            "cgroup",
            "[CONTROLLER,...:]PATH",
            "the existing cgroup below the container's that the process goes to",
        ),
        Flag::switch(
            "ignore-paused",
            "do it in a paused container too; it takes effect once that is resumed",
        ),
    ]],
    operands: &[
        Operand::ID,
        Operand {
            name: "PROGRAM",
            what: "a program, or --process",
            count: Count::AtMostOne,
        },
        Operand {
            name: "ARGUMENT",
            what: "the arguments of the program",
            count: Count::Any,
        },
    ],
    ends_options: true,
};

/// `exec`.
#[derive(Debug, PartialEq, Eq)]
pub struct Exec {
    /// Which container.
    pub id: ContainerId,
    /// The process document.
    pub process: Option<PathBuf>,
    /// The program and its arguments, without a document.
    pub args: Vec<String>,
    /// Do not wait for its end.
    pub detach: bool,
    /// With a terminal.
    pub tty: bool,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Variables in addition to the container's.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// Additional capabilities.
    pub caps: Vec<String>,
    /// No new privileges.
    pub no_new_privs: bool,
    /// The SELinux label.
    pub process_label: Option<String>,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// Where in the container's cgroup it goes: `PATH`, or `CONTROLLER,...:PATH` on v1.
    pub cgroup: Vec<String>,
    /// In a paused container too.
    pub ignore_paused: bool,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// The unix socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// The unix socket that gets a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// How many descriptors from 3 on are passed on.
    pub preserve_fds: i32,
}

impl Exec {
    pub(super) fn new(arguments: Arguments) -> Result<Exec> {
        let gid = |text: String| crate::process::parse_id(&text);
        let gids = arguments.texts("additional-gids")?.into_iter().map(gid);
        let exec = Exec {
            id: arguments.id()?,
            process: arguments.path("process"),
            detach: arguments.has("detach"),
            tty: arguments.has("tty"),
            user: arguments.parsed_by("user", crate::process::parse_user)?,
            additional_gids: gids.collect::<Result<_>>()?,
            env: arguments.texts("env")?,
            cwd: arguments.path("cwd"),
            caps: arguments.texts("cap")?,
            no_new_privs: arguments.has("no-new-privs"),
            process_label: arguments.text("process-label")?,
            apparmor: arguments.text("apparmor")?,
            cgroup: arguments.texts("cgroup")?,
            ignore_paused: arguments.has("ignore-paused"),
            pid_file: arguments.path("pid-file"),
            console_socket: arguments.path("console-socket"),
            pidfd_socket: arguments.path("pidfd-socket"),
            preserve_fds: arguments.preserve_fds(3)?,
            args: arguments.operands_from(1)?,
        };
        match (&exec.process, exec.args.is_empty()) {
            (None, true) => bail!("missing a program, or --process"),
            (Some(_), false) => bail!("both --process and a program"),
            _ => Ok(exec),
        }
    }
}
