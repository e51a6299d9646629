//! `corten run`: create, start, wait, delete.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::create::{console_socket, request};
use crate::bundle::Bundle;
use crate::cli::{self, Globals};
use crate::container::{self, Created};
use crate::foreground::Foreground;
use crate::log;

/// Runs a container; without `--detach` until it ends.
pub(super) fn run(root: &Path, globals: &Globals, flags: &cli::Run) -> Result<ExitCode> {
    let bundle = Bundle::load(&flags.create.bundle)?;
    let terminal = bundle.process()?.terminal() == Some(true);
    if flags.detach || flags.create.console_socket.is_some() {
        let console = console_socket(flags.create.console_socket.as_deref(), terminal)?;
        let created = container::create(root, &request(globals, &flags.create, console)?, &bundle)?;
        start_or_delete(&created)?;
        if flags.detach {
            return Ok(ExitCode::SUCCESS);
        }
        return wait(Foreground::begin(false)?.0, &created, flags.keep);
    }
    // Before there is a process to forward signals to: none must get lost.
    let (foreground, console) = Foreground::begin(terminal)?;
    let created = container::create(root, &request(globals, &flags.create, console)?, &bundle)?;
    start_or_delete(&created)?;
    wait(foreground, &created, flags.keep)
}

/// A container that cannot be started is of no use to anybody.
fn start_or_delete(created: &Created) -> Result<()> {
    container::start_created(created).inspect_err(|_| delete(created))
}

/// Waits for the end of a container, and deletes it unless it is to be kept.
pub(super) fn wait(foreground: Foreground, created: &Created, keep: bool) -> Result<ExitCode> {
    let code = foreground.wait(&created.init);
    if !keep {
        delete(created);
    }
    code
}

fn delete(created: &Created) {
    log::best_effort(
        "delete the container",
        container::delete_opened(&created.directory, &created.state),
    );
}
