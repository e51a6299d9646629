//! The server's own few calls of the OCI runtime: is it there, what can it do, change a container's limits, hold it still and
//! save it, and end what no shim answers for.
//!
//! Everything else of a container's life goes through its shim, which has to see it. Limits and checkpoints it has no part
//! in, and a shim of an earlier release would know nothing of them.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Output, Stdio};
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
/// How long `criu check` may take: it tries a hundred things.
const CRIU_LIMIT: Duration = Duration::from_secs(30);
/// How long `update` may take: with the systemd driver it waits for systemd.
const UPDATE_LIMIT: Duration = Duration::from_secs(30);
/// How long `pause` and `resume` may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
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

/// Runs `RUNTIME pause ID`: no process of the container runs afterwards.
pub async fn pause(runtime: &Path, root: &Path, id: &ContainerId) -> Result<()> {
    let mut command = command(runtime);
    command.arg("--root").arg(root).args(["pause", id.as_str()]);
    run(command, FREEZE_LIMIT).await.map(drop)
}

/// Runs `RUNTIME resume ID`.
pub async fn resume(runtime: &Path, root: &Path, id: &ContainerId) -> Result<()> {
    let mut command = command(runtime);
    command.arg("--root").arg(root).args(["resume", id.as_str()]);
    run(command, FREEZE_LIMIT).await.map(drop)
}

/// Whether `RUNTIME state ID` says that the container is paused.
pub async fn is_paused(runtime: &Path, root: &Path, id: &ContainerId) -> Result<bool> {
    let mut command = command(runtime);
    command.arg("--root").arg(root).args(["state", id.as_str()]);
    let text = run(command, FREEZE_LIMIT).await?;
    let state: Value = serde_json::from_slice(&text).with_context(|| format!("decode the state of {id}"))?;
    Ok(state["status"] == "paused")
}

/// Runs `RUNTIME checkpoint` with CRIU's images in `images` and its other files in `work`; the container is left as it was.
/// Where this ends early the runtime does not: `checkpoint::dumping` ends it, with its CRIU.
pub async fn checkpoint(
    runtime: &Path,
    root: &Path,
    id: &ContainerId,
    criu: Option<&Path>,
    [images, work]: [&Path; 2],
    limit: Duration,
) -> Result<()> {
    let mut command = command(runtime);
    command.arg("--root").arg(root);
    if let Some(criu) = criu {
        command.arg("--criu").arg(criu);
    }
    command.args(["checkpoint", "--leave-running"]);
    // Locks and connections are what a forensic checkpoint is often about; without these flags CRIU refuses both.
    command.args(["--file-locks", "--tcp-established"]);
    command.arg("--image-path").arg(images).arg("--work-path").arg(work);
    command.arg(id.as_str());
    let text = format!("{:?}", command.as_std());
    let output = output(&mut command, limit, false).await?;
    successful(&text, output).map(drop)
}

/// Runs `CRIU check`: whether CRIU is there and works with this kernel; its own words where it does not.
pub async fn criu_check(given: Option<&Path>) -> Result<()> {
    let mut programs = PATH.split(':').map(|directory| Path::new(directory).join("criu"));
    let program = match given {
        Some(path) => path.to_owned(),
        None => programs.find(|path| path.is_file()).context("criu is not installed")?,
    };
    let mut command = command(&program);
    // Else it looks at whatever directory the server was started in.
    command.arg("check").current_dir("/");
    let output = output(&mut command, CRIU_LIMIT, true).await?;
    if output.status.success() {
        return Ok(());
    }
    // The first line has the cause, those after it what came of that.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let told: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("Error"))
        .take(2)
        .collect();
    bail!("criu check: {}: {}", output.status, told.join("; "))
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
    let output = output(&mut command, limit, true).await?;
    successful(&text, output)
}

/// What the command `text` has printed, if it has succeeded.
fn successful(text: &str, output: Output) -> Result<Vec<u8>> {
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

/// How the command has ended, and what it has printed; whether it is killed where nobody waits for that any more.
async fn output(command: &mut Command, limit: Duration, killed: bool) -> Result<Output> {
    let text = format!("{:?}", command.as_std());
    let _stage = stage(|| text.clone()).named("runtime");
    command.kill_on_drop(killed);
    match tokio::time::timeout(limit, command.output()).await {
        Ok(output) => output.with_context(|| format!("execute {text}")),
        Err(elapsed) => Err(elapsed).with_context(|| format!("{text}: not done in {} s", limit.as_secs())),
    }
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
