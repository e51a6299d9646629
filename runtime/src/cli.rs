//! The command line: runc's commands and flags (those of its manual pages, 1.1 to 1.3).
//!
//! Each command is a [`Definition`], from which it is parsed and its `--help` printed, and of which `examples/docs.rs`
//! makes the manual pages and the completions of bash, zsh and fish. A flag that is not defined is an error that names it,
//! never ignored.
//!
//! | file | commands |
//! |---|---|
//! | `create.rs` | create, run |
//! | `container.rs` | start, state, kill, delete, pause, resume |
//! | `exec.rs` | exec |
//! | `show.rs` | list, ps, events, spec, features |
//! | `update.rs` | update |
//! | `checkpoint.rs` | checkpoint, restore |

mod arguments;
mod checkpoint;
mod container;
mod create;
pub mod definition;
mod exec;
mod help;
mod show;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;

use crate::log::Format;
use arguments::Arguments;
use definition::{Count, Definition, Flag, Operand};

pub use checkpoint::{CgroupsMode, Checkpoint, Images, Restore};
pub use container::{Delete, Kill};
pub use create::{Create, Run};
pub use exec::Exec;
pub use help::{help, usage};
pub use show::{Events, List, NewSpec, Ps};
pub use update::Update;

const COMMAND: Operand = Operand {
    name: "COMMAND",
    what: "the command",
    count: Count::AtMostOne,
};

/// The program: what stands before the command.
pub static PROGRAM: Definition = Definition {
    name: "corten",
    about: "OCI container runtime",
    details: "\
Makes, starts, watches and removes containers, each from a bundle: a directory with a specification,
config.json, and a root filesystem (OCI runtime specification, 1.3). It does what it is asked and exits;
there is no daemon.",
    flags: &[&[
        Flag::directory(
            "root",
            "where the states of containers are kept (default: /run/corten/runtime; for users: $XDG_RUNTIME_DIR/corten)",
        ),
        Flag::file("log", "write the log there instead of to standard error"),
        Flag::words(
            "log-format",
            "FORMAT",
            &["text", "json"],
            "how its lines look (default: text)",
        ),
        Flag::switch("debug", "log every step"),
        Flag::switch(
            "systemd-cgroup",
            "have systemd make the cgroups: cgroupsPath is then slice:prefix:name",
        ),
        Flag::words(
            "rootless",
            "WHEN",
            &["auto", "true", "false"],
            "go without cgroups that may not be made (default: auto)",
        ),
        Flag::file(
            "criu",
            "the CRIU binary of checkpoint and restore (default: criu in PATH)",
        ),
        Flag::switch("version", "print the version").or('v'),
    ]],
    operands: &[
        COMMAND,
        Operand {
            name: "ARGUMENT",
            what: "the arguments of the command",
            count: Count::Any,
        },
    ],
    ends_options: true,
};

/// Every command, in the order of the help.
pub static COMMANDS: [Definition; 18] = [
    create::CREATE,
    container::START,
    create::RUN,
    exec::EXEC,
    container::STATE,
    show::LIST,
    show::PS,
    show::EVENTS,
    container::KILL,
    container::PAUSE,
    container::RESUME,
    update::UPDATE,
    checkpoint::CHECKPOINT,
    checkpoint::RESTORE,
    container::DELETE,
    show::SPEC,
    show::FEATURES,
    Definition {
        name: "help",
        about: "print the help of the program or of a command",
        details: "",
        flags: &[],
        operands: &[COMMAND],
        ends_options: false,
    },
];

/// The flags before the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Globals {
    /// Where the states of containers are kept.
    pub root: PathBuf,
    /// The log file.
    pub log: Option<PathBuf>,
    /// How its lines look.
    pub log_format: Format,
    /// Whether steps are logged.
    pub debug: bool,
    /// Whether systemd makes the cgroups.
    pub systemd_cgroup: bool,
    /// Whether it is no failure that a cgroup may not be made.
    pub rootless: Rootless,
    /// The CRIU binary.
    pub criu: Option<PathBuf>,
}

