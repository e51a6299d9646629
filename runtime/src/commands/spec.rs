//! `corten spec`.

use anyhow::{Result, bail};

use crate::cli;

/// Not built.
pub(super) fn spec(_flags: &cli::NewSpec) -> Result<()> {
    bail!("not supported yet")
}
