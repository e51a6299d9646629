//! Attach: a client at the standard IO of a container's own process.
//!
//! The shim copies output into pipes of ours, beside the log, and hands over what input goes into: the terminal's master,
//! or the writing end of a pipe. The container goes on, whatever the client does; where it was created with stdin_once,
//! the first client's closing or going is the end of its input.

use anyhow::Result;
use corten_proto::shim::Attach;
use nix::fcntl::OFlag;
use tokio::sync::watch;

use super::client::Client;
use super::ends::{Input, Output, Terminal, copies, output_pipe, resize};
use super::session::{Cut, Wanted};
use super::status::Ending;
use crate::container::Container;
use crate::error::Error;
use crate::node::Node;

/// Serves the client until the container ends or the session is cut.
pub(super) async fn run(node: &Node, container: &str, wanted: Wanted, client: Client, cut: impl Future<Output = Cut>) {
    let Client {
        stdin,
        resize: sizes,
        stdout,
        stderr,
        error: error_stream,
    } = client;
    let ending = match start(node, container, wanted).await {
        Err(error) => Ending::Failed(error.to_string()),
        Ok((container, ends)) => {
            let (ended, ending) = watch::channel(false);
            let input = ends.stdin.zip(stdin).map(|(input, client)| input.copy(client));
            let sizes = ends
                .terminal
                .zip(sizes)
                .map(|(terminal, client)| resize(terminal, client));
            let has_output = ends.stdout.is_some() || ends.stderr.is_some();
            let copy = |(output, client): (Output, _)| output.copy(client, ending.clone());
            let outputs = copies(ends.stdout.zip(stdout).map(copy), ends.stderr.zip(stderr).map(copy));
            let exit = async {
                container.exit().await;
                ended.send_replace(true);
                // With output, its end is the end: what was written last is still to be delivered.
                if has_output {
                    std::future::pending::<()>().await;
                }
            };
            let outputs = async {
                outputs.await;
                if !has_output {
                    std::future::pending::<()>().await;
                }
            };
            let inputs = async {
                tokio::join!(optional(input), optional(sizes));
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = exit => Ending::Success,
                () = outputs => Ending::Success,
                () = inputs => Ending::Success,
                cut = cut => Ending::Failed(cut.to_string()),
            }
        }
    };
    if let Err(error) = error_stream.say(&ending).await {
        tracing::debug!(container, "end of an attach {ending:?}: {error:#}");
    }
}

async fn optional(copy: Option<impl Future<Output = ()>>) {
    if let Some(copy) = copy {
        copy.await;
    }
}

/// The server's ends.
struct Ends {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    terminal: Option<Terminal>,
}

async fn start(node: &Node, id: &str, wanted: Wanted) -> Result<(std::sync::Arc<Container>, Ends), Error> {
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
            (wanted.stdin.then(|| Input::Terminal(terminal.clone())), Some(terminal))
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
