//! The least speed of a download.
//!
//! A limit on silence alone lets a registry hold a download, and what waits for its turn, for ever: one byte a minute is
//! no silence. Counted is the time spent waiting for the registry, so that a slow disk on this side costs it nothing.

use std::time::Duration;

/// Fewest bytes a second of waiting: what several layers at once still get through a slow line.
const FLOOR: u64 = 4 << 10;

/// What a download brought in the present window.
#[derive(Debug)]
pub(super) struct Pace {
    /// After so much waiting a download is judged, and judged anew.
    window: Duration,
    waited: Duration,
    received: usize,
}

impl Pace {
    /// For downloads that may be silent as long as `window`: then they have to make up for it.
    pub(super) fn new(window: Duration) -> Self {
        Pace {
            window,
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// Notes a piece of `bytes` that took `waited` to come. An error says how slow the download is.
    pub(super) fn note(&mut self, waited: Duration, bytes: usize) -> Result<(), String> {
        self.waited += waited;
        self.received = self.received.saturating_add(bytes);
        if self.waited < self.window {
            return Ok(());
        }
        let (waited, received) = (self.waited.as_secs(), self.received);
        *self = Pace::new(self.window);
        if (received as u64) < FLOOR.saturating_mul(waited) {
            return Err(format!(
                "too slow: {received} bytes in {waited} s, at least {FLOOR} in 1 s"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    /// How many pieces of `bytes`, each after `seconds`, a download may bring before it is too slow.
    fn pieces(seconds: u64, bytes: usize) -> Option<usize> {
        let mut pace = Pace::new(WINDOW);
        (0..1000).find(|_| pace.note(Duration::from_secs(seconds), bytes).is_err())
    }

    #[test]
    fn a_trickle_ends_and_a_slow_line_does_not() {
        for (seconds, bytes, ended_by) in [
            (59, 1, Some(1)),
            (1, 1, Some(59)),
            (1, 4095, Some(59)),
            (1, 4 << 10, None),
            (30, 128 << 10, None),
            (60, 0, Some(0)),
            (0, 1, None),
        ] {
            assert_eq!(pieces(seconds, bytes), ended_by, "{bytes} in {seconds} s");
        }
    }

    #[test]
    fn each_window_counts_alone() {
        let mut pace = Pace::new(WINDOW);
        pace.note(WINDOW, 100 << 20).unwrap();
        let error = pace.note(WINDOW, 1).unwrap_err();
        assert!(error.contains("1 bytes in 60 s"), "{error}");
    }
}
