//! One layer on its way from the registry to disk.
//!
//! ```text
//! body --chunks--> Blob: counts, sha256 == blob digest
//!                   '--> gunzip --> Content: sha256 == diff id --> tar --> Tree: layers/HEX.N.partial/fs
//! ```
//! Every byte is touched once, while it downloads, on a thread of its own; nothing compressed is kept. The directory gets
//! its final name only when both digests match. Whoever stops listening to the download ends the thread: the channel
//! closes early, and the partial directory goes with the error.

use std::cell::RefCell;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use bytes::Bytes;
use corten_proto::id::Digest;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::error::PullError;
use super::manifest::{Descriptor, Packing};
use super::unpack::{InvalidEntry, Tree, Usage};

/// Most bytes that the headers of one entry may take, PAX records and long names included. The archive's reader keeps
/// them in memory, and their length is the image's word.
const MAX_HEADERS: usize = 1 << 20;

/// What a layer must turn out to be.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The packed form: digest and size.
    pub(super) blob: Descriptor,
    /// How it is packed.
    pub(super) packing: Packing,
    /// The digest of the archive.
    pub(super) diff_id: Digest,
}

/// A directory under construction; removed unless it was renamed away.
pub(super) struct Partial {
    path: PathBuf,
}

impl Partial {
    /// Makes `path`, empty and private.
    pub(super) fn create(path: PathBuf) -> anyhow::Result<Partial> {
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Partial { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not found: it was renamed to what it has become.
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "remove a partial layer");
            }
            _ => {}
        }
    }
}

/// Unpacks what arrives on `chunks` into `partial/fs`. Blocks; for a thread of its own.
pub(super) fn unpack(
    chunks: mpsc::Receiver<Result<Bytes, PullError>>,
    expected: &Expected,
    partial: &Partial,
) -> Result<Usage, PullError> {
    let mut blob = Blob::new(chunks, expected.blob.size);
    let root = make_root(partial).map_err(|error| PullError::local(&error))?;
    let applied = apply(&mut blob, expected, root);
    // A broken blob often shows as a broken archive first; the digest tells which it is, so read on to its end.
    let wrong_content = matches!(&applied, Err(error) if !error.is::<LocalError>());
    if (applied.is_ok() || wrong_content)
        && let Err(error) = io::copy(&mut blob, &mut io::sink())
    {
        return Err(blob.failure.unwrap_or_else(|| PullError::refused(error.to_string())));
    }
    if let Some(failure) = blob.failure {
        return Err(failure);
    }
    let (usage, diff_id) = match applied {
        Err(error) if !wrong_content => return Err(PullError::local(&error)),
        applied => {
            let found = Digest::from_sha256(&blob.hash.finalize().into());
            check_digest("its content has the digest", &found, &expected.blob.digest)?;
            applied.map_err(|error| PullError::refused(format!("{error:#}")))?
        }
    };
    check_digest("unpacked it has the digest", &diff_id, &expected.diff_id)?;
    Ok(usage)
}

/// A failure of this node while a layer is applied, as opposed to one of the layer.
#[derive(Debug)]
struct LocalError;

impl std::fmt::Display for LocalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("unpack")
    }
}

fn check_digest(what: &str, found: &Digest, expected: &Digest) -> Result<(), PullError> {
    if found == expected {
        return Ok(());
    }
    Err(PullError::refused(format!("{what} {found}, not {expected}")))
}

fn make_root(partial: &Partial) -> anyhow::Result<OwnedFd> {
    let path = partial.path().join("fs");
    std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    let root = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    Ok(root.into())
}

/// Applies the whole archive and returns what it takes and the digest of the archive.
fn apply(blob: &mut Blob, expected: &Expected, root: OwnedFd) -> anyhow::Result<(Usage, Digest)> {
    let decoder: Box<dyn Read + '_> = match expected.packing {
        Packing::Plain => Box::new(blob),
        Packing::Gzip => Box::new(MultiGzDecoder::new(blob)),
    };
    let headers = Rc::new(RefCell::new(Headers::default()));
    let mut content = Content {
        inner: decoder,
        hash: Sha256::new(),
        headers: Rc::clone(&headers),
    };
    let mut tree = Tree::new(root).context(LocalError)?;
    let mut archive = tar::Archive::new(&mut content);
    // An archive of nothing at all is an empty layer to tar too, and a common one.
    let mut entries = archive.entries().map_err(malformed)?;
    let mut content_end = 0;
    loop {
        headers.borrow_mut().open();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(malformed)?;
        let blocks = headers.borrow_mut().close(content_end);
        let end = entry.raw_file_position().saturating_add(entry.size());
        content_end = end.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        tree.apply(&mut entry, &blocks).map_err(blame)?;
    }
    // Padding after the last entry is part of the digest.
    headers.borrow_mut().is_open = false;
    io::copy(&mut content, &mut io::sink()).map_err(malformed)?;
    let usage = tree.finish().context(LocalError)?;
    Ok((usage, Digest::from_sha256(&content.hash.finalize().into())))
}

