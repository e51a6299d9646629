//! A client's socket, watched for its end while nobody reads from it.
//!
//! A reading task that is held up by a full queue does not come to the end of the connection. The kernel tells of it
//! nevertheless: at once where the connection broke, or where the client's last bytes are here already. Where they are
//! not, because there is no room for them, the connection breaks by what is written to the client (`channel`); where its
//! machine has gone, and answers nothing that is written, the kernel would send it again for a quarter of an hour, without
//! asking whether anybody is there. So it is looked how long nothing has been acknowledged.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::sys;

/// Between two looks at a socket to which bytes come.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at what is acknowledged.
const ANSWERS: Duration = Duration::from_secs(30);
/// A machine that acknowledges nothing for so long has gone. One that is there and reads nothing is asked for room by the
/// kernel every 2 minutes at least, and answers.
const SILENCE: Duration = Duration::from_secs(180);
/// How long what a client had sent before it went may be taken yet.
const GRACE: Duration = Duration::from_secs(5);

/// A client's socket.
#[derive(Clone)]
pub(super) struct Hangup(Arc<TcpStream>);

impl Hangup {
    /// Watches a socket beside its reader.
    pub(super) fn of(stream: &TcpStream) -> Result<Self> {
        // A duplicate: the runtime watches the stream's own descriptor already.
        let copy = stream.as_fd().try_clone_to_owned().context("duplicate a socket")?;
        let watched = TcpStream::from_std(copy.into()).context("watch a socket")?;
        Ok(Hangup(Arc::new(watched)))
    }

    /// Resolves [`GRACE`] after the client has closed or the connection has broken, whether or not anybody reads; at once
    /// when its machine is silent.
    pub(super) async fn seen(&self) {
        tokio::select! {
            () = self.closed() => tokio::time::sleep(GRACE).await,
            () = self.silent() => {}
        }
    }

    async fn silent(&self) {
        loop {
            tokio::time::sleep(ANSWERS).await;
            // One that cannot be looked at has been closed, which is seen otherwise.
            if sys::answers(self.0.as_fd()).is_ok_and(is_silent) {
                return;
            }
        }
    }

    async fn closed(&self) {
        loop {
            match self.0.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => {}
                // An error means that the process ends.
                _ => return,
            }
            // Nothing is read here: what has come is forgotten, so that the next look waits for something new.
            let forget = || Err::<(), _>(ErrorKind::WouldBlock.into());
            drop(self.0.try_io(Interest::READABLE, forget));
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn is_silent(answers: sys::Answers) -> bool {
    answers.awaited && answers.silence >= SILENCE
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_machine_is_silent_when_it_owes_an_answer() {
        for (awaited, silence, expected) in [
            (true, SILENCE, true),
            (true, SILENCE / 2, false),
            (false, 10 * SILENCE, false),
        ] {
            assert_eq!(
                is_silent(sys::Answers { awaited, silence }),
                expected,
                "{awaited} {silence:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_is_seen_behind_unread_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let hangup = Hangup::of(&stream).unwrap();
        client.write_all(b"nobody reads this").await.unwrap();
        let seeing = hangup.seen();
        tokio::pin!(seeing);
        let early = tokio::time::timeout(LOOK / 10, &mut seeing).await;
        assert!(early.is_err(), "the client is still there");
        drop(client);
        seeing.await;
        // It stays so.
        hangup.seen().await;
    }
}
