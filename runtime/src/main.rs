//! `corten`, the OCI runtime's command line.
//!
//! One thread throughout: the runtime forks and runs its own code in the child. What fails is said in one line on standard
//! error, and in the log if there is one; the exit code is then 1. A command that a signal has interrupted dies of it once
//! all is undone.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use corten_runtime::cli::{self, Command, Globals};
use corten_runtime::{commands, interrupt, log, sys};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    match cli::parse().and_then(|(globals, command)| run(&globals, command)) {
        Ok(code) => code,
        Err(error) => {
            let text = log::one_line(&format!("{error:#}"));
            log::error(&text);
            eprintln!("corten: {text}");
            if let Some(interrupted) = interrupt::caused(&error) {
                log::best_effort("die of a signal", interrupted.die());
            }
            ExitCode::FAILURE
        }
    }
}

fn run(globals: &Globals, command: Command) -> Result<ExitCode> {
    let open = |path| OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file = globals.log.as_ref().map(open).transpose();
    let file = file.with_context(|| format!("--log {:?}", globals.log.as_deref().unwrap_or("".as_ref())))?;
    log::init(file, globals.log_format, globals.debug);
    // Ignored, as a caller may leave it, the kernel would reap our children before we have their exit codes.
    sys::signal::set_default(Signal::SIGCHLD).context("sigaction(SIGCHLD)")?;
    commands::run(globals, command)
}
