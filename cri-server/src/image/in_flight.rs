//! Work that several callers want at once: the first starts it, all get its result, and when the last of them stops
//! waiting the work ends.
//!
//! The work is a task of its own, so a caller who goes away ends nothing that another still waits for.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// The work under way, by what it is for.
pub(super) struct InFlight<K, T> {
    works: Mutex<HashMap<K, Weak<Work<T>>>>,
}

struct Work<T> {
    result: watch::Receiver<Option<T>>,
    task: JoinHandle<()>,
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        // The last waiter has gone, or has its result: then there is nothing left to abort.
        self.task.abort();
    }
}

impl<K, T> InFlight<K, T>
where
    K: Eq + Hash,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        InFlight {
            works: Mutex::default(),
        }
    }

    /// The result of the work for `key`: of the one under way, else of `start`'s. `None` if the work panicked.
    pub(super) async fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let work = self.find_or_start(key, start);
        let mut result = work.result.clone();
        let result = result.wait_for(Option::is_some).await.ok()?;
        result.clone()
    }

    fn find_or_start<F>(&self, key: K, start: impl FnOnce() -> F) -> Arc<Work<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        // Every critical section leaves the map whole, whatever panics.
        let mut works = self.works.lock().unwrap_or_else(PoisonError::into_inner);
        works.retain(|_, work| work.strong_count() > 0);
        // A finished work stays listed until its last waiter has looked; its result may be a failure of long ago.
        let unfinished = |work: &Arc<Work<T>>| work.result.borrow().is_none() && !work.task.is_finished();
        if let Some(work) = works.get(&key).and_then(Weak::upgrade).filter(unfinished) {
            return work;
        }
        let (sender, result) = watch::channel(None);
        let future = start();
        let work = async move {
            let outcome = future.await;
            sender.send_replace(Some(outcome));
        };
        let task = tokio::spawn(work.in_current_span());
        let work = Arc::new(Work { result, task });
        works.insert(key, Arc::downgrade(&work));
        work
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn callers_share_one_work() {
        let (works, starts) = (InFlight::new(), AtomicUsize::new(0));
        let start = || {
            let number = starts.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                number
            }
        };
        let both = tokio::join!(works.join("a", start), works.join("a", start));
        assert_eq!(both, (Some(0), Some(0)));
        assert_eq!(works.join("a", start).await, Some(1), "a finished work is not joined");
    }

    #[tokio::test]
    async fn the_work_outlives_all_but_its_last_caller() {
        let works = Arc::new(InFlight::new());
        let ended = Arc::new(());
        let start = || {
            let ended = Arc::clone(&ended);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(ended);
                7
            }
        };
        let mut second = Box::pin(works.join((), start));
        {
            let first = works.join((), start);
            assert!(tokio::time::timeout(Duration::from_millis(5), first).await.is_err());
            assert!(
                tokio::time::timeout(Duration::from_millis(5), &mut second)
                    .await
                    .is_err()
            );
        }
        assert_eq!(second.await, Some(7));
        let alone = works.join((), start);
        assert!(tokio::time::timeout(Duration::from_millis(5), alone).await.is_err());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(Arc::strong_count(&ended), 1, "nobody waits, so the work was ended");
    }

    #[tokio::test]
    async fn a_panic_reaches_the_caller_as_none() {
        let works: InFlight<(), ()> = InFlight::new();
        assert_eq!(works.join((), || async { panic!("a bug") }).await, None);
    }
}
