//! How many layers are fetched and unpacked at once: in all, and from one registry.
//!
//! The share of one registry is smaller than the whole, so that one that is slow on purpose keeps nobody else waiting. A
//! registry's turn comes first: whoever waits for it holds none of the others.
//!
//! A registry is what references name: two that are slow together, or one by two names, can hold every slot. How slow is
//! bounded (`pace`), how long is not, because an honest layer may be large and its line thin: it ends with the pull.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::BLOCKING_THREADS;

/// Most layers under way: every unpacker holds a thread for blocking work until the last byte, while what it waits for, be it
/// a piece of an archive to import, needs another. So half of them are left, for everything else the server does too.
pub const MAX_LAYERS: usize = BLOCKING_THREADS / 2;

/// How many layers may be under way at once. Each takes two threads and up to 8 MiB, with zstd up to 15 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullLimits {
    /// All pulls together; at most [`MAX_LAYERS`].
    pub layers: usize,
    /// From one registry.
    pub layers_of_a_registry: usize,
}

impl Default for PullLimits {
    /// Enough layers to keep eight processors busy while some wait for the network, and few enough that no image takes
    /// more than 64 MiB; more only wait for the same disk.
    fn default() -> Self {
        PullLimits {
            layers: 6,
            layers_of_a_registry: 4,
        }
    }
}

/// The layers that may be under way.
pub(super) struct Slots {
    limits: PullLimits,
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
    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.limits.layers.saturating_sub(self.all.available_permits())
    }

    pub(super) fn new(limits: PullLimits) -> Self {
        Slots {
            all: Arc::new(Semaphore::new(limits.layers)),
            limits,
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
        let semaphore = Arc::new(Semaphore::new(self.limits.layers_of_a_registry));
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
        let limits = PullLimits::default();
        let slots = Slots::new(limits);
        let mut held = Vec::new();
        for _ in 0..limits.layers_of_a_registry {
            held.push(now(&slots, "slow").await.expect("within its share"));
        }
        assert!(now(&slots, "slow").await.is_none(), "its share is used up");
        for _ in limits.layers_of_a_registry..limits.layers {
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
