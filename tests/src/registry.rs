//! A registry on loopback: serves an image layout read-only, and fails on request.
//!
//! It speaks as much of the distribution API as a pull needs: the `/v2/` check, manifests by tag or digest, blobs, whole or
//! from a byte on, and a token service. One thread per connection and one request per connection: tests send few. The
//! layout is read anew at every request, so images saved later are served too.
//!
//! Left out: pushes.

mod answers;
mod certificates;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use answers::{answer, spoil};
pub use certificates::ClientFiles;

/// Largest request head that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Bytes sent between two pauses of a slow reply.
const SLOW_CHUNK: usize = 16 * 1024;

/// Most that is sent of [`Fault::Raw`], in bytes.
const MAX_RAW: usize = 1 << 30;

/// What goes wrong with a reply.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This HTTP status instead of the content.
    Status(u16),
    /// The last byte of the content is another one.
    Corrupt,
    /// The connection closes after this many bytes of the content.
    Truncate(usize),
    /// This pause before every 16 KiB of the content.
    Slow(Duration),
    /// The content goes out under another media type.
    ContentType(String),
    /// A redirect to this address instead of the content.
    Redirect(String),
    /// This HTTP status with a header more.
    StatusWith(u16, &'static str, String),
    /// The content is said to be as much longer, or shorter, than it is.
    Length(i64),
    /// After so many bytes of the content nothing comes any more.
    Stall(usize),
    /// A part is answered with another one: so many bytes further on.
    Shift(usize),
    /// These bytes instead of a reply, again and again until the other side has enough, 1 GiB at most.
    Raw(Vec<u8>),
    /// A fault of the first replies only, so many.
    Times(usize, Box<Fault>),
}

/// Whom the registry serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// Whoever shows a token, which the token service gives to everybody.
    Token,
    /// Whoever shows a token, which the token service gives for this user and password.
    TokenForLogin(String, String),
    /// Whoever sends this user and password with every request.
    Login(String, String),
    /// Whoever shows a token, which the token service gives for this identity token.
    TokenForIdentity(String),
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path, query included.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// All headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// What was sent with a POST.
    pub body: String,
}

impl Request {
    /// A header's value, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

struct Shared {
    dir: PathBuf,
    address: SocketAddr,
    stop: AtomicBool,
    access: Mutex<Access>,
    faults: Mutex<Vec<(String, Fault)>>,
    requests: Mutex<Vec<Request>>,
    tokens: Mutex<Tokens>,
    /// Whether parts of blobs can be asked for.
    has_ranges: AtomicBool,
}

/// The token service.
#[derive(Default)]
struct Tokens {
    given: usize,
    /// Those with a smaller number are not good any more.
    oldest: usize,
    /// `expires_in`, if not the usual.
    life_s: Option<u64>,
    /// The realm of challenges, if it is not this registry's own.
    realm: Option<String>,
}

/// A registry that serves while this value lives.
pub struct Registry {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves the layout at `dir` on a free port of 127.0.0.1.
    pub fn start(dir: &Path) -> Result<Registry> {
        Registry::listen(([127, 0, 0, 1], 0).into(), dir)
    }

    /// Serves the layout at `dir` on `address`.
    pub fn listen(address: SocketAddr, dir: &Path) -> Result<Registry> {
        Registry::serve(address, dir, None)
    }

