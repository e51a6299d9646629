//! What a token stands for, and what runs when it is brought.
//!
//! A session lives in the task of its connection and ends with the first of: its work, the client, its idle limit, the
//! server. Everything it holds (descriptors, the command, the tasks of its transport) is dropped with it.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::channel::Pulse;
use super::client;
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
                let (carrier, client) = client::open(io, upgrade, wanted).await?;
                let end = limits.end(carrier.pulse().clone());
                exec::run(node, &container, cmd, wanted, client, end).await;
                carrier.close().await;
            }
            Session::Attach { container, wanted } => {
                let (carrier, client) = client::open(io, upgrade, wanted).await?;
                let end = limits.end(carrier.pulse().clone());
                attach::run(node, &container, wanted, client, end).await;
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
#[derive(Clone)]
pub(super) struct Limits {
    /// Longest time in which nothing moves.
    pub(super) idle: Duration,
    /// True once the server ends.
    pub(super) stopping: watch::Receiver<bool>,
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
    /// Resolves when the session must end.
    pub(super) async fn end(mut self, pulse: Pulse) -> Cut {
        tokio::select! {
            () = pulse.gone() => Cut::Gone,
            () = pulse.idle(self.idle) => Cut::Idle(self.idle),
            // An error means that the server has gone, which is as good.
            _ = self.stopping.wait_for(|stopping| *stopping) => Cut::Stopping,
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
