//! The server's ends of a process's standard IO: pipes, or the master of a terminal. Nothing here blocks a thread.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::BytesMut;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::watch;

use super::channel::{Incoming, Outgoing};
use super::client::Streams;
use crate::runtime_service::exec::{self, DRAIN};

/// Bytes that are read at once.
const PIECE: usize = 32 << 10;
/// What is read of an output after its process has ended, at most: what it wrote itself lies in the pipe, 64 KiB, and
/// the rest comes from others that hold it open.
const DRAIN_BYTES: usize = 1 << 20;
/// Longest sizes that may wait to be understood.
const MAX_SIZES: usize = 4096;

/// The master of a terminal. It is hung up when this, its copies, its input and its output have gone.
#[derive(Clone)]
pub(super) struct Terminal(Arc<OwnedFd>);

impl Terminal {
    /// Takes the master.
    pub(super) fn new(master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("make a terminal's master non-blocking")?;
        Ok(Terminal(Arc::new(master)))
    }

    /// What is written to the terminal.
    pub(super) fn output(&self) -> Result<Output> {
        // Tokio's pipe reads and writes any descriptor that can be polled; it has no type for terminals.
        let read = Receiver::from_owned_fd_unchecked(self.copy()?).context("watch a terminal")?;
        Ok(Output(read))
    }

    /// What is typed at the terminal.
    pub(super) fn input(&self) -> Result<Input> {
        let write = Sender::from_owned_fd_unchecked(self.copy()?).context("watch a terminal")?;
        Ok(Input(write))
    }

    fn copy(&self) -> Result<OwnedFd> {
        self.0.try_clone().context("duplicate a terminal's master")
    }
}

/// Where a process writes: a pipe, or its terminal.
pub(super) struct Output(Receiver);

impl Output {
    /// Hands everything to the client and closes its stream; without a client it is thrown away. Once the process has
    /// `ended`, what lies there is still taken: up to the end, to [`DRAIN_BYTES`], or until nothing has come for
    /// [`DRAIN`].
    pub(super) async fn copy(mut self, client: Option<Outgoing>, mut ended: watch::Receiver<bool>) -> Result<()> {
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            let mut buffer = BytesMut::with_capacity(PIECE);
            let count = tokio::select! {
                biased;
                // An error ends an output as its closing does; a terminal says EIO when its last user has gone.
                count = self.0.read_buf(&mut buffer) => count.unwrap_or(0),
                () = silence(&mut ended) => 0,
            };
            if count == 0 {
                break;
            }
            if *ended.borrow() {
                drained += count;
            }
            if let Some(client) = &client {
                client.write(buffer.freeze()).await?;
            }
        }
        match client {
            Some(client) => client.finish().await,
            None => Ok(()),
        }
    }
}

/// Resolves [`DRAIN`] after the process has ended.
async fn silence(ended: &mut watch::Receiver<bool>) {
    // An error means that nobody waits for the process any more.
    drop(ended.wait_for(|ended| *ended).await);
    tokio::time::sleep(DRAIN).await;
}

/// Where a process reads: a pipe, whose end this is when it is dropped, or its terminal, which has none.
pub(super) struct Input(Sender);

impl Input {
    /// A pipe's writing end.
    pub(super) fn pipe(fd: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).context("make a process's input non-blocking")?;
        Ok(Input(Sender::from_owned_fd(fd).context("watch a process's input")?))
    }

    /// Hands on what the client sends, up to its end or the process's.
    pub(super) async fn copy(mut self, mut client: Incoming) {
        while let Some(piece) = client.next().await {
            if let Err(error) = self.0.write_all(&piece).await {
                // EPIPE: the process does not read. What else comes is dropped with `client`.
                tracing::trace!("write to a process's input: {error}");
                return;
            }
        }
    }
}

/// The server's ends of a process's standard IO, those that are needed.
#[derive(Default)]
pub(super) struct Ends {
    /// Where it reads.
    pub(super) stdin: Option<Input>,
    /// Where it writes; with a terminal all of it.
    pub(super) stdout: Option<Output>,
    /// Where it writes errors.
    pub(super) stderr: Option<Output>,
    /// Its terminal.
    pub(super) terminal: Option<Terminal>,
}

impl Ends {
    /// The ends of a process with a terminal. Its output is read in any case: a terminal that nobody reads stops the
    /// process.
    pub(super) fn of_terminal(terminal: Terminal) -> Result<Self> {
        Ok(Ends {
            stdin: Some(terminal.input()?),
            stdout: Some(terminal.output()?),
            stderr: None,
            terminal: Some(terminal),
        })
    }

