//! `corten update`: changing the limits of a container.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cli;

/// Changes the limits that the flags name.
pub(super) fn update(_root: &Path, flags: &cli::Update) -> Result<()> {
    bail!("update {}: not supported yet", flags.id)
}
