//! The layer around the gRPC services: each call's time and code, its span, its log lines' names.
//!
//! An answer counts when its head is there: of a call that streams, this is when it begins, since its end is whenever
//! the client has enough. A call that its client gives up is CANCELLED.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use corten_proto::METHODS;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tracing::Instrument as _;

use super::call::{self, Call};
use super::metrics::metrics;
use super::trace::Work;

/// What a method is called that no service has: a name out of a request is no label.
const UNKNOWN: &str = "unknown";

/// A service whose calls are observed.
#[derive(Clone)]
pub(crate) struct Observed<S>(pub(crate) S);

impl<S: NamedService> NamedService for Observed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::begin(method(request.uri().path()), request.headers());
        let observation = Observation::begin(call.clone(), S::NAME);
        let span = call.span.clone();
        let work = call::scope(call, self.0.call(request)).instrument(span);
        Box::pin(async move {
            let Ok(response) = work.await;
            observation.end(&response);
            Ok(response)
        })
    }
}

/// The method that a path names.
fn method(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    METHODS.iter().find(|method| **method == name).unwrap_or(&UNKNOWN)
}

/// A call under way; one that is dropped has lost its client.
struct Observation {
    call: Arc<Call>,
    service: &'static str,
    began: Instant,
    ended: bool,
}

impl Observation {
    fn begin(call: Arc<Call>, service: &'static str) -> Self {
        if let Some(metrics) = metrics() {
            metrics.rpcs_in_flight.inc();
        }
        Observation {
            call,
            service,
            began: Instant::now(),
            ended: false,
        }
    }

    fn end(mut self, response: &Response<Body>) {
        // A failure is told in the head; without one the status comes after the messages, and is OK.
        let status = Status::from_header_map(response.headers());
        match &status {
            Some(status) => self.observe(status.code(), status.message()),
            None => self.observe(Code::Ok, ""),
        }
    }

    fn observe(&mut self, code: Code, message: &str) {
        self.ended = true;
        if let Some(metrics) = metrics() {
            metrics.rpcs_in_flight.dec();
            metrics
                .rpcs
                .with_label_values(&[self.call.method, code_name(code)])
                .observe(self.began.elapsed().as_secs_f64());
        }
        let work = Work {
            service: self.service,
            method: self.call.method,
            began: self.began,
        };
        self.call.answered(&work, code, message);
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if !self.ended {
            self.observe(Code::Cancelled, "the client has given the call up");
        }
    }
}

/// The code as gRPC writes it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_that_exist_are_labels() {
        let table = [
            ("/runtime.v1.RuntimeService/RunPodSandbox", "RunPodSandbox"),
            ("/runtime.v1.ImageService/PullImage", "PullImage"),
            ("/corten.images.v1.Images/Pull", "Pull"),
            ("/runtime.v1.RuntimeService/Made\"Up", UNKNOWN),
            ("/runtime.v1.RuntimeService/", UNKNOWN),
            ("", UNKNOWN),
        ];
        for (path, expected) in table {
            assert_eq!(method(path), expected, "{path:?}");
        }
    }
}
