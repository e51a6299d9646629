//! Every check of config.json, before any side effect.

use std::path::Path;

use anyhow::{Result, bail};
use oci_spec::runtime::{Process, Spec};

/// Something parsed, and what the user should hear about it.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The document.
    pub value: T,
    /// What was ignored: unknown capabilities and properties (the spec demands that they be no error).
    pub warnings: Vec<String>,
}

/// Parses config.json; refuses every field this runtime does not implement, known to the types or not.
pub fn parse_spec(json: &[u8]) -> Result<Parsed<Spec>> {
    bail!("{}", json.len())
}

/// Parses the process document of `exec --process`, by the same rules.
pub fn parse_process(json: &[u8]) -> Result<Parsed<Process>> {
    bail!("{}", json.len())
}

/// Every check of a spec that needs no side effect. Answers with warnings.
pub fn validate(spec: &Spec, bundle: &Path) -> Result<Vec<String>> {
    bail!("{spec:?} {bundle:?}")
}

/// The checks of a process alone, for exec.
pub fn validate_process(process: &Process) -> Result<Vec<String>> {
    bail!("{process:?}")
}
