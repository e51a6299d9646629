//! The HTTP/1.1 server: one request a connection, which is upgraded or refused.
//!
//! ```text
//! accept ─> TLS? ─> request head ─> token ─> protocol ─> 101 ─> Session, in the same task
//! ```
//!
//! What a stranger can cost: [`MAX_CONNECTIONS`] connections, each [`HEAD_LIMIT`] of time and [`HEAD_BYTES`] of memory
//! until it has shown a token.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::Instrument as _;

use super::hangup::Hangup;
use super::negotiate::{Refusal, Upgrade, negotiate};
use super::port_forward;
use super::session::{Limits, Session};
use super::tls;
use super::token::Tokens;
use crate::config::Streaming;
use crate::node::Node;
use crate::telemetry::names;

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for TLS and for the head of its request, each.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to open the streams that belong together.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Silence after which the kernel asks whether a client's machine is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Time for an answer, after which it asks again.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(15);
/// So many questions without an answer break the connection.
const KEEPALIVE_QUESTIONS: u32 = 4;
/// Pause after a connection that could not be accepted: descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening server.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    idle: Duration,
    url: String,
}

impl Server {
    /// Listens where the configuration says. From here on URLs are given out; who brings one early waits to be accepted.
    pub async fn listen(config: &Streaming, tokens: &Tokens) -> Result<Self> {
        let address = SocketAddr::new(config.address, config.port);
        let tls = tls::acceptor(config).context("TLS of the streaming server")?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen at {address} for streams"))?;
        let mut reached = listener.local_addr().context("ask for the streaming server's port")?;
        // Of all addresses the node's own clients know the loopback.
        if reached.ip().is_unspecified() {
            reached.set_ip(super::loopback_of(reached.ip()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{reached}");
        tokens.open(url.clone());
        Ok(Server {
            listener,
            tls,
            idle: Duration::from_secs(config.idle_timeout_s),
            url,
        })
    }

    /// What the URLs of its sessions begin with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves until `stopping`, then ends what is under way: execs are killed, clients are told.
    pub async fn serve(self, node: Arc<Node>, mut stopping: watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &slots) => accepted,
                Some(_ended) = connections.join_next() => continue,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            match accepted {
                Ok((stream, hangup, slot)) => {
                    let limits = Limits {
                        idle: self.idle,
                        opening: OPEN_LIMIT,
                        stopping: stopping.clone(),
                        hangup,
                    };
                    let work = connection(node.clone(), stream, self.tls.clone(), limits);
                    connections.spawn(async move {
                        if let Err(error) = work.await {
                            tracing::debug!("streaming connection: {error:#}");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a streaming connection: {error:#}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> Result<(TcpStream, Hangup, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await?;
    let (stream, _peer) = listener.accept().await?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    set_socket_keepalive(&stream, true).context("set SO_KEEPALIVE")?;
    set_tcp_keepidle(&stream, KEEPALIVE).context("set TCP_KEEPIDLE")?;
    set_tcp_keepintvl(&stream, KEEPALIVE_ANSWER).context("set TCP_KEEPINTVL")?;
    set_tcp_keepcnt(&stream, KEEPALIVE_QUESTIONS).context("set TCP_KEEPCNT")?;
    let hangup = Hangup::of(&stream)?;
    Ok((stream, hangup, slot))
}

async fn connection(node: Arc<Node>, stream: TcpStream, tls: Option<TlsAcceptor>, limits: Limits) -> Result<()> {
    let Some(tls) = tls else {
        return http(node, stream, limits).await;
    };
    let mut stopping = limits.stopping.clone();
    let stream = tokio::select! {
        stream = tokio::time::timeout(HEAD_LIMIT, tls.accept(stream)) => stream.context("TLS takes too long")??,
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
    };
    http(node, stream, limits).await
}

/// A request that was answered with 101.
struct Upgraded {
    session: Session,
    upgrade: Upgrade,
    connection: OnUpgrade,
}

async fn http(
    node: Arc<Node>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    limits: Limits,
) -> Result<()> {
    let slot = Mutex::new(None);
    let answer = service_fn(|request| {
        let (response, upgraded) = match upgrade(&node, request) {
            Ok((response, upgraded)) => (response.map(|()| Full::default()), Some(upgraded)),
            Err(refusal) => (refused(&refusal), None),
        };
        *slot.lock().expect("no holder panics") = upgraded;
        async move { anyhow::Ok(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut stopping = limits.stopping.clone();
    tokio::select! {
        served = tokio::time::timeout(2 * HEAD_LIMIT, serving) => served.context("the request takes too long")??,
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
    }
    let upgraded = slot.lock().expect("no holder panics").take();
    let Some(Upgraded {
        session,
        upgrade,
        connection,
    }) = upgraded
    else {
        return Ok(());
    };
    let connection = connection.await.context("upgrade")?;
    let span = names::of_id(&node, session.id());
    let running = session.run(&node, TokioIo::new(connection), upgrade, limits);
    running.instrument(span).await
}

/// Takes the token and chooses the protocol. A token is spent even where the protocol does not fit.
fn upgrade(node: &Node, mut request: Request<Incoming>) -> Result<(Response<()>, Upgraded), Refusal> {
    let unknown = || {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "no such token: it is good once, and for a minute",
        )
    };
    let mut session = node.tokens.take(request.uri().path()).ok_or_else(unknown)?;
    if let Session::PortForward { ports, .. } = &mut session {
        let query = request.uri().query().unwrap_or_default();
        let own = super::query::ports(query).map_err(|text| Refusal::new(StatusCode::BAD_REQUEST, text))?;
        if !own.is_empty() {
            *ports = own;
        }
    }
    let upgrade = negotiate(request.headers(), &session)?;
    if let Session::PortForward { ports, .. } = &session {
        port_forward::check(upgrade, ports)?;
    }
    let response = upgrade.response(&request)?;
    let connection = hyper::upgrade::on(&mut request);
    Ok((
        response,
        Upgraded {
            session,
            upgrade,
            connection,
        },
    ))
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    refusal.response().map(|()| Full::from(format!("{}\n", refusal.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_connections_than_there_may_be_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slots = Arc::new(Semaphore::new(2));
        let clients = [(); 3].map(|()| TcpStream::connect(address));
        let [a, b, c] = clients.map(|client| tokio::spawn(client));
        let first = accept(&listener, &slots).await.unwrap();
        let second = accept(&listener, &slots).await.unwrap();
        let third = accept(&listener, &slots);
        tokio::pin!(third);
        let early = tokio::time::timeout(PAUSE, &mut third).await;
        assert!(early.is_err(), "a connection more than there may be");
        drop(first);
        drop(third.await.unwrap());
        drop((second, a, b, c));
    }

    #[tokio::test]
    async fn urls_are_given_out_as_soon_as_it_listens() {
        let tokens = Tokens::default();
        let server = Server::listen(&Streaming::default(), &tokens).await.unwrap();
        let session = Session::PortForward {
            sandbox: "s".to_owned(),
            ports: Vec::new(),
        };
        let url = tokens.issue(session).unwrap();
        assert!(url.starts_with(server.url()), "{url}");
    }
}
