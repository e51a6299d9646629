//! What a session sees of its client, whatever carries it: streams of bytes in, streams of bytes out.
//!
//! A transport (`spdy`, `websocket`) has one task that reads the connection and one that writes it. The reading task
//! gives each stream's bytes to its [`Incoming`] through a queue of a few pieces, and all streams of a connection have
//! one [`Budget`] of bytes; a full queue or a spent budget stops the reading, and TCP the client. All [`Outgoing`] share
//! one queue to the writing task, which is as short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

/// Pieces that may wait to be written, all streams together.
pub(super) const WRITE_QUEUE: usize = 16;

/// Bytes of a client that may wait to be taken, all streams together; more than the longest piece.
const BUDGET: usize = 4 << 20;

/// How long a client is held up before something is written to it, and between two such writes.
const KNOCK: Duration = Duration::from_secs(5);

/// What a connection's streams may keep waiting together, however many there are.
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(super) fn new() -> Self {
        Budget(Arc::new(Semaphore::new(BUDGET)))
    }

    /// A stream of the client's bytes, `queue` pieces of which may wait.
    pub(super) fn incoming(&self, queue: usize) -> (Feed, Incoming) {
        let (sender, pieces) = mpsc::channel(queue);
        let reset = Arc::new(AtomicBool::new(false));
        let feed = Feed {
            pieces: sender,
            budget: self.0.clone(),
            reset: reset.clone(),
        };
        let incoming = Incoming {
            pieces,
            reset,
            taken: None,
        };
        (feed, incoming)
    }
}

/// A piece, and its part of the budget until it is taken or thrown away.
type Held = (Bytes, OwnedSemaphorePermit);

/// The client's bytes on one stream.
pub(super) struct Incoming {
    pieces: mpsc::Receiver<Held>,
    reset: Arc<AtomicBool>,
    taken: Option<Taken>,
}

/// Tells the client how much of a stream has been taken.
struct Taken {
    stream: u32,
    bytes: u32,
    orders: mpsc::Sender<Order>,
}

/// Taken bytes are reported from here on: half of a window.
const REPORT_FROM: u32 = 32 << 10;

/// The end of an [`Incoming`] that the reading task has.
pub(super) struct Feed {
    pieces: mpsc::Sender<Held>,
    budget: Arc<Semaphore>,
    reset: Arc<AtomicBool>,
}

impl Feed {
    /// Waits for room in the stream's queue, then in the connection's budget. What nobody takes any more is dropped.
    ///
    /// The end of a client that is held up may be stuck behind what it has sent. What is written to one that has gone
    /// breaks the connection, so something is written now and then. It must ask for no answer: a client that writes may
    /// hold what its own answer would need, and then it reads nothing any more either.
    pub(super) async fn push(&self, piece: Bytes, orders: &mpsc::Sender<Order>) {
        let pushing = self.hold(piece);
        tokio::pin!(pushing);
        while tokio::time::timeout(KNOCK, &mut pushing).await.is_err() {
            // Where there is no room for it, something else is being written.
            drop(orders.try_send(Order::Knock));
        }
    }

    async fn hold(&self, piece: Bytes) {
        let Ok(room) = self.pieces.reserve().await else {
            return;
        };
        let length = u32::try_from(piece.len().min(BUDGET)).unwrap_or(u32::MAX);
        let held = tokio::select! {
            held = self.budget.clone().acquire_many_owned(length) => held,
            // It need not wait for what other streams hold.
            () = self.pieces.closed() => return,
        };
        // The budget is never closed.
        if let Ok(held) = held {
            room.send((piece, held));
        }
    }

    /// Whether somebody takes what is pushed.
    pub(super) fn is_taken(&self) -> bool {
        !self.pieces.is_closed()
    }

    /// The client has given up the stream in both directions.
    pub(super) fn reset(self) {
        self.reset.store(true, Ordering::Release);
    }
}

impl Incoming {
    /// Of a stream from which nothing is taken.
    pub(super) fn none() -> Self {
        Budget::new().incoming(1).1
    }

    /// Reports what is taken to the client, as SPDY's flow control has it.
    pub(super) fn reporting(mut self, stream: u32, orders: mpsc::Sender<Order>) -> Self {
        self.taken = Some(Taken {
            stream,
            bytes: 0,
            orders,
        });
        self
    }

    /// The next piece; none once the client has closed the stream, or has gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let (piece, held) = self.pieces.recv().await?;
        drop(held);
        if let Some(taken) = &mut self.taken {
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            taken.bytes = taken.bytes.saturating_add(length);
            let order = Order::Taken {
                stream: taken.stream,
                delta: taken.bytes,
            };
            // Input never waits for output to be written: a report that finds no room goes with the next piece.
            if taken.bytes >= REPORT_FROM && taken.orders.try_send(order).is_ok() {
                taken.bytes = 0;
            }
        }
        Some(piece)
    }

    /// Whether the stream was given up in both directions, not only closed. Known once [`next`](Self::next) gives none.
    pub(super) fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }
}

/// What the writing task is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Write a piece of a stream.
    Data { stream: u32, piece: Bytes },
    /// There is no more of this stream.
    Finish { stream: u32 },
    /// So many bytes of a stream have been taken.
    Taken { stream: u32, delta: u32 },
    /// The transport's own: a frame as it stands.
    Frame(Bytes),
    /// Write what a client passes over and does not answer: it shows whether the connection still holds.
    Knock,
    /// Accept a stream of the client's.
    Accept { stream: u32 },
    /// Write what waits, then close.
    Close,
}

