//! Connections to the endpoint: whose they are, how many there are, and that they speak.
//!
//! ```text
//! accept ─> user? ─> a place, of MAX_CONNECTIONS ─> HTTP/2's first 24 bytes, within SPEAK_LIMIT ─> calls (`limits`)
//! ```
//!
//! The socket's mode lets nobody in but root; the user is asked for all the same, as modes can be changed and directories
//! bound elsewhere. A connection that never speaks gives its place up by itself; one whose peer hangs is found by HTTP/2's
//! pings (`server`). Nothing that goes wrong with one connection ends the stream: without it the server would serve nobody.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::limits::{Limits, Share};

/// Most connections at once; more wait to be accepted. The kubelet has two, and every `crictl` one.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take for the first bytes of HTTP/2.
const SPEAK_LIMIT: Duration = Duration::from_secs(10);
/// What every HTTP/2 connection begins with is so many bytes long (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Pause after a connection that could not be accepted: descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of those who may use the endpoint.
pub(crate) fn connections(listener: UnixListener, limits: Arc<Limits>) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    futures_util::stream::unfold((listener, places, limits), |(listener, places, limits)| async move {
        if places.available_permits() == 0 {
            tracing::warn!("{MAX_CONNECTIONS} connections are open, the most there may be: others wait");
        }
        let place = places.clone().acquire_owned().await.ok()?;
        let stream = accept(&listener).await;
        let connection = Connection::new(stream, place, limits.share(), SPEAK_LIMIT);
        Some((Ok(connection), (listener, places, limits)))
    })
}

/// The next connection of a user who may have one.
async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        let refusal = match listener.accept().await {
            Ok((stream, _address)) => match stream.peer_cred() {
                Ok(peer) if is_welcome(peer.uid(), rustix::process::geteuid().as_raw()) => return stream,
                Ok(peer) => format!("user {} (pid {:?}) is not root", peer.uid(), peer.pid()),
                Err(error) => format!("getsockopt(SO_PEERCRED): {error}"),
            },
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        tracing::warn!("connection refused: {refusal}");
    }
}

/// Root, and the user that this server runs as.
fn is_welcome(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

/// An accepted connection.
pub(crate) struct Connection {
    stream: UnixStream,
    /// While it has not spoken: the bytes that are still to come, and until when.
    silent: Option<(usize, Pin<Box<Sleep>>)>,
    share: Arc<Share>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: UnixStream, place: OwnedSemaphorePermit, share: Arc<Share>, limit: Duration) -> Self {
        Connection {
            stream,
            silent: Some((PREFACE, Box::pin(sleep(limit)))),
            share,
            _place: place,
        }
    }
}

impl Connected for Connection {
    /// What the calls of this connection may have under way together.
    type ConnectInfo = Arc<Share>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.share.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some((missing, until)) = &mut self.silent else {
            return read;
        };
        if read.is_pending() {
            ready!(until.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            self.silent = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn who_may_connect() {
        for (user, own, welcome) in [
            (0, 0, true),
            (0, 7, true),
            (7, 7, true),
            (7, 0, false),
            (65_534, 0, false),
        ] {
            assert_eq!(is_welcome(user, own), welcome, "{user} at {own}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_does_not_speak_is_given_up_and_one_that_does_is_not() {
        let limit = Duration::from_millis(50);
        for (said, is_given_up) in [
            (&b""[..], true),
            (b"PRI", true),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false),
        ] {
            let (mut peer, stream) = UnixStream::pair().unwrap();
            let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            let mut connection = Connection::new(stream, place, Limits::default().share(), limit);
            peer.write_all(said).await.unwrap();
            let mut read = vec![0; said.len()];
            connection.read_exact(&mut read).await.unwrap();
            let more = tokio::time::timeout(4 * limit, connection.read_u8()).await;
            assert_eq!(matches!(more, Ok(Err(_))), is_given_up, "{said:?}");
        }
    }
}
