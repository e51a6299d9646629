//! What a call is waiting for, so that a caller who gives up is told.
//!
//! ```text
//! RunPodSandbox: not done in 9.0 s: for 8.9 s at: set up the pod's network: CNI plugin bridge ADD; the work goes on, ...
//! ```
//!
//! Work that calls begin runs as a task with a [`Progress`]. Whatever waits in it, at whatever depth, holds a [`stage`] for as
//! long as it does. The caller's side waits with the [`Patience`] that the request's `grpc-timeout` gives it, and answers a
//! little earlier than that: at the deadline itself the client only says that it has passed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::futures::TaskLocalFuture;
use tonic::{Request, Status};

tokio::task_local! {
    static CURRENT: Arc<Progress>;
}

/// How much earlier than the caller's deadline the answer comes: a tenth of the time, within these bounds.
const MARGIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The stages that a task is in, outermost first.
#[derive(Default)]
pub(crate) struct Progress {
    stages: Mutex<Stages>,
}

#[derive(Default)]
struct Stages {
    last_id: u64,
    current: Vec<(u64, String, Instant)>,
}

/// The task is in this stage until the guard is dropped.
#[must_use = "the stage ends when this is dropped"]
pub(crate) struct Stage(Option<(Arc<Progress>, u64)>);

/// Says what the task does from here on; nothing outside of a task with a [`Progress`].
pub(crate) fn stage(what: impl FnOnce() -> String) -> Stage {
    Stage(
        CURRENT
            .try_with(|progress| (progress.clone(), progress.enter(what())))
            .ok(),
    )
}

/// The future, with its stages told of in `progress`.
pub(crate) fn scope<F: Future>(progress: Arc<Progress>, work: F) -> TaskLocalFuture<Arc<Progress>, F> {
    CURRENT.scope(progress, work)
}

/// The future as part of the present task's work, for one that is spawned.
pub(crate) fn part<F: Future>(work: F) -> TaskLocalFuture<Arc<Progress>, F> {
    scope(CURRENT.try_with(Arc::clone).unwrap_or_default(), work)
}

impl Progress {
    fn enter(&self, what: String) -> u64 {
        let mut stages = self.stages.lock().expect("no holder panics");
        stages.last_id += 1;
        let id = stages.last_id;
        stages.current.push((id, what, Instant::now()));
        id
    }

    /// The stages, and for how long the innermost one has lasted.
    fn text(&self) -> String {
        let stages = self.stages.lock().expect("no holder panics");
        let Some((_id, _what, since)) = stages.current.last() else {
            return "between two stages".to_owned();
        };
        let names: Vec<_> = stages.current.iter().map(|(_id, what, _since)| what.as_str()).collect();
        format!("for {:.1} s at: {}", since.elapsed().as_secs_f32(), names.join(": "))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((progress, id)) = self.0.take() {
            let mut stages = progress.stages.lock().expect("no holder panics");
            stages.current.retain(|(other, ..)| *other != id);
        }
    }
}

/// A call, and how long its caller waits for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The call's name.
    pub(crate) call: &'static str,
    /// When it came in.
    pub(crate) began: Instant,
    limit: Option<Duration>,
}

impl From<&'static str> for Patience {
    fn from(call: &'static str) -> Self {
        Patience {
            call,
            began: Instant::now(),
            limit: None,
        }
    }
}

impl Patience {
    /// As the request says.
    pub(crate) fn of<T>(call: &'static str, request: &Request<T>) -> Self {
        let timeout = request.metadata().get("grpc-timeout");
        Patience {
            limit: timeout.and_then(|text| self::timeout(text.to_str().ok()?)),
            ..call.into()
        }
    }

    /// When the caller gives up; none if never.
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Waits for the answer of work that goes on without the caller; how far it has come where there is none in time.
    pub(crate) async fn wait<F: Future>(&self, progress: &Progress, answer: F) -> Result<F::Output, Status> {
        let Some(limit) = self.limit else {
            return Ok(answer.await);
        };
        let margin = (limit / 10).clamp(MARGIN.0, MARGIN.1);
        let limit = limit.saturating_sub(margin).saturating_sub(self.began.elapsed());
        tokio::time::timeout(limit, answer).await.map_err(|_elapsed| {
            let (call, elapsed) = (self.call, self.began.elapsed().as_secs_f32());
            let at = progress.text();
            Status::deadline_exceeded(format!(
                "{call}: not done in {elapsed:.1} s: {at}; the work goes on without the caller"
            ))
        })
    }
}

/// What a value of `grpc-timeout` says: at most eight digits and a unit (gRPC over HTTP/2, "Timeout"). Anything else is no
/// limit.
pub(crate) fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let table = [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("120S", Some(Duration::from_secs(120))),
            ("119999m", Some(Duration::from_millis(119_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("+1S", None),
            ("1s", None),
            ("123456789S", None),
            ("1ü", None),
        ];
        for (text, expected) in table {
            assert_eq!(timeout(text), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_without_an_answer_hears_of_all_stages_and_of_no_past_one() {
        let mut request = Request::new(());
        request.set_timeout(Duration::from_millis(100));
        let patience = Patience::of("Call", &request);
        let progress = Arc::new(Progress::default());
        let work = tokio::spawn(scope(progress.clone(), async {
            drop(stage(|| "past".to_owned()));
            let _outer = stage(|| "outer".to_owned());
            part(async {
                let _inner = stage(|| "inner".to_owned());
                std::future::pending::<()>().await;
            })
            .await;
        }));
        let status = patience.wait(&progress, work).await.expect_err("no answer");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        let text = status.message();
        assert!(
            text.starts_with("Call: not done in 0.") && text.contains("at: outer: inner;"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn outside_of_a_call_stages_are_nothing() {
        drop(stage(|| unreachable!("nobody asks")));
        let patience = Patience::from("Call");
        assert_eq!(patience.wait(&Progress::default(), async { 7 }).await.ok(), Some(7));
    }
}
