//! The runtime's own log: `--log FILE`, in text or in JSON lines as runc writes them, which supervisors read to learn why
//! a command failed. Without `--log` warnings go to standard error.
//!
//! That is a copy of standard error, made at the start: a child that has the container's terminal in its place still logs
//! to where its caller looks.
//!
//! Only the steps that may fail without failing the command are logged; an error is returned up to `main`, which logs
//! it once. A forked child logs to the same descriptor, opened with O_APPEND.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::Serialize;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="..." level=... msg="..."`
    #[default]
    Text,
    /// `{"level":"...","msg":"...","time":"..."}`
    Json,
}

#[derive(Debug)]
struct Log {
    /// The file, or a copy of standard error.
    file: Option<File>,
    to_file: bool,
    format: Format,
    debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Directs the log; without it, or before it, lines go to standard error. Only the first call counts.
pub fn init(file: Option<File>, format: Format, debug: bool) {
    let to_file = file.is_some();
    let stderr = || std::io::stderr().as_fd().try_clone_to_owned().ok().map(File::from);
    LOG.get_or_init(|| Log {
        file: file.or_else(stderr),
        to_file,
        format,
        debug,
    });
}

/// The log's descriptor, which a child keeps open for as long as it is ours.
pub fn descriptor() -> Option<RawFd> {
    LOG.get()?.file.as_ref().map(AsRawFd::as_raw_fd)
}

/// Something failed that the command can do without.
pub fn warn(message: impl Display) {
    write("warning", &message);
}

/// The command failed. Goes to the log file only: standard error gets the line from `main`.
pub fn error(message: impl Display) {
    if LOG.get().is_some_and(|log| log.to_file) {
        write("error", &message);
    }
}

/// A step, shown with `--debug`.
pub fn debug(message: impl Display) {
    if LOG.get().is_some_and(|log| log.debug) {
        write("debug", &message);
    }
}

/// Runs a step that may fail: the failure is logged under the step's name.
pub fn best_effort<T>(what: &str, result: anyhow::Result<T>) -> Option<T> {
    result.map_err(|error| warn(format_args!("{what}: {error:#}"))).ok()
}

/// The longest message, in bytes: values of the specification are quoted in errors and warnings, and may be megabytes.
/// conmon reads no more than 8 KiB of a log, and what it has to cut is no JSON any more.
const MAX_MESSAGE: usize = 4 << 10;

/// One line, whatever the values in it were: what would move a terminal's cursor, or begin a line in somebody's log, is
/// written as an escape.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_MESSAGE));
    for character in text.chars() {
        if line.len() >= MAX_MESSAGE {
            line.push_str("...");
            break;
        }
        match character {
            '\n' => line.push(' '),
            character if character.is_control() => line.extend(character.escape_default()),
            character => line.push(character),
        }
    }
    line
}

#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

fn write(level: &str, message: &dyn Display) {
    let (msg, time) = (one_line(&message.to_string()), crate::time::rfc3339(SystemTime::now()));
    let log = LOG.get();
    let text = match log.map_or(Format::Text, |log| log.format) {
        Format::Text => format!("time={time:?} level={level} msg={msg:?}\n"),
        Format::Json => {
            let line = Line {
                level,
                msg: &msg,
                time: &time,
            };
            let mut line = serde_json::to_string(&line).expect("three strings are JSON");
            line.push('\n');
            line
        }
    };
    // There is nowhere left to report to when the log itself cannot be written.
    let _unreported = match log.and_then(|log| log.file.as_ref()) {
        Some(mut file) => file.write_all(text.as_bytes()),
        None => std::io::stderr().write_all(text.as_bytes()),
    };
}
