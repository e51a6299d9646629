//! A command run in a container beside its own process: what ExecSync and the streaming server share.
//!
//! The command's standard IO goes to the caller directly, by descriptors that the shim hands on, or by a terminal that
//! the runtime sends to the caller's socket. Its exit comes from the shim. An [`Exec`] that is dropped before the
//! command's end kills it with everything it started: nobody waits for it any more.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use corten_proto::shim::{self as proto, Exit};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{Process, Spec};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::container::{Container, Status};
use crate::error::Error;
use crate::node::{Node, blocking, new_id, remove_file};
use crate::record::write;
use crate::shim::Shim;
use crate::stage::part;

/// How long a killed command may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long an output may stay open, once its process has ended: another process holds it.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// A command's standard IO.
pub(crate) enum Stdio {
    /// Its input, output and error output.
    Pipes([OwnedFd; 3]),
    /// A terminal. Its master is sent to the listening unix stream socket at this path, of 107 bytes at most, before
    /// [`Node::exec`] returns.
    Terminal(PathBuf),
}

/// A command under way.
pub(crate) struct Exec {
    shim: Arc<Shim>,
    container: ContainerId,
    id: String,
    exit: oneshot::Receiver<Exit>,
    ended: bool,
}

impl Node {
    /// The container of a request to run `cmd`, which must run itself.
    pub(crate) fn exec_target(&self, id: &str, cmd: &[String]) -> Result<Arc<Container>, Error> {
        if cmd.is_empty() {
            return Err(Error::invalid("cmd", "", "must name a command"));
        }
        let container = self.container(id)?;
        if !matches!(container.status(), Status::Running { .. }) {
            let state = container.status().state().as_str_name();
            return Err(Error::State(format!("exec in {}: it is {state}", container.id())));
        }
        Ok(container)
    }

    /// Runs `cmd` in a container. The command has begun when this returns.
    pub(crate) async fn exec(&self, container: &Container, cmd: Vec<String>, stdio: Stdio) -> Result<Exec, Error> {
        let shim = self.shim_of(container)?;
        let bundle = self.paths.bundle(container.id());
        let start = Exec::start(shim, container.id().clone(), bundle, cmd, stdio);
        // As a task: a caller that goes away meanwhile must not leave an exec that nobody knows of.
        Ok(self.work.run(part(start)).await??)
    }
}

impl Exec {
    async fn start(
        shim: Arc<Shim>,
        container: ContainerId,
        bundle: PathBuf,
        cmd: Vec<String>,
        stdio: Stdio,
    ) -> Result<Exec> {
        let context = || format!("exec in {container}");
        let id = new_id()?.to_string();
        let document = bundle.join(format!("exec-{id}.json"));
        let (stdio, console) = match stdio {
            Stdio::Pipes(stdio) => (Some(stdio), None),
            Stdio::Terminal(socket) => (None, Some(socket)),
        };
        let (config, path, terminal) = (bundle.join("config.json"), document.clone(), console.is_some());
        blocking(move || write(&path, &process(&config, cmd, terminal)?))
            .await
            .with_context(context)?;
        let exec = proto::Exec {
            container_id: container.to_string(),
            exec_id: id.clone(),
            process: document.to_string_lossy().into_owned(),
            console_socket: console.map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
        };
        let started = shim.exec(exec, stdio).await;
        if let Err(error) = blocking(move || remove_file(&document)).await {
            tracing::warn!(%container, "after an exec: {error:#}");
        }
        let exit = match started {
            Err(error) if error.is_unanswered() => {
                // It may begin yet, with nobody to wait for it. Where the connection is gone, the shim ends it.
                drop(shim.kill_exec(&container, &id).await);
                return Err(error).with_context(context);
            }
            started => started.with_context(context)?,
        };
        Ok(Exec {
            shim,
            container,
            id,
            exit,
            ended: false,
        })
    }

    /// Waits for the command's end. May be given up and called again, but not after it has returned.
    pub(crate) async fn exit(&mut self) -> Result<Exit> {
        let exit = (&mut self.exit).await;
        self.ended = true;
        exit.with_context(|| format!("exec in {}: the connection to its shim broke", self.container))
    }

    /// Kills the command with all that it started and waits for its end.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.shim.kill_exec(&self.container, &self.id).await?;
        match tokio::time::timeout(KILL_LIMIT, self.exit()).await {
            Ok(exit) => exit.map(drop),
            Err(_elapsed) => {
                let (id, limit) = (&self.container, KILL_LIMIT.as_secs());
                anyhow::bail!("exec in {id}: not ended {limit} s after SIGKILL")
            }
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (shim, container, id) = (self.shim.clone(), self.container.clone(), self.id.clone());
        let kill = async move {
            if let Err(error) = shim.kill_exec(&container, &id).await {
                tracing::warn!(%container, "kill an exec whose caller has gone: {error}");
            }
        };
        tokio::spawn(kill.in_current_span());
    }
}

/// A process's output: the reading end, which blocks no thread, and the process's own, with `flags`.
pub(crate) fn output_pipe(flags: OFlag) -> Result<(Receiver, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | flags).context("make a pipe")?;
    rustix::io::ioctl_fionbio(&read, true).context("make a pipe's end non-blocking")?;
    let read = Receiver::from_owned_fd(read).context("watch a process's output")?;
    Ok((read, write))
}

/// The OCI process document of a command: the container's own process with other arguments, and a terminal or none.
fn process(config: &Path, cmd: Vec<String>, terminal: bool) -> Result<Process> {
    let spec = Spec::load(config).with_context(|| format!("read {}", config.display()))?;
    let mut process = spec.process().clone().context("the container's spec has no process")?;
    process.set_args(Some(cmd));
    process.set_terminal(Some(terminal));
    // The container's size is not the command's; the caller sets one as soon as it has the terminal.
    process.set_console_size(None);
    if terminal {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(env: &[&str], terminal: bool) -> Process {
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": !terminal, "consoleSize": { "height": 1, "width": 2 },
                "user": { "uid": 5, "gid": 6 }, "args": ["init"], "env": env, "cwd": "/w",
            },
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), spec.to_string()).unwrap();
        process(file.path(), vec!["cmd".to_owned()], terminal).unwrap()
    }

    #[test]
    fn a_process_is_the_containers_but_for_command_and_terminal() {
        type Case<'a> = (&'a [&'a str], bool, &'a [&'a str]);
        let cases: [Case<'_>; 4] = [
            (&["A=b"], false, &["A=b"]),
            (&["A=b"], true, &["A=b", "TERM=xterm"]),
            (&["TERM=vt100"], true, &["TERM=vt100"]),
            (&["TERMINAL=x"], true, &["TERMINAL=x", "TERM=xterm"]),
        ];
        for (env, terminal, expected) in cases {
            let process = document(env, terminal);
            assert_eq!(process.terminal(), Some(terminal));
            assert!(process.console_size().is_none());
            assert_eq!(process.args().as_deref(), Some(&["cmd".to_owned()][..]));
            assert_eq!(process.env().as_deref().unwrap(), expected);
            assert_eq!((process.user().uid(), process.cwd().as_path()), (5, Path::new("/w")));
        }
    }
}
