//! Numbers without order, the same ones from the same seed: moments, sizes, content that no packing makes smaller.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// xorshift64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that belong to `seed`.
    pub fn new(seed: u64) -> Random {
        // It would stay at 0.
        Random(seed | 1)
    }

    /// Numbers of this moment, and the seed, to be printed.
    pub fn of_now() -> (Random, u64) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = u64::from(since.subsec_nanos());
        (Random::new(seed), seed)
    }

    /// Any number but 0.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from `from` to less than `to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + usize::try_from(self.next() >> 1).unwrap_or(usize::MAX) % (to - from)
    }

    /// A time shorter than `limit`.
    pub fn below(&mut self, limit: Duration) -> Duration {
        limit.mul_f64((self.next() % 10_000) as f64 / 10_000.0)
    }
}
