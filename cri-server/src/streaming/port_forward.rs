//! PortForward: connections to ports of a pod, any number over one connection of the client's.
//!
//! | carrier | a forward is |
//! |---|---|
//! | SPDY, plain or in a WebSocket | a pair of streams, `error` and `data`, of one `requestID` and `port` |
//! | WebSocket | two channels for each port of the URL's query: 2 i for data, 2 i + 1 for errors; each begins with the port, 2 bytes, little-endian |
//!
//! Both directions close on their own. An error is a line on the error stream that names port and cause; the other
//! forwards go on.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channel::{Incoming, Outgoing};
use super::negotiate::{Protocol, Refusal, Upgrade};
use super::pod_network::{self, Network};
use super::session::Limits;
use super::spdy::{Headers, Spdy, Stream, header};
use super::websocket::{Tunnel, WebSocket};
use crate::node::Node;

/// Bytes that are read at once.
const PIECE: usize = 32 << 10;
/// Most ports of a WebSocket: each has two channels, and a channel's number is a byte.
const MAX_PORTS: usize = 127;
/// Longest requestID, which is kept until its pair is whole.
const MAX_REQUEST: usize = 256;
/// Looks for pairs that were never completed, in the time that a client has for one.
const LOOKS: u32 = 6;

/// Whether a client with this protocol has said what it must: SPDY's clients name a port with each stream.
pub(super) fn check(upgrade: Upgrade, ports: &[u16]) -> Result<(), Refusal> {
    let channels = matches!(upgrade, Upgrade::WebSocket(protocol) if !protocol.tunnel);
    let count = ports.len();
    if channels && !(1..=MAX_PORTS).contains(&count) {
        let text = format!("{count} ports: must be 1 to {MAX_PORTS}, as port=N in the URL's query");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    }
    Ok(())
}

/// Forwards until the client has gone or the session is cut.
pub(super) async fn run(
    node: &Node,
    sandbox: &str,
    ports: &[u16],
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    upgrade: Upgrade,
    limits: Limits,
) -> Result<()> {
    match upgrade {
        Upgrade::Spdy(_) => by_spdy(node, sandbox, Spdy::new(io)?, limits).await,
        Upgrade::WebSocket(protocol) if protocol.tunnel => {
            let (inner, tunnel) = Tunnel::new(io).await;
            by_spdy(node, sandbox, Spdy::new(inner)?, limits).await;
            tunnel.close().await;
        }
        Upgrade::WebSocket(protocol) => by_websocket(node, sandbox, ports, io, protocol, limits).await?,
    }
    Ok(())
}

/// Whether a stream carries data or errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a stream's headers say.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    kind: Kind,
    port: u16,
    /// What its other half names too.
    request: String,
}

impl Part {
    fn of(id: u32, headers: &Headers) -> Result<Part> {
        let kind = match header(headers, "streamtype") {
            Some("data") => Kind::Data,
            Some("error") => Kind::Error,
            other => bail!("streamType {other:?}: must be data or error"),
        };
        let text = header(headers, "port").unwrap_or_default();
        let port = text.parse().ok().filter(|&port| port != 0);
        let port = port.with_context(|| format!("port {text:?}: must be 1 to 65535"))?;
        let request = match (header(headers, "requestid"), kind) {
            (Some(request), _) => request.to_owned(),
            // Clients older than the header open the error stream first, and the data stream next.
            (None, Kind::Error) => id.to_string(),
            (None, Kind::Data) => id.saturating_sub(2).to_string(),
        };
        ensure!(
            request.len() <= MAX_REQUEST,
            "a requestID of more than {MAX_REQUEST} bytes"
        );
        Ok(Part { kind, port, request })
    }
}

/// A stream that waits for its other half.
struct Half {
    kind: Kind,
    port: u16,
    stream: Stream,
    since: Instant,
}

async fn by_spdy(node: &Node, sandbox: &str, mut spdy: Spdy, limits: Limits) {
    let mut forwards = JoinSet::new();
    let pulse = spdy.pulse().clone();
    let network = || pod_network::of(node, sandbox);
    // All of it, as a client that does not read holds up the answers to its streams too.
    tokio::select! {
        () = begin(network, &mut spdy, &mut forwards, limits.opening) => {}
        _ = limits.end(&pulse) => {}
    }
    forwards.shutdown().await;
    spdy.close().await;
}