fn malformed(error: io::Error) -> anyhow::Error {
    anyhow::Error::msg(format!("not a valid archive: {error}"))
}

/// Marks what is no fault of the layer.
fn blame(error: anyhow::Error) -> anyhow::Error {
    if error.chain().any(|cause| cause.is::<InvalidEntry>()) {
        error
    } else {
        error.context(LocalError)
    }
}

/// The packed layer as it arrives.
struct Blob {
    chunks: mpsc::Receiver<Result<Bytes, PullError>>,
    current: Bytes,
    hash: Sha256,
    /// How many bytes are still to come.
    left: u64,
    size: u64,
    /// Why it broke off: an `io::Error` on its way through decoder and archive would lose it.
    failure: Option<PullError>,
}

impl Blob {
    fn new(chunks: mpsc::Receiver<Result<Bytes, PullError>>, size: u64) -> Self {
        Blob {
            chunks,
            current: Bytes::new(),
            hash: Sha256::new(),
            left: size,
            size,
            failure: None,
        }
    }

    fn fail(&mut self, failure: PullError) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("the download broke off")
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            if let Some(failure) = self.failure.clone() {
                return Err(self.fail(failure));
            }
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) if chunk.len() as u64 > self.left => {
                    let size = self.size;
                    return Err(self.fail(PullError::refused(format!(
                        "larger than the {size} bytes of its descriptor"
                    ))));
                }
                Some(Ok(chunk)) => {
                    self.left -= chunk.len() as u64;
                    self.hash.update(&chunk);
                    self.current = chunk;
                }
                Some(Err(failure)) => return Err(self.fail(failure)),
                None if self.left > 0 => {
                    let (left, size) = (self.left, self.size);
                    return Err(self.fail(PullError::refused(format!(
                        "ends {left} bytes before the {size} of its descriptor"
                    ))));
                }
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        drop(self.current.split_to(count));
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The archive: hashed, and its header blocks kept aside.
struct Content<R> {
    inner: R,
    hash: Sha256,
    headers: Rc<RefCell<Headers>>,
}

/// What was read of the archive since the last entry's content, while open.
#[derive(Default)]
struct Headers {
    is_open: bool,
    blocks: Vec<u8>,
    /// Where in the archive `blocks` begins.
    start: u64,
    /// How much of the archive was read.
    position: u64,
}

impl Headers {
    /// Begins anew.
    fn open(&mut self) {
        self.is_open = true;
        self.blocks.clear();
        self.start = self.position;
    }

    /// Ends it and takes the blocks from `offset` of the archive on.
    fn close(&mut self, offset: u64) -> Vec<u8> {
        self.is_open = false;
        let skipped = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.blocks.split_off(skipped.min(self.blocks.len()))
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        let mut headers = self.headers.borrow_mut();
        headers.position += count as u64;
        if headers.is_open {
            if headers.blocks.len() + count > MAX_HEADERS {
                return Err(io::Error::other(format!("headers of more than {MAX_HEADERS} bytes")));
            }
            headers.blocks.extend_from_slice(&buffer[..count]);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a plain archive of these entries through the unpacker.
    fn run(tar: &[u8], declared: Option<(u64, Digest)>) -> Result<Usage, PullError> {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::create(dir.path().join("layer")).unwrap();
        let digest = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into());
        let (size, blob) = declared.unwrap_or((tar.len() as u64, digest(tar)));
        let blob = serde_json::json!({ "mediaType": "x", "size": size, "digest": blob });
        let expected = Expected {
            blob: serde_json::from_value(blob).unwrap(),
            packing: Packing::Plain,
            diff_id: digest(tar),
        };
        let (sender, receiver) = mpsc::channel(tar.len() / 1000 + 1);
        for chunk in tar.chunks(1000) {
            sender.try_send(Ok(Bytes::copy_from_slice(chunk))).unwrap();
        }
        drop(sender);
        unpack(receiver, &expected, &partial)
    }

    #[test]
    fn endless_headers_are_refused_before_they_fill_the_memory() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = vec![b'x'; 2 << 20];
        builder.append_pax_extensions([("comment", long.as_slice())]).unwrap();
        let error = run(&builder.into_inner().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("headers of more than"), "{error}");
    }

    #[test]
    fn what_is_not_the_blob_is_named() {
        let tar = vec![0; 10240];
        let wrong = Digest::from_sha256(&[7; 32]);
        let table = [
            ((10240, wrong.clone()), "its content has the digest"),
            ((10241, wrong.clone()), "ends 1 bytes before"),
            ((5000, wrong), "larger than the 5000 bytes"),
        ];
        for (declared, says) in table {
            let error = run(&tar, Some(declared)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(
            run(&tar, None).unwrap().inodes,
            1,
            "an empty archive is a layer of a root"
        );
    }
}
