//! A collector of traces, as far as a test needs one: it takes OTLP by gRPC or HTTP and keeps the spans.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use corten_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use corten_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, Resource, Span, any_value};
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Longest a test waits for a span.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A collector that listens.
pub struct Collector {
    taken: Taken,
    // Of the one that speaks gRPC; it ends with this.
    _executor: Option<Runtime>,
}

/// What has come so far.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<(Resource, Span)>>>);

impl Collector {
    /// Listens for gRPC in the network of the calling thread.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn grpc(address: SocketAddr) -> Result<Collector> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let executor = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let taken = Taken::default();
        let service = TraceServiceServer::new(taken.clone());
        executor.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let served = Server::builder().add_service(service);
            served.serve_with_incoming(TcpIncoming::from(listener)).await
        });
        Ok(Collector {
            taken,
            _executor: Some(executor),
        })
    }

    /// Listens for POSTs of protobuf in the network of the calling thread, as long as the process runs.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn http(address: SocketAddr) -> Result<Collector> {
        let listener = TcpListener::bind(address)?;
        let taken = Taken::default();
        let for_all = taken.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = for_all.answer(stream) {
                    eprintln!("collector: {error:#}");
                }
            }
        });
        Ok(Collector { taken, _executor: None })
    }

    /// All spans so far, with what they say of the process.
    ///
    /// # Panics
    /// If a thread that took spans has.
    pub fn spans(&self) -> Vec<(Resource, Span)> {
        self.taken.0.lock().expect("no holder panics").clone()
    }

    /// Waits for a span of this name that `fits`.
    ///
    /// # Panics
    /// If there is none within ten seconds.
    #[track_caller]
    pub fn wait(&self, name: &str, fits: impl Fn(&Span) -> bool) -> Span {
        let deadline = Instant::now() + ARRIVAL;
        loop {
            let spans = self.spans();
            let found = spans.iter().find(|(_, span)| span.name == name && fits(span));
            if let Some((_, span)) = found {
                return span.clone();
            }
            let names: Vec<_> = spans.iter().map(|(_, span)| &span.name).collect();
            assert!(Instant::now() < deadline, "no {name} in {names:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Taken {
    fn add(&self, request: ExportTraceServiceRequest) {
        let mut taken = self.0.lock().expect("no holder panics");
        for of_process in request.resource_spans {
            let resource = of_process.resource.unwrap_or_default();
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            taken.extend(spans.map(|span| (resource.clone(), span)));
        }
    }

    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "the head does not end");
        }
        let head = head.to_lowercase();
        ensure!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        ensure!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .context("no length")?;
        let mut body = vec![0; length.trim().parse()?];
        reader.read_exact(&mut body)?;
        self.add(ExportTraceServiceRequest::decode(&body[..])?);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        Ok(())
    }
}

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.add(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The value of a text attribute; empty where there is none.
pub fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}
