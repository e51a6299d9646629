//! Exec: a command in a container, its standard IO at the client.
//!
//! ```text
//!   client ── stdin ──> pipe or master ──> command ──> pipes or master ── stdout, stderr ──> client
//! ```
//!
//! The shim passes descriptors and the exit, never the data. The client's closing of stdin is the end of the command's
//! input; a terminal has none. When the session is cut (`Cut`), the command goes: its terminal is hung up first and it has
//! [`HANGUP`] to end by that; without a terminal it is killed at once.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use tokio::sync::watch;

use super::client::{Client, Streams};
use super::console::Console;
use super::ends::{Ends, Output, input_pipe, output_pipe};
use super::session::{Cut, Wanted};
use super::status::Ending;
use crate::error::Error;
use crate::node::Node;
use crate::runtime_service::exec::{Exec, Stdio};

/// How long a command may take to end after its terminal has been hung up.
const HANGUP: Duration = Duration::from_secs(2);

/// Runs the command to its end, or until the session is cut.
pub(super) async fn run<C: Future<Output = Cut>>(
    node: &Node,
    container: &str,
    cmd: Vec<String>,
    wanted: Wanted,
    client: Client,
    cut: impl Fn() -> C,
) {
    let started = start(node, container, cmd, wanted).await;
    let serve = |(exec, ends), streams| serve(exec, ends, streams, cut());
    client.attend(started, serve, cut()).await;
}

async fn start(node: &Node, container: &str, cmd: Vec<String>, wanted: Wanted) -> Result<(Exec, Ends), Error> {
    let container = node.exec_target(container, &cmd)?;
    if wanted.tty {
        let console = Console::listen(&node.paths.consoles())?;
        let stdio = Stdio::Terminal(console.path().to_owned());
        let exec = node.exec(&container, cmd, stdio).await?;
        return Ok((exec, Ends::of_terminal(console.terminal().await?)?));
    }
    let (stdin, stdin_end) = match wanted.stdin {
        true => input_pipe().map(|(own, end)| (Some(own), end))?,
        false => (None, null()?),
    };
    let (stdout, stdout_end) = output(wanted.stdout)?;
    let (stderr, stderr_end) = output(wanted.stderr)?;
    let stdio = Stdio::Pipes([stdin_end, stdout_end, stderr_end]);
    let exec = node.exec(&container, cmd, stdio).await?;
    let terminal = None;
    Ok((
        exec,
        Ends {
            stdin,
            stdout,
            stderr,
            terminal,
        },
    ))
}

fn output(wanted: bool) -> Result<(Option<Output>, OwnedFd)> {
    match wanted {
        true => output_pipe(OFlag::empty()).map(|(own, end)| (Some(own), end)),
        false => Ok((None, null()?)),
    }
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    Ok(file.context("open /dev/null")?.into())
}

async fn serve(mut exec: Exec, ends: Ends, streams: Streams, cut: impl Future<Output = Cut>) -> Ending {
    let hangs_up = ends.terminal.is_some();
    let (ended, ending) = watch::channel(false);
    let (outputs, inputs) = ends.copies(streams, &ending);
    // The exit and all output, in whatever order they end.
    let work = async {
        let exit = async {
            let exit = exec.exit().await;
            ended.send_replace(true);
            exit
        };
        tokio::join!(exit, outputs).0
    };
    let done = tokio::select! {
        exit = work => Ok(exit),
        never = inputs => match never {},
        cut = cut => Err(cut),
    };
    match done {
        Ok(Ok(exit)) if exit.code == 0 => Ending::Success,
        Ok(Ok(exit)) => Ending::Code(exit.code),
        Ok(Err(error)) => Ending::Failed(format!("{error:#}")),
        Err(cut) => {
            // Every end has been dropped with the copies: a terminal is hung up by now.
            end(exec, hangs_up).await;
            Ending::Failed(cut.to_string())
        }
    }
}

async fn end(mut exec: Exec, hung_up: bool) {
    if hung_up && tokio::time::timeout(HANGUP, exec.exit()).await.is_ok() {
        return;
    }
    if let Err(error) = exec.kill().await {
        tracing::warn!("end an exec whose client has gone: {error:#}");
    }
}
