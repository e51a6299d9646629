//! ExecSync: runs a command in a container and gives back what it wrote. `exec` begins and ends the command.
//!
//! Both outputs together must fit the reply, which the kubelet takes up to 16 MiB of: each is cut at [`MAX_OUTPUT`], as
//! the API allows, and read on so that the command is not stopped by a full pipe. A command's orphans may hold its
//! output open after its end: they are waited for [`DRAIN`] at most.
//!
//! The outputs of all commands together have a bound too, [`ALL_KIB`], until their callers have taken the answers. Small
//! outputs, as probes have, do not count: whoever fills it up makes no probe fail.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri::{ExecSyncRequest, ExecSyncResponse};
use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::exec::{DRAIN, Stdio, output_pipe};
use crate::error::Error;
use crate::limits::Held;
use crate::node::Node;

/// Most bytes of one output that are kept: two of them and the message around them stay below 16 MiB.
const MAX_OUTPUT: usize = (8 << 20) - (64 << 10);
/// Bytes of one output that nobody counts.
const FREE: usize = 64 << 10;
/// Bytes that the rest of all outputs may have together, in KiB.
const ALL_KIB: usize = 64 << 10;

/// What all outputs may still hold.
#[derive(Clone, Debug)]
pub(crate) struct OutputBudget(Arc<Semaphore>);

impl Default for OutputBudget {
    fn default() -> Self {
        OutputBudget(Arc::new(Semaphore::new(ALL_KIB)))
    }
}

impl Node {
    /// ExecSync. After `timeout` seconds (0: never) the command and all that descends from it is killed. What the answer
    /// takes of the budget is given back with the second value.
    pub(super) async fn container_exec(&self, request: ExecSyncRequest) -> Result<(ExecSyncResponse, Held), Error> {
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Error::invalid("timeout", request.timeout, "must not be negative"));
        };
        let container = self.exec_target(&request.container_id, &request.cmd)?;
        let null = File::options().read(true).open("/dev/null").context("open /dev/null")?;
        let (stdout, stdout_end) = output(&self.exec_outputs)?;
        let (stderr, stderr_end) = output(&self.exec_outputs)?;
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
        if stdout.is_short || stderr.is_short {
            let most = ALL_KIB >> 10;
            let text = format!(
                "exec in {}: the outputs of all ExecSyncs have {most} MiB together",
                container.id()
            );
            return Err(Error::Busy(format!("{text}, the most there may be: try again")));
        }
        let held = Held::default();
        held.keep(stdout.permits.into_iter().chain(stderr.permits));
        let response = ExecSyncResponse {
            stdout: stdout.bytes,
            stderr: stderr.bytes,
            exit_code: exit.code,
        };
        Ok((response, held))
    }
}

/// What is kept of an output.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    permits: Option<OwnedSemaphorePermit>,
    /// There was no room for all of it.
    is_short: bool,
}

impl Kept {
    /// Keeps what there is room for.
    fn push(&mut self, bytes: &[u8], budget: &OutputBudget) {
        let bytes = &bytes[..bytes.len().min(MAX_OUTPUT - self.bytes.len())];
        let wanted = (self.bytes.len() + bytes.len()).saturating_sub(FREE).div_ceil(1024);
        let missing = wanted - self.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if self.is_short || bytes.is_empty() {
            return;
        }
        let permits = u32::try_from(missing)
            .ok()
            .and_then(|it| budget.0.clone().try_acquire_many_owned(it).ok());
        match (permits, &mut self.permits) {
            (None, _) => {
                *self = Kept {
                    is_short: true,
                    ..Kept::default()
                }
            }
            (Some(more), Some(own)) => own.merge(more),
            (Some(first), none) => *none = Some(first),
        }
        if !self.is_short {
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// One output being read, up to [`MAX_OUTPUT`] kept.
struct Output {
    task: JoinHandle<Kept>,
    stop: watch::Sender<bool>,
}

impl Output {
    fn read(mut pipe: Receiver, budget: OutputBudget) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut kept = Kept::default();
            let read = drain(&mut pipe, &mut kept, &budget);
            tokio::select! {
                () = read => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
            kept
        });
        Output { task, stop }
    }

    /// The output, once it is closed or [`DRAIN`] has passed.
    async fn finish(mut self) -> Kept {
        if let Ok(output) = tokio::time::timeout(DRAIN, &mut self.task).await {
            return output.unwrap_or_default();
        }
        self.stop.send_replace(true);
        self.task.await.unwrap_or_default()
    }
}

async fn drain(pipe: &mut Receiver, kept: &mut Kept, budget: &OutputBudget) {
    let mut buffer = [0; 8192];
    // An error ends the output like its closing does: there is nothing more to read.
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.push(&buffer[..read], budget);
    }
}

/// An output, and the end that is the command's.
fn output(budget: &OutputBudget) -> Result<(Output, OwnedFd)> {
    let (read, write) = output_pipe(OFlag::empty())?;
    Ok((Output::read(read, budget.clone()), write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_outputs_are_free_and_large_ones_are_bounded_together() {
        let budget = OutputBudget::default();
        let output = |bytes: usize| {
            let mut kept = Kept::default();
            let buffer = [0; 8192];
            (0..bytes.div_ceil(buffer.len())).for_each(|_| kept.push(&buffer, &budget));
            kept
        };
        let small = output(FREE);
        assert_eq!((small.bytes.len(), budget.0.available_permits()), (FREE, ALL_KIB));
        let large: Vec<_> = (0..10).map(|_| output(2 * MAX_OUTPUT)).collect();
        assert!(large[..8].iter().all(|it| it.bytes.len() == MAX_OUTPUT && !it.is_short));
        assert!(large[9].is_short && large[9].bytes.is_empty() && large[9].permits.is_none());
        assert!(!output(FREE).is_short, "a probe's");
        drop(large);
        assert_eq!(budget.0.available_permits(), ALL_KIB);
    }
}
