//! `corten ps`.

use anyhow::{Result, bail};

use crate::cli;

/// Not built.
pub(super) fn ps(_flags: &cli::Ps) -> Result<()> {
    bail!("not supported yet")
}
