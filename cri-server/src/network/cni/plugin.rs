//! One run of one CNI plugin: environment, stdin, deadline, result or error.
//!
//! The environment is the specification's and PATH, nothing of the server's own. The plugin leads a process group of
//! its own, which is killed as a whole at the deadline: plugins run others (IPAM), and those must not go on alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::{Access, access};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use crate::own_process::unburden;

/// Most bytes that are kept of a plugin's stdout and of its stderr.
const MAX_OUTPUT: u64 = 1 << 20;
/// PATH where the server itself has none; bridge and portmap need iptables or nft.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Status,
    Gc,
}

impl Command {
    /// The value of CNI_COMMAND.
    pub(super) fn name(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Status => "STATUS",
            Command::Gc => "GC",
        }
    }
}

/// A plugin and its arguments (CNI specification, section 2, "Parameters").
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    pub(super) command: Command,
    pub(super) program: PathBuf,
    /// Of ADD and DEL; the other commands are about the network.
    pub(super) pod: Option<Pod<'a>>,
    pub(super) path: &'a [PathBuf],
    pub(super) timeout: Duration,
}

/// The pod that a command is about.
#[derive(Debug)]
pub(super) struct Pod<'a> {
    pub(super) container_id: &'a str,
    pub(super) netns: &'a Path,
    pub(super) interface: &'a str,
    pub(super) args: String,
}

/// The executable of this name in the first directory that has one.
pub(super) fn find(directories: &[PathBuf], kind: &str) -> Result<PathBuf> {
    let found = directories
        .iter()
        .map(|directory| directory.join(kind))
        .find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok());
    found.with_context(|| {
        let places: Vec<_> = directories.iter().map(|it| it.display().to_string()).collect();
        format!("CNI plugin {kind} is not in {}", places.join(" or "))
    })
}

impl Invocation<'_> {
    /// Runs the plugin; its result is null where it printed nothing.
    pub(super) async fn run(&self, stdin: &Value) -> Result<Value> {
        let mut child = self.spawn()?;
        let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
        let input = stdin.to_string();
        let outcome = tokio::time::timeout(self.timeout, talk(&mut child, &input)).await;
        let Ok(outcome) = outcome else {
            // The guard kills the group, so that this wait is short.
            drop(group);
            child.wait().await.context("wait for the killed plugin")?;
            bail!("not done after {} s; killed", self.timeout.as_secs());
        };
        let outcome = outcome?;
        group.0 = None;
        if !outcome.status.success() {
            bail!("{}", outcome.error());
        }
        if outcome.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&outcome.stdout).context("parse the plugin's result as JSON")
    }

    fn spawn(&self) -> Result<Child> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let plugin_path = std::env::join_paths(self.path).context("CNI_PATH")?;
        let mut command = tokio::process::Command::new(&self.program);
        unburden(command.as_std_mut());
        command.env_clear().env("CNI_COMMAND", self.command.name());
        if let Some(pod) = &self.pod {
            command
                .env("CNI_CONTAINERID", pod.container_id)
                .env("CNI_NETNS", pod.netns)
                .env("CNI_IFNAME", pod.interface)
                .env("CNI_ARGS", &pod.args);
        }
        command
            .env("CNI_PATH", plugin_path)
            .env("PATH", path as OsString)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("execute {}", self.program.display()))
    }
}

/// Kills the process group, unless its leader has been waited for. Also when the caller gives up and drops the run.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(errno) = killpg(Pid::from_raw(pid), Signal::SIGKILL)
            && errno != nix::errno::Errno::ESRCH
        {
            tracing::warn!("kill the process group of a CNI plugin: {errno}");
        }
    }
}

/// How a plugin ended and what it said.
struct Outcome {
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Feeds and reads the three pipes at once, so that neither side waits for the other, then waits for the exit.
async fn talk(child: &mut Child, input: &str) -> Result<Outcome> {
    let mut stdin = child.stdin.take().context("the plugin's stdin is a pipe")?;
    let stdout = child.stdout.take().context("the plugin's stdout is a pipe")?;
    let stderr = child.stderr.take().context("the plugin's stderr is a pipe")?;
    let feed = async move {
        match stdin.write_all(input.as_bytes()).await {
            // A plugin may answer without reading all of it.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    };
    let (fed, stdout, stderr) = tokio::join!(feed, read(stdout), read(stderr));
    fed.context("write the plugin's stdin")?;
    let (stdout, stderr) = (stdout.context("read its stdout")?, stderr.context("read its stderr")?);
    let status = child.wait().await.context("wait for the plugin")?;
    Ok(Outcome { status, stdout, stderr })
}

/// All of it, of which the first part is kept.
async fn read(pipe: impl tokio::io::AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut limited = pipe.take(MAX_OUTPUT);
    limited.read_to_end(&mut kept).await?;
    tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await?;
    Ok(kept)
}

impl Outcome {
    /// The specification's error object on stdout, else what stderr says, on one line.
    fn error(&self) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
        if let Ok(error) = serde_json::from_slice::<Value>(&self.stdout)
            && error["msg"].is_string()
        {
            let (message, details) = (text(&error["msg"]), text(&error["details"]));
            let separator = if details.is_empty() { "" } else { ": " };
            let code = &error["code"];
            return format!("{message}{separator}{details} (code {code})").replace('\n', "; ");
        }
        let stderr = String::from_utf8_lossy(&self.stderr);
        let last = stderr
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no message");
        format!("{}: {last}", self.status)
    }
}
