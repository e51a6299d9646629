//! `corten features`.

use anyhow::{Result, bail};

/// Not built.
pub(super) fn features() -> Result<()> {
    bail!("not supported yet")
}
