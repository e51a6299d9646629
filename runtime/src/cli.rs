//! The command line: runc's commands and flags, as far as they are built. A flag of runc's that is not is an error that
//! names it, never ignored.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use corten_proto::id::ContainerId;
use lexopt::Arg::{Long, Short, Value};
use lexopt::Parser;
use lexopt::ValueExt;

use crate::log::Format;

/// Where the states of containers are kept unless `--root` says otherwise.
const DEFAULT_ROOT: &str = "/run/corten/runtime";

/// What `--help` prints.
pub const HELP: &str = "\
corten - OCI container runtime

Usage: corten [GLOBAL OPTIONS] COMMAND [OPTIONS] [ARGUMENTS]

Commands:
  create [-b DIR] [--pid-file FILE] [--console-socket PATH] [--preserve-fds N] [--no-new-keyring] ID
  start ID
  run    the options of create, and [-d] [--keep] ID
  state ID
  kill [-a] ID [SIGNAL]
  delete [-f] ID
  exec [-p FILE] [-d] [-t] [-u UID[:GID]] [-g GID]... [-e NAME=VALUE]... [-c CAP]... [--cwd DIR] [--no-new-privs]
       [--pid-file FILE] [--console-socket PATH] [--preserve-fds N] ID [PROGRAM [ARGUMENT]...]
  list [-f table|json] [-q]

Global options:
  --root DIR           where the states of containers are kept (default /run/corten/runtime)
  --log FILE           write the log there instead of to standard error
  --log-format FORMAT  text (default) or json
  --debug              log every step
  -h, --help           print this
  -v, --version        print the version
";

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
    /// Print its state.
    State(ContainerId),
    /// Signal it.
    Kill(Kill),
    /// Remove it.
    Delete {
        /// Which.
        id: ContainerId,
        /// Whatever it is doing, and even if there is none.
        force: bool,
    },
    /// Execute one more process in it.
    Exec(Exec),
    /// Print all.
    List(List),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

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
    /// How many descriptors from 3 on are passed on.
    pub preserve_fds: i32,
    /// Whether the session keyring stays the caller's.
    pub no_new_keyring: bool,
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

/// `exec`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Which container; always there after parsing.
    pub id: Option<ContainerId>,
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
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// The unix socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors from 3 on are passed on.
    pub preserve_fds: i32,
}

/// `list`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// As JSON, not as a table.
    pub json: bool,
    /// The ids alone.
    pub quiet: bool,
}

/// Parses this process's arguments.
pub fn parse() -> Result<(Globals, Command)> {
    parse_from(Parser::from_env())
}

/// Parses the arguments, the program's name not among them.
pub fn parse_args<I: IntoIterator<Item: Into<OsString>>>(args: I) -> Result<(Globals, Command)> {
    parse_from(Parser::from_args(args))
}

fn parse_from(mut parser: Parser) -> Result<(Globals, Command)> {
    let mut globals = Globals {
        root: DEFAULT_ROOT.into(),
        log: None,
        log_format: Format::Text,
        debug: false,
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Long("root") => globals.root = path(&mut parser)?,
            Long("log") => globals.log = Some(path(&mut parser)?),
            Long("log-format") => globals.log_format = log_format(&mut parser)?,
            Long("debug") => globals.debug = true,
            Long("help") | Short('h') => return Ok((globals, Command::Help)),
            Long("version") | Short('v') => return Ok((globals, Command::Version)),
            Value(name) => {
                let name = name.string()?;
                let command = command(&name, &mut parser).with_context(|| name.clone())?;
                return Ok((globals, command));
            }
            other => return Err(unsupported(other)),
        }
    }
    bail!("no command; see corten --help")
}

fn command(name: &str, parser: &mut Parser) -> Result<Command> {
    match name {
        "create" => create(parser, false).map(|run| Command::Create(run.create)),
        "run" => create(parser, true).map(Command::Run),
        "start" => id_and_flag(parser, None).map(|(id, _)| Command::Start(id)),
        "state" => id_and_flag(parser, None).map(|(id, _)| Command::State(id)),
        "delete" => id_and_flag(parser, Some(('f', "force"))).map(|(id, force)| Command::Delete { id, force }),
        "kill" => kill(parser),
        "exec" => exec(parser).map(Command::Exec),
        "list" => list(parser),
        "help" => Ok(Command::Help),
        "checkpoint" | "events" | "features" | "pause" | "ps" | "restore" | "resume" | "spec" | "update" => {
            bail!("this command is not supported yet")
        }
        _ => bail!("no such command; see corten --help"),
    }
}