    fn serve(address: SocketAddr, dir: &Path, tls: Option<Arc<ServerConfig>>) -> Result<Registry> {
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            address: listener.local_addr().context("getsockname")?,
            stop: AtomicBool::new(false),
            access: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            tokens: Mutex::default(),
            has_ranges: AtomicBool::new(true),
        });
        let served = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &served, tls.as_ref()));
        Ok(Registry {
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Serves over HTTPS on a free port of 127.0.0.1, with a certificate of an authority made for this registry. Returns
    /// the authority's certificate too, in PEM form.
    pub fn start_tls(dir: &Path) -> Result<(Registry, String)> {
        let (tls, authority) = certificates::server()?;
        let registry = Registry::serve(([127, 0, 0, 1], 0).into(), dir, Some(Arc::new(tls)))?;
        Ok((registry, authority))
    }

    /// Serves over HTTPS those who show the client certificate that is returned.
    pub fn start_mutual_tls(dir: &Path) -> Result<(Registry, ClientFiles)> {
        let (tls, files) = certificates::mutual()?;
        let registry = Registry::serve(([127, 0, 0, 1], 0).into(), dir, Some(Arc::new(tls)))?;
        Ok((registry, files))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The reference of image `name` (`busybox:latest`) here.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.shared.address)
    }

    /// Asks for credentials from now on; the tokens given so far are good no more.
    pub fn require(&self, access: Access) {
        *lock(&self.shared.access) = access;
        let mut tokens = lock(&self.shared.tokens);
        tokens.oldest = tokens.given;
    }

    /// From now on, replies to requests whose path contains `part` fail like this; `None` ends it. Of several faults that
    /// match a request the earliest is the one that is not over.
    pub fn fail(&self, part: &str, fault: Option<Fault>) {
        let mut faults = lock(&self.shared.faults);
        faults.retain(|(known, _)| known != part);
        faults.extend(fault.map(|fault| (part.to_owned(), fault)));
    }

    /// From now on, refuses the tokens given so far; those to come live so long, by their service's word.
    pub fn renew_tokens(&self, life_s: u64) {
        let mut tokens = lock(&self.shared.tokens);
        tokens.oldest = tokens.given;
        tokens.life_s = Some(life_s);
    }

    /// Sends whoever needs a token to this address; a `Bearer` challenge is made with it.
    pub fn set_realm(&self, realm: &str) {
        lock(&self.shared.tokens).realm = Some(realm.to_owned());
    }

    /// Answers with the whole blob from now on, whatever part is asked for.
    pub fn ignore_ranges(&self) {
        self.shared.has_ranges.store(false, Ordering::Relaxed);
    }

    /// Every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many requests so far had `part` in their path.
    #[must_use]
    pub fn count(&self, part: &str) -> usize {
        lock(&self.shared.requests)
            .iter()
            .filter(|request| request.path.contains(part))
            .count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The acceptor sits in accept(); a connection wakes it.
        drop(TcpStream::connect(self.shared.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is one assignment or one copy: a panic elsewhere leaves the data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<ServerConfig>>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        connections.retain(|connection| !connection.is_finished());
        let Ok(stream) = stream else { continue };
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        connections.push(std::thread::spawn(move || {
            // A client that goes away mid-reply is what half of the tests do on purpose.
            drop(connection(stream, tls, &shared));
        }));
    }
    for connection in connections {
        connection.join().expect("a connection's thread does not panic");
    }
}

fn connection(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    match tls {
        None => serve(&mut stream, shared),
        Some(config) => {
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(session, stream);
            serve(&mut stream, shared)?;
            stream.conn.send_close_notify();
            stream.flush()
        }
    }
}

fn serve<S: Read + Write>(stream: &mut S, shared: &Shared) -> io::Result<()> {
    let request = read_request(stream)?;
    lock(&shared.requests).push(request.clone());
    let fault = shared.fault(&request.path);
    if let Some(Fault::Raw(bytes)) = &fault {
        return repeat(stream, bytes, shared);
    }
    let mut reply = answer(&request, shared);
    spoil(&mut reply, fault.as_ref());
    let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = match fault {
        Some(Fault::Length(more)) => reply.body.len().saturating_add_signed(more.try_into().unwrap_or(0)),
        _ => reply.body.len(),
    };
    head.push_str(&format!("Content-Length: {length}\r\nConnection: close\r\n\r\n"));
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let first = |length: usize| &reply.body[..length.min(reply.body.len())];
    match fault {
        Some(Fault::Truncate(length)) => stream.write_all(first(length)),
        Some(Fault::Slow(pause)) => drip(stream, &reply.body, pause, shared),
        Some(Fault::Stall(length)) => {
            stream.write_all(first(length))?;
            stream.flush()?;
            wait(Duration::from_secs(60), shared);
            Ok(())
        }
        _ => stream.write_all(&reply.body),
    }
}

impl Shared {
    /// What is to go wrong with the reply to a request for `path`, now.
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let is_over = |fault: &Fault| matches!(fault, Fault::Times(0, _));
        let mut matching = faults.iter_mut().filter(|(part, _)| path.contains(part.as_str()));
        match matching.find(|(_, fault)| !is_over(fault)).map(|(_, fault)| fault)? {
            Fault::Times(left, fault) => {
                *left -= 1;
                Some((**fault).clone())
            }
            fault => Some(fault.clone()),
        }
    }
}

fn read_request<S: Read>(stream: &mut S) -> io::Result<Request> {
    let mut reader = BufReader::new(stream.take(MAX_HEAD as u64));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        authorization: None,
        headers: Vec::new(),
        body: String::new(),
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        request
            .headers
            .push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    request.authorization = request.header("authorization").map(str::to_owned);
    let length = request.header("content-length").and_then(|length| length.parse().ok());
    if let Some(length) = length {
        let mut body = vec![0; usize::min(length, MAX_HEAD)];
        reader.read_exact(&mut body)?;
        request.body = String::from_utf8_lossy(&body).into_owned();
    }
    Ok(request)
}

/// Sends `body` slowly, and stops early when the registry ends.
fn drip<S: Write>(stream: &mut S, body: &[u8], pause: Duration, shared: &Shared) -> io::Result<()> {
    for chunk in body.chunks(SLOW_CHUNK) {
        if !wait(pause, shared) {
            return Ok(());
        }
        stream.write_all(chunk)?;
    }
    Ok(())
}

/// Sends `bytes` over and over.
fn repeat<S: Write>(stream: &mut S, bytes: &[u8], shared: &Shared) -> io::Result<()> {
    let mut left = MAX_RAW;
    while left >= bytes.len() && !shared.stop.load(Ordering::Relaxed) {
        stream.write_all(bytes)?;
        left -= bytes.len().max(1);
    }
    Ok(())
}

/// Waits; false if the registry ended meanwhile.
fn wait(pause: Duration, shared: &Shared) -> bool {
    let until = std::time::Instant::now() + pause;
    while std::time::Instant::now() < until {
        if shared.stop.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(pause.min(Duration::from_millis(5)));
    }
    true
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        _ => "Refused",
    }
}
