//! WebSockets: channels of an exec, attach or port-forward, or a tunnel for SPDY.
//!
//! A binary message is a channel's number and bytes of that channel; in the base64 protocols a text message is the
//! number as a digit and the bytes in base64. With v5 a client closes a channel by the number 255 and the channel's.
//!
//! Memory: a message is [`MAX_MESSAGE`] at most; [`READ_QUEUE`] of them wait for each channel, as far as the connection's
//! [`Budget`] goes.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::channel::{Budget, Feed, Incoming, Order, Outgoing, Pulse, WRITE_QUEUE};
use super::negotiate::Protocol;

/// Longest message of a client; a longer one ends the connection with code 1009.
const MAX_MESSAGE: usize = 1 << 20;
/// Messages of a channel that may wait.
const READ_QUEUE: usize = 4;
/// Bytes that are read or written at once.
const BUFFER: usize = 64 << 10;
/// How long a client may take to close.
const LINGER: Duration = Duration::from_secs(5);
/// The channel whose messages close others.
const CLOSE_CHANNEL: u8 = 255;

async fn socket<I: AsyncRead + AsyncWrite + Unpin>(io: I) -> WebSocketStream<I> {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Reads and writes to the end, then closes what is below: TLS has a goodbye of its own, without which a client takes the
/// end for one that an attacker made.
async fn both<I: AsyncRead + AsyncWrite + Unpin>(
    reading: impl Future<Output = SplitStream<WebSocketStream<I>>>,
    writing: impl Future<Output = SplitSink<WebSocketStream<I>, Message>>,
) {
    let (stream, sink) = tokio::join!(reading, writing);
    let mut socket = stream.reunite(sink).expect("two halves of one");
    // A client that has gone does not miss it.
    drop(socket.get_mut().shutdown().await);
}

fn farewell() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// A WebSocket of channels. Dropped, it is closed at once.
pub(super) struct WebSocket {
    orders: mpsc::Sender<Order>,
    incoming: HashMap<u8, Incoming>,
    pulse: Pulse,
    tasks: JoinSet<()>,
}

impl WebSocket {
    /// Speaks `protocol` on `io`, reading the channels of `readable`.
    pub(super) async fn new(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        protocol: &'static Protocol,
        readable: impl IntoIterator<Item = u8>,
    ) -> Self {
        let (sink, stream) = socket(io).await.split();
        let (orders, ordered) = mpsc::channel(WRITE_QUEUE);
        let pulse = Pulse::new();
        let budget = Budget::new();
        let (mut feeds, mut channels) = (HashMap::new(), HashMap::new());
        for channel in readable {
            let (feed, incoming) = budget.incoming(READ_QUEUE);
            feeds.insert(channel, feed);
            channels.insert(channel, incoming);
        }
        let mut tasks = JoinSet::new();
        let reading = read(stream, protocol, feeds, orders.clone(), pulse.clone());
        tasks.spawn(both(reading, write(sink, protocol, ordered, pulse.clone())));
        WebSocket {
            orders,
            incoming: channels,
            pulse,
            tasks,
        }
    }

    /// A readable channel; once.
    pub(super) fn incoming(&mut self, channel: u8) -> Option<Incoming> {
        self.incoming.remove(&channel)
    }

    /// A channel to the client.
    pub(super) fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing::new(channel.into(), self.orders.clone())
    }

    /// Movement on the connection.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Writes what waits and says goodbye; the client has [`LINGER`] to answer.
    pub(super) async fn close(mut self) {
        self.incoming.clear();
        let closing = async {
            drop(self.orders.send(Order::Close).await);
            while self.tasks.join_next().await.is_some() {}
        };
        drop(tokio::time::timeout(LINGER, closing).await);
    }
}

