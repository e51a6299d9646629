//! Whether pods can be run here now: probes, and what is made of them.
//!
//! ```text
//! Status ──> is the last round old? ──> one round of probes, as a task: runtime, disk, cgroups, network, handlers
//!       <── the report, after the round or after ANSWER_LIMIT, whichever is first
//! ```
//!
//! Probes run when somebody asks, at most one round at a time and once a second: a node that nobody asks about costs
//! nothing. The kubelet asks every five seconds. Status never waits long: a round that hangs is one of the things that it
//! has to tell.
//!
//! A condition that was good turns bad with the second failure in a row and good again with one success. Kubernetes moves
//! pods away from a node that is not ready, so that one slow answer of a busy machine must not do; but the first round
//! after the start counts at once.

mod criu;
mod features;
mod probe;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use criu::Criu;
use features::Known;

use crate::node::Node;
use crate::spec::Features;

/// How old a round of probes may be.
const MAX_AGE: Duration = Duration::from_secs(1);
/// How long Status waits for a round: less than it takes to make anybody impatient.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long Status waits for the first round, without which there is nothing to say.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// How many failures in a row make a condition bad.
const FAILURES: u32 = 2;

/// What the probes have found.
pub(crate) struct Health {
    report: watch::Sender<Arc<Report>>,
    /// Its one permit is the round's.
    round: Arc<Semaphore>,
    /// The one thread that may look at the node's directories: a disk that hangs keeps no second one.
    look: Arc<Semaphore>,
    /// What executables have said of their features.
    known: Mutex<Known>,
    /// Whether CRIU works here.
    pub(crate) criu: Criu,
}

/// What is known of the node.
#[derive(Clone, Default)]
pub(crate) struct Report {
    /// When the last round ended; none before the first.
    at: Option<Instant>,
    /// Whether containers can be run.
    pub(crate) runtime: Verdict,
    /// Whether pods can have a network.
    pub(crate) network: Verdict,
    /// The runtime handlers, by name; the first is the default's empty one.
    pub(crate) handlers: Vec<Handler>,
}

/// One condition of the node.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    failures: u32,
    /// What is wrong; none while it is good.
    pub(crate) problem: Option<String>,
}

/// A runtime handler.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Handler {
    /// As in `runtime_handler` of RunPodSandbox.
    pub(crate) name: String,
    /// Its executable.
    pub(crate) path: PathBuf,
    /// What it can do.
    pub(crate) features: Features,
    /// Why nothing is known of its features.
    pub(crate) problem: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            report: watch::Sender::default(),
            round: Arc::new(Semaphore::new(1)),
            look: Arc::new(Semaphore::new(1)),
            known: Mutex::default(),
            criu: Criu::default(),
        }
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Verdict {
            failures: 0,
            problem: Some("the probes have not answered yet".to_owned()),
        }
    }
}

impl Verdict {
    /// Takes a probe's outcome into account.
    fn observe(&mut self, condition: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!("{condition}: good again");
                }
                (self.failures, self.problem) = (0, None);
            }
            Err(problem) => {
                self.failures += 1;
                if self.failures == 1 {
                    tracing::warn!("{condition}: {problem}");
                }
                // Good until now: the next failure decides.
                if self.problem.is_some() || self.failures >= FAILURES {
                    self.problem = Some(problem);
                }
            }
        }
    }
}

impl Node {
    /// What is known of the node: not older than a second, if the probes answer in time.
    pub(crate) async fn health(self: &Arc<Self>) -> Arc<Report> {
        let mut report = self.health.report.subscribe();
        let old = |report: &Report| report.at.is_none_or(|at| at.elapsed() > MAX_AGE);
        if old(&report.borrow_and_update())
            && let Ok(permit) = self.health.round.clone().try_acquire_owned()
        {
            let node = self.clone();
            self.work.spawn(async move {
                let next = node.next_report().await;
                node.health.report.send_replace(Arc::new(next));
                drop(permit);
            });
        }
        let limit = match report.borrow().at {
            None => FIRST_LIMIT,
            Some(_) => ANSWER_LIMIT,
        };
        // An old one is good enough where no round ends in time.
        let current = report.wait_for(|report| !old(report));
        drop(tokio::time::timeout(limit, current).await);
        report.borrow().clone()
    }

    /// One round of probes.
    async fn next_report(&self) -> Report {
        let mut report = Report::clone(&self.health.report.borrow());
        let (runtime, network, handlers) = tokio::join!(self.probe_runtime(), self.probe_network(), self.handlers());
        report.runtime.observe("RuntimeReady", runtime);
        report.network.observe("NetworkReady", network);
        report.handlers = handlers;
        report.at = Some(Instant::now());
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_in_a_row_and_one_success() {
        let mut verdict = Verdict::default();
        assert!(verdict.problem.is_some(), "nothing is known");
        // Outcomes, and what is said after each.
        let table = [
            (Err("a"), Some("a")),
            (Err("b"), Some("b")),
            (Ok(()), None),
            (Err("c"), None),
            (Ok(()), None),
            (Err("d"), None),
            (Err("e"), Some("e")),
            (Err("f"), Some("f")),
            (Ok(()), None),
        ];
        for (outcome, expected) in table {
            verdict.observe("condition", outcome.map_err(str::to_owned));
            assert_eq!(verdict.problem.as_deref(), expected, "{outcome:?}");
        }
    }
}