fn create(parser: &mut Parser, run: bool) -> Result<Run> {
    let (mut bundle, mut pid_file, mut console_socket) = (PathBuf::from("."), None, None);
    let (mut preserve_fds, mut no_new_keyring, mut detach, mut keep, mut id) = (0, false, false, false, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("bundle") | Short('b') => bundle = path(parser)?,
            Long("pid-file") => pid_file = Some(path(parser)?),
            Long("console-socket") => console_socket = Some(path(parser)?),
            Long("preserve-fds") => preserve_fds = preserved(parser)?,
            Long("no-new-keyring") => no_new_keyring = true,
            // Never is one set: whoever wants the container's orphans makes itself their reaper.
            Long("no-subreaper") if run => {}
            Long("detach") | Short('d') if run => detach = true,
            Long("keep") if run => keep = true,
            Value(value) if id.is_none() => id = Some(container_id(value)?),
            other => return Err(unsupported(other)),
        }
    }
    let id = id.context("missing the container's id")?;
    let create = Create {
        id,
        bundle,
        pid_file,
        console_socket,
        preserve_fds,
        no_new_keyring,
    };
    Ok(Run { create, detach, keep })
}

fn kill(parser: &mut Parser) -> Result<Command> {
    let (mut id, mut signal, mut all) = (None, None, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("all") | Short('a') => all = true,
            Value(value) if id.is_none() => id = Some(container_id(value)?),
            Value(value) if signal.is_none() => signal = Some(crate::signal::parse(&value.string()?)?),
            other => return Err(unsupported(other)),
        }
    }
    let id = id.context("missing the container's id")?;
    Ok(Command::Kill(Kill {
        id,
        signal: signal.unwrap_or(libc::SIGTERM),
        all,
    }))
}

fn exec(parser: &mut Parser) -> Result<Exec> {
    let mut exec = Exec::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("process") | Short('p') => exec.process = Some(path(parser)?),
            Long("detach") | Short('d') => exec.detach = true,
            Long("tty") | Short('t') => exec.tty = true,
            Long("user") | Short('u') => exec.user = Some(crate::process::parse_user(&text(parser)?)?),
            Long("additional-gids") | Short('g') => exec.additional_gids.push(parser.value()?.parse()?),
            Long("env") | Short('e') => exec.env.push(text(parser)?),
            Long("cwd") => exec.cwd = Some(path(parser)?),
            Long("cap") | Short('c') => exec.caps.push(text(parser)?),
            Long("no-new-privs") => exec.no_new_privs = true,
            Long("pid-file") => exec.pid_file = Some(path(parser)?),
            Long("console-socket") => exec.console_socket = Some(path(parser)?),
            Long("preserve-fds") => exec.preserve_fds = preserved(parser)?,
            Value(value) => {
                exec.id = Some(container_id(value)?);
                // What follows belongs to the program, dashes and all.
                exec.args = parser.raw_args()?.map(|arg| arg.string()).collect::<Result<_, _>>()?;
            }
            other => return Err(unsupported(other)),
        }
    }
    // The conventional sign that options are over, before the program as well as before the id.
    if exec.args.first().is_some_and(|arg| arg == "--") {
        exec.args.remove(0);
    }
    match (&exec.id, &exec.process, exec.args.is_empty()) {
        (None, ..) => bail!("missing the container's id"),
        (_, None, true) => bail!("missing a program, or --process"),
        (_, Some(_), false) => bail!("both --process and a program"),
        _ => Ok(exec),
    }
}

fn list(parser: &mut Parser) -> Result<Command> {
    let mut list = List::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("format") | Short('f') => {
                list.json = match text(parser)?.as_str() {
                    "json" => true,
                    "table" => false,
                    other => bail!("--format {other:?}: neither table nor json"),
                }
            }
            Long("quiet") | Short('q') => list.quiet = true,
            other => return Err(unsupported(other)),
        }
    }
    Ok(Command::List(list))
}