/// Begins a forward for each pair of streams, until the client has gone. A stream whose other half does not come in time
/// (`limit`) is refused.
async fn begin(network: impl Fn() -> Result<Network>, spdy: &mut Spdy, forwards: &mut JoinSet<()>, limit: Duration) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut look = tokio::time::interval(limit / LOOKS);
    loop {
        tokio::select! {
            stream = spdy.next_stream() => match stream {
                Some(stream) => if let Some(pair) = pair(&mut halves, stream).await {
                    forwards.spawn(pair.forward(network()));
                },
                None => break,
            },
            Some(_ended) = forwards.join_next() => {}
            _ = look.tick() => {
                let late = halves.extract_if(|_, half| half.since.elapsed() > limit);
                for (_, half) in late.collect::<Vec<_>>() {
                    half.stream.refuse().await;
                }
            }
        }
    }
}

/// Takes a new stream; the pair that it completes.
async fn pair(halves: &mut HashMap<String, Half>, mut stream: Stream) -> Option<Pair> {
    let part = match Part::of(stream.id, &stream.headers) {
        Ok(part) => part,
        Err(error) => {
            tracing::debug!("a stream of a port-forward is refused: {error:#}");
            stream.refuse().await;
            return None;
        }
    };
    if part.kind == Kind::Error {
        stream.write_only();
    }
    let Some(first) = halves.remove(&part.request) else {
        // The client waits for this before it opens the other half.
        stream.accept().await;
        let half = Half {
            kind: part.kind,
            port: part.port,
            stream,
            since: Instant::now(),
        };
        halves.insert(part.request, half);
        return None;
    };
    if first.kind == part.kind || first.port != part.port {
        stream.refuse().await;
        halves.insert(part.request, first);
        return None;
    }
    stream.accept().await;
    let (data, error) = match part.kind {
        Kind::Data => (stream, first.stream),
        Kind::Error => (first.stream, stream),
    };
    Some(Pair {
        port: part.port,
        data,
        error,
    })
}

/// A forward's two streams.
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

impl Pair {
    async fn forward(self, network: Result<Network>) {
        let Pair { port, mut data, error } = self;
        let result = forward(network, port, &mut data.incoming, &data.outgoing).await;
        // A client that has gone is told by its connection.
        drop(tell(port, result, data.outgoing, error.outgoing).await);
    }
}

/// Says what failed, then closes both streams: the client takes the error stream's end as the forward's.
async fn tell(port: u16, result: Result<()>, data: Outgoing, error: Outgoing) -> Result<()> {
    if let Err(cause) = result {
        tracing::debug!("port-forward to port {port}: {cause:#}");
        error.write(format!("port {port}: {cause:#}").into()).await?;
    }
    data.finish().await?;
    error.finish().await
}

/// Connects to the port and copies both ways until both are closed.
async fn forward(network: Result<Network>, port: u16, from: &mut Incoming, to: &Outgoing) -> Result<()> {
    let (read, write) = pod_network::connect(network?, port).await?.into_split();
    let up = up(from, write);
    let down = down(read, to);
    tokio::pin!(up, down);
    tokio::select! {
        went = &mut up => match went? {
            Up::Closed => down.await,
            // The client has given up both directions.
            Up::Reset => Ok(()),
        },
        came = &mut down => {
            came?;
            to.end().await?;
            up.await.map(drop)
        }
    }
}

/// How the client's direction ended.
enum Up {
    Closed,
    Reset,
}

async fn up(from: &mut Incoming, mut write: OwnedWriteHalf) -> Result<Up> {
    while let Some(piece) = from.next().await {
        write.write_all(&piece).await.context("write to it")?;
    }
    if from.is_reset() {
        return Ok(Up::Reset);
    }
    // It may have closed altogether in the meantime.
    drop(write.shutdown().await);
    Ok(Up::Closed)
}

async fn down(mut read: OwnedReadHalf, to: &Outgoing) -> Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(PIECE);
        if read.read_buf(&mut buffer).await.context("read from it")? == 0 {
            return Ok(());
        }
        to.write(buffer.freeze()).await?;
    }
}

