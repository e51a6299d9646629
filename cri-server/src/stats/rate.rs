//! Processor time per second, from the counters at two calls: nothing runs between calls.
//!
//! ```text
//!   start ──────────── first call ──────── 0.4 s later ──────── 10 s later
//!           average since the start     the same again       average of these 10 s
//! ```
//! The window is the time since the last call of anyone, at least [`MIN_WINDOW`]: several callers share it, and two right
//! after each other do not get the noise of a few milliseconds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest window.
const MIN_WINDOW: Duration = Duration::from_secs(1);

/// What is remembered of one container or pod.
#[derive(Default)]
pub(crate) struct Rate {
    last: Mutex<Option<Sample>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Instant,
    usage_ns: u64,
    nano_cores: u64,
}

impl Rate {
    /// Nanoseconds per second, where the counter now stands at `usage_ns`. `age` is since when it counts.
    pub(super) fn nano_cores(&self, usage_ns: u64, age: Duration) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = next(*last, Instant::now(), usage_ns, age);
        *last = Some(sample);
        sample.nano_cores
    }
}

/// The sample after `last`. Pure.
fn next(last: Option<Sample>, at: Instant, usage_ns: u64, age: Duration) -> Sample {
    let sample = |nano_cores| Sample {
        at,
        usage_ns,
        nano_cores,
    };
    let Some(last) = last else {
        return sample(per_second(usage_ns, age));
    };
    let window = at.saturating_duration_since(last.at);
    match usage_ns.checked_sub(last.usage_ns) {
        Some(_) if window < MIN_WINDOW => last,
        Some(used) => sample(per_second(used, window)),
        // A pod's sum falls when one of its containers goes: what it has used since is not known.
        None => sample(last.nano_cores),
    }
}

fn per_second(used_ns: u64, window: Duration) -> u64 {
    let per_second = u128::from(used_ns) * 1_000_000_000 / window.as_nanos().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let first = next(None, start, 5_000_000_000, 10 * second);
        assert_eq!(first.nano_cores, 500_000_000, "since the start");
        let table = [
            (second / 2, 9_000_000_000, first, "too soon: the same again"),
            (
                2 * second,
                9_000_000_000,
                Sample {
                    at: start + 2 * second,
                    usage_ns: 9_000_000_000,
                    nano_cores: 2_000_000_000,
                },
                "two processors",
            ),
            (
                2 * second,
                1_000_000_000,
                Sample {
                    at: start + 2 * second,
                    usage_ns: 1_000_000_000,
                    nano_cores: 500_000_000,
                },
                "a counter that fell begins anew",
            ),
        ];
        for (later, usage_ns, expected, what) in table {
            assert_eq!(
                next(Some(first), start + later, usage_ns, Duration::ZERO),
                expected,
                "{what}"
            );
        }
        assert_eq!(next(None, start, 0, Duration::ZERO).nano_cores, 0);
    }

    #[test]
    fn the_first_call_has_an_answer() {
        let rate = Rate::default();
        assert_eq!(rate.nano_cores(1_000, Duration::from_secs(1)), 1_000);
        assert_eq!(rate.nano_cores(2_000, Duration::from_secs(1)), 1_000);
    }
}