/// A command that takes one id and at most one flag.
fn id_and_flag(parser: &mut Parser, flag: Option<(char, &str)>) -> Result<(ContainerId, bool)> {
    let (mut id, mut set) = (None, false);
    while let Some(arg) = parser.next()? {
        match (arg, flag) {
            (Short(given), Some((short, _))) if given == short => set = true,
            (Long(given), Some((_, long))) if given == long => set = true,
            (Value(value), _) if id.is_none() => id = Some(container_id(value)?),
            (other, _) => return Err(unsupported(other)),
        }
    }
    Ok((id.context("missing the container's id")?, set))
}

fn path(parser: &mut Parser) -> Result<PathBuf> {
    Ok(parser.value()?.into())
}

fn text(parser: &mut Parser) -> Result<String> {
    Ok(parser.value()?.string()?)
}

fn log_format(parser: &mut Parser) -> Result<Format> {
    match text(parser)?.as_str() {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => bail!("--log-format {other:?}: neither text nor json"),
    }
}

/// A number of descriptors, all of which must be open now: later the numbers would be taken by others.
fn preserved(parser: &mut Parser) -> Result<i32> {
    let count: u16 = parser.value()?.parse().context("--preserve-fds")?;
    let count = i32::from(count);
    match (3..3 + count).find(|&fd| !crate::sys::fd::is_open(fd)) {
        Some(fd) => bail!("--preserve-fds {count}: descriptor {fd} is not open"),
        None => Ok(count),
    }
}

fn container_id(value: OsString) -> Result<ContainerId> {
    Ok(value.string()?.parse()?)
}

fn unsupported(arg: lexopt::Arg<'_>) -> anyhow::Error {
    match arg {
        Long(name) => anyhow!("option --{name} is not supported"),
        Short(name) => anyhow!("option -{name} is not supported"),
        Value(value) => anyhow!("argument {value:?} is one too many"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(Globals, Command)> {
        parse_args(line.split_whitespace())
    }

    #[test]
    fn globals_come_before_the_command() {
        let (globals, command) = parse("--root /r --log /l --log-format json --debug delete --force a").unwrap();
        assert_eq!((globals.root, globals.log), ("/r".into(), Some("/l".into())));
        assert_eq!((globals.log_format, globals.debug), (Format::Json, true));
        assert_eq!(
            command,
            Command::Delete {
                id: "a".parse().unwrap(),
                force: true
            }
        );
        assert_eq!(parse("state a").unwrap().0.root, PathBuf::from(DEFAULT_ROOT));
    }

    #[test]
    fn what_follows_the_id_of_an_exec_is_the_programs() {
        for line in [
            "exec -u 1:2 -e A=B c ls -l --root /x",
            "exec -u 1:2 -e A=B -- c ls -l --root /x",
        ] {
            let Command::Exec(exec) = parse(line).unwrap().1 else {
                panic!("{line}")
            };
            assert_eq!(exec.args, ["ls", "-l", "--root", "/x"]);
            assert_eq!((exec.user, exec.env), (Some((1, Some(2))), vec!["A=B".to_owned()]));
        }
        let Command::Exec(exec) = parse("exec c -- ls -l").unwrap().1 else {
            panic!()
        };
        assert_eq!(exec.args, ["ls", "-l"]);
    }

    #[test]
    fn signals() {
        for (line, signal, all) in [
            ("kill a", 15, false),
            ("kill -a a KILL", 9, true),
            ("kill --all a 10", 10, true),
        ] {
            let Command::Kill(kill) = parse(line).unwrap().1 else {
                panic!("{line}")
            };
            assert_eq!((kill.signal, kill.all), (signal, all), "{line}");
        }
    }

    #[test]
    fn what_is_not_built_is_named() {
        for (line, text) in [
            ("create --no-pivot a", "--no-pivot"),
            ("--systemd-cgroup state a", "--systemd-cgroup"),
            ("run --criu a", "--criu"),
            ("exec --apparmor x a ls", "--apparmor"),
            ("pause a", "pause: this command is not supported"),
            ("frobnicate", "frobnicate: no such command"),
            ("create a b", "\"b\""),
            ("create ../a", "container id"),
            ("exec a", "missing a program"),
            ("exec -p f a ls", "both"),
            ("kill a NOPE", "NOPE"),
            ("create --preserve-fds 900 a", "not open"),
            ("", "no command"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
