//! `GET /metrics`: one request a connection, plain HTTP/1.1.
//!
//! Whoever reaches the address is taken for a stranger. [`MAX_CONNECTIONS`] are served at once; one more ends the oldest, so
//! that those who only hold theirs keep no scraper out. Each has [`LIMIT`] of time in all, and [`HEAD_BYTES`] of memory
//! for its request, whose body nobody reads; one text is made at a time.

use std::collections::VecDeque;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::gauges;
use super::metrics::metrics;
use crate::config::MetricsAddress;
use crate::node::{Node, blocking, remove_file};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may last.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take for the head of its request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest head of a request.
const HEAD_BYTES: usize = 8 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Pause after a connection that could not be accepted: descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);
/// Of the text format, by its version.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// The listening endpoint; a socket's file goes with it.
pub(super) struct Endpoint(Listener);

enum Listener {
    Tcp(TcpListener),
    Socket(UnixListener, SocketFile),
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.0) {
            tracing::warn!("{error:#}");
        }
    }
}

impl Endpoint {
    /// Listens at `address`. Within an async runtime.
    pub(super) fn open(address: &MetricsAddress) -> Result<Self> {
        let listener = match address {
            MetricsAddress::Tcp(address) => tcp(*address).map(Listener::Tcp),
            MetricsAddress::Socket(path) => {
                socket(path).map(|listener| Listener::Socket(listener, SocketFile(path.clone())))
            }
        };
        let listener = listener.with_context(|| format!("listen at {address} for scrapes of metrics"))?;
        Ok(Endpoint(listener))
    }

    /// Answers until `stopping`.
    pub(super) async fn serve(self, node: Arc<Node>, mut stopping: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let mut connections: VecDeque<AbortHandle> = VecDeque::new();
        let one_at_a_time = Arc::new(Mutex::new(()));
        loop {
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                Some(_ended) = tasks.join_next() => continue,
                _ = stopping.wait_for(|stopping| *stopping) => return,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!("accept a scraper's connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            connections.retain(|connection| !connection.is_finished());
            if connections.len() >= MAX_CONNECTIONS
                && let Some(oldest) = connections.pop_front()
            {
                oldest.abort();
            }
            connections.push_back(tasks.spawn(connection(node.clone(), stream, one_at_a_time.clone())));
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
            Listener::Socket(listener, _file) => Box::new(listener.accept().await?.0),
        })
    }
}

fn tcp(address: std::net::SocketAddr) -> Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Listens at a path, mode 0600. What a server that was killed left there is replaced, anything else is not.
fn socket(path: &std::path::Path) -> Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => bail!("something else has this path"),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => bail!("another server listens there"),
        Ok(_) => remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn connection(node: Arc<Node>, stream: Box<dyn Stream>, one_at_a_time: Arc<Mutex<()>>) {
    let answer = service_fn(|request| {
        let (node, one_at_a_time) = (node.clone(), one_at_a_time.clone());
        async move { anyhow::Ok(answer(node, &request, &one_at_a_time).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(LIMIT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a scraper's connection: {error}"),
        Err(_elapsed) => tracing::debug!("a scraper's connection: it took longer than {} s", LIMIT.as_secs()),
    }
}

async fn answer(node: Arc<Node>, request: &Request<Incoming>, one_at_a_time: &Mutex<()>) -> Answer {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        refusal
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let _turn = one_at_a_time.lock().await;
    let text = blocking(move || {
        let metrics = metrics().context("no metrics are kept")?;
        gauges::text(metrics, &node)
    });
    match text.await {
        Ok(text) => response(StatusCode::OK, FORMAT, text.into()),
        Err(error) => {
            tracing::warn!("metrics: {error:#}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    response(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
