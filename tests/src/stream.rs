//! A client of the streaming server by WebSocket: what kubectl and crictl cannot be made to do.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::{ClientRequestBuilder, client};
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use crate::node::Node;
use crate::pod::Pod;

/// Longest silence of the server.
const LIMIT: Duration = Duration::from_secs(60);

/// Input.
pub const STDIN: u8 = 0;
/// Output.
pub const STDOUT: u8 = 1;
/// Error output.
pub const STDERR: u8 = 2;
/// How it ended.
pub const ERROR: u8 = 3;
/// Sizes of the terminal.
pub const RESIZE: u8 = 4;

/// What carries a connection: TCP, or TLS over it.
trait Transport: Read + Write + Send {}

impl<T: Read + Write + Send> Transport for T {}

/// A connected client.
pub struct Stream {
    socket: WebSocket<Box<dyn Transport>>,
    connection: TcpStream,
}

/// All that came until the server closed.
#[derive(Debug, Default)]
pub struct Received {
    /// Channels' bytes, by number.
    pub channels: [Vec<u8>; 8],
}

impl Received {
    /// A channel as text.
    #[must_use]
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.channels[usize::from(channel)]).into_owned()
    }

    /// The status on the error channel.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.channels[usize::from(ERROR)]).expect("a metav1.Status")
    }
}

/// A connection to the server of a URL, in the node's network.
///
/// # Errors
/// If there is none.
pub fn connect(node: &Node, url: &str) -> Result<TcpStream> {
    let address = url.split('/').nth(2).context("a URL has an address")?;
    let stream = node.network.enter(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends one request as it stands; the whole answer.
///
/// # Errors
/// If the connection fails.
pub fn http(node: &Node, url: &str, head: &str) -> Result<String> {
    let mut stream = connect(node, url)?;
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: x\r\n{head}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Serves so many connections on a port of a pod's loopback: each gets back what it sends, to its end.
///
/// # Errors
/// If the port cannot be had.
pub fn echo(node: &Node, pod: &Pod<'_>, port: u16, connections: usize) -> Result<JoinHandle<()>> {
    echo_at(node, pod, ([127, 0, 0, 1], port).into(), connections)
}

/// The same at any of a pod's addresses.
///
/// # Errors
/// If the address cannot be had.
pub fn echo_at(node: &Node, pod: &Pod<'_>, address: SocketAddr, connections: usize) -> Result<JoinHandle<()>> {
    let namespace = File::open(node.dir().join("run/netns").join(&pod.id))?;
    // A thread of its own: it stays in the pod's network.
    let listen = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        anyhow::Ok(TcpListener::bind(address)?)
    });
    let listener = listen.join().expect("it returns its errors")?;
    Ok(thread::spawn(move || {
        for peer in listener.incoming().take(connections) {
            thread::spawn(move || {
                // A client may leave in the middle.
                let copied = peer.and_then(|peer| std::io::copy(&mut &peer, &mut &peer));
                drop(copied);
            });
        }
    }))
}

impl Stream {
    /// Upgrades; `protocol` is what the client offers.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn open(node: &Node, url: &str, protocol: &str) -> Result<Stream> {
        let connection = connect(node, url)?;
        let transport = Box::new(connection.try_clone()?);
        Stream::over(transport, connection, url, protocol)
    }

    /// The same with TLS.
    ///
    /// # Errors
    /// If there is no TLS, or the server refuses.
    pub fn open_tls(node: &Node, url: &str, protocol: &str, config: Arc<ClientConfig>) -> Result<Stream> {
        let connection = connect(node, url)?;
        let name = ServerName::from(connection.peer_addr()?.ip());
        let tls = StreamOwned::new(ClientConnection::new(config, name)?, connection.try_clone()?);
        Stream::over(Box::new(tls), connection, url, protocol)
    }

    fn over(transport: Box<dyn Transport>, connection: TcpStream, url: &str, protocol: &str) -> Result<Stream> {
        let uri: Uri = url.replacen("http", "ws", 1).parse()?;
        let mut request = ClientRequestBuilder::new(uri);
        if !protocol.is_empty() {
            request = request.with_sub_protocol(protocol);
        }
        match client(request, transport) {
            Ok((socket, _response)) => Ok(Stream { socket, connection }),
            Err(error) => bail!("{error}"),
        }
    }

    /// Writes to a channel.
    ///
    /// # Panics
    /// If the connection has broken.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.try_send(channel, bytes).expect("write to the server");
    }

    /// Writes to a channel of a server that may have gone.
    ///
    /// # Errors
    /// If it has.
    pub fn try_send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel][..], bytes].concat();
        Ok(self.socket.send(Message::binary(message))?)
    }

    /// Writes to a channel until the server takes no more for a second.
    ///
    /// # Panics
    /// If the connection has broken.
    pub fn fill(&mut self, channel: u8) {
        let limit = Duration::from_secs(1);
        self.connection.set_write_timeout(Some(limit)).expect("a timeout");
        let message = vec![channel; 64 << 10];
        loop {
            match self.socket.send(Message::binary(message.clone())) {
                Ok(()) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return,
                // A child of another test has ended.
                Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("write to the server: {error}"),
            }
        }
    }

    /// The next message's channel and bytes; none once the server has closed.
    ///
    /// # Panics
    /// If the connection breaks, or nothing comes for a minute.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        self.try_receive().expect("read from the server")
    }

    /// The same of a server that may have gone.
    ///
    /// # Errors
    /// If it has.
    pub fn try_receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => return Ok(Some((bytes[0], bytes[1..].to_vec()))),
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(None),
                // A child of another test has ended.
                Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads until a channel has said `text`.
    ///
    /// # Panics
    /// If the server closes first.
    pub fn wait_for(&mut self, channel: u8, text: &str) -> String {
        self.try_wait_for(channel, text).expect("read from the server")
    }

    /// The same of a server that may have gone.
    ///
    /// # Errors
    /// If it has, or closes first.
    pub fn try_wait_for(&mut self, channel: u8, text: &str) -> Result<String> {
        let mut said = String::new();
        while !said.contains(text) {
            let (from, bytes) = self.try_receive()?.with_context(|| format!("closed after {said:?}"))?;
            if from == channel {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        Ok(said)
    }

    /// All there is until the server closes.
    ///
    /// # Panics
    /// If the connection breaks.
    pub fn rest(self) -> Received {
        self.try_rest().expect("read from the server")
    }

    /// The same of a server that may have gone.
    ///
    /// # Errors
    /// If it has.
    pub fn try_rest(mut self) -> Result<Received> {
        let mut received = Received::default();
        while let Some((channel, bytes)) = self.try_receive()? {
            received.channels[usize::from(channel)].extend_from_slice(&bytes);
        }
        Ok(received)
    }

    /// The connection, without a goodbye.
    pub fn vanish(self) {}
}
