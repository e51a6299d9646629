//! Looks at the machine that may hang, a thread each, and an end to the waiting.
//!
//! A thread that is in a call to a dead filesystem cannot be ended: it is left behind, and goes with the process.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;

/// A look, by the name under which it is missed.
pub(crate) type Look<T> = (&'static str, fn(&Config) -> T);

/// Runs all at once; what each gave, in their order, or none for one that was not done within `limit`, or that panicked.
pub(crate) fn run_all<T: Send + 'static>(
    config: &Config,
    looks: &[Look<T>],
    limit: Duration,
) -> Vec<(&'static str, Option<T>)> {
    let deadline = Instant::now() + limit;
    let (sender, receiver) = channel();
    let mut found: Vec<(&'static str, Option<T>)> = looks.iter().map(|(name, _)| (*name, None)).collect();
    for (index, &(name, look)) in looks.iter().enumerate() {
        let (sender, config) = (sender.clone(), config.clone());
        let work = move || {
            // An error means that nobody waits any more.
            sender.send((index, look(&config))).ok();
        };
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
            tracing::warn!("start a thread: {error}");
        }
    }
    // With the last thread's, the channel ends.
    drop(sender);
    while let Ok((index, outcome)) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        found[index].1 = Some(outcome);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_or_dies_does_not_keep_the_others() {
        let looks: [Look<u8>; 3] = [
            ("hangs", |_| {
                thread::sleep(Duration::from_secs(60));
                1
            }),
            ("dies", |_| panic!("for the test")),
            ("answers", |_| 2),
        ];
        let found = run_all(&Config::default(), &looks, Duration::from_secs(1));
        assert_eq!(found, [("hangs", None), ("dies", None), ("answers", Some(2))]);
    }
}
