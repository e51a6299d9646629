//! The watchdog: systemd hears that the server lives only while calls can make progress.
//!
//! A beat is a task of the async runtime that asks a thread for blocking work to look into the store, as every call that does
//! something needs: a runtime whose threads all wait, a pool without a free thread and a lock that is never given back all
//! stop it. systemd then ends the server and starts it anew; the pods go on.

use std::sync::Arc;
use std::time::Duration;

use crate::node::{Node, blocking};
use crate::systemd::Systemd;

/// Tells systemd that the server lives, as often as it wants to hear it; for ever.
pub(crate) async fn watch<T>(node: Arc<Node>, systemd: Arc<Systemd>) -> T {
    let Some(limit) = systemd.watchdog() else {
        return std::future::pending().await;
    };
    let mut beat = tokio::time::interval(limit / 2);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let store = node.clone();
        if makes_progress(limit / 4, move || drop(store.store.sandboxes())).await {
            systemd.alive();
        } else {
            tracing::error!(
                "no progress in {:.1} s: systemd is not told that the server lives",
                (limit / 4).as_secs_f64()
            );
        }
    }
}

/// Whether a new task gets a thread for blocking work, and that comes back from `look`, in time.
async fn makes_progress(limit: Duration, look: impl FnOnce() + Send + 'static) -> bool {
    let through = tokio::spawn(async move {
        let looked = blocking(move || {
            look();
            Ok(())
        });
        looked.await.is_ok()
    });
    matches!(tokio::time::timeout(limit, through).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_pool_without_a_free_thread_makes_no_progress() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (release, held) = mpsc::channel::<()>();
        runtime.block_on(async {
            assert!(makes_progress(Duration::from_secs(5), || {}).await);
            let holder = tokio::task::spawn_blocking(move || held.recv().is_err());
            assert!(!makes_progress(Duration::from_millis(50), || {}).await);
            drop(release);
            assert!(holder.await.unwrap());
            assert!(makes_progress(Duration::from_secs(5), || {}).await);
        });
    }
}
