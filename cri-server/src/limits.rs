//! What calls may take of the server together: their number by kind, and the bytes of their requests and answers.
//!
//! ```text
//! request ─> a place of its kind: on its connection, then on the server ─> its bytes, as they come ─> the call
//!            none: RESOURCE_EXHAUSTED                                      too many: RESOURCE_EXHAUSTED
//! ```
//!
//! A place and the bytes are held until the answer has been taken, not only made: a client that does not read keeps what it
//! has asked for. One connection has half of the places of each kind at most, and half of the bytes of large requests, so that a client that has lost count of its
//! calls leaves the others theirs. That half is still more than a kubelet, which has one connection, comes to: a node of 250
//! pods that is drained is asked for two commands and some stops in each pod at once. There is nothing to configure.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use crate::own_process::return_memory_soon;

/// Bytes of a request that nobody counts: nearly every request is smaller.
pub(crate) const FREE: usize = 64 << 10;
/// Bytes that larger requests may have together, in KiB.
const REQUESTS_KIB: usize = 64 << 10;

/// A kind of calls, and how many of them there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Streams that their readers end, or never.
    Stream,
    /// PullImage and its like, checkpoints among them, which go on for minutes.
    Pull,
    /// ExecSync: a process, four descriptors and up to 16 MiB each.
    Exec,
    /// What changes pods and containers.
    Change,
    /// What is answered from memory.
    Question,
}

/// Every kind, in the order of their numbers.
const KINDS: [Kind; 5] = [Kind::Stream, Kind::Pull, Kind::Exec, Kind::Change, Kind::Question];

impl Kind {
    fn of(call: &str) -> Kind {
        match call {
            "GetContainerEvents" => Kind::Stream,
            "PullImage" | "Pull" | "Import" | "Export" => Kind::Pull,
            "CheckpointContainer" | "CheckpointPod" | "RestorePod" => Kind::Pull,
            "ExecSync" => Kind::Exec,
            _ if call.starts_with("Stream") => Kind::Stream,
            _ if ["List", "Version", "Image", "Status", "RuntimeConfig"]
                .iter()
                .any(|it| call.starts_with(it)) =>
            {
                Kind::Question
            }
            _ if ["Status", "Stats"].iter().any(|it| call.ends_with(it)) => Kind::Question,
            _ => Kind::Change,
        }
    }

    fn most(self) -> usize {
        match self {
            Kind::Stream => 64,
            Kind::Pull | Kind::Question => 1024,
            Kind::Exec | Kind::Change => 2048,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Stream => "streams",
            Kind::Pull => "pulls",
            Kind::Exec => "ExecSyncs",
            Kind::Change => "calls that change something",
            Kind::Question => "calls that ask for something",
        }
    }
}

/// Places by kind, and bytes of requests.
#[derive(Debug)]
pub(crate) struct Share {
    request_bytes: Arc<Semaphore>,
    places: [Arc<Semaphore>; KINDS.len()],
    whose: &'static str,
    part: usize,
}

impl Share {
    /// A `part`th of everything.
    fn new(whose: &'static str, part: usize) -> Self {
        Share {
            request_bytes: Arc::new(Semaphore::new(REQUESTS_KIB / part)),
            places: KINDS.map(|kind| Arc::new(Semaphore::new(kind.most() / part))),
            whose,
            part,
        }
    }

    fn take(&self, kind: Kind) -> Result<OwnedSemaphorePermit, Status> {
        let place = self.places[kind as usize].clone().try_acquire_owned();
        place.map_err(|_full| {
            let most = kind.most() / self.part;
            Status::resource_exhausted(format!(
                "{} {} are under way {}, the most there may be: try again",
                most,
                kind.name(),
                self.whose
            ))
        })
    }
}

/// What is left of everything.
pub(crate) struct Limits {
    all: Share,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            all: Share::new("on this server", 1),
        }
    }
}

impl Limits {
    /// What one connection may have.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::new(Share::new("on this connection", 2))
    }

    /// `service` within these limits.
    pub(crate) fn on<S>(self: &Arc<Self>, service: S) -> Limited<S> {
        Limited {
            limits: self.clone(),
            service,
        }
    }

    fn places(&self, request: &Request<Body>) -> Result<Held, Status> {
        let call = request.uri().path().rsplit('/').next().unwrap_or_default();
        let kind = Kind::of(call);
        let context = |status: Status| Status::resource_exhausted(format!("{call}: {}", status.message()));
        // Absent only where the connection is none of `incoming`, as in a test.
        let own = request.extensions().get::<Arc<Share>>();
        let own = own.map(|share| share.take(kind)).transpose().map_err(context)?;
        let all = self.all.take(kind).map_err(context)?;
        let held: Held = Arc::default();
        held.keep(own.into_iter().chain([all]));
        Ok(held)
    }
}

