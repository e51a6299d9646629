//! Attach: a client at the standard IO of a container's own process.
//!
//! The shim copies output into pipes of ours, beside the log, and hands over what input goes into: the terminal's master,
//! or the writing end of a pipe. The container goes on, whatever the client does; where it was created with stdin_once,
//! the first client's closing or going is the end of its input.

use std::sync::Arc;

use anyhow::Result;
use corten_proto::shim::Attach;
use nix::fcntl::OFlag;
use tokio::sync::watch;

use super::client::{Client, Streams};
use super::ends::{Ends, Input, Output, Terminal, output_pipe};
use super::session::{Cut, Wanted};
use super::status::Ending;
use crate::container::Container;
use crate::error::Error;
use crate::node::Node;

/// Serves the client until the container ends or the session is cut.
pub(super) async fn run<C: Future<Output = Cut>>(
    node: &Node,
    container: &str,
    wanted: Wanted,
    client: Client,
    cut: impl Fn() -> C,
) {
    let started = start(node, container, wanted).await;
    let serve = |(container, ends), streams| serve(container, ends, streams, cut());
    client.attend(started, serve, cut()).await;
}

async fn serve(container: Arc<Container>, ends: Ends, streams: Streams, cut: impl Future<Output = Cut>) -> Ending {
    let (ended, ending) = watch::channel(false);
    let has_output = ends.stdout.is_some() || ends.stderr.is_some();
    let (outputs, inputs) = ends.copies(streams, &ending);
    let exit = async {
        container.exit().await;
        ended.send_replace(true);
        if has_output {
            // What was written last is still to be delivered.
            std::future::pending().await
        }
    };
    tokio::select! {
        // The end of the output is the container's, or of the shim that copied it.
        () = outputs, if has_output => Ending::Success,
        () = exit => Ending::Success,
        never = inputs => match never {},
        cut = cut => Ending::Failed(cut.to_string()),
    }
}

async fn start(node: &Node, id: &str, wanted: Wanted) -> Result<(Arc<Container>, Ends), Error> {
    let container = node.attach_target(id)?;
    let shim = node.shim_of(&container)?;
    // A terminal's one output is stdout, whatever the client believes.
    let stderr_wanted = wanted.stderr && !container.metadata.config.tty;
    let mut write_ends = Vec::new();
    let mut output = |wanted: bool| -> Result<Option<Output>> {
        if !wanted {
            return Ok(None);
        }
        // The shim never waits for a client: its ends do not block.
        let (own, end) = output_pipe(OFlag::O_NONBLOCK)?;
        write_ends.push(end);
        Ok(Some(own))
    };
    let (stdout, stderr) = (output(wanted.stdout)?, output(stderr_wanted)?);
    let request = Attach {
        id: container.id().to_string(),
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: stderr_wanted,
    };
    let attached = shim.attach(request, &write_ends).await?;
    let (stdin, terminal) = match (attached.terminal, attached.fd) {
        (true, Some(master)) => {
            let terminal = Terminal::new(master)?;
            (Some(terminal.input()?), Some(terminal))
        }
        (false, Some(fd)) => (Some(Input::pipe(fd)?), None),
        (_, None) => (None, None),
    };
    Ok((
        container,
        Ends {
            stdin,
            stdout,
            stderr,
            terminal,
        },
    ))
}
