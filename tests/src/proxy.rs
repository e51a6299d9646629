//! A proxy on loopback: whatever host it is asked for, it connects to the one address it was given.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// Longest silence of either side.
const SILENCE: Duration = Duration::from_secs(10);

struct Shared {
    target: SocketAddr,
    stop: AtomicBool,
    lines: Mutex<Vec<String>>,
}

/// A proxy that serves while this value lives.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy to `target` on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let shared = Arc::new(Shared {
            target,
            stop: AtomicBool::new(false),
            lines: Mutex::default(),
        });
        let address = listener.local_addr().context("getsockname")?;
        let served = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &served));
        Ok(Proxy {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Its address for `HTTP_PROXY`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first line of every request so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let lines = self.shared.lines.lock();
        lines.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The acceptor sits in accept(); a connection wakes it.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // A client that goes away in the middle is no failure of the proxy.
        connections.push(std::thread::spawn(move || drop(relay(&stream, &shared))));
    }
    for connection in connections {
        connection.join().expect("a connection's thread does not panic");
    }
}

/// One request of one connection, or a tunnel.
fn relay(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let lines = shared.lines.lock();
    lines
        .unwrap_or_else(PoisonError::into_inner)
        .push(line.trim().to_owned());
    let mut server = TcpStream::connect(shared.target)?;
    server.set_read_timeout(Some(SILENCE))?;
    let mut rest = String::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        rest.push_str(&header);
    }
    let mut words = line.split_whitespace();
    let (method, address) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "CONNECT" {
        (&mut &*client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    } else {
        // `http://host/path` for the proxy is `/path` for the server.
        let path = address.splitn(4, '/').nth(3).unwrap_or_default();
        server.write_all(format!("{method} /{path} HTTP/1.1\r\n{rest}\r\n").as_bytes())?;
    }
    both_ways(client, reader, &server)
}

fn both_ways(client: &TcpStream, mut from_client: impl Read + Send, server: &TcpStream) -> io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Either side may close first.
            drop(io::copy(&mut from_client, &mut &*server));
            drop(server.shutdown(Shutdown::Write));
        });
        let copied = io::copy(&mut &*server, &mut &*client);
        drop(client.shutdown(Shutdown::Both));
        copied.map(drop)
    })
}
