//! Exec, Attach and PortForward: the server that the RPCs' URLs lead to.
//!
//! ```text
//!   RPC ──> Session ──> token ──> URL                     runtime_service/streams
//!   client ──HTTP upgrade──> server ──token──> Session    server, token, negotiate
//!                               │
//!        SPDY/3.1 (spdy) or WebSocket (websocket)         one task reads, one writes
//!                               │ Incoming, Outgoing      channel
//!             exec, attach, port_forward                  the session's own task
//!                               │
//!      pipes, a terminal's master, sockets in the pod     ends, console, pod_network
//! ```
//!
//! Bytes move between the client's socket and the process's descriptors, both of which are here; the shim gives
//! descriptors away and tells of exits. Every queue is bounded, and what is full holds up whoever fills it: the process
//! by its pipe, the client by TCP.
//!
//! A client that vanishes ends its session: an exec is ended with it, an attached container goes on, forwarded
//! connections are closed. The same happens after `[streaming] idle_timeout_s` without a byte, and when the server ends.
//! That a client has gone shows in reading, in writing, and where both are held up, at its socket (`hangup`).

mod attach;
mod channel;
mod client;
mod console;
mod ends;
mod exec;
mod hangup;
mod negotiate;
mod pod_network;
mod port_forward;
mod query;
mod server;
mod session;
mod spdy;
mod status;
mod sys;
mod tls;
mod token;
mod websocket;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use server::Server;
pub(crate) use session::{Session, Wanted};
pub use token::Tokens;

/// The loopback address of an address's family.
fn loopback_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
