//! The client of an exec or attach: its streams, whatever carries them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::channel::{Incoming, Outgoing, Pulse};
use super::negotiate::{Protocol, Upgrade};
use super::session::{Cut, Wanted};
use super::spdy::{Spdy, Stream, header};
use super::status::Ending;
use super::websocket::WebSocket;
use crate::error::Error;

/// How long a client whose session is cut may take to make room for the reason.
const SAY_LIMIT: Duration = Duration::from_secs(2);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// What carries the streams.
pub(super) enum Carrier {
    /// A SPDY connection.
    Spdy(Spdy),
    /// A WebSocket.
    WebSocket(WebSocket),
}

impl Carrier {
    /// Movement on the connection.
    pub(super) fn pulse(&self) -> &Pulse {
        match self {
            Carrier::Spdy(spdy) => spdy.pulse(),
            Carrier::WebSocket(socket) => socket.pulse(),
        }
    }

    /// Writes what waits, then closes.
    pub(super) async fn close(self) {
        match self {
            Carrier::Spdy(spdy) => spdy.close().await,
            Carrier::WebSocket(socket) => socket.close().await,
        }
    }
}

/// The client's streams.
pub(super) struct Client {
    /// Those of the process.
    streams: Streams,
    /// How it ended.
    error: ErrorStream,
    /// It is told when the process is there.
    greeted: bool,
}

impl Client {
    /// Serves the client at a process that is there, or tells it why there is none; then tells it how that ended. `cut`
    /// ends the telling.
    pub(super) async fn attend<P, S: Future<Output = Ending>>(
        self,
        process: Result<P, Error>,
        serve: impl FnOnce(P, Streams) -> S,
        cut: impl Future<Output = Cut>,
    ) {
        let ending = match process {
            Ok(process) => {
                self.greet().await;
                serve(process, self.streams).await
            }
            Err(error) => Ending::Failed(error.to_string()),
        };
        if let Err(error) = self.error.say(&ending, cut).await {
            tracing::debug!("end of a session, {ending:?}: {error:#}");
        }
    }

    /// Tells a WebSocket's client that the process is there: by a message without bytes, on the first of its streams.
    async fn greet(&self) {
        let outputs = [&self.streams.stdout, &self.streams.stderr];
        let first = outputs.into_iter().flatten().next().unwrap_or(&self.error.outgoing);
        if self.greeted {
            // A client that has gone shows at the next write.
            drop(first.write(Bytes::new()).await);
        }
    }
}

/// The streams of the process, those that were asked for.
pub(super) struct Streams {
    /// Its input.
    pub(super) stdin: Option<Incoming>,
    /// Sizes for its terminal.
    pub(super) resize: Option<Incoming>,
    /// Its output.
    pub(super) stdout: Option<Outgoing>,
    /// Its error output.
    pub(super) stderr: Option<Outgoing>,
}

/// The stream that says how it ended.
struct ErrorStream {
    outgoing: Outgoing,
    json: bool,
}

impl ErrorStream {
    /// Says it and closes the stream. A client that does not read holds this up, but not once its session is cut.
    async fn say(self, ending: &Ending, cut: impl Future<Output = Cut>) -> Result<()> {
        let late = async {
            cut.await;
            tokio::time::sleep(SAY_LIMIT).await;
        };
        tokio::select! {
            said = self.write(ending) => said,
            () = late => bail!("the client does not read"),
        }
    }

    async fn write(self, ending: &Ending) -> Result<()> {
        if let Some(message) = ending.message(self.json) {
            self.outgoing.write(message).await?;
        }
        self.outgoing.finish().await
    }
}

/// Waits until the client has opened the streams that were asked for.
pub(super) async fn open(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    upgrade: Upgrade,
    wanted: Wanted,
) -> Result<(Carrier, Client)> {
    match upgrade {
        Upgrade::Spdy(protocol) => {
            let mut spdy = Spdy::new(io)?;
            let client = by_spdy(&mut spdy, protocol, wanted).await?;
            spdy.no_more_streams();
            Ok((Carrier::Spdy(spdy), client))
        }
        Upgrade::WebSocket(protocol) => {
            let (socket, client) = by_websocket(io, protocol, wanted).await?;
            Ok((Carrier::WebSocket(socket), client))
        }
    }
}

/// The streams by their number, as WebSocket has them.
#[derive(Default)]
struct Opened([Option<Stream>; 5]);

impl Opened {
    fn incoming(&mut self, number: u8) -> Option<Incoming> {
        self.0[usize::from(number)].take().map(|stream| stream.incoming)
    }

    fn outgoing(&mut self, number: u8) -> Option<Outgoing> {
        self.0[usize::from(number)].take().map(|stream| stream.outgoing)
    }
}

/// Takes the client's streams in whatever order they come, and no other ones.
async fn by_spdy(spdy: &mut Spdy, protocol: &Protocol, wanted: Wanted) -> Result<Client> {
    let resize = wanted.tty && protocol.resize;
    let expected = [wanted.stdin, wanted.stdout, wanted.stderr, true, resize];
    let mut opened = Opened::default();
    while (0..5).any(|number| expected[number] && opened.0[number].is_none()) {
        let mut stream = spdy
            .next_stream()
            .await
            .context("the client has gone before it opened its streams")?;
        let number = match header(&stream.headers, "streamtype") {
            Some("stdin") => STDIN,
            Some("stdout") => STDOUT,
            Some("stderr") => STDERR,
            Some("error") => ERROR,
            Some("resize") => RESIZE,
            other => bail!("a stream whose streamType is {other:?}"),
        };
        let number = usize::from(number);
        if !expected[number] || opened.0[number].is_some() {
            stream.refuse().await;
            continue;
        }
        stream.accept().await;
        opened.0[number] = Some(stream);
    }
    Ok(Client {
        streams: Streams {
            stdin: opened.incoming(STDIN),
            resize: opened.incoming(RESIZE),
            stdout: opened.outgoing(STDOUT),
            stderr: opened.outgoing(STDERR),
        },
        error: ErrorStream {
            outgoing: opened.outgoing(ERROR).context("it was waited for")?,
            json: protocol.json,
        },
        greeted: false,
    })
}

async fn by_websocket(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: &'static Protocol,
    wanted: Wanted,
) -> Result<(WebSocket, Client)> {
    let readable = [(STDIN, wanted.stdin), (RESIZE, wanted.tty)];
    let readable = readable
        .into_iter()
        .filter_map(|(channel, wanted)| wanted.then_some(channel));
    let mut socket = WebSocket::new(io, protocol, readable).await;
    let client = Client {
        streams: Streams {
            stdin: socket.incoming(STDIN),
            resize: socket.incoming(RESIZE),
            stdout: wanted.stdout.then(|| socket.outgoing(STDOUT)),
            stderr: wanted.stderr.then(|| socket.outgoing(STDERR)),
        },
        error: ErrorStream {
            outgoing: socket.outgoing(ERROR),
            json: protocol.json,
        },
        greeted: true,
    };
    Ok((socket, client))
}
