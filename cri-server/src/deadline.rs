//! The deadline of a caller, answered as gRPC wants it.
//!
//! A call whose time is up ends with DEADLINE_EXCEEDED. tonic ends it with CANCELLED, and a client that hears this before its
//! own clock tells it takes the one for the other: kubelet and critest ask which it was. What the call has begun is
//! its own affair; here it loses its caller.

use std::convert::Infallible;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;

use crate::stage::timeout;

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
        let value = request.headers().get("grpc-timeout");
        let limit = value.and_then(|text| timeout(text.to_str().ok()?));
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
}