async fn read<I: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<I>>,
    protocol: &'static Protocol,
    mut feeds: HashMap<u8, Feed>,
    orders: mpsc::Sender<Order>,
    pulse: Pulse,
) -> SplitStream<WebSocketStream<I>> {
    while let Some(message) = stream.next().await {
        let read = message
            .map_err(anyhow::Error::from)
            .and_then(|message| decode(&message, protocol));
        match read {
            Ok(Some((CLOSE_CHANNEL, bytes))) if protocol.close => {
                if let [channel] = *bytes {
                    feeds.remove(&channel);
                }
            }
            Ok(Some((channel, bytes))) => {
                pulse.moved();
                if let Some(feed) = feeds.get(&channel)
                    && !bytes.is_empty()
                {
                    feed.push(bytes, &orders).await;
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("WebSocket: {error:#}");
                break;
            }
        }
    }
    pulse.leave();
    stream
}

/// A message's channel and bytes; none for the protocol's own messages, which the library answers.
fn decode(message: &Message, protocol: &Protocol) -> Result<Option<(u8, Bytes)>> {
    match message {
        Message::Binary(bytes) if !protocol.base64 => {
            let (channel, rest) = bytes.split_first().context("a message without a channel")?;
            // A copy: a slice that waits would keep all of the library's buffer, which the budget does not count.
            Ok(Some((*channel, Bytes::copy_from_slice(rest))))
        }
        Message::Text(text) if protocol.base64 => {
            let (digit, rest) = text
                .as_str()
                .split_at_checked(1)
                .context("a message without a channel")?;
            let channel = digit.parse().context("a message whose channel is no digit")?;
            Ok(Some((
                channel,
                STANDARD.decode(rest).context("a message that is no base64")?.into(),
            )))
        }
        Message::Binary(_) => bail!("a binary message where the protocol has text"),
        Message::Text(_) => bail!("a text message where the protocol has binary ones"),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(None),
    }
}

fn encode(channel: u32, piece: &[u8], protocol: &Protocol) -> Message {
    if protocol.base64 {
        return Message::text(format!("{channel}{}", STANDARD.encode(piece)));
    }
    let mut bytes = BytesMut::with_capacity(1 + piece.len());
    bytes.put_u8(u8::try_from(channel).unwrap_or(CLOSE_CHANNEL));
    bytes.put_slice(piece);
    Message::Binary(bytes.freeze())
}

async fn write<I: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<I>, Message>,
    protocol: &'static Protocol,
    mut orders: mpsc::Receiver<Order>,
    pulse: Pulse,
) -> SplitSink<WebSocketStream<I>, Message> {
    let written = async {
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(_none_now) => {
                    sink.flush().await?;
                    match orders.recv().await {
                        Some(order) => order,
                        None => break,
                    }
                }
            };
            match order {
                Order::Data { stream, piece } => {
                    pulse.moved();
                    sink.feed(encode(stream, &piece, protocol)).await?;
                }
                // One that nobody asked for is not answered (RFC 6455, section 5.5.3).
                Order::Knock => sink.feed(Message::Pong(Bytes::new())).await?,
                Order::Close => break,
                // There is no way to say that a channel has ended; the others are SPDY's.
                Order::Finish { .. } | Order::Taken { .. } | Order::Frame(_) | Order::Accept { .. } => {}
            }
        }
        sink.send(farewell()).await?;
        anyhow::Ok(())
    };
    if let Err(error) = written.await {
        tracing::debug!("write to a WebSocket: {error:#}");
        // Reading may wait for room and not see it.
        pulse.leave();
    }
    sink
}

/// The tasks that carry a connection in a WebSocket's messages.
pub(super) struct Tunnel(JoinSet<()>);

impl Tunnel {
    /// The connection in the WebSocket, and who carries it.
    pub(super) async fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> (DuplexStream, Tunnel) {
        let (inner, outer) = tokio::io::duplex(BUFFER);
        let (sink, stream) = socket(io).await.split();
        let (from, to) = tokio::io::split(outer);
        let mut tasks = JoinSet::new();
        tasks.spawn(both(unpack(stream, to), pack(from, sink)));
        (inner, Tunnel(tasks))
    }

