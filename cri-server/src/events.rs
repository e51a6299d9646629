//! Who hears of what becomes of sandboxes and containers.
//!
//! ```text
//! Node::*_added, *_changed, *_removed ── the change is made visible ──> feed ──> queue of each subscriber ──> its stream
//!                                        under one lock with what is told of it
//! ```
//!
//! An [`Event`] holds the pod as it was at that moment: its sandbox and all its containers with their statuses. Visible
//! statuses change under the lock of the [`Feed`] only, so that what an event or a [`Pod`] holds was true all at once, and
//! a call that asks because of an event finds that change or a later one. Times rise from one event to the next, and a
//! snapshot's time covers every event before it: the kubelet's evented PLEG compares the two.
//!
//! Nothing is built while nobody listens. A queue is bounded; one that overflows is emptied and its stream is ended with a
//! failure, since a reader that has missed something must ask for all again. Nobody ever waits for a reader.
//!
//! Events are of the present only: what happened while the server was down is not told later, but can be asked for.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use corten_proto::id::ContainerId;
use tokio_stream::Stream;

use crate::container::{self, Container};
use crate::sandbox::{self, Sandbox};
use crate::store::now;
use crate::telemetry::metrics::metrics;

/// Most events that wait for one subscriber: some minutes of a busy node, or its restart as a whole.
pub(crate) const QUEUE: usize = 1024;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// A sandbox or container has come to something.
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// The container; the sandbox where it is about that.
    pub(crate) id: ContainerId,
    /// Its pod afterwards.
    pub(crate) pod: Pod,
}

/// A pod at one moment.
pub(crate) struct Pod {
    /// The moment, in nanoseconds since the epoch; an event's is unique.
    pub(crate) at: i64,
    /// Its sandbox; none once that is removed.
    pub(crate) sandbox: Option<(Arc<Sandbox>, sandbox::Status)>,
    /// All its containers, oldest first.
    pub(crate) containers: Vec<(Arc<Container>, container::Status)>,
}

/// Why a stream of events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The subscriber has not read for [`QUEUE`] events.
    Overflow,
    /// The server ends.
    Stopping,
}

/// All subscribers.
#[derive(Clone, Default)]
pub(crate) struct Events {
    feed: Arc<Mutex<Feed>>,
}

/// The lock on visible statuses, and where their changes are told.
#[derive(Default)]
pub(crate) struct Feed {
    last_time: i64,
    last_subscriber: u64,
    queues: BTreeMap<u64, Queue>,
    stopping: bool,
}

/// What one subscriber has not read yet.
#[derive(Default)]
struct Queue {
    events: VecDeque<Arc<Event>>,
    end: Option<End>,
    reader: Option<Waker>,
}

/// One subscriber's stream; its queue goes with it.
pub(crate) struct Subscription {
    id: u64,
    feed: Arc<Mutex<Feed>>,
    ended: bool,
}

impl Events {
    /// Stops changes for as long as the guard is held, which must not be over an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Feed> {
        lock(&self.feed)
    }

    /// Everything that happens from here on.
    pub(crate) fn subscribe(&self) -> Subscription {
        let mut feed = self.lock();
        feed.last_subscriber += 1;
        let queue = Queue {
            end: feed.stopping.then_some(End::Stopping),
            ..Default::default()
        };
        let id = feed.last_subscriber;
        feed.queues.insert(id, queue);
        Subscription {
            id,
            feed: self.feed.clone(),
            ended: false,
        }
    }

    /// Ends all streams, after what they still hold: open ones would keep the server from ending.
    pub(crate) fn stop(&self) {
        let mut feed = self.lock();
        feed.stopping = true;
        for queue in feed.queues.values_mut() {
            queue.end(End::Stopping);
        }
    }
}

impl Feed {
    /// Whether anybody listens; if not, an event need not be made.
    pub(crate) fn is_heard(&self) -> bool {
        !self.queues.is_empty()
    }

    /// How many listen, and how many events wait for them.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        let queued = self.queues.values().map(|queue| queue.events.len()).sum();
        (self.queues.len(), queued)
    }

    /// A time for a snapshot: not before any event so far, and before every later one.
    pub(crate) fn snapshot_time(&mut self) -> i64 {
        self.last_time = now().max(self.last_time);
        self.last_time
    }

    /// A time for an event: later than all before.
    pub(crate) fn event_time(&mut self) -> i64 {
        self.last_time = now().max(self.last_time + 1);
        self.last_time
    }

    /// Tells all subscribers.
    pub(crate) fn send(&mut self, event: Event) {
        let event = Arc::new(event);
        for queue in self.queues.values_mut() {
            queue.push(event.clone());
        }
    }
}

impl Queue {
    fn push(&mut self, event: Arc<Event>) {
        if self.end.is_some() {
            return;
        }
        if self.events.len() < QUEUE {
            self.events.push_back(event);
            self.wake();
        } else {
            self.events.clear();
            self.end(End::Overflow);
            if let Some(metrics) = metrics() {
                metrics.event_overflows.inc();
            }
        }
    }

