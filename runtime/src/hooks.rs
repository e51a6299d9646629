//! OCI hooks: programs of the host's administrator, run at fixed points of a container's life.

use std::path::Path;

use anyhow::{Result, bail};
use oci_spec::runtime::{Hook, State};

/// Runs the hooks one after the other in `cwd` (host hooks: the bundle; in the container: `/`); the first that fails stops the row.
pub fn run(hooks: &[Hook], state: &State, cwd: &Path) -> Result<()> {
    bail!("{hooks:?} {state:?} {cwd:?}")
}
