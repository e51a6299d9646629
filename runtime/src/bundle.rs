//! The bundle: a directory with config.json in it, read once and checked before anything is touched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::{Process, Spec};

use crate::{log, validate};

/// A bundle whose specification this runtime can carry out.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path.
    pub path: PathBuf,
    /// Absolute path of the root filesystem.
    pub rootfs: PathBuf,
    /// config.json as it was read.
    pub text: Vec<u8>,
    /// The same, parsed and checked.
    pub spec: Spec,
}

impl Bundle {
    /// Reads and checks `path`/config.json. No side effect.
    pub fn load(path: &Path) -> Result<Bundle> {
        let path = fs::canonicalize(path).with_context(|| format!("bundle {}", path.display()))?;
        let config = path.join("config.json");
        let text = fs::read(&config).with_context(|| format!("read {}", config.display()))?;
        let parsed = validate::parse_spec(&text).with_context(|| config.display().to_string())?;
        let spec = parsed.value;
        let warnings =
            validate::validate(&spec, &path).with_context(|| config.display().to_string())?;
        parsed.warnings.iter().chain(&warnings).for_each(log::warn);
        let root = spec.root().as_ref().context("root: missing")?;
        let rootfs = path.join(root.path());
        Ok(Bundle {
            rootfs,
            path,
            text,
            spec,
        })
    }

    /// The program of the container.
    pub fn process(&self) -> Result<&Process> {
        self.spec.process().as_ref().context("process: missing")
    }
}
