//! The bundle: a directory with config.json in it, read once and checked before anything is touched.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::{log, validate};

/// The longest document that is read, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

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
        let text = read_document(&config)?;
        let parsed = validate::parse_spec(&text).with_context(|| config.display().to_string())?;
        let spec = parsed.value;
        let warnings = validate::validate(&spec, &path).with_context(|| config.display().to_string())?;
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

/// Reads a file that somebody else wrote: not for ever, and not more than a document can be.
pub fn read_document(path: &Path) -> Result<Vec<u8>> {
    // A fifo must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let what = || format!("read {}", path.display());
    let file = rustix::fs::open(path, flags, Mode::empty()).with_context(what)?;
    let file = File::from(file);
    let metadata = file.metadata().with_context(what)?;
    ensure!(metadata.is_file(), "{}: not a regular file", path.display());
    // All of it in one read, and room to see that it ends there.
    let length = usize::try_from(metadata.len().min(MAX_DOCUMENT))?;
    let mut text = Vec::with_capacity(length + 1);
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut text).with_context(what)?;
    ensure!(
        text.len() as u64 <= MAX_DOCUMENT,
        "{}: more than {MAX_DOCUMENT} bytes",
        path.display()
    );
    Ok(text)
}
