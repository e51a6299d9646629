//! SPDY/3.1 on the server's side, as far as Kubernetes uses it: the client opens streams, bytes go both ways.
//!
//! ```text
//!   connection ──> reading task ──> Stream (new ones)        headers, Incoming, Outgoing
//!                        │   └────> Feed of each stream      pieces of 32 KiB
//!                        └──pong, reset──┐
//!   connection <── writing task <────────┴── orders <── Outgoing, Incoming (WINDOW_UPDATE)
//! ```
//!
//! Memory of a connection is bounded: by [`MAX_STREAMS`], by the budget of bytes that its streams share, and by the limits
//! of `frame` and `headers`; a stream's headers go when it is accepted. A stream whose queue is full holds up the others
//! of its connection in the same direction.
//!
//! Flow control: the client of kubectl, crictl and the kubelet (moby/spdystream) neither heeds a window nor reports what
//! it has taken. A server that waited for it would stop after the first 64 KiB; so the peer's windows are not waited
//! for, and TCP's is the one that counts. What is taken from a client is reported, for those that do heed windows.

mod connection;
mod dictionary;
mod frame;
mod headers;

pub(super) use connection::{Spdy, Stream};
pub(super) use headers::{Headers, header};

#[cfg(test)]
pub(super) use connection::tests;
