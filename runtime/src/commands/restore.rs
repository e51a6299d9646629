//! `corten restore`: a container of the processes that a checkpoint saved.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::{self, Globals};

/// Makes a container from images; without `--detach` waits for its end.
pub(super) fn restore(_root: &Path, _globals: &Globals, flags: &cli::Restore) -> Result<ExitCode> {
    bail!("restore {}: not supported yet", flags.id)
}
