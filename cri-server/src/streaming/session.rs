//! What a token stands for, and what runs when it is brought.
//!
//! A session lives in the task of its connection and ends with the first of: its work, the client, its idle limit, the
//! server. Everything it holds (descriptors, the command, the tasks of its transport) is dropped with it.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::channel::Pulse;
use super::client;
use super::hangup::Hangup;
use super::negotiate::Upgrade;
use super::{attach, exec, port_forward};
use crate::node::Node;

/// What was asked for by an RPC.
#[derive(Clone, Debug)]
pub(crate) enum Session {
    /// Run a command.
    Exec {
        /// The container's full id.
        container: String,
        /// The command.
        cmd: Vec<String>,
        /// Its streams.
        wanted: Wanted,
    },
    /// Join a container's own streams.
    Attach {
        /// The container's full id.
        container: String,
        /// The streams.
        wanted: Wanted,
    },
    /// Connect to ports of a pod.
    PortForward {
        /// The sandbox's full id.
        sandbox: String,
        /// Ports for clients that name none themselves.
        ports: Vec<u16>,
    },
}

/// The streams of an exec or attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// From the client.
    pub(crate) stdin: bool,
    /// To the client.
    pub(crate) stdout: bool,
    /// To the client; never with a terminal.
    pub(crate) stderr: bool,
    /// With a terminal, whose size the client sends.
    pub(crate) tty: bool,
}

impl Session {
    /// The first part of its URL's path.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Session::Exec { .. } => "exec",
            Session::Attach { .. } => "attach",
            Session::PortForward { .. } => "portforward",
        }
    }

    /// The full id of its container or sandbox.
    pub(super) fn id(&self) -> &str {
        match self {
            Session::Exec { container, .. } | Session::Attach { container, .. } => container,
            Session::PortForward { sandbox, .. } => sandbox,
        }
    }

    /// Runs it for a client whose connection has been upgraded. An error is one of the client's or the connection: there
    /// is no stream to say it on.
    pub(super) async fn run(
        self,
        node: &Node,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        upgrade: Upgrade,
        limits: Limits,
    ) -> Result<()> {
        match self {
            Session::Exec { container, cmd, wanted } => {
                let (carrier, client) = limits.opened(client::open(io, upgrade, wanted)).await?;
                let pulse = carrier.pulse().clone();
                exec::run(node, &container, cmd, wanted, client, || limits.end(&pulse)).await;
                carrier.close().await;
            }
            Session::Attach { container, wanted } => {
                let (carrier, client) = limits.opened(client::open(io, upgrade, wanted)).await?;
                let pulse = carrier.pulse().clone();
                attach::run(node, &container, wanted, client, || limits.end(&pulse)).await;
                carrier.close().await;
            }
            Session::PortForward { sandbox, ports } => {
                port_forward::run(node, &sandbox, &ports, io, upgrade, limits).await?;
            }
        }
        Ok(())
    }
}

/// What ends a session from outside.
pub(super) struct Limits {
    /// Longest time in which nothing moves.
    pub(super) idle: Duration,
    /// Longest time in which a client opens the streams that belong together.
    pub(super) opening: Duration,
    /// True once the server ends.
    pub(super) stopping: watch::Receiver<bool>,
    /// The client's socket.
    pub(super) hangup: Hangup,
}

/// Why a session ends before its work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The client has gone.
    Gone,
    /// Nothing has moved for so long.
    Idle(Duration),
    /// The server ends.
    Stopping,
}

impl Limits {
    /// What a client opens, unless it takes too long, or the server ends.
    async fn opened<T>(&self, opening: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            opened = opening => opened,
            () = tokio::time::sleep(self.opening) => bail!("the client has not opened its streams in {:?}", self.opening),
            _ = stopping.wait_for(|stopping| *stopping) => bail!("{}", Cut::Stopping),
        }
    }

    /// Resolves when the session must end, and so does every later call.
    pub(super) async fn end(&self, pulse: &Pulse) -> Cut {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = pulse.gone() => Cut::Gone,
            // A reading task that waits for room does not see it.
            () = self.hangup.seen() => Cut::Gone,
            () = pulse.idle(self.idle) => Cut::Idle(self.idle),
            // An error means that the server has gone, which is as good.
            _ = stopping.wait_for(|stopping| *stopping) => Cut::Stopping,
        }
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cut::Gone => f.write_str("the client has gone"),
            Cut::Idle(limit) => write!(
                f,
                "nothing has moved for {} s ([streaming] idle_timeout_s)",
                limit.as_secs()
            ),
            Cut::Stopping => f.write_str("the CRI server is ending"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::super::negotiate::Protocol;
    use super::super::spdy::tests::Client;
    use super::*;

    static PROTOCOL: Protocol = Protocol {
        name: "v4.channel.k8s.io",
        json: true,
        resize: true,
        close: false,
        base64: false,
        tunnel: false,
    };

    /// Opens the streams of an exec for a client that has opened one of two.
    async fn opening(limit: Duration, stopping: watch::Receiver<bool>) -> anyhow::Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let limits = Limits {
            idle: Duration::from_secs(600),
            opening: limit,
            stopping,
            hangup: Hangup::of(&stream).unwrap(),
        };
        let (mut client, io) = Client::pair();
        client.open(1, &[("streamtype", "error")]).await;
        let wanted = Wanted {
            stdout: true,
            ..Wanted::default()
        };
        let opened = limits.opened(client::open(io, Upgrade::Spdy(&PROTOCOL), wanted)).await;
        opened.map(drop).expect_err("a stream is missing")
    }

    #[tokio::test]
    async fn streams_are_opened_in_time_or_never() {
        let (_running, stopping) = watch::channel(false);
        let (limit, begun) = (Duration::from_millis(200), Instant::now());
        let error = opening(limit, stopping).await;
        assert_eq!(error.to_string(), "the client has not opened its streams in 200ms");
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_ends_waits_for_no_streams() {
        let (_stopped, stopping) = watch::channel(true);
        let error = opening(Duration::from_secs(600), stopping).await;
        assert_eq!(error.to_string(), "the CRI server is ending");
    }
}
