//! `corten events`: statistics and notices of a container.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cli;

/// Prints statistics, once or until the container ends.
pub(super) fn events(_root: &Path, flags: &cli::Events) -> Result<()> {
    bail!("events {}: not supported yet", flags.id)
}
