//! The two tasks of a connection, and the streams that clients open on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::frame::{self, Control, HEAD_LEN, Head, MAX_DATA, Reset};
use super::headers::{Fold, Headers, Unfold};
use crate::streaming::channel::{Budget, Feed, Incoming, Order, Outgoing, Pulse, WRITE_QUEUE};

/// Most streams of one connection at once.
const MAX_STREAMS: usize = 2048;
/// So many streams are remembered without a look at who still takes from them.
const FORGET_FROM: usize = 64;
/// New streams that may wait to be looked at.
const NEW_STREAMS: usize = 16;
/// The pieces in which data frames are taken in.
const PIECE: usize = 32 << 10;
/// Pieces of a stream that may wait: half a megabyte, as far as the connection's budget goes.
const READ_QUEUE: usize = 16;
/// Bytes that are read from the connection, or written to it, at once.
const BUFFER: usize = 64 << 10;
/// How long a client may take to close a connection once all is written.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that the client wants to open: to be accepted or refused.
pub(in crate::streaming) struct Stream {
    /// Its number.
    pub(in crate::streaming) id: u32,
    /// What the client says about it.
    pub(in crate::streaming) headers: Headers,
    /// From the client.
    pub(in crate::streaming) incoming: Incoming,
    /// To the client.
    pub(in crate::streaming) outgoing: Outgoing,
    orders: mpsc::Sender<Order>,
    _slot: OwnedSemaphorePermit,
}

impl Stream {
    /// Opens it; only now may anything be written to it. Its headers have been read.
    pub(in crate::streaming) async fn accept(&mut self) {
        self.headers = Headers::new();
        // A connection that has ended shows at the first write.
        drop(self.orders.send(Order::Accept { stream: self.id }).await);
    }

    /// Takes nothing more from the client: what still comes is read and dropped.
    pub(in crate::streaming) fn write_only(&mut self) {
        self.incoming = Incoming::none();
    }

    /// Does not open it.
    pub(in crate::streaming) async fn refuse(self) {
        let frame = frame::rst_stream(self.id, Reset::Refused);
        drop(self.orders.send(Order::Frame(frame)).await);
    }
}

/// A connection. Dropped, it is closed at once.
pub(in crate::streaming) struct Spdy {
    streams: mpsc::Receiver<Stream>,
    orders: mpsc::Sender<Order>,
    pulse: Pulse,
    tasks: JoinSet<()>,
}

impl Spdy {
    /// Speaks SPDY on `io`, as the server.
    pub(in crate::streaming) fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self> {
        let (read, write) = tokio::io::split(io);
        let (orders, ordered) = mpsc::channel(WRITE_QUEUE);
        let (new, streams) = mpsc::channel(NEW_STREAMS);
        let pulse = Pulse::new();
        let reading = Reading {
            io: BufReader::with_capacity(BUFFER, read),
            unfold: Unfold::new(),
            feeds: Feeds::default(),
            budget: Budget::new(),
            newest: 0,
            new,
            slots: Arc::new(Semaphore::new(MAX_STREAMS)),
            orders: orders.clone(),
            pulse: pulse.clone(),
        };
        let writing = Writing {
            io: BufWriter::with_capacity(BUFFER, write),
            fold: Fold::new()?,
            pulse: pulse.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reading.run());
        tasks.spawn(writing.run(ordered));
        Ok(Spdy {
            streams,
            orders,
            pulse,
            tasks,
        })
    }

    /// The next stream the client wants to open; none once the client has gone.
    pub(in crate::streaming) async fn next_stream(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Has all further streams refused.
    pub(in crate::streaming) fn no_more_streams(&mut self) {
        self.streams.close();
    }

    /// Movement on the connection.
    pub(in crate::streaming) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Writes what waits, and gives the client [`LINGER`] to take it and close: a socket that is closed with bytes unread
    /// would throw away what the client has not taken yet.
    pub(in crate::streaming) async fn close(mut self) {
        self.streams.close();
        let closing = async {
            drop(self.orders.send(Order::Close).await);
            while self.tasks.join_next().await.is_some() {}
        };
        drop(tokio::time::timeout(LINGER, closing).await);
    }
}

struct Reading<I> {
    io: BufReader<ReadHalf<I>>,
    unfold: Unfold,
    feeds: Feeds,
    budget: Budget,
    newest: u32,
    new: mpsc::Sender<Stream>,
    slots: Arc<Semaphore>,
    orders: mpsc::Sender<Order>,
    pulse: Pulse,
}

impl<I: AsyncRead> Reading<I> {
    async fn run(mut self) {
        if let Err(error) = self.frames().await {
            tracing::debug!("SPDY connection: {error:#}");
            self.order(Order::Frame(frame::goaway(self.newest))).await;
            self.order(Order::Close).await;
        }
        self.pulse.leave();
    }

