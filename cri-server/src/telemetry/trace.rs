//! Spans of calls and their stages, for a collector.
//!
//! A span is made when what it tells of has ended, from what the call and its stages know anyway, and put into a queue that
//! nobody waits for: full, the span is dropped and counted. While no traces are configured there is no queue, no call has a
//! trace, and nothing is asked for here.
//!
//! Within a trace the call's span has a random id, and each stage's is that plus the stage's number.

use std::sync::{Mutex, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corten_proto::otlp::{AnyValue, KeyValue, Span, SpanKind, Status, StatusCode, any_value};
use tokio::sync::mpsc;
use tonic::Code;
use tonic::codegen::http::HeaderMap;

use super::call::Ended;
use super::export::Spans;
use super::metrics::{SpanLoss, spans_dropped};
use super::names::cut;
use super::traceparent;
use crate::config::Tracing;

/// Spans that wait to be sent; each has some hundred bytes.
const QUEUE: usize = 2048;
/// Longest `tracestate` that is passed on, in bytes: what the W3C asks for.
const MAX_STATE: usize = 512;

static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    queue: mpsc::Sender<Span>,
    ratio: f64,
}

/// Keeps traces from here on, if that is configured; what is to be exported.
pub(super) fn keep(config: &Tracing) -> Option<Spans> {
    let collector = config.otlp_endpoint?;
    let (queue, receiver) = mpsc::channel(QUEUE);
    let ratio = config.sample_ratio;
    TRACER.set(Tracer { queue, ratio }).ok()?;
    Some(Spans::new(receiver, collector, config.otlp_protocol))
}

/// A call that is traced.
pub(crate) struct Trace {
    id: [u8; 16],
    /// Of the call's span.
    span: u64,
    parent: Option<[u8; 8]>,
    state: String,
    attributes: Mutex<Vec<KeyValue>>,
}

/// A call that has been answered.
pub(super) struct Work<'a> {
    /// The service's full name.
    pub(super) service: &'a str,
    /// The method's.
    pub(super) method: &'a str,
    /// When the call came in.
    pub(super) began: Instant,
}

impl Trace {
    /// The trace of a call with these headers; none if it is not to be traced.
    pub(super) fn begin(headers: &HeaderMap) -> Option<Self> {
        let tracer = TRACER.get()?;
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let parent = header("traceparent").and_then(traceparent::parse);
        let mut random = [0; 24];
        getrandom::fill(&mut random).ok()?;
        let (own_id, span) = random.split_first_chunk::<16>()?;
        let sampled = match &parent {
            Some(parent) => parent.sampled,
            None => is_chosen(*own_id, tracer.ratio),
        };
        sampled.then(|| Trace {
            id: parent.map_or(*own_id, |parent| parent.trace_id),
            span: u64::from_be_bytes(*span.first_chunk().unwrap_or(&[1; 8])),
            parent: parent.map(|parent| parent.span_id),
            state: header("tracestate")
                .filter(|state| parent.is_some() && state.len() <= MAX_STATE)
                .unwrap_or_default()
                .to_owned(),
            attributes: Mutex::default(),
        })
    }

    /// Adds to what the call's span says.
    pub(super) fn attribute(&self, key: &'static str, value: &str) {
        let mut attributes = self.attributes.lock().expect("no holder panics");
        attributes.push(text(key, value));
    }

    pub(super) fn stage_ended(&self, stage: &Ended<'_>) {
        send(Span {
            span_id: self.span_id(stage.number),
            parent_span_id: self.span_id(stage.around),
            name: stage.name.to_owned(),
            kind: SpanKind::Internal.into(),
            attributes: vec![text("corten.stage", cut(stage.what))],
            ..self.span(stage.since)
        });
    }

    pub(super) fn answered(&self, work: &Work<'_>, code: Code, message: &str) {
        let mut attributes = std::mem::take(&mut *self.attributes.lock().expect("no holder panics"));
        attributes.extend([
            text("rpc.system", "grpc"),
            text("rpc.service", work.service),
            text("rpc.method", work.method),
            number("rpc.grpc.status_code", i64::from(i32::from(code))),
        ]);
        let status = (code != Code::Ok).then(|| Status {
            message: cut(message).to_owned(),
            code: StatusCode::Error.into(),
        });
        send(Span {
            span_id: self.span_id(0),
            parent_span_id: self.parent.map(Vec::from).unwrap_or_default(),
            name: format!("{}/{}", work.service, work.method),
            kind: SpanKind::Server.into(),
            attributes,
            status,
            ..self.span(work.began)
        });
    }

    /// What all spans have, of one that began then and ends now.
    fn span(&self, began: Instant) -> Span {
        let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Span {
            trace_id: self.id.to_vec(),
            trace_state: self.state.clone(),
            start_time_unix_nano: nanos(end.saturating_sub(began.elapsed())),
            end_time_unix_nano: nanos(end),
            ..Span::default()
        }
    }

    /// The id of a stage's span; 0 is the call's own.
    fn span_id(&self, number: u64) -> Vec<u8> {
        let id = self.span.wrapping_add(number);
        // All zeros is no id.
        id.max(1).to_be_bytes().to_vec()
    }
}

/// Whether a trace that nobody has decided on is recorded; the same for all who ask, as far as they go by the id too.
fn is_chosen(id: [u8; 16], ratio: f64) -> bool {
    let low = u64::from_be_bytes(*id.last_chunk().unwrap_or(&[0; 8]));
    // 53 bits, which a double holds exactly.
    ((low >> 11) as f64) < ratio * (1u64 << 53) as f64
}

fn send(span: Span) {
    if let Some(tracer) = TRACER.get()
        && tracer.queue.try_send(span).is_err()
    {
        spans_dropped(SpanLoss::Queue, 1);
    }
}

/// An attribute.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_traces_is_that_of_their_ids() {
        let id = |low: u64| {
            let mut id = [7; 16];
            id[8..].copy_from_slice(&low.to_be_bytes());
            id
        };
        let table = [
            (0, 0.0, false),
            (u64::MAX, 0.0, false),
            (0, 1.0, true),
            (u64::MAX, 1.0, true),
            (u64::MAX / 4, 0.5, true),
            (u64::MAX / 4 * 3, 0.5, false),
        ];
        for (low, ratio, chosen) in table {
            assert_eq!(is_chosen(id(low), ratio), chosen, "{low} of {ratio}");
        }
    }

    #[test]
    fn nothing_is_traced_unless_it_is_configured() {
        assert!(Trace::begin(&HeaderMap::new()).is_none());
    }
}