/// Whether it is no failure that a cgroup may not be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rootless {
    /// For whoever is not root of the machine.
    #[default]
    Auto,
    /// It is none.
    True,
    /// It is one.
    False,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Create a container.
    Create(Create),
    /// Start a created one.
    Start(ContainerId),
    /// Create and start one, and wait for its end.
    Run(Run),
    /// Execute one more process in it.
    Exec(Exec),
    /// Print its state.
    State(ContainerId),
    /// Print all.
    List(List),
    /// Print its processes.
    Ps(Ps),
    /// Print what happens to it.
    Events(Events),
    /// Signal it.
    Kill(Kill),
    /// Suspend it.
    Pause(ContainerId),
    /// Let it run on.
    Resume(ContainerId),
    /// Change its limits.
    Update(Box<Update>),
    /// Save its state.
    Checkpoint(Box<Checkpoint>),
    /// Make one from a saved state.
    Restore(Box<Restore>),
    /// Remove it.
    Delete(Delete),
    /// Write a specification to start from.
    Spec(NewSpec),
    /// Print what the runtime can do.
    Features,
    /// Print the help of this command, or of the program.
    Help(&'static Definition),
    /// Print the version.
    Version,
}

/// A definition is what it is called.
impl PartialEq for Definition {
    fn eq(&self, other: &Definition) -> bool {
        self.name == other.name
    }
}

impl Eq for Definition {}

/// Parses this process's arguments.
pub fn parse() -> Result<(Globals, Command)> {
    parse_args(std::env::args_os().skip(1))
}

/// Parses the arguments, the program's name not among them.
pub fn parse_args<I: IntoIterator<Item: Into<OsString>>>(args: I) -> Result<(Globals, Command)> {
    let args = args.into_iter().map(Into::into).collect();
    let mut arguments = Arguments::parse(&PROGRAM, args)?;
    let globals = Globals::new(&arguments)?;
    if arguments.help {
        return Ok((globals, Command::Help(&PROGRAM)));
    }
    if arguments.has("version") {
        return Ok((globals, Command::Version));
    }
    let mut rest = std::mem::take(&mut arguments.operands);
    if rest.is_empty() {
        bail!("no command; see corten --help");
    }
    let name = rest.remove(0);
    let name = name.to_string_lossy();
    let command = named(&name).and_then(|definition| command(definition, rest));
    Ok((globals, command.with_context(|| name.into_owned())?))
}

/// The definition of the command of this name.
fn named(name: &str) -> Result<&'static Definition> {
    let found = COMMANDS.iter().find(|definition| definition.name == name);
    found.context("no such command; see corten --help")
}

fn command(definition: &'static Definition, args: Vec<OsString>) -> Result<Command> {
    let arguments = Arguments::parse(definition, args)?;
    if arguments.help {
        return Ok(Command::Help(definition));
    }
    Ok(match definition.name {
        "create" => Command::Create(Create::new(&arguments)?),
        "start" => Command::Start(arguments.id()?),
        "run" => Command::Run(Run::new(&arguments)?),
        "exec" => Command::Exec(Exec::new(arguments)?),
        "state" => Command::State(arguments.id()?),
        "list" => Command::List(List::new(&arguments)),
        "ps" => Command::Ps(Ps::new(arguments)?),
        "events" => Command::Events(Events::new(&arguments)?),
        "kill" => Command::Kill(Kill::new(&arguments)?),
        "pause" => Command::Pause(arguments.id()?),
        "resume" => Command::Resume(arguments.id()?),
        "update" => Command::Update(Box::new(Update::new(&arguments)?)),
        "checkpoint" => Command::Checkpoint(Box::new(Checkpoint::new(&arguments)?)),
        "restore" => Command::Restore(Box::new(Restore::new(&arguments)?)),
        "delete" => Command::Delete(Delete::new(&arguments)?),
        "spec" => Command::Spec(NewSpec::new(&arguments)),
        "features" => Command::Features,
        "help" => Command::Help(match arguments.operand(0)? {
            Some(name) => named(&name).with_context(|| name.clone())?,
            None => &PROGRAM,
        }),
        name => unreachable!("{name} is in COMMANDS"),
    })
}

impl Globals {
    fn new(arguments: &Arguments) -> Result<Globals> {
        Ok(Globals {
            root: arguments.path("root").unwrap_or_else(crate::rootless::default_root),
            log: arguments.path("log"),
            log_format: if arguments.is("log-format", "json") {
                Format::Json
            } else {
                Format::Text
            },
            debug: arguments.has("debug"),
            systemd_cgroup: arguments.has("systemd-cgroup"),
            rootless: match arguments.text("rootless")?.as_deref() {
                Some("true") => Rootless::True,
                Some("false") => Rootless::False,
                _ => Rootless::Auto,
            },
            criu: arguments.path("criu"),
        })
    }
}

#[cfg(test)]
mod tests;
