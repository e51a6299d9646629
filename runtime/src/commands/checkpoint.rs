//! `corten checkpoint`: the state of a container's processes, as images.

use std::path::Path;

use anyhow::Result;

use crate::checkpoint::dump;
use crate::cli::{self, Globals};

/// Saves a container's processes.
pub(super) fn checkpoint(root: &Path, globals: &Globals, flags: &cli::Checkpoint) -> Result<()> {
    dump::dump(root, globals.criu.as_deref(), flags)
}
