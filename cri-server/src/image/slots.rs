//! How many layers are fetched and unpacked at once: in all, and from one registry.
//!
//! The share of one registry is smaller than the whole, so that one that is slow on purpose keeps nobody else waiting. A
//! registry's turn comes first: whoever waits for it holds none of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All pulls together. Each layer has a thread of the pool for blocking work, which others need too.
const AT_ONCE: usize = 12;

/// From one registry; more than that wait for the same disk.
const OF_A_REGISTRY: usize = 6;

/// The layers that may be under way.
pub(super) struct Slots {
    all: Arc<Semaphore>,
    /// By registry as references name it; only those in use are kept, because whoever names images names new ones.
    registries: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Room for one layer, given back when dropped.
pub(super) struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_registry: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new() -> Self {
        Slots {
            all: Arc::new(Semaphore::new(AT_ONCE)),
            registries: Mutex::default(),
        }
    }

    /// Waits for room for a layer of `registry`; first come, first served.
    pub(super) async fn take(&self, registry: &str) -> Slot {
        let open = "the semaphores are never closed";
        let of_registry = self.of_registry(registry).acquire_owned().await;
        let of_registry = of_registry.expect(open);
        let of_all = Arc::clone(&self.all).acquire_owned().await.expect(open);
        Slot {
            _of_all: of_all,
            _of_registry: of_registry,
        }
    }

    fn of_registry(&self, registry: &str) -> Arc<Semaphore> {
        // Every critical section leaves the map whole, whatever panics.
        let known = self.registries.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, semaphore| semaphore.strong_count() > 0);
        if let Some(semaphore) = known.get(registry).and_then(Weak::upgrade) {
            return semaphore;
        }
        let semaphore = Arc::new(Semaphore::new(OF_A_REGISTRY));
        known.insert(registry.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A slot that is free now.
    async fn now(slots: &Slots, registry: &str) -> Option<Slot> {
        let wait = Duration::from_millis(20);
        tokio::time::timeout(wait, slots.take(registry)).await.ok()
    }

    #[tokio::test]
    async fn one_registry_leaves_room_for_others() {
        let slots = Slots::new();
        let mut held = Vec::new();
        for _ in 0..OF_A_REGISTRY {
            held.push(now(&slots, "slow").await.expect("within its share"));
        }
        assert!(now(&slots, "slow").await.is_none(), "its share is used up");
        for _ in OF_A_REGISTRY..AT_ONCE {
            held.push(now(&slots, "other").await.expect("room for others"));
        }
        assert!(now(&slots, "third").await.is_none(), "no room at all");
        held.pop();
        assert!(now(&slots, "third").await.is_some());
        drop(held);
        drop(now(&slots, "last").await);
        assert_eq!(slots.registries.lock().unwrap().len(), 1, "no old names");
    }
}
