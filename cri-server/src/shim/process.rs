//! Starting a shim.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use corten_proto::id::SandboxId;
use tokio::process::{Child, Command};

use super::socket;

/// Number of the descriptor under which a shim finds its listening socket.
const LISTENER_FD: i32 = 3;

/// What a shim is started with.
pub struct Launch<'a> {
    /// The shim's binary.
    pub program: &'a Path,
    /// The sandbox.
    pub id: &'a SandboxId,
    /// The sandbox's state directory.
    pub directory: &'a Path,
    /// The OCI runtime's binary.
    pub runtime: &'a Path,
    /// The OCI runtime's `--root`.
    pub runtime_root: &'a Path,
    /// Where the shim puts the root filesystem of infra containers.
    pub pause_rootfs: &'a Path,
}

/// Starts a shim, which outlives this process. Its socket accepts connections when this returns.
///
/// The listener is bound here and inherited: there is no moment in which the socket's file exists and nobody listens,
/// and when the shim ends its last descriptor closes, which is how its clients notice. The child is given back to be
/// reaped.
pub fn launch(launch: &Launch<'_>) -> Result<Child> {
    let context = || format!("start the shim of {}", launch.id);
    let listener = socket::listener(launch.directory)
        .with_context(|| format!("listen in {}", launch.directory.display()))
        .with_context(context)?;
    let path = launch.directory.join("shim.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut command = Command::new(launch.program);
    command
        .arg("--id")
        .arg(launch.id.as_str())
        .arg("--runtime")
        .arg(launch.runtime)
        .arg("--runtime-root")
        .arg(launch.runtime_root)
        .arg("--pause-rootfs")
        .arg(launch.pause_rootfs)
        .current_dir("/")
        .env_clear()
        // For hooks and helpers of the runtime; nothing else of the server's environment is the pods' business.
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .stdin(Stdio::null())
        .stdout(log.try_clone().with_context(context)?)
        .stderr(log);
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: listener,
            child_fd: LISTENER_FD,
        }])
        .expect("a single mapping does not collide");
    command
        .spawn()
        .with_context(|| format!("execute {}", launch.program.display()))
        .with_context(context)
}