    async fn frames(&mut self) -> Result<()> {
        while let Some(head) = self.head().await? {
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, fin, length } => {
                    let payload = self.piece(length).await?;
                    self.control(Control::parse(kind, fin, &payload)?).await?;
                }
            }
        }
        Ok(())
    }

    /// A frame's first bytes; none where the connection ends between frames.
    async fn head(&mut self) -> Result<Option<[u8; HEAD_LEN]>> {
        let mut head = [0; HEAD_LEN];
        if self.io.read(&mut head[..1]).await.context("read a frame")? == 0 {
            return Ok(None);
        }
        self.io
            .read_exact(&mut head[1..])
            .await
            .context("read a frame's head")?;
        Ok(Some(head))
    }

    async fn piece(&mut self, length: usize) -> Result<Bytes> {
        let mut piece = BytesMut::zeroed(length);
        self.io.read_exact(&mut piece).await.context("read a frame's payload")?;
        Ok(piece.freeze())
    }

    /// Data for a stream that is not open is read and dropped: it was under way when the stream ended.
    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> Result<()> {
        self.pulse.moved();
        while length > 0 {
            let piece = self.piece(length.min(PIECE)).await?;
            length -= piece.len();
            if let Some(feed) = self.feeds.open.get(&stream) {
                feed.push(piece, &self.orders).await;
            }
        }
        if fin {
            self.feeds.open.remove(&stream);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<()> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.unfold.block(&block)?;
                self.open(stream, fin, headers).await;
            }
            Control::Headers { stream, fin, block } => {
                // Nobody asks for them; but the next block builds on them.
                self.unfold.block(&block)?;
                if fin {
                    self.feeds.open.remove(&stream);
                }
            }
            Control::RstStream { stream } => {
                if let Some(feed) = self.feeds.open.remove(&stream) {
                    feed.reset();
                }
            }
            // Odd numbers are the client's own; this side sends none that could be answered.
            Control::Ping { id } if id % 2 == 1 => self.order(Order::Frame(frame::ping(id))).await,
            Control::Ping { .. } | Control::GoAway | Control::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) {
        // A client's numbers are odd and only grow.
        if stream.is_multiple_of(2) || stream <= self.newest {
            return self.reset(stream, Reset::Protocol).await;
        }
        self.newest = stream;
        self.pulse.moved();
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return self.reset(stream, Reset::Refused).await;
        };
        let (feed, incoming) = self.budget.incoming(READ_QUEUE);
        let new = Stream {
            id: stream,
            headers,
            incoming: incoming.reporting(stream, self.orders.clone()),
            outgoing: Outgoing::new(stream, self.orders.clone()),
            orders: self.orders.clone(),
            _slot: slot,
        };
        if self.new.send(new).await.is_err() {
            return self.reset(stream, Reset::Refused).await;
        }
        if !fin {
            self.feeds.insert(stream, feed);
        }
    }

    async fn reset(&mut self, stream: u32, reason: Reset) {
        self.order(Order::Frame(frame::rst_stream(stream, reason))).await;
    }

    async fn order(&mut self, order: Order) {
        // Where the writing task has gone, the connection is broken: reading will show it.
        drop(self.orders.send(order).await);
    }
}

/// Streams from which a client's bytes may still come.
#[derive(Default)]
struct Feeds {
    open: HashMap<u32, Feed>,
    /// How many there were that somebody takes from, when that was looked at last.
    taken: usize,
}

impl Feeds {
    /// A client may leave streams open that this side refused or is done with: they go when they may be more than
    /// those that are of use, so that a long connection holds no more than it needs.
    fn insert(&mut self, stream: u32, feed: Feed) {
        if self.open.len() >= FORGET_FROM.max(2 * self.taken) {
            self.open.retain(|_, feed| feed.is_taken());
            self.taken = self.open.len();
        }
        self.open.insert(stream, feed);
    }
}

struct Writing<I> {
    io: BufWriter<WriteHalf<I>>,
    fold: Fold,
    pulse: Pulse,
}

