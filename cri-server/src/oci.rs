//! The server's own few calls of the OCI runtime: is it there, what can it do, change a container's limits, and end what no
//! shim answers for.
//!
//! Everything else of a container's life goes through its shim, which has to see it. Limits it has no part in, and a shim
//! of an earlier release would know nothing of them.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;
use oci_spec::runtime::LinuxResources;
use serde_json::Value;
use tokio::process::Command;

use crate::own_process::unburden;
use crate::stage::stage;

/// Where programs that a runtime runs, hooks among them, are looked for. Nothing else of the server's environment is their
/// business.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long `--version` and `features` may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// How long `update` may take: with the systemd driver it waits for systemd.
const UPDATE_LIMIT: Duration = Duration::from_secs(30);
/// How long `kill` and `delete --force` may take: the latter waits for processes to die.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Runs `RUNTIME --version`: an executable file may still be the wrong one, or lack its interpreter.
pub async fn probe(runtime: &Path) -> Result<()> {
    let mut command = command(runtime);
    command.arg("--version");
    run(command, PROBE_LIMIT).await.map(drop)
}

/// Runs `RUNTIME features`; the document it prints.
pub async fn features(runtime: &Path) -> Result<Value> {
    let mut command = command(runtime);
    command.arg("features");
    let text = run(command, PROBE_LIMIT).await?;
    serde_json::from_slice(&text).with_context(|| format!("decode what {} features printed", runtime.display()))
}

/// Runs `RUNTIME update --resources - ID`. Whether a runtime that fails has put everything back is its own affair.
pub async fn update(runtime: &Path, root: &Path, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
    let document = serde_json::to_vec(resources).context("encode the resources")?;
    // A file without a name, for a pipe would need a writer that may outlive the runtime.
    let file = rustix::fs::memfd_create(c"resources", rustix::fs::MemfdFlags::CLOEXEC).context("memfd_create")?;
    let mut file = std::fs::File::from(file);
    file.write_all(&document).context("write to a memfd")?;
    file.rewind().context("rewind a memfd")?;
    let mut command = command(runtime);
    command
        .arg("--root")
        .arg(root)
        .args(["update", "--resources", "-", id.as_str()]);
    command.stdin(file);
    run(command, UPDATE_LIMIT).await.map(drop)
}

/// Runs `RUNTIME delete --force ID`, which ends the container's processes and removes its cgroup; a container that
/// the runtime does not know is no error.
pub async fn delete(runtime: &Path, root: &Path, id: &ContainerId) -> Result<()> {
    let mut command = command(runtime);
    command.arg("--root").arg(root).args(["delete", "--force", id.as_str()]);
    run(command, END_LIMIT).await.map(drop)
}

/// Runs `RUNTIME kill ID SIGNAL`, which signals the container's init.
pub async fn kill(runtime: &Path, root: &Path, id: &ContainerId, signal: i32) -> Result<()> {
    let mut command = command(runtime);
    command
        .arg("--root")
        .arg(root)
        .args(["kill", id.as_str(), &signal.to_string()]);
    run(command, END_LIMIT).await.map(drop)
}

fn command(runtime: &Path) -> Command {
    let mut command = Command::new(runtime);
    unburden(command.as_std_mut());
    command
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// What the command prints, once it has succeeded.
async fn run(mut command: Command, limit: Duration) -> Result<Vec<u8>> {
    let text = format!("{:?}", command.as_std());
    let _stage = stage(|| text.clone()).named("runtime");
    command.kill_on_drop(true);
    let output = match tokio::time::timeout(limit, command.output()).await {
        Ok(output) => output.with_context(|| format!("execute {text}"))?,
        Err(elapsed) => return Err(elapsed).with_context(|| format!("{text}: not done in {} s", limit.as_secs())),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{text}: {}: {}",
        output.status,
        stderr.lines().last().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_gets_nothing_of_the_servers_environment() {
        assert!(std::env::vars_os().count() > 1);
        let printed = run(command(Path::new("/usr/bin/env")), PROBE_LIMIT).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&printed), format!("PATH={PATH}\n"));
    }
}
