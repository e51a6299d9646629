//! `corten pause` and `corten resume`.

use std::path::Path;

use anyhow::{Result, bail};
use corten_proto::id::ContainerId;

/// Suspends every process of a container.
pub(super) fn pause(_root: &Path, id: &ContainerId) -> Result<()> {
    bail!("pause {id}: not supported yet")
}

/// Lets them run on.
pub(super) fn resume(_root: &Path, id: &ContainerId) -> Result<()> {
    bail!("resume {id}: not supported yet")
}
