//! `[checkpoint]`: what containers may be restored from.

use serde::{Deserialize, Serialize};

/// What containers may be restored from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Images of registries that hold a checkpoint, beside archives on the node.
    pub restore_from_images: bool,
}