/// One stream to the client.
pub(super) struct Outgoing {
    stream: u32,
    orders: mpsc::Sender<Order>,
}

impl Outgoing {
    pub(super) fn new(stream: u32, orders: mpsc::Sender<Order>) -> Self {
        Outgoing { stream, orders }
    }

    /// Hands a piece to the writing task; waits while it has enough.
    pub(super) async fn write(&self, piece: Bytes) -> Result<()> {
        self.order(Order::Data {
            stream: self.stream,
            piece,
        })
        .await
    }

    /// Closes the stream, which may be told again.
    pub(super) async fn end(&self) -> Result<()> {
        self.order(Order::Finish { stream: self.stream }).await
    }

    /// Closes the stream.
    pub(super) async fn finish(self) -> Result<()> {
        self.order(Order::Finish { stream: self.stream }).await
    }

    async fn order(&self, order: Order) -> Result<()> {
        self.orders
            .send(order)
            .await
            .map_err(|_closed| anyhow!("the client has gone"))
    }
}

/// When bytes last moved on a connection, and whether its client is still there.
#[derive(Clone)]
pub(super) struct Pulse {
    moved: Arc<watch::Sender<Instant>>,
    gone: Arc<watch::Sender<bool>>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Pulse {
            moved: Arc::new(watch::Sender::new(Instant::now())),
            gone: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Bytes of a stream have moved, or one was opened. Pings do not count: a client that sends nothing else is idle.
    pub(super) fn moved(&self) {
        self.moved.send_replace(Instant::now());
    }

    /// The reading task has come to its end.
    pub(super) fn leave(&self) {
        self.gone.send_replace(true);
    }

    /// Waits until the client has gone.
    pub(super) async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is a field of this: it cannot go first.
        drop(gone.wait_for(|gone| *gone).await);
    }

    /// Waits until nothing has moved for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let until = *self.moved.borrow() + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing is written to.
    fn nobody() -> mpsc::Sender<Order> {
        mpsc::channel(1).0
    }

    #[tokio::test]
    async fn something_is_written_to_a_client_that_is_held_up() {
        let (orders, mut written) = mpsc::channel(1);
        let (feed, mut incoming) = Budget::new().incoming(1);
        feed.push(Bytes::from_static(b"a"), &orders).await;
        let begun = Instant::now();
        let written = tokio::select! {
            () = feed.push(Bytes::from_static(b"b"), &orders) => panic!("there is no room"),
            order = written.recv() => order,
        };
        assert!(matches!(written, Some(Order::Knock)), "{written:?}");
        assert!(begun.elapsed() >= KNOCK, "{:?}", begun.elapsed());
        assert_eq!(incoming.next().await.as_deref(), Some(&b"a"[..]));
    }

    #[tokio::test]
    async fn a_stream_ends_closed_or_reset() {
        for reset in [false, true] {
            let (feed, mut incoming) = Budget::new().incoming(2);
            feed.push(Bytes::from_static(b"a"), &nobody()).await;
            match reset {
                true => feed.reset(),
                false => drop(feed),
            }
            assert_eq!(incoming.next().await.as_deref(), Some(&b"a"[..]));
            assert_eq!(incoming.next().await, None);
            assert_eq!(incoming.is_reset(), reset);
        }
    }

    #[tokio::test]
    async fn streams_of_a_connection_share_a_budget() {
        let budget = Budget::new();
        let (first, mut taken) = budget.incoming(8);
        let (second, dropped) = budget.incoming(8);
        let (third, mut last) = budget.incoming(8);
        let piece = Bytes::from(vec![0; BUDGET / 2]);
        let orders = nobody();
        first.push(piece.clone(), &orders).await;
        second.push(piece.clone(), &orders).await;
        // Room comes from what is taken, and from a stream that is given up.
        for free in [true, false] {
            let pushing = third.push(piece.clone(), &orders);
            tokio::pin!(pushing);
            let early = tokio::time::timeout(Duration::from_millis(50), &mut pushing).await;
            assert!(early.is_err(), "more than the budget is held");
            match free {
                true => drop(taken.next().await),
                false => drop(last.next().await),
            }
            pushing.await;
        }
        drop(dropped);
        first.push(piece.clone(), &orders).await;
        assert!(first.is_taken() && !second.is_taken());
        // Who is not listened to does not wait for the others.
        second.push(piece, &orders).await;
    }

    #[tokio::test]
    async fn taken_bytes_are_reported_by_half_windows() {
        let (orders, mut written) = mpsc::channel(4);
        let (feed, incoming) = Budget::new().incoming(4);
        let mut incoming = incoming.reporting(7, orders);
        for length in [REPORT_FROM - 1, 2] {
            feed.push(vec![0; length as usize].into(), &nobody()).await;
            incoming.next().await.unwrap();
        }
        let order = written.recv().await.unwrap();
        assert!(
            matches!(order, Order::Taken { stream: 7, delta } if delta == REPORT_FROM + 1),
            "{order:?}"
        );
    }

    #[tokio::test]
    async fn a_connection_is_idle_when_nothing_moves() {
        let pulse = Pulse::new();
        let (limit, pause) = (Duration::from_millis(100), Duration::from_millis(60));
        let begun = Instant::now();
        let moving = async {
            tokio::time::sleep(pause).await;
            pulse.moved();
        };
        tokio::join!(moving, pulse.idle(limit));
        assert!(begun.elapsed() >= limit + pause, "{:?}", begun.elapsed());
    }
}
