//! `corten restore`: a container of the processes that a checkpoint saved.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::create::{console_socket, driver};
use super::run::wait;
use crate::bundle::Bundle;
use crate::checkpoint::restore::Restore;
use crate::cli::{self, Globals};
use crate::foreground::Foreground;

/// Makes a container from images; without `--detach` waits for its end, as `run` does.
///
/// `--no-pivot` is taken and changes nothing: it is CRIU that enters the root.
pub(super) fn restore(root: &Path, globals: &Globals, flags: &cli::Restore) -> Result<ExitCode> {
    let bundle = Bundle::load(&flags.bundle)?;
    let terminal = bundle.process()?.terminal() == Some(true);
    let restore = Restore::prepare(root, globals.criu.as_deref(), driver(globals), flags, bundle)?;
    if flags.detach || flags.console_socket.is_some() {
        let console = console_socket(flags.console_socket.as_deref(), terminal)?;
        let created = restore.restore(root, console.as_ref())?;
        if flags.detach {
            return Ok(ExitCode::SUCCESS);
        }
        return wait(Foreground::begin(false)?.0, &created, false);
    }
    let (foreground, console) = Foreground::begin(terminal)?;
    let created = restore.restore(root, console.as_ref())?;
    wait(foreground, &created, false)
}
