//! ExecSync: runs a command in a container and gives back what it wrote.
//!
//! Both outputs together must fit the reply, which the kubelet takes up to 16 MiB of: each is cut at [`MAX_OUTPUT`], as
//! the API allows, and read on so that the command is not stopped by a full pipe. A command's orphans may hold its
//! output open after its end: they are waited for [`DRAIN`] at most.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri::{ExecSyncRequest, ExecSyncResponse};
use corten_proto::id::ContainerId;
use corten_proto::shim::{Exec, Exit};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{Process, Spec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::container::Status;
use crate::error::Error;
use crate::node::{Node, blocking, new_id, remove_file};
use crate::record::write;
use crate::shim::Shim;

/// Most bytes of one output that are kept: two of them and the message around them stay below 16 MiB.
const MAX_OUTPUT: usize = (8 << 20) - (64 << 10);
/// How long an output may stay open after the command has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a killed command may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Node {
    /// ExecSync. After `timeout` seconds (0: never) the command and all that descends from it is killed.
    pub(super) async fn container_exec(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
        if request.cmd.is_empty() {
            return Err(Error::invalid("cmd", "", "must name a command"));
        }
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Error::invalid("timeout", request.timeout, "must not be negative"));
        };
        let container = self.container(&request.container_id)?;
        if !matches!(container.status(), Status::Running { .. }) {
            let state = container.status().state().as_str_name();
            return Err(Error::State(format!("exec in {}: it is {state}", container.id())));
        }
        let shim = self.shim_of(&container)?;
        let bundle = self.paths.bundle(container.id());
        let start = Running::start(shim, container.id().clone(), bundle, request.cmd);
        // As a task: a caller that goes away meanwhile must not leave an exec that nobody knows of.
        let mut exec = self.work.run(start).await??;
        let exit = match seconds {
            0 => exec.exit().await?,
            _ => match tokio::time::timeout(Duration::from_secs(seconds), exec.exit()).await {
                Ok(exit) => exit?,
                Err(_elapsed) => {
                    exec.kill().await?;
                    let text = format!("exec in {}: not done in {seconds} s, killed", container.id());
                    return Err(Error::Deadline(text));
                }
            },
        };
        let (stdout, stderr) = exec.output().await;
        Ok(ExecSyncResponse {
            stdout,
            stderr,
            exit_code: exit.code,
        })
    }
}

/// An exec under way. Dropped before its end, it is killed: nobody waits for it any more.
struct Running {
    shim: Arc<Shim>,
    container: ContainerId,
    id: String,
    exit: oneshot::Receiver<Exit>,
    outputs: Option<(Output, Output)>,
    ended: bool,
}

impl Running {
    async fn start(shim: Arc<Shim>, container: ContainerId, bundle: PathBuf, cmd: Vec<String>) -> Result<Self> {
        let context = || format!("exec in {container}");
        let id = new_id()?.to_string();
        let document = bundle.join(format!("exec-{id}.json"));
        let (config, path) = (bundle.join("config.json"), document.clone());
        blocking(move || write(&path, &process(&config, cmd)?))
            .await
            .with_context(context)?;
        let null = File::options().read(true).open("/dev/null").context("open /dev/null")?;
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        let exec = Exec {
            container_id: container.to_string(),
            exec_id: id.clone(),
            process: document.to_string_lossy().into_owned(),
        };
        let outputs = Some((Output::read(stdout)?, Output::read(stderr)?));
        let started = shim.exec(exec, [null.into(), stdout_end, stderr_end]).await;
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
        Ok(Running {
            shim,
            container,
            id,
            exit,
            outputs,
            ended: false,
        })
    }

    async fn exit(&mut self) -> Result<Exit> {
        let exit = (&mut self.exit).await;
        self.ended = true;
        exit.with_context(|| format!("exec in {}: the connection to its shim broke", self.container))
    }

    /// Kills the command with all that descends from it and waits for its end.
    async fn kill(&mut self) -> Result<()> {
        self.shim.kill_exec(&self.container, &self.id).await?;
        match tokio::time::timeout(KILL_LIMIT, self.exit()).await {
            Ok(exit) => exit.map(drop),
            Err(_elapsed) => {
                let (id, limit) = (&self.container, KILL_LIMIT.as_secs());
                anyhow::bail!("exec in {id}: not ended {limit} s after SIGKILL")
            }
        }
    }

    /// What the command wrote.
    async fn output(mut self) -> (Vec<u8>, Vec<u8>) {
        let (stdout, stderr) = self.outputs.take().expect("taken once, here");
        tokio::join!(stdout.finish(), stderr.finish())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (shim, container, id) = (self.shim.clone(), self.container.clone(), self.id.clone());
        tokio::spawn(async move {
            if let Err(error) = shim.kill_exec(&container, &id).await {
                tracing::warn!(%container, "kill an exec whose caller has gone: {error}");
            }
        });
    }
}

/// One output being read, up to [`MAX_OUTPUT`] kept.
struct Output {
    task: JoinHandle<Vec<u8>>,
    stop: watch::Sender<bool>,
}

impl Output {
    fn read(pipe: OwnedFd) -> Result<Self> {
        let mut pipe = Receiver::from_owned_fd(pipe).context("read the output of an exec")?;
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            let read = drain(&mut pipe, &mut kept);
            tokio::select! {
                () = read => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
            kept
        });
        Ok(Output { task, stop })
    }

    /// The output, once it is closed or [`DRAIN`] has passed.
    async fn finish(mut self) -> Vec<u8> {
        if let Ok(output) = tokio::time::timeout(DRAIN, &mut self.task).await {
            return output.unwrap_or_default();
        }
        self.stop.send_replace(true);
        self.task.await.unwrap_or_default()
    }
}

async fn drain(pipe: &mut Receiver, kept: &mut Vec<u8>) {
    let mut buffer = [0; 8192];
    // An error ends the output like its closing does: there is nothing more to read.
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

/// A pipe, close-on-exec; the reading end does not block.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    rustix::io::ioctl_fionbio(&read, true).context("make a pipe's end non-blocking")?;
    Ok((read, write))
}

/// The OCI process document of an exec: the container's own process with another command and no terminal.
fn process(config: &Path, cmd: Vec<String>) -> Result<Process> {
    let spec = Spec::load(config).with_context(|| format!("read {}", config.display()))?;
    let mut process = spec.process().clone().context("the container's spec has no process")?;
    process.set_args(Some(cmd));
    process.set_terminal(Some(false));
    process.set_console_size(None);
    Ok(process)
}