async fn by_websocket(
    node: &Node,
    sandbox: &str,
    ports: &[u16],
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: &'static Protocol,
    limits: Limits,
) -> Result<()> {
    let channels = || (0..=u8::MAX).step_by(2).zip(ports);
    let mut socket = WebSocket::new(io, protocol, channels().map(|(channel, _)| channel)).await;
    let mut forwards = JoinSet::new();
    for (channel, &port) in channels() {
        let (data, error) = (socket.outgoing(channel), socket.outgoing(channel + 1));
        let incoming = socket.incoming(channel).context("it was made for this")?;
        let network = pod_network::of(node, sandbox);
        forwards.spawn(async move {
            // A client that has gone is told by its connection.
            drop(on_channels(network, port, incoming, data, error).await);
        });
    }
    let pulse = socket.pulse().clone();
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        _ = limits.end(&pulse) => {}
    }
    forwards.shutdown().await;
    socket.close().await;
    Ok(())
}

/// One port's forward: both channels begin with the port.
async fn on_channels(
    network: Result<Network>,
    port: u16,
    mut incoming: Incoming,
    data: Outgoing,
    error: Outgoing,
) -> Result<()> {
    for outgoing in [&data, &error] {
        outgoing.write(Bytes::copy_from_slice(&port.to_le_bytes())).await?;
    }
    let result = forward(network, port, &mut incoming, &data).await;
    tell(port, result, data, error).await
}

#[cfg(test)]
mod tests {
    use super::super::spdy::tests::Client;
    use super::*;

    #[tokio::test]
    async fn a_half_whose_other_half_does_not_come_is_refused() {
        let (mut client, mut spdy) = Client::connect();
        let mut forwards = JoinSet::new();
        let limit = Duration::from_millis(600);
        client.open(1, &[("streamtype", "data"), ("port", "80")]).await;
        let begun = Instant::now();
        let refused = async {
            assert_eq!(client.frame().await.0, 2, "SYN_REPLY");
            client.frame().await
        };
        let frame = tokio::select! {
            frame = refused => frame,
            () = begin(|| bail!("no network"), &mut spdy, &mut forwards, limit) => panic!("the client is there"),
        };
        assert_eq!(frame, (3, vec![0, 0, 0, 1, 0, 0, 0, 3]), "RST_STREAM");
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_forward_that_fails_says_so_and_closes_its_pair() {
        let (mut client, mut spdy) = Client::connect();
        let mut forwards = JoinSet::new();
        for (stream, kind) in [(1, "error"), (3, "data")] {
            client.open(stream, &[("streamtype", kind), ("port", "80")]).await;
        }
        let told = async {
            let mut frames = Vec::new();
            for _ in 0..5 {
                frames.push(client.frame().await);
            }
            frames
        };
        let limit = Duration::from_secs(30);
        let frames = tokio::select! {
            frames = told => frames,
            () = begin(|| bail!("no network"), &mut spdy, &mut forwards, limit) => panic!("the client is there"),
        };
        assert_eq!(frames[2], (0, b"port 80: no network".to_vec()));
        assert_eq!([frames[3].1.len(), frames[4].1.len()], [0, 0]);
    }

    #[test]
    fn parts() {
        let part = |kind, port, request: &str| {
            Ok(Part {
                kind,
                port,
                request: request.to_owned(),
            })
        };
        type Case<'a> = (u32, &'a [(&'a str, &'a str)], Result<Part, &'a str>);
        let long = "1".repeat(MAX_REQUEST + 1);
        let table: [Case<'_>; 9] = [
            (
                1,
                &[("streamtype", "error"), ("port", "80"), ("requestid", "7")],
                part(Kind::Error, 80, "7"),
            ),
            (
                3,
                &[("streamtype", "data"), ("port", "65535"), ("requestid", "7")],
                part(Kind::Data, 65535, "7"),
            ),
            (
                5,
                &[("streamtype", "error"), ("port", "80")],
                part(Kind::Error, 80, "5"),
            ),
            (7, &[("streamtype", "data"), ("port", "80")], part(Kind::Data, 80, "5")),
            (
                1,
                &[("streamtype", "stdin"), ("port", "80")],
                Err("streamType Some(\"stdin\"): must be data or error"),
            ),
            (1, &[("port", "80")], Err("streamType None: must be data or error")),
            (
                1,
                &[("streamtype", "data"), ("port", "0")],
                Err("port \"0\": must be 1 to 65535"),
            ),
            (
                1,
                &[("streamtype", "data"), ("port", "80"), ("requestid", &long)],
                Err("a requestID of more than 256 bytes"),
            ),
            (
                1,
                &[("streamtype", "data"), ("port", "65536")],
                Err("port \"65536\": must be 1 to 65535"),
            ),
        ];
        for (id, headers, expected) in table {
            let headers = headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let found = Part::of(id, &headers).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{headers:?}");
        }
    }
}
