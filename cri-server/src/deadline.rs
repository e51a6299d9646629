//! The deadline of a caller, answered as gRPC wants it.
//!
//! A call whose time is up ends with DEADLINE_EXCEEDED. tonic ends it with CANCELLED, and a client that hears this before its
//! own clock tells it takes the one for the other: kubelet and critest ask which it was. What the call has begun is
//! its own affair; here it loses its caller.

use std::convert::Infallible;
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;

/// A service whose calls end at their callers' deadlines.
#[derive(Clone)]
pub(crate) struct Deadline<S>(pub(crate) S);

impl<S: NamedService> NamedService for Deadline<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = limit(request.headers());
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let work = self.0.call(request);
        let Some(limit) = limit else {
            return Box::pin(work);
        };
        // tonic's own clock starts after this one, and is looked at after this future: ours is the answer.
        let time_is_up = tokio::time::sleep(limit);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = work => answer,
                () = time_is_up => {
                    let message = format!("{call}: the caller's deadline of {limit:?} has passed");
                    Ok(Status::deadline_exceeded(message).into_http())
                }
            }
        })
    }
}

/// How long the caller waits, by the header `grpc-timeout`: up to eight digits and a unit. Anything else is no limit.
fn limit(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 60 * 60)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that never answers.
    struct Silent;

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline_by_the_code_for_it() {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/runtime.v1.ImageService/PullImage".parse().expect("a path");
        request
            .headers_mut()
            .insert("grpc-timeout", "1m".parse().expect("a value"));
        let Ok(response) = Deadline(Silent).call(request).await;
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(status.message(), "PullImage: the caller's deadline of 1ms has passed");
    }

    #[test]
    fn the_header_in_every_unit() {
        for (value, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("5m", Some(Duration::from_millis(5))),
            ("119999u", Some(Duration::from_micros(119_999))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("", None),
            ("S", None),
            ("+1S", None),
            ("1s", None),
            ("1", None),
            ("é", None),
        ] {
            let mut headers = HeaderMap::new();
            if let Ok(value) = value.parse() {
                headers.insert("grpc-timeout", value);
            }
            assert_eq!(limit(&headers), expected, "{value:?}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }
}
