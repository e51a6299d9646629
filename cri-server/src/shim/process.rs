//! Starting a shim, and killing one that hangs.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use corten_proto::id::SandboxId;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};

use super::socket;
use crate::oci;
use crate::own_process::restore_descriptors;
use crate::record::replace;

/// Number of the descriptor under which a shim finds its listening socket.
const LISTENER_FD: i32 = 3;
/// Name of the file with the shim's pid in a sandbox's state directory.
const PID: &str = "shim.pid";

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
    /// The runtime is to have systemd make the cgroups.
    pub systemd_cgroup: bool,
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
        .args(launch.systemd_cgroup.then_some("--systemd-cgroup"))
        .current_dir("/")
        .env_clear()
        .env("PATH", oci::PATH)
        .stdin(Stdio::null())
        .stdout(log.try_clone().with_context(context)?)
        .stderr(log);
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: listener,
            child_fd: LISTENER_FD,
        }])
        .expect("a single mapping does not collide");
    restore_descriptors(command.as_std_mut());
    let child = command
        .spawn()
        .with_context(|| format!("execute {}", launch.program.display()))
        .with_context(context)?;
    let pid = child.id().unwrap_or_default();
    let path = launch.directory.join(PID);
    // Without it a shim that hangs cannot be removed, and nothing else is lost.
    if let Err(error) = replace(&path, pid.to_string().as_bytes(), 0o600) {
        tracing::warn!("{error:#}");
    }
    Ok(child)
}

/// SIGKILL to the shim of `sandbox`, whose state directory is `directory`; one that has ended is no error.
///
/// The pid is held by a pidfd before the process is looked at: a number that has been given to another process is found
/// out by its command line.
pub(super) fn kill(sandbox: &SandboxId, directory: &Path) -> Result<()> {
    let path = directory.join(PID);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let pid = text.parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{} {text:?}: must be a pid", path.display()))?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        process => process.with_context(|| format!("pidfd_open({text})"))?,
    };
    let path = format!("/proc/{text}/cmdline");
    let command = std::fs::read(&path).with_context(|| format!("read {path}"))?;
    let mut arguments = command.split(|&byte| byte == 0);
    if !arguments.any(|argument| argument == sandbox.as_str().as_bytes()) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("pidfd_send_signal({text}, SIGKILL)")),
    }
}
