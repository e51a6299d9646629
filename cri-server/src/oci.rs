//! The server's own few calls of the OCI runtime: is it there, and delete what no shim is left to delete.
//!
//! Everything else of a container's life goes through its shim.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;
use tokio::process::Command;

/// How long `--version` may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// How long `delete --force` may take: it waits for processes to die.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// Runs `RUNTIME --version`: an executable file may still be the wrong one, or lack its interpreter.
pub async fn probe(runtime: &Path) -> Result<()> {
    let mut command = Command::new(runtime);
    command.arg("--version");
    run(command, PROBE_LIMIT).await
}

/// Runs `RUNTIME delete --force ID`, which ends the container's processes and removes its cgroup; a container that
/// the runtime does not know is no error.
pub async fn delete(runtime: &Path, root: &Path, id: &ContainerId) -> Result<()> {
    let mut command = Command::new(runtime);
    command
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", id.as_str()]);
    run(command, DELETE_LIMIT).await
}

async fn run(mut command: Command, limit: Duration) -> Result<()> {
    let text = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(limit, command.output()).await {
        Ok(output) => output.with_context(|| format!("execute {text}"))?,
        Err(_elapsed) => bail!("{text}: not done in {} s", limit.as_secs()),
    };
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{text}: {}: {}",
        output.status,
        stderr.lines().last().unwrap_or_default()
    )
}
