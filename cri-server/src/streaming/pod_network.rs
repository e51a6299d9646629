//! Connections that begin in a pod's network.
//!
//! A socket belongs to the network namespace of the thread that makes it, for good. So a thread that lives for this alone
//! enters the pod's namespace, makes the sockets and ends; they are connected from outside, without blocking anyone. No
//! other thread of the server is ever in a pod's network.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::node::Node;

/// How long the kernel may take to connect within one pod.
const LIMIT: Duration = Duration::from_secs(10);

/// A pod's network.
pub(super) enum Network {
    /// The node's own.
    Host,
    /// A namespace, bound at this path.
    Namespace(PathBuf),
}

/// The network of a sandbox that is ready.
pub(super) fn of(node: &Node, sandbox: &str) -> Result<Network> {
    let sandbox = node.sandbox(sandbox)?;
    if sandbox.pid().is_none() {
        bail!("pod sandbox {} is not ready", sandbox.id());
    }
    Ok(match &sandbox.metadata.netns {
        Some(path) => Network::Namespace(path.clone()),
        None => Network::Host,
    })
}

/// Connects to a port on the pod's loopback: by IPv4, and where nobody listens there, by IPv6.
pub(super) async fn connect(network: Network, port: u16) -> Result<TcpStream> {
    let (v4, v6) = match network {
        Network::Host => sockets().context("make a socket")?,
        Network::Namespace(path) => sockets_in(path).await?,
    };
    let loopback = |ip: IpAddr| SocketAddr::new(ip, port);
    let first = match to(v4, loopback(Ipv4Addr::LOCALHOST.into())).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    // A pod may have no IPv6 at all; what IPv4 said is the better answer then.
    let Some(v6) = v6 else { return Err(first) };
    to(v6, loopback(Ipv6Addr::LOCALHOST.into()))
        .await
        .map_err(|_second| first)
}

async fn to(socket: TcpSocket, address: SocketAddr) -> Result<TcpStream> {
    let connecting = tokio::time::timeout(LIMIT, socket.connect(address)).await;
    let stream = connecting.context("no answer in 10 s").and_then(|stream| Ok(stream?));
    let stream = stream.with_context(|| format!("connect to {address} in the pod's network"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

/// A socket of each family; IPv6 where there is any.
fn sockets() -> std::io::Result<(TcpSocket, Option<TcpSocket>)> {
    Ok((TcpSocket::new_v4()?, TcpSocket::new_v6().ok()))
}

async fn sockets_in(path: PathBuf) -> Result<(TcpSocket, Option<TcpSocket>)> {
    let (sender, receiver) = oneshot::channel();
    let context = format!("enter the pod's network {}", path.display());
    let enter = move || {
        let namespace = File::open(path)?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        sockets()
    };
    // Never joined, and never reused: it ends in a few microseconds, in the pod's namespace.
    let thread = std::thread::Builder::new().name("pod-network".into());
    thread
        .spawn(move || drop(sender.send(enter())))
        .context("start a thread for the pod's network")?;
    receiver
        .await
        .context("the thread has ended without a socket")?
        .context(context)
}
