//! ExecSync: runs a command in a container and gives back what it wrote. `exec` begins and ends the command.
//!
//! Both outputs together must fit the reply, which the kubelet takes up to 16 MiB of: each is cut at [`MAX_OUTPUT`], as
//! the API allows, and read on so that the command is not stopped by a full pipe. A command's orphans may hold its
//! output open after its end: they are waited for [`DRAIN`] at most.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri::{ExecSyncRequest, ExecSyncResponse};
use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::exec::{DRAIN, Stdio, output_pipe};
use crate::error::Error;
use crate::node::Node;

/// Most bytes of one output that are kept: two of them and the message around them stay below 16 MiB.
const MAX_OUTPUT: usize = (8 << 20) - (64 << 10);

impl Node {
    /// ExecSync. After `timeout` seconds (0: never) the command and all that descends from it is killed.
    pub(super) async fn container_exec(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Error::invalid("timeout", request.timeout, "must not be negative"));
        };
        let container = self.exec_target(&request.container_id, &request.cmd)?;
        let null = File::options().read(true).open("/dev/null").context("open /dev/null")?;
        let (stdout, stdout_end) = output()?;
        let (stderr, stderr_end) = output()?;
        let stdio = Stdio::Pipes([null.into(), stdout_end, stderr_end]);
        let mut exec = self.exec(&container, request.cmd, stdio).await?;
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
        let (stdout, stderr) = tokio::join!(stdout.finish(), stderr.finish());
        Ok(ExecSyncResponse {
            stdout,
            stderr,
            exit_code: exit.code,
        })
    }
}

/// One output being read, up to [`MAX_OUTPUT`] kept.
struct Output {
    task: JoinHandle<Vec<u8>>,
    stop: watch::Sender<bool>,
}

impl Output {
    fn read(mut pipe: Receiver) -> Self {
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
        Output { task, stop }
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

/// An output, and the end that is the command's.
fn output() -> Result<(Output, OwnedFd)> {
    let (read, write) = output_pipe(OFlag::empty())?;
    Ok((Output::read(read), write))
}
