//! `corten checkpoint`: the state of a container's processes, as images.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cli::{self, Globals};

/// Saves a container's processes.
pub(super) fn checkpoint(_root: &Path, _globals: &Globals, flags: &cli::Checkpoint) -> Result<()> {
    bail!("checkpoint {}: not supported yet", flags.id)
}