/// What a call holds until its answer has been taken.
#[derive(Debug, Default)]
pub(crate) struct Permits(Mutex<Vec<OwnedSemaphorePermit>>);

impl Drop for Permits {
    /// A call is over. One that had more than its places was large.
    fn drop(&mut self) {
        if self
            .0
            .get_mut()
            .is_ok_and(|held| held.iter().any(|permit| permit.num_permits() > 1))
        {
            return_memory_soon();
        }
    }
}

/// The same, with several owners: a service may put one of its own into the extensions of its answer.
pub(crate) type Held = Arc<Permits>;

impl Permits {
    /// Holds these too.
    pub(crate) fn keep(&self, permits: impl IntoIterator<Item = OwnedSemaphorePermit>) {
        let mut held = self.0.lock().expect("no holder panics");
        for permit in permits {
            // Of one semaphore one permit is enough, however many pieces it came in.
            match held
                .iter_mut()
                .find(|it| Arc::ptr_eq(it.semaphore(), permit.semaphore()))
            {
                Some(own) => own.merge(permit),
                None => held.push(permit),
            }
        }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Limited<S> {
    limits: Arc<Limits>,
    service: S,
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let held = match self.limits.places(&request) {
            Ok(held) => held,
            Err(status) => {
                tracing::warn!("{}", status.message());
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        // For work that goes on when the caller does not wait for it.
        request.extensions_mut().insert(held.clone());
        let own = held.clone();
        let of_connection = request.extensions().get::<Arc<Share>>();
        let of_connection = of_connection.map(|share| (share.request_bytes.clone(), REQUESTS_KIB / 2));
        let of_server = (self.limits.all.request_bytes.clone(), REQUESTS_KIB);
        let budgets = of_connection.into_iter().chain([of_server]).collect();
        // The pieces of an archive go to the disk as they come.
        let free = if request.uri().path().ends_with("/Import") {
            usize::MAX
        } else {
            FREE
        };
        let work = self.service.call(request.map(|body| {
            Body::new(Counted {
                body,
                free,
                budgets,
                held: own,
            })
        }));
        Box::pin(async move {
            let mut response = work.await?;
            let of_service = response.extensions_mut().remove::<Held>();
            let held = [Some(held), of_service];
            Ok(response.map(|body| Body::new(Answer { body, _held: held })))
        })
    }
}

/// A request's body, whose bytes are taken from a budget.
struct Counted {
    body: Body,
    free: usize,
    /// Each with the most there is of it, in KiB.
    budgets: Vec<(Arc<Semaphore>, usize)>,
    held: Held,
}

impl Counted {
    fn count(&mut self, bytes: usize) -> Result<(), Status> {
        let counted = bytes.saturating_sub(self.free);
        self.free = self.free.saturating_sub(bytes);
        let kib = u32::try_from(counted.div_ceil(1024)).unwrap_or(u32::MAX);
        if kib == 0 {
            return Ok(());
        }
        for (budget, most) in &self.budgets {
            let Ok(permit) = budget.clone().try_acquire_many_owned(kib) else {
                let whose = if *most < REQUESTS_KIB { " of one connection" } else { "" };
                let most = most >> 10;
                let text = format!("large requests{whose} have {most} MiB together, the most there may be: try again");
                return Err(Status::resource_exhausted(text));
            };
            self.held.keep([permit]);
        }
        Ok(())
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.count(frame.data_ref().map_or(0, Bytes::len))?;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, with what its call holds.
struct Answer {
    body: Body,
    _held: [Option<Held>; 2],
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    /// A service that reads all of its request, and answers with an empty body.
    #[derive(Clone)]
    struct Reader;

    impl Service<Request<Body>> for Reader {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            Box::pin(async move {
                let read = request.into_body().collect().await;
                Ok(read.map_or_else(Status::into_http, |_all| Response::new(Body::new(Full::from("x")))))
            })
        }
    }

    fn request(call: &str, bytes: usize, share: &Arc<Share>) -> Request<Body> {
        let mut request = Request::new(Body::new(Full::from(vec![0; bytes])));
        *request.uri_mut() = format!("/runtime.v1.RuntimeService/{call}").parse().unwrap();
        request.extensions_mut().insert(share.clone());
        request
    }

    async fn answer(
        limits: &Arc<Limits>,
        call: &str,
        bytes: usize,
        share: &Arc<Share>,
    ) -> Result<Response<Body>, Status> {
        let Ok(response) = limits.on(Reader).call(request(call, bytes, share)).await;
        match Status::from_header_map(response.headers()) {
            Some(status) => Err(status),
            None => Ok(response),
        }
    }

    #[test]
    fn kinds_of_calls() {
        for (call, kind) in [
            ("GetContainerEvents", Kind::Stream),
            ("StreamContainers", Kind::Stream),
            ("PullImage", Kind::Pull),
            ("Import", Kind::Pull),
            ("ExecSync", Kind::Exec),
            ("Exec", Kind::Change),
            ("RunPodSandbox", Kind::Change),
            ("UpdateRuntimeConfig", Kind::Change),
            ("RemoveImage", Kind::Change),
            ("Status", Kind::Question),
            ("Version", Kind::Question),
            ("ListContainers", Kind::Question),
            ("ImageFsInfo", Kind::Question),
            ("PodSandboxStatus", Kind::Question),
            ("ContainerStats", Kind::Question),
            ("RuntimeConfig", Kind::Question),
            ("", Kind::Change),
        ] {
            assert_eq!(Kind::of(call), kind, "{call}");
        }
        for (number, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }

    /// A kubelet has one connection.
    #[test]
    fn a_connection_has_room_for_a_node_that_is_drained() {
        let share = Limits::default().share();
        let pods = 250;
        for (kind, of_each) in [(Kind::Exec, 4), (Kind::Change, 4), (Kind::Pull, 2), (Kind::Question, 2)] {
            let held: Result<Vec<_>, _> = (0..pods * of_each).map(|_| share.take(kind)).collect();
            assert!(held.is_ok(), "{}: {held:?}", kind.name());
        }
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_answer_is_gone_and_a_connection_has_half_of_them() {
        let limits = Arc::<Limits>::default();
        let (one, other, third) = (limits.share(), limits.share(), limits.share());
        let mut answers = Vec::new();
        for _ in 0..Kind::Stream.most() / 2 {
            answers.push(answer(&limits, "GetContainerEvents", 0, &one).await.unwrap());
        }
        let full = answer(&limits, "GetContainerEvents", 0, &one).await.unwrap_err();
        let expected =
            "GetContainerEvents: 32 streams are under way on this connection, the most there may be: try again";
        assert_eq!(
            (full.code(), full.message()),
            (tonic::Code::ResourceExhausted, expected)
        );
        for _ in 0..Kind::Stream.most() / 2 {
            answers.push(answer(&limits, "GetContainerEvents", 0, &other).await.unwrap());
        }
        let full = answer(&limits, "StreamContainers", 0, &third).await.unwrap_err();
        assert!(
            full.message().contains("64 streams are under way on this server"),
            "{full}"
        );
        assert!(answer(&limits, "Version", 0, &one).await.is_ok(), "another kind");
        answers.pop();
        assert!(answer(&limits, "StreamContainers", 0, &third).await.is_ok());
    }

    #[tokio::test]
    async fn large_requests_are_bounded_together_and_small_ones_never() {
        let limits = Arc::<Limits>::default();
        let (share, other, third) = (limits.share(), limits.share(), limits.share());
        let mut answers = Vec::new();
        // What one connection has leaves the others as much.
        for (own, whose) in [
            (&share, "of one connection have 32 MiB"),
            (&other, "of one connection have 32 MiB"),
        ] {
            for _ in 0..8 {
                answers.push(answer(&limits, "RunPodSandbox", 4 << 20, own).await.unwrap());
            }
            let full = answer(&limits, "RunPodSandbox", 4 << 20, own).await.unwrap_err();
            assert_eq!(full.code(), tonic::Code::ResourceExhausted);
            assert!(full.message().contains(whose), "{full}");
        }
        let full = answer(&limits, "RunPodSandbox", 4 << 20, &third).await.unwrap_err();
        assert!(full.message().contains("requests have 64 MiB"), "{full}");
        assert!(answer(&limits, "RunPodSandbox", FREE, &share).await.is_ok());
        assert!(answer(&limits, "Import", 4 << 20, &share).await.is_ok());
        drop(answers);
        assert_eq!(limits.all.request_bytes.available_permits(), REQUESTS_KIB);
        assert_eq!(share.request_bytes.available_permits(), REQUESTS_KIB / 2);
    }
}