impl<I: AsyncWrite> Writing<I> {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let written = async {
            while let Some(order) = self.next(&mut orders).await? {
                self.write(order).await?;
            }
            self.io.shutdown().await?;
            anyhow::Ok(())
        };
        if let Err(error) = written.await {
            tracing::debug!("write to a SPDY connection: {error:#}");
            // The reading task may wait for room and not see it.
            self.pulse.leave();
        }
    }

    /// The next order, none at the end. What is buffered is sent before it is waited for.
    async fn next(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Option<Order>> {
        let order = match orders.try_recv() {
            Ok(order) => Some(order),
            Err(_none_now) => {
                self.io.flush().await?;
                orders.recv().await
            }
        };
        Ok(order.filter(|order| !matches!(order, Order::Close)))
    }

    async fn write(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Data { stream, piece } => {
                self.pulse.moved();
                for part in piece.chunks(MAX_DATA) {
                    self.io.write_all(&frame::data_head(stream, false, part.len())).await?;
                    self.io.write_all(part).await?;
                }
            }
            Order::Finish { stream } => self.io.write_all(&frame::data_head(stream, true, 0)).await?,
            Order::Taken { stream, delta } => self.io.write_all(&frame::window_update(stream, delta)).await?,
            Order::Knock => self.io.write_all(&frame::no_settings()).await?,
            Order::Frame(frame) => self.io.write_all(&frame).await?,
            Order::Accept { stream } => {
                let block = self.fold.empty()?;
                self.io.write_all(&frame::syn_reply(stream, &block)).await?;
            }
            Order::Close => return Err(anyhow!("an order to close is the end of the orders")),
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::streaming) mod tests {
    use tokio::io::DuplexStream;

    use super::super::header;
    use super::super::headers::tests::plain;
    use super::*;

    const DATA: [(&str, &str); 1] = [("streamtype", "data")];

    /// A client: the other end, and its header compression.
    pub(in crate::streaming) struct Client<I = DuplexStream> {
        io: I,
        fold: Fold,
    }

    impl Client {
        pub(in crate::streaming) fn connect() -> (Client, Spdy) {
            let (client, io) = Client::pair();
            (client, Spdy::new(io).unwrap())
        }

        /// A client, and the connection to it.
        pub(in crate::streaming) fn pair() -> (Client, DuplexStream) {
            let (io, server) = tokio::io::duplex(1 << 20);
            let client = Client {
                io,
                fold: Fold::new().unwrap(),
            };
            (client, server)
        }

        /// The type and payload of the next frame; type 0 is data.
        pub(in crate::streaming) async fn frame(&mut self) -> (u16, Vec<u8>) {
            let mut head = [0; HEAD_LEN];
            self.io.read_exact(&mut head).await.unwrap();
            let (kind, length) = match Head::parse(head).unwrap() {
                Head::Data { length, .. } => (0, length),
                Head::Control { kind, length, .. } => (kind, length),
            };
            let mut payload = vec![0; length];
            self.io.read_exact(&mut payload).await.unwrap();
            (kind, payload)
        }
    }

    impl<I: AsyncWrite + Unpin> Client<I> {
        pub(in crate::streaming) async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let block = self.fold.bytes(&plain(headers));
            let length = u32::try_from(10 + block.len()).unwrap();
            let mut frame = vec![0x80, 3, 0, 1];
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&stream.to_be_bytes());
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&block);
            self.io.write_all(&frame).await.unwrap();
        }

        async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
            self.io
                .write_all(&frame::data_head(stream, fin, bytes.len()))
                .await
                .unwrap();
            self.io.write_all(bytes).await.unwrap();
        }
    }

    #[tokio::test]
    async fn streams_go_both_ways_and_close_half_by_half() {
        let (mut client, mut spdy) = Client::connect();
        client.open(1, &DATA).await;
        let mut stream = spdy.next_stream().await.unwrap();
        assert_eq!(header(&stream.headers, "streamtype"), Some("data"));
        stream.accept().await;
        assert_eq!(client.frame().await.0, 2);
        client.data(1, false, b"ab").await;
        client.data(1, true, b"").await;
        assert_eq!(stream.incoming.next().await.as_deref(), Some(&b"ab"[..]));
        assert_eq!(stream.incoming.next().await, None);
        assert!(!stream.incoming.is_reset());
        stream.outgoing.write(Bytes::from_static(b"cd")).await.unwrap();
        assert_eq!(client.frame().await, (0, b"cd".to_vec()));
        stream.outgoing.finish().await.unwrap();
        assert_eq!(client.frame().await, (0, vec![]));
        drop(client);
        spdy.pulse().gone().await;
        spdy.close().await;
    }

    #[tokio::test]
    async fn what_a_client_may_not_do() {
        let (mut client, mut spdy) = Client::connect();
        // Even, zero-grown and unwanted streams.
        client.open(2, &DATA).await;
        assert_eq!(client.frame().await, (3, vec![0, 0, 0, 2, 0, 0, 0, 1]));
        client.open(5, &DATA).await;
        client.open(3, &DATA).await;
        assert_eq!(client.frame().await, (3, vec![0, 0, 0, 3, 0, 0, 0, 1]));
        spdy.next_stream().await.unwrap().refuse().await;
        assert_eq!(client.frame().await, (3, vec![0, 0, 0, 5, 0, 0, 0, 3]));
        spdy.no_more_streams();
        client.open(7, &DATA).await;
        assert_eq!(client.frame().await, (3, vec![0, 0, 0, 7, 0, 0, 0, 3]));
        // Data of no stream, and a ping of its own.
        client.data(99, false, b"ab").await;
        client.io.write_all(&frame::ping(1)).await.unwrap();
        assert_eq!(client.frame().await, (6, vec![0, 0, 0, 1]));
        // A block that is no zlib ends the connection.
        client
            .io
            .write_all(b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x09\0\0\0\0\0\0xx")
            .await
            .unwrap();
        assert_eq!(client.frame().await, (7, vec![0, 0, 0, 7, 0, 0, 0, 1]));
        spdy.pulse().gone().await;
        assert_eq!(client.io.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn streams_that_are_done_with_are_forgotten() {
        let (new, mut streams) = mpsc::channel(1);
        let (orders, _ordered) = mpsc::channel(1);
        let mut reading = Reading {
            io: BufReader::new(tokio::io::split(tokio::io::duplex(1).0).0),
            unfold: Unfold::new(),
            feeds: Feeds::default(),
            budget: Budget::new(),
            newest: 0,
            new,
            slots: Arc::new(Semaphore::new(MAX_STREAMS)),
            orders,
            pulse: Pulse::new(),
        };
        let mut kept = Vec::new();
        // The client never closes them.
        for stream in (1..).step_by(2).take(3 * MAX_STREAMS) {
            reading.open(stream, false, Headers::new()).await;
            let new = streams.recv().await.unwrap();
            if stream % 32 == 1 && kept.len() < 100 {
                kept.push(new);
            }
            assert!(reading.feeds.open.len() <= 2 * kept.len().max(FORGET_FROM));
        }
        assert!(kept.iter().all(|stream| reading.feeds.open[&stream.id].is_taken()));
    }

    #[tokio::test]
    async fn a_client_whose_connection_breaks_has_gone() {
        let (mut client, mut spdy) = Client::connect();
        client.open(1, &DATA).await;
        let stream = spdy.next_stream().await.unwrap();
        // The reading task waits for room.
        client.data(1, false, &vec![7; (READ_QUEUE + 2) * PIECE]).await;
        drop(client);
        drop(stream.outgoing.write(Bytes::from_static(b"a")).await);
        spdy.pulse().gone().await;
    }

    /// What answers a ping waits for the lock of what writes, in the clients in use: each would cost one of their few
    /// tasks that read.
    #[tokio::test]
    async fn a_client_whose_writing_is_stuck_has_nothing_to_answer() {
        let (client, mut spdy) = Client::connect();
        let (mut from, to) = tokio::io::split(client.io);
        let mut writing = Client {
            io: to,
            fold: client.fold,
        };
        writing.open(1, &DATA).await;
        let _stream = spdy.next_stream().await.unwrap();
        let bytes = vec![7; READ_QUEUE * PIECE + BUFFER + (2 << 20)];
        let mut head = [0; HEAD_LEN];
        tokio::select! {
            () = writing.data(1, true, &bytes) => panic!("it was all taken in"),
            read = from.read_exact(&mut head) => read.unwrap(),
        };
        // SETTINGS, which nobody answers.
        assert!(
            matches!(Head::parse(head).unwrap(), Head::Control { kind: 4, .. }),
            "{head:?}"
        );
    }

    #[tokio::test]
    async fn a_client_is_held_up_by_what_is_not_taken() {
        let (mut client, mut spdy) = Client::connect();
        client.open(1, &DATA).await;
        let mut stream = spdy.next_stream().await.unwrap();
        // More than the queue, the buffer and the pipe hold.
        let size = READ_QUEUE * PIECE + BUFFER + (1 << 20) + 8 * PIECE;
        let bytes = vec![7; size];
        let sending = client.data(1, true, &bytes);
        tokio::pin!(sending);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut sending).await;
        assert!(early.is_err(), "it was all taken in");
        let taking = async {
            let mut total = 0;
            while let Some(piece) = stream.incoming.next().await {
                total += piece.len();
            }
            total
        };
        let ((), total) = tokio::join!(sending, taking);
        assert_eq!(total, size);
    }
}
