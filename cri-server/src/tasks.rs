//! Work that outlives its caller, and calls that join work in flight.
//!
//! A kubelet gives up on a call at its deadline and asks again for the same thing. The first attempt is not torn down:
//! it runs as a task of its own, and the second call joins it and gets the same answer ([`Adoption`]). A caller that gives
//! up is told what the work is at (`stage`).
//!
//! Every task has an owner here, so that a server that ends can wait for what is under way.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use corten_proto::id::ContainerId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use crate::error::Error;
use crate::stage::{Patience, Progress, scope};

/// Tasks and their owner.
#[derive(Default)]
pub struct Tasks {
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.set.lock().expect("no holder panics");
        // The set keeps finished tasks until they are joined.
        while set.try_join_next().is_some() {}
        set.spawn(work);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let mut set = self.set.lock().expect("no holder panics");
        while set.try_join_next().is_some() {}
        set.len()
    }

    /// Runs `work` to its end even if the caller goes away, and gives its result to a caller that stays. A result
    /// that nobody takes is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            drop(sender.send(work.await));
        });
        receiver.await.map_err(|_panicked| stopped())
    }

    /// Like [`Tasks::run`], for a caller with a deadline.
    pub(crate) async fn run_within<T: Send + 'static>(
        &self,
        patience: &Patience,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let progress = Arc::new(Progress::default());
        let held = patience.held.clone();
        let work = async move {
            let _held = held;
            work.await
        };
        let run = self.run(scope(progress.clone(), work));
        Ok(patience.wait(&progress, run).await??)
    }

    /// Ends all tasks, wherever they are.
    pub async fn abort(&self) {
        self.take().shutdown().await;
    }

    fn take(&self) -> JoinSet<()> {
        std::mem::take(&mut *self.set.lock().expect("no holder panics"))
    }

    /// Waits for the tasks to end, `limit` at most, and ends what is left then.
    pub async fn finish(&self, limit: Duration) {
        let mut set = self.take();
        let all = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(tasks = set.len(), "ending with work under way");
            set.shutdown().await;
        }
    }
}

/// The result of adopted work: an id.
type Outcome = Result<ContainerId, Status>;
/// Work in flight, by what it makes.
type InFlight<K> = Arc<Mutex<HashMap<K, Attempt>>>;

/// Work in flight: its result, and how far it has come.
#[derive(Clone)]
struct Attempt {
    outcome: watch::Receiver<Option<Outcome>>,
    progress: Arc<Progress>,
}

/// Calls by what they are to make; equal ones share one attempt.
pub struct Adoption<K> {
    in_flight: InFlight<K>,
}

impl<K> Default for Adoption<K> {
    fn default() -> Self {
        Adoption {
            in_flight: Arc::default(),
        }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Adoption<K> {
    /// Joins the attempt in flight for `key`, else takes what `existing` finds, else starts `work`.
    ///
    /// `work` must have made its result findable by `existing` when it ends: between the two there is no gap.
    pub(crate) async fn join<W>(
        &self,
        tasks: &Tasks,
        patience: &Patience,
        key: K,
        existing: impl FnOnce() -> Option<Outcome>,
        work: impl FnOnce() -> W,
    ) -> Outcome
    where
        W: Future<Output = Outcome> + Send + 'static,
    {
        let attempt = {
            let mut in_flight = self.in_flight.lock().expect("no holder panics");
            match in_flight.get(&key) {
                Some(attempt) => attempt.clone(),
                None => {
                    if let Some(outcome) = existing() {
                        return outcome;
                    }
                    let (sender, outcome) = watch::channel(None);
                    let progress = Arc::default();
                    let attempt = Attempt { outcome, progress };
                    in_flight.insert(key.clone(), attempt.clone());
                    let leave = Leave {
                        in_flight: self.in_flight.clone(),
                        key,
                    };
                    let work = scope(attempt.progress.clone(), work());
                    let held = patience.held.clone();
                    tasks.spawn(async move {
                        let _held = held;
                        let outcome = work.await;
                        drop(leave);
                        sender.send_replace(Some(outcome));
                    });
                    attempt
                }
            }
        };
        patience.wait(&attempt.progress, outcome(attempt.outcome)).await?
    }
}

async fn outcome(mut receiver: watch::Receiver<Option<Outcome>>) -> Outcome {
    match receiver.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().expect("waited for it"),
        Err(_panicked) => Err(stopped().into()),
    }
}

/// Takes the work out of the map when it ends, by a panic too.
struct Leave<K: Eq + Hash> {
    in_flight: InFlight<K>,
    key: K,
}

impl<K: Eq + Hash> Drop for Leave<K> {
    fn drop(&mut self) {
        self.in_flight.lock().expect("no holder panics").remove(&self.key);
    }
}

fn stopped() -> Error {
    Error::Failed(anyhow!(
        "the work ended without a result: the server is stopping, or a bug ended it"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::limits::Held;

    /// Whoever gives up its calls has them counted all the same, while their work goes on.
    #[tokio::test]
    async fn work_holds_what_its_call_holds() {
        let (tasks, done) = (Tasks::default(), Arc::new(Notify::new()));
        let held = Held::default();
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(held.clone());
        let patience = Patience::of("RunPodSandbox", &request);
        drop(request);
        let until = done.clone();
        let call = tasks.run_within(&patience, async move { until.notified().await });
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        drop(patience);
        assert_eq!(Arc::strong_count(&held), 2, "the work's");
        done.notify_one();
        tasks.finish(Duration::from_secs(10)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    fn patient() -> Patience {
        "Test".into()
    }

    #[tokio::test]
    async fn equal_calls_share_one_attempt_that_outlives_them() {
        let (tasks, adoption) = (Tasks::default(), Adoption::<u32>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let patience = patient();
        let call = || {
            let (runs, go) = (runs.clone(), go.clone());
            adoption.join(
                &tasks,
                &patience,
                7,
                || None,
                move || async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    go.notified().await;
                    Ok(ContainerId::random().expect("random ids"))
                },
            )
        };
        // The first caller gives up.
        let first = tokio::time::timeout(Duration::from_millis(20), call()).await;
        assert!(first.is_err());
        let ((a, b), ()) = tokio::join!(async { tokio::join!(call(), call()) }, async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            go.notify_one();
        });
        assert_eq!(a.expect("made"), b.expect("made"));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn work_that_panics_leaves_an_error_and_no_trace() {
        let (tasks, adoption) = (Tasks::default(), Adoption::<u32>::default());
        let panics = adoption
            .join(&tasks, &patient(), 7, || None, || async { panic!("bug") })
            .await;
        assert_eq!(panics.expect_err("panicked").code(), tonic::Code::Internal);
        let id = ContainerId::random().expect("random ids");
        let again = adoption
            .join(&tasks, &patient(), 7, || None, || std::future::ready(Ok(id.clone())))
            .await;
        assert_eq!(again.expect("made"), id);
    }

    #[tokio::test]
    async fn what_exists_is_taken() {
        let (tasks, adoption) = (Tasks::default(), Adoption::<u32>::default());
        let id = ContainerId::random().expect("random ids");
        let found = adoption
            .join(
                &tasks,
                &patient(),
                7,
                || Some(Ok(id.clone())),
                || async { panic!("not to be run") },
            )
            .await;
        assert_eq!(found.expect("found"), id);
    }
}
