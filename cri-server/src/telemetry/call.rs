//! One call, as telemetry sees it.
//!
//! It is found through a task-local: in the handler's own task, where `rpc` sets it, and in what runs for the call, where
//! `stage` does. Work that outlives its caller keeps its call, so that its log lines keep their names and its stages their
//! parent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::task::futures::TaskLocalFuture;
use tonic::Code;
use tonic::codegen::http::HeaderMap;
use tracing::Span;

use super::metrics::metrics;
use super::names::{self, Names};
use super::trace::{Trace, Work};
use crate::stage;

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// A call of a client; the default one is no call: it tells nothing, and log lines stay in the span that they are in.
pub(crate) struct Call {
    /// The method's name.
    pub(crate) method: &'static str,
    /// What its log lines are in.
    pub(crate) span: Span,
    /// Whom it is about, as far as that has been told.
    pub(super) names: Names,
    /// None where it is not traced.
    pub(super) trace: Option<Trace>,
    last_number: AtomicU64,
}

/// A stage that has ended.
pub(crate) struct Ended<'a> {
    /// What all stages of its kind are called.
    pub(crate) name: &'static str,
    /// What it was about.
    pub(crate) what: &'a str,
    /// Its number within the call.
    pub(crate) number: u64,
    /// That of the stage around it; 0 for none.
    pub(crate) around: u64,
    /// When it began.
    pub(crate) since: Instant,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({})", self.method)
    }
}

impl Default for Call {
    fn default() -> Self {
        Call {
            method: "",
            span: Span::current(),
            names: Names::default(),
            trace: None,
            last_number: AtomicU64::new(0),
        }
    }
}

impl Call {
    /// A call of `method` that came with these headers.
    pub(super) fn begin(method: &'static str, headers: &HeaderMap) -> Arc<Self> {
        Arc::new(Call {
            method,
            span: names::call_span(method),
            trace: Trace::begin(headers),
            ..Call::default()
        })
    }

    /// The call that the present task works for; none outside of one.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CALL.try_with(Arc::clone).ok().or_else(stage::call)
    }

    /// A number for something within the call.
    pub(crate) fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes how long a stage took.
    pub(crate) fn stage_ended(&self, stage: &Ended<'_>) {
        if self.method.is_empty() {
            return;
        }
        if let Some(metrics) = metrics() {
            let seconds = stage.since.elapsed().as_secs_f64();
            metrics
                .stages
                .with_label_values(&[self.method, stage.name])
                .observe(seconds);
        }
        if let Some(trace) = &self.trace {
            trace.stage_ended(stage);
        }
    }

    /// Notes the answer, whose work is told by `work`.
    pub(super) fn answered(&self, work: &Work<'_>, code: Code, message: &str) {
        if let Some(trace) = &self.trace {
            trace.answered(work, code, message);
        }
    }
}

/// The future, as work for this call.
pub(super) fn scope<F: Future>(call: Arc<Call>, work: F) -> TaskLocalFuture<Arc<Call>, F> {
    CALL.scope(call, work)
}
