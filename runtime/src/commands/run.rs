//! `corten run`: create, start, wait, delete.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::create::{console_socket, load, request};
use crate::cli::{self, Globals};
use crate::container::{self, Created};
use crate::error::Error;
use crate::foreground::Foreground;
use crate::log;
use crate::notify::Notify;
use crate::start;

/// Runs a container; without `--detach` until it ends.
pub(super) fn run(root: &Path, globals: &Globals, flags: &cli::Run) -> Result<ExitCode> {
    let bundle = load(root, &flags.create)?;
    let terminal = bundle.process()?.terminal() == Some(true);
    if flags.detach || flags.create.console_socket.is_some() {
        let console = console_socket(flags.create.console_socket.as_deref(), terminal)?;
        let created = container::create(root, &request(globals, &flags.create, console)?, &bundle)?;
        let notify = start_or_delete(&created)?;
        if flags.detach {
            start::wait_until_ready(created, notify)?;
            return Ok(ExitCode::SUCCESS);
        }
        let foreground = Foreground::begin(false)?.0;
        return wait(foreground.telling(notify), &created, flags.keep);
    }
    // Before there is a process to forward signals to: none must get lost.
    let (foreground, console) = Foreground::begin(terminal)?;
    let created = container::create(root, &request(globals, &flags.create, console)?, &bundle)?;
    let notify = start_or_delete(&created)?;
    wait(foreground.telling(notify), &created, flags.keep)
}

/// A container that cannot be started is of no use to anybody.
fn start_or_delete(created: &Created) -> Result<Option<Notify>> {
    let start = || {
        let notify = Notify::listen(created.directory.path())?;
        start::start_created(created)?;
        Ok(notify)
    };
    start().inspect_err(|_| delete(created))
}

/// Waits for the end of a container, and deletes it unless it is to be kept.
pub(super) fn wait(foreground: Foreground, created: &Created, keep: bool) -> Result<ExitCode> {
    // As long as it runs it may be paused, updated, and deleted by force.
    created.directory.unlock()?;
    let code = foreground.wait(&created.init);
    if keep {
        return code;
    }
    match created.directory.lock() {
        Ok(()) => delete(created),
        Err(error) if matches!(error.downcast_ref(), Some(Error::NotFound(_))) => {}
        Err(error) => log::warn(format_args!("delete the container: {error:#}")),
    }
    code
}

fn delete(created: &Created) {
    log::best_effort(
        "delete the container",
        container::delete_opened(&created.directory, &created.state),
    );
}
