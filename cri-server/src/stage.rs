//! What a call is waiting for, so that a caller who gives up is told.
//!
//! ```text
//! RunPodSandbox: not done in 9.0 s: for 8.9 s at: set up the pod's network: CNI plugin bridge ADD; the work goes on, ...
//! ```
//!
//! Work that calls begin runs as a task with a [`Progress`]. Whatever waits in it, at whatever depth, holds a [`stage`] for as
//! long as it does. The caller's side waits with the [`Patience`] that the request's `grpc-timeout` gives it, and answers a
//! little earlier than that: at the deadline itself the client only says that it has passed.
//!
//! How long each stage took, the call's telemetry is told when the stage ends, by the name of its kind ([`Stage::named`]). Work
//! that a call splits goes on in branches ([`part`]), so that a stage is told to be within those of its own branch alone.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::task::futures::TaskLocalFuture;
use tonic::{Request, Status};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::limits::Held;
use crate::telemetry::call::{Call, Ended};

tokio::task_local! {
    static CURRENT: Branch;
}

/// Work of a call, with its stages told of and its log lines in the call's span.
pub(crate) type Scoped<F> = Instrumented<TaskLocalFuture<Branch, F>>;

/// How much earlier than the caller's deadline the answer comes: a tenth of the time, within these bounds.
const MARGIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The stages that work is in, outermost first.
pub(crate) struct Progress {
    /// The call that began it.
    call: Arc<Call>,
    stages: Mutex<Vec<Current>>,
}

/// A stage that has not ended.
struct Current {
    number: u64,
    branch: u64,
    what: String,
    since: Instant,
}

/// The part of the work that a task does.
#[derive(Clone)]
pub(crate) struct Branch {
    progress: Arc<Progress>,
    number: u64,
    /// The stage that it was split off in; 0 for none.
    within: u64,
}

/// The task is in this stage until the guard is dropped.
#[must_use = "the stage ends when this is dropped"]
pub(crate) struct Stage(Option<Entered>);

struct Entered {
    progress: Arc<Progress>,
    name: &'static str,
    number: u64,
    around: u64,
}

/// Says what the task does from here on; nothing outside of a task with a [`Progress`].
pub(crate) fn stage(what: impl FnOnce() -> String) -> Stage {
    Stage(CURRENT.try_with(|branch| branch.enter(what())).ok())
}

/// The future, with its stages told of in `progress`.
pub(crate) fn scope<F: Future>(progress: Arc<Progress>, work: F) -> Scoped<F> {
    branch(
        Branch {
            progress,
            number: 0,
            within: 0,
        },
        work,
    )
}

/// The future as part of the present task's work, for one that is spawned.
pub(crate) fn part<F: Future>(work: F) -> Scoped<F> {
    match CURRENT.try_with(Branch::split) {
        Ok(split) => branch(split, work),
        Err(_outside) => scope(Arc::default(), work),
    }
}

fn branch<F: Future>(branch: Branch, work: F) -> Scoped<F> {
    let span = branch.progress.call.span.clone();
    CURRENT.scope(branch, work).instrument(span)
}

/// The call that the present task works for; none outside of a task with a [`Progress`].
pub(crate) fn call() -> Option<Arc<Call>> {
    CURRENT.try_with(|branch| branch.progress.call.clone()).ok()
}

impl Default for Progress {
    /// Of work that the present call begins.
    fn default() -> Self {
        Progress {
            call: Call::current().unwrap_or_default(),
            stages: Mutex::default(),
        }
    }
}

impl Branch {
    fn split(&self) -> Self {
        Branch {
            progress: self.progress.clone(),
            number: self.progress.call.next_number(),
            within: self.innermost(&self.progress.stages()),
        }
    }

    fn innermost(&self, stages: &[Current]) -> u64 {
        let mut own = stages.iter().filter(|stage| stage.branch == self.number);
        own.next_back().map_or(self.within, |stage| stage.number)
    }

    fn enter(&self, what: String) -> Entered {
        let mut stages = self.progress.stages();
        let (number, around) = (self.progress.call.next_number(), self.innermost(&stages));
        stages.push(Current {
            number,
            branch: self.number,
            what,
            since: Instant::now(),
        });
        Entered {
            progress: self.progress.clone(),
            name: "other",
            number,
            around,
        }
    }
}

impl Progress {
    fn stages(&self) -> MutexGuard<'_, Vec<Current>> {
        self.stages.lock().expect("no holder panics")
    }

    /// The stages, and for how long the innermost one has lasted.
    fn text(&self) -> String {
        let stages = self.stages();
        let Some(last) = stages.last() else {
            return "between two stages".to_owned();
        };
        let names: Vec<_> = stages.iter().map(|stage| stage.what.as_str()).collect();
        format!(
            "for {:.1} s at: {}",
            last.since.elapsed().as_secs_f32(),
            names.join(": ")
        )
    }
}

impl Stage {
    /// What metrics and traces call stages of this kind.
    pub(crate) fn named(mut self, name: &'static str) -> Self {
        if let Some(entered) = &mut self.0 {
            entered.name = name;
        }
        self
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let Some(entered) = self.0.take() else { return };
        let ended = {
            let mut stages = entered.progress.stages();
            let place = stages.iter().position(|stage| stage.number == entered.number);
            place.map(|place| stages.remove(place))
        };
        if let Some(Current { what, since, .. }) = ended {
            entered.progress.call.stage_ended(&Ended {
                name: entered.name,
                what: &what,
                number: entered.number,
                around: entered.around,
                since,
            });
        }
    }
}

/// A call, and how long its caller waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// The call's name.
    pub(crate) call: &'static str,
    /// When it came in.
    pub(crate) began: Instant,
    limit: Option<Duration>,
    /// What the call holds; work that goes on without its caller holds it too.
    pub(crate) held: Option<Held>,
}

impl From<&'static str> for Patience {
    fn from(call: &'static str) -> Self {
        Patience {
            call,
            began: Instant::now(),
            limit: None,
            held: None,
        }
    }
}

impl Patience {
    /// As the request says.
    pub(crate) fn of<T>(call: &'static str, request: &Request<T>) -> Self {
        let timeout = request.metadata().get("grpc-timeout");
        Patience {
            limit: timeout.and_then(|text| self::timeout(text.to_str().ok()?)),
            held: request.extensions().get::<Held>().cloned(),
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
    async fn a_stage_is_within_those_of_its_own_branch() {
        let around = |stage: &Stage| stage.0.as_ref().map(|entered| entered.around);
        let number = |stage: &Stage| stage.0.as_ref().map(|entered| entered.number);
        scope(Arc::default(), async {
            let outer = stage(|| "outer".to_owned());
            assert_eq!(around(&outer), Some(0));
            let first = part(async { stage(|| "first".to_owned()) }).await;
            let second = part(async { stage(|| "second".to_owned()) }).await;
            for inner in [&first, &second] {
                assert_eq!(around(inner), number(&outer), "not within each other");
            }
            drop((first, second));
            let last = stage(|| "last".to_owned()).named("last");
            assert_eq!(around(&last), number(&outer));
        })
        .await;
    }

    #[tokio::test]
    async fn outside_of_a_call_stages_are_nothing() {
        drop(stage(|| unreachable!("nobody asks")));
        let patience = Patience::from("Call");
        assert_eq!(patience.wait(&Progress::default(), async { 7 }).await.ok(), Some(7));
    }
}
