//! The server's ends of a process's standard IO: pipes, or the master of a terminal. Nothing here blocks a thread.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::BytesMut;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::watch;

use super::channel::{Incoming, Outgoing};

/// Bytes that are read at once.
const PIECE: usize = 32 << 10;
/// How long an output may be silent before it is given up, once its process has ended: another process holds it open.
const DRAIN: Duration = Duration::from_secs(2);
/// What is read of an output after its process has ended, at most: what it wrote itself lies in the pipe, 64 KiB, and
/// the rest comes from others that hold it open.
const DRAIN_BYTES: usize = 1 << 20;
/// Longest sizes that may wait to be understood.
const MAX_SIZES: usize = 4096;

/// The master of a terminal; its last holder hangs it up.
#[derive(Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes the master.
    pub(super) fn new(master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("make a terminal's master non-blocking")?;
        let master = AsyncFd::register(master).context("watch a terminal's master")?;
        Ok(Terminal(Arc::new(master)))
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self
            .0
            .async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?));
        match read.await {
            // How a terminal says that its last user has gone.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            other => other,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let write = self
                .0
                .async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?));
            bytes = &bytes[write.await?..];
        }
        Ok(())
    }
}

/// Where a process writes.
pub(super) enum Output {
    /// Into a pipe.
    Pipe(Receiver),
    /// To its terminal.
    Terminal(Terminal),
}

impl Output {
    async fn read(&mut self, buffer: &mut BytesMut) -> std::io::Result<usize> {
        match self {
            Output::Pipe(pipe) => pipe.read_buf(buffer).await,
            Output::Terminal(terminal) => {
                let mut bytes = [0; 4096];
                let count = terminal.read(&mut bytes).await?;
                buffer.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
        }
    }

    /// Hands everything to the client and closes its stream. Once the process has `ended`, what lies there is still
    /// taken: up to the end, to [`DRAIN_BYTES`], or until nothing has come for [`DRAIN`].
    pub(super) async fn copy(mut self, client: Outgoing, mut ended: watch::Receiver<bool>) -> Result<()> {
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            let mut buffer = BytesMut::with_capacity(PIECE);
            let count = tokio::select! {
                biased;
                // An error ends an output as its closing does: there is nothing more to read.
                count = self.read(&mut buffer) => count.unwrap_or(0),
                () = silence(&mut ended) => 0,
            };
            if count == 0 {
                break;
            }
            if *ended.borrow() {
                drained += count;
            }
            client.write(buffer.freeze()).await?;
        }
        client.finish().await
    }
}

/// Resolves [`DRAIN`] after the process has ended.
async fn silence(ended: &mut watch::Receiver<bool>) {
    // An error means that nobody waits for the process any more.
    drop(ended.wait_for(|ended| *ended).await);
    tokio::time::sleep(DRAIN).await;
}

/// Where a process reads.
pub(super) enum Input {
    /// From a pipe. Dropped, it is the end of the input.
    Pipe(Sender),
    /// From its terminal, which has no end but its hanging up.
    Terminal(Terminal),
}

impl Input {
    /// A pipe's writing end.
    pub(super) fn pipe(fd: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).context("make a process's input non-blocking")?;
        Ok(Input::Pipe(
            Sender::from_owned_fd(fd).context("watch a process's input")?,
        ))
    }

    /// Hands on what the client sends, up to its end or the process's.
    pub(super) async fn copy(mut self, mut client: Incoming) {
        while let Some(piece) = client.next().await {
            let written = match &mut self {
                Input::Pipe(pipe) => pipe.write_all(&piece).await,
                Input::Terminal(terminal) => terminal.write_all(&piece).await,
            };
            if let Err(error) = written {
                // EPIPE: the process does not read. What else comes is dropped with `client`.
                tracing::trace!("write to a process's input: {error}");
                return;
            }
        }
    }
}

/// A pipe's end for a process, and its non-blocking reading end for the server.
pub(super) fn output_pipe(flags: OFlag) -> Result<(Output, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | flags).context("make a pipe")?;
    rustix::io::ioctl_fionbio(&read, true).context("make a pipe's end non-blocking")?;
    let read = Receiver::from_owned_fd(read).context("watch a process's output")?;
    Ok((Output::Pipe(read), write))
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
pub(super) async fn resize(terminal: Terminal, mut client: Incoming) {
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
    Ok(tcsetwinsize(terminal.0.get_ref(), size)?)
}

/// Waits for both, where they are there.
pub(super) async fn copies(
    stdout: Option<impl Future<Output = Result<()>>>,
    stderr: Option<impl Future<Output = Result<()>>>,
) {
    async fn copy(output: Option<impl Future<Output = Result<()>>>) {
        if let Some(output) = output
            && let Err(error) = output.await
        {
            tracing::trace!("output of a process: {error:#}");
        }
    }
    tokio::join!(copy(stdout), copy(stderr));
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
        let copying = tokio::spawn(output.copy(Outgoing::new(1, orders), ending));
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