    /// The first reason stands.
    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Stream for Subscription {
    type Item = Result<Arc<Event>, End>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let (event, end) = {
            let mut feed = lock(&self.feed);
            let queue = feed.queues.get_mut(&self.id).expect("it goes with this");
            let event = queue.events.pop_front();
            if event.is_none() {
                queue.reader = Some(context.waker().clone());
            }
            (event, queue.end)
        };
        match (event, end) {
            (Some(event), _) => Poll::Ready(Some(Ok(event))),
            (None, Some(end)) => {
                self.ended = true;
                Poll::Ready(Some(Err(end)))
            }
            (None, None) => Poll::Pending,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // The events go after the lock is given back: the last of them may free much.
        let queue = lock(&self.feed).queues.remove(&self.id);
        drop(queue);
    }
}

fn lock(feed: &Mutex<Feed>) -> MutexGuard<'_, Feed> {
    feed.lock().expect("no holder panics")
}

/// What a container's change of status is told as.
pub(crate) fn of_container(before: &container::Status, after: &container::Status) -> Option<Kind> {
    use container::Status::{Exited, Running};
    match (before, after) {
        (Exited(_), _) => None,
        (_, Exited(_)) => Some(Kind::Stopped),
        // One that was running, or was started before its shim fell silent, has been told of.
        (before, Running { .. }) if before.started_at() == 0 => Some(Kind::Started),
        _ => None,
    }
}

/// What a sandbox's change of status is told as: it is stopped once it is not ready any more.
pub(crate) fn of_sandbox(before: sandbox::Status, after: sandbox::Status) -> Option<Kind> {
    use sandbox::Status::Ready;
    match (before, after) {
        (Ready { .. }, Ready { .. }) => None,
        (Ready { .. }, _) => Some(Kind::Stopped),
        (_, Ready { .. }) => Some(Kind::Started),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::container::{Exited, Reason};

    fn send(events: &Events, number: usize) {
        let mut feed = events.lock();
        let pod = Pod {
            at: feed.event_time(),
            sandbox: None,
            containers: Vec::new(),
        };
        let id = format!("c{number}").parse().expect("an id");
        let kind = Kind::Created;
        feed.send(Event { kind, id, pod });
    }

    #[tokio::test]
    async fn every_subscriber_hears_all_in_order_and_times_rise() {
        let events = Events::default();
        assert!(!events.lock().is_heard());
        let (mut first, second) = (events.subscribe(), events.subscribe());
        (0..QUEUE).for_each(|number| send(&events, number));
        drop(second);
        events.stop();
        let mut last = 0;
        for number in 0..QUEUE {
            let event = first.next().await.expect("an event").expect("no end yet");
            assert_eq!(event.id.as_str(), format!("c{number}"));
            assert!(event.pod.at > last);
            last = event.pod.at;
        }
        assert_eq!(first.next().await.map(|event| event.err()), Some(Some(End::Stopping)));
        assert!(first.next().await.is_none());
        drop(first);
        assert!(!events.lock().is_heard(), "a queue goes with its reader");
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_told_so_and_others_are_none_the_worse() {
        let events = Events::default();
        let (mut slow, mut quick) = (events.subscribe(), events.subscribe());
        for number in 0..=QUEUE {
            send(&events, number);
            assert!(quick.next().await.is_some_and(|event| event.is_ok()));
        }
        assert_eq!(slow.next().await.map(|event| event.err()), Some(Some(End::Overflow)));
        assert!(slow.next().await.is_none());
        send(&events, 0);
        assert!(quick.next().await.is_some_and(|event| event.is_ok()));
    }

    #[test]
    fn a_snapshot_covers_the_events_before_it() {
        let events = Events::default();
        let mut feed = events.lock();
        let before = feed.event_time();
        let at = feed.snapshot_time();
        assert!(before <= at && at < feed.event_time());
    }

    #[test]
    fn what_changes_are_told_as() {
        use container::Status::{Created, Running, Unknown};
        let running = Running { pid: 7, started_at: 20 };
        let exited = container::Status::Exited(Exited {
            code: 0,
            reason: Reason::Completed,
            message: String::new(),
            started_at: 20,
            finished_at: 30,
        });
        let table = [
            (Created { pid: 7 }, running.clone(), Some(Kind::Started)),
            (Created { pid: 7 }, exited.clone(), Some(Kind::Stopped)),
            (Created { pid: 7 }, Unknown { started_at: 0 }, None),
            (running.clone(), exited.clone(), Some(Kind::Stopped)),
            (running.clone(), Unknown { started_at: 20 }, None),
            (Unknown { started_at: 20 }, running.clone(), None),
            (Unknown { started_at: 0 }, running, Some(Kind::Started)),
            (Unknown { started_at: 20 }, exited.clone(), Some(Kind::Stopped)),
            (exited.clone(), exited, None),
        ];
        for (before, after, expected) in table {
            assert_eq!(of_container(&before, &after), expected, "{before:?} to {after:?}");
        }
        use sandbox::Status::{NotReady, Ready, Stopped, Stopping};
        let table = [
            (Ready { pid: 7 }, NotReady, Some(Kind::Stopped)),
            (Ready { pid: 7 }, Stopping, Some(Kind::Stopped)),
            (NotReady, Stopping, None),
            (Stopping, Stopped, None),
        ];
        for (before, after, expected) in table {
            assert_eq!(of_sandbox(before, after), expected, "{before:?} to {after:?}");
        }
    }
}
