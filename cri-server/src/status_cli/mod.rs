//! `corten-cri status`: the running server and its node at a glance.
//!
//! ```text
//! gather ── the CRI's own calls ──> Overview ──> text, or JSON
//!        └─ /proc, statvfs      ──>
//! ```
//! What the CRI has no call for is read where the kernel has it: the server's and the shims' memory, room on the disks. What
//! cannot be found is left out.

mod gather;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

pub(crate) use self::gather::gather;
use crate::config::Config;

/// What `corten-cri status` is asked for.
#[derive(Args, Clone, Copy, Debug)]
pub struct Status {
    /// One document instead of text
    #[arg(long)]
    json: bool,
}

/// Everything that is shown.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Overview {
    version: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_s: Option<u64>,
    conditions: Vec<Condition>,
    handlers: Vec<Handler>,
    pods: Pods,
    containers: Containers,
    images: Images,
    memory: Memory,
    disks: Vec<Disk>,
    /// Records that could not be read.
    quarantined: usize,
    /// The latest first.
    failures: Vec<Failure>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Condition {
    name: String,
    good: bool,
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Handler {
    /// Empty for the default one.
    name: String,
    path: String,
    user_namespaces: bool,
    recursive_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Pods {
    ready: usize,
    not_ready: usize,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Containers {
    created: usize,
    running: usize,
    exited: usize,
    unknown: usize,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Images {
    count: usize,
    bytes: u64,
    /// What containers have written.
    written_bytes: u64,
}

/// In bytes: resident of the server, proportional of the shims.
#[derive(Clone, Debug, Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    server_rss: Option<u64>,
    shims: usize,
    shims_pss: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_available: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Disk {
    /// The configuration's key.
    key: &'static str,
    path: String,
    bytes: u64,
    bytes_free: u64,
    inodes: u64,
    inodes_free: u64,
}

/// A container that ended with another code than 0.
#[derive(Clone, Debug, Default, Serialize)]
struct Failure {
    id: String,
    pod: String,
    container: String,
    exit_code: i32,
    reason: String,
    message: String,
    /// RFC 3339.
    finished: String,
}

/// Prints how the server of this configuration is. 0: it answers; 1: it does not.
pub fn run(config: &Config, wanted: Status) -> ExitCode {
    let text = match gather(config) {
        Ok(overview) if wanted.json => overview.json(),
        Ok(overview) => overview.text(),
        Err(error) => {
            // Where stderr is closed, the exit code has to do.
            drop(writeln!(std::io::stderr(), "corten-cri: status: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}
