//! A registry on loopback: serves an image layout read-only, and fails on request.
//!
//! It speaks as much of the distribution API as a pull needs: the `/v2/` check, manifests by tag or digest, blobs, and
//! a token service. One thread per connection and one request per connection: tests send few. The layout is read anew
//! at every request, so images saved later are served too.
//!
//! Left out: pushes, ranges.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// Largest request head that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Bytes sent between two pauses of a slow reply.
const SLOW_CHUNK: usize = 16 * 1024;

/// The token that the token service hands out.
const TOKEN: &str = "a-token-for-tests";

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
}

struct Shared {
    dir: PathBuf,
    address: SocketAddr,
    stop: AtomicBool,
    access: Mutex<Access>,
    faults: Mutex<Vec<(String, Fault)>>,
    requests: Mutex<Vec<Request>>,
}

/// A registry that serves while this value lives.
pub struct Registry {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
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
        let authority = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let key = rustls::pki_types::PrivateKeyDer::try_from(authority.signing_key.serialize_der())
            .map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![authority.cert.der().clone()], key)?;
        let registry = Registry::serve(([127, 0, 0, 1], 0).into(), dir, Some(Arc::new(tls)))?;
        Ok((registry, authority.cert.pem()))
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

    /// Asks for credentials from now on.
    pub fn require(&self, access: Access) {
        *lock(&self.shared.access) = access;
    }

    /// From now on, replies to requests whose path contains `part` fail like this; `None` ends it.
    pub fn fail(&self, part: &str, fault: Option<Fault>) {
        let mut faults = lock(&self.shared.faults);
        faults.retain(|(known, _)| known != part);
        faults.extend(fault.map(|fault| (part.to_owned(), fault)));
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
    let mut reply = answer(&request, shared);
    let fault = lock(&shared.faults)
        .iter()
        .find(|(part, _)| request.path.contains(part.as_str()))
        .map(|(_, fault)| fault.clone());
    spoil(&mut reply, fault.as_ref());
    let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!(
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        reply.body.len()
    ));
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Truncate(length)) => stream.write_all(&reply.body[..length.min(reply.body.len())]),
        Some(Fault::Slow(pause)) => drip(stream, &reply.body, pause, shared),
        _ => stream.write_all(&reply.body),
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
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else {
            return Ok(request);
        };
        if name.eq_ignore_ascii_case("authorization") {
            request.authorization = Some(value.trim().to_owned());
        }
    }
}

/// Sends `body` slowly, and stops early when the registry ends.
fn drip<S: Write>(stream: &mut S, body: &[u8], pause: Duration, shared: &Shared) -> io::Result<()> {
    for chunk in body.chunks(SLOW_CHUNK) {
        let until = std::time::Instant::now() + pause;
        while std::time::Instant::now() < until {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(pause.min(Duration::from_millis(5)));
        }
        stream.write_all(chunk)?;
    }
    Ok(())
}

fn spoil(reply: &mut Reply, fault: Option<&Fault>) {
    match fault {
        Some(Fault::Status(status)) => *reply = Reply::status(*status),
        Some(Fault::Corrupt) => {
            if let Some(last) = reply.body.last_mut() {
                *last ^= 1;
            }
        }
        Some(Fault::ContentType(value)) => {
            reply.headers.retain(|(name, _)| *name != "Content-Type");
            reply.headers.push(("Content-Type", value.clone()));
        }
        Some(Fault::Redirect(target)) => {
            *reply = Reply::status(307);
            reply.headers.push(("Location", target.clone()));
        }
        Some(Fault::Truncate(_) | Fault::Slow(_)) | None => {}
    }
}

fn answer(request: &Request, shared: &Shared) -> Reply {
    let access = lock(&shared.access).clone();
    if request.path.starts_with("/token?") {
        return token(request, &access);
    }
    if let Some(refusal) = refusal(request, &access, shared) {
        return refusal;
    }
    let Some(path) = request.path.strip_prefix("/v2/") else {
        return Reply::status(404);
    };
    if path.is_empty() {
        return Reply::json(b"{}".to_vec());
    }
    let found = if let Some((_, digest)) = path.rsplit_once("/blobs/") {
        blob(&shared.dir, digest).map(|body| {
            let headers = vec![("Content-Type", "application/octet-stream".to_owned())];
            Reply {
                status: 200,
                headers,
                body,
            }
        })
    } else if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        manifest(&shared.dir, repository, reference)
    } else {
        None
    };
    found.unwrap_or_else(|| Reply::status(404))
}

/// The answer to a request without the credentials that `access` asks for.
fn refusal(request: &Request, access: &Access, shared: &Shared) -> Option<Reply> {
    let (wanted, challenge) = match access {
        Access::Open => return None,
        Access::Login(user, password) => (basic(user, password), r#"Basic realm="test""#.to_owned()),
        Access::Token | Access::TokenForLogin(..) => {
            let repository = request
                .path
                .trim_start_matches("/v2/")
                .split("/manifests/")
                .next()
                .unwrap_or_default();
            let repository = repository.split("/blobs/").next().unwrap_or_default();
            let address = shared.address;
            let challenge =
                format!(r#"Bearer realm="http://{address}/token",service="test",scope="repository:{repository}:pull""#);
            (format!("Bearer {TOKEN}"), challenge)
        }
    };
    if request.authorization.as_ref() == Some(&wanted) {
        return None;
    }
    let mut reply = Reply::status(401);
    reply.headers.push(("WWW-Authenticate", challenge));
    Some(reply)
}

/// The token service.
fn token(request: &Request, access: &Access) -> Reply {
    if let Access::TokenForLogin(user, password) = access
        && request.authorization != Some(basic(user, password))
    {
        return Reply::status(401);
    }
    Reply::json(format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#).into_bytes())
}

fn blob(dir: &Path, digest: &str) -> Option<Vec<u8>> {
    let digest: corten_proto::id::Digest = digest.parse().ok()?;
    fs::read(crate::image::blob_path(dir, &digest)).ok()
}

/// A manifest by tag, through the layout's index, or by digest: then its own `mediaType` is its type.
fn manifest(dir: &Path, repository: &str, reference: &str) -> Option<Reply> {
    let (digest, media_type) = if reference.contains(':') {
        let document: Value = serde_json::from_slice(&blob(dir, reference)?).ok()?;
        (reference.to_owned(), document["mediaType"].as_str()?.to_owned())
    } else {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).ok()?).ok()?;
        let name = format!("{repository}:{reference}");
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == *name;
        let entry = index["manifests"].as_array()?.iter().find(named)?;
        (
            entry["digest"].as_str()?.to_owned(),
            entry["mediaType"].as_str()?.to_owned(),
        )
    };
    let body = blob(dir, &digest)?;
    let headers = vec![("Content-Type", media_type), ("Docker-Content-Digest", digest)];
    Some(Reply {
        status: 200,
        headers,
        body,
    })
}

impl Reply {
    fn status(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    fn json(body: Vec<u8>) -> Reply {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Reply {
            status: 200,
            headers,
            body,
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        _ => "Refused",
    }
}

/// The `Authorization` header of a user and password (RFC 7617).
fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// RFC 4648 base64: ten lines, for one header of a test server.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let index = (bits >> (18 - 6 * position) & 63) as usize;
            text.push(if position <= group.len() {
                char::from(ALPHABET[index])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