    /// Copies between a process and its client: the outputs to their end, and beside them the input and the sizes, which
    /// never end. Dropping both closes every end.
    pub(super) fn copies(
        self,
        client: Streams,
        ended: &watch::Receiver<bool>,
    ) -> (impl Future<Output = ()> + use<>, impl Future<Output = Never> + use<>) {
        let stdin = self.stdin.zip(client.stdin).map(|(input, client)| input.copy(client));
        let sizes = self.terminal.zip(client.resize);
        let sizes = sizes.map(|(terminal, client)| resize(terminal, client));
        let stdout = self.stdout.map(|output| output.copy(client.stdout, ended.clone()));
        let stderr = self.stderr.map(|output| output.copy(client.stderr, ended.clone()));
        let outputs = async move {
            for copied in <[Result<()>; 2]>::from(tokio::join!(optional(stdout, Ok(())), optional(stderr, Ok(())))) {
                if let Err(error) = copied {
                    tracing::trace!("output of a process: {error:#}");
                }
            }
        };
        let inputs = async move {
            tokio::join!(optional(stdin, ()), optional(sizes, ()));
            std::future::pending().await
        };
        (outputs, inputs)
    }
}

/// What a future that never ends would give.
pub(super) enum Never {}

async fn optional<T>(work: Option<impl Future<Output = T>>, otherwise: T) -> T {
    match work {
        Some(work) => work.await,
        None => otherwise,
    }
}

/// A pipe's end for a process, and its non-blocking reading end for the server.
pub(super) fn output_pipe(flags: OFlag) -> Result<(Output, OwnedFd)> {
    exec::output_pipe(flags).map(|(read, write)| (Output(read), write))
}

/// A pipe's end for a process, and its writing end for the server.
pub(super) fn input_pipe() -> Result<(Input, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    Ok((Input::pipe(write)?, read))
}

/// A terminal's size, as clients send it: one JSON object after the other.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// The last whole size in `text`, which is cut to what comes after it.
fn last_size(text: &mut BytesMut) -> std::io::Result<Option<Size>> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut last, mut used) = (None, 0);
    while let Some(size) = sizes.next() {
        match size {
            Ok(size) => (last, used) = (Some(size), sizes.byte_offset()),
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error.into()),
        }
    }
    drop(text.split_to(used));
    if text.len() > MAX_SIZES {
        return Err(Error::new(ErrorKind::InvalidData, "a size that has no end"));
    }
    Ok(last)
}

/// Gives a terminal the sizes that the client sends. A stream of something else is not read on.
async fn resize(terminal: Terminal, mut client: Incoming) {
    let mut text = BytesMut::new();
    while let Some(piece) = client.next().await {
        text.extend_from_slice(&piece);
        let sized = last_size(&mut text).and_then(|size| match size {
            Some(size) => set_size(&terminal, &size),
            None => Ok(()),
        });
        if let Err(error) = sized {
            tracing::debug!("sizes of a terminal: {error}");
            return;
        }
    }
}

fn set_size(terminal: &Terminal, size: &Size) -> std::io::Result<()> {
    let size = Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(&*terminal.0, size)?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::channel::Order;
    use super::*;

    #[test]
    fn sizes() {
        let size = |width, height| Some(Size { width, height });
        let table: [(&str, Option<Size>, &str); 6] = [
            ("", None, ""),
            ("{\"Width\":80,\"Hei", None, "{\"Width\":80,\"Hei"),
            ("{\"Width\":80,\"Height\":24}\n", size(80, 24), "\n"),
            ("{\"Width\":80,\"Height\":24}{\"width\":1,\"height\":2}", size(1, 2), ""),
            ("{\"Height\":2,\"Width\":1}{\"Wi", size(1, 2), "{\"Wi"),
            ("{\"Width\":0,\"Height\":0}", size(0, 0), ""),
        ];
        for (text, expected, rest) in table {
            let mut buffer = BytesMut::from(text);
            assert_eq!(last_size(&mut buffer).unwrap(), expected, "{text}");
            assert_eq!(buffer, rest.as_bytes(), "{text}");
        }
        let long = format!("{{{}", " ".repeat(MAX_SIZES + 1));
        for wrong in [
            "{}",
            "x",
            "{\"Width\":-1,\"Height\":2}",
            "{\"Width\":70000,\"Height\":2}",
            &long,
        ] {
            assert!(last_size(&mut BytesMut::from(wrong)).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_output_that_stays_open_is_given_up() {
        let (output, held) = output_pipe(OFlag::empty()).unwrap();
        let (orders, mut written) = tokio::sync::mpsc::channel(8);
        let (ended, ending) = watch::channel(false);
        nix::unistd::write(&held, b"last words").unwrap();
        let copying = tokio::spawn(output.copy(Some(Outgoing::new(1, orders)), ending));
        ended.send_replace(true);
        copying.await.unwrap().unwrap();
        let Some(Order::Data { piece, .. }) = written.recv().await else {
            panic!("no data");
        };
        assert_eq!(piece, Bytes::from_static(b"last words"));
        assert!(matches!(written.recv().await, Some(Order::Finish { .. })));
        drop(held);
    }
}