    /// Waits until the client has closed, [`LINGER`] at most. The connection inside must have been closed.
    pub(super) async fn close(mut self) {
        let closing = async { while self.0.join_next().await.is_some() {} };
        drop(tokio::time::timeout(LINGER, closing).await);
    }
}

async fn unpack<I: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<I>>,
    mut to: WriteHalf<DuplexStream>,
) -> SplitStream<WebSocketStream<I>> {
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Binary(bytes) = message {
            // Where the connection inside is over, the rest is read so that the client sees its own end.
            drop(to.write_all(&bytes).await);
        }
    }
    drop(to.shutdown().await);
    stream
}

async fn pack<I: AsyncRead + AsyncWrite + Unpin>(
    mut from: ReadHalf<DuplexStream>,
    mut sink: SplitSink<WebSocketStream<I>, Message>,
) -> SplitSink<WebSocketStream<I>, Message> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
            return sink;
        }
        buffer.reserve(BUFFER);
    }
    drop(sink.send(farewell()).await);
    sink
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: Protocol = Protocol {
        name: "",
        json: false,
        resize: false,
        close: false,
        base64: false,
        tunnel: false,
    };
    const BASE64: Protocol = Protocol { base64: true, ..RAW };

    #[test]
    fn messages() {
        type Decoded<'a> = Result<Option<(u8, &'a [u8])>, &'a str>;
        let binary = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
        let table: [(Message, &Protocol, Decoded<'_>); 9] = [
            (binary(b"\x00ab"), &RAW, Ok(Some((0, b"ab")))),
            (binary(b"\x04"), &RAW, Ok(Some((4, b"")))),
            (binary(b"\xff\x00"), &RAW, Ok(Some((255, b"\0")))),
            (binary(b""), &RAW, Err("without a channel")),
            (Message::text("0YWI="), &BASE64, Ok(Some((0, b"ab")))),
            (Message::text("0YWI"), &BASE64, Err("no base64")),
            (Message::text("xYWI="), &BASE64, Err("no digit")),
            (Message::text("\u{e9}"), &BASE64, Err("without a channel")),
            (Message::text("0ab"), &RAW, Err("text message")),
        ];
        for (message, protocol, expected) in table {
            match (decode(&message, protocol), expected) {
                (Ok(found), Ok(expected)) => {
                    let found = found.as_ref().map(|(channel, bytes)| (*channel, &bytes[..]));
                    assert_eq!(found, expected, "{message:?}");
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{message:?}: {error}"),
                (found, expected) => panic!("{message:?}: {found:?}, not {expected:?}"),
            }
        }
        assert_eq!(encode(1, b"ab", &RAW), binary(b"\x01ab"));
        assert_eq!(encode(1, b"ab", &BASE64), Message::text("1YWI="));
    }

    /// However many channels there are, a client is held up at what the connection may keep, and its buffers.
    #[tokio::test]
    async fn a_client_is_held_up_by_what_is_not_taken() {
        let (client, server) = tokio::io::duplex(BUFFER);
        let channels = || (0..=u8::MAX).step_by(2);
        let socket = WebSocket::new(server, &RAW, channels()).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let mut sent = 0;
        let sending = async {
            for channel in channels().cycle() {
                let message = [&[channel][..], &[7; 256 << 10]].concat();
                client.send(Message::binary(message)).await.unwrap();
                sent += 256 << 10;
            }
        };
        let early = tokio::time::timeout(Duration::from_secs(2), sending).await;
        assert!(early.is_err(), "it was all taken in");
        assert!(((4 << 20)..(6 << 20)).contains(&sent), "{sent}");
        drop(socket);
    }

    #[test]
    fn pings_are_left_to_the_library() {
        assert!(decode(&Message::Ping(Bytes::new()), &RAW).unwrap().is_none());
    }
}
