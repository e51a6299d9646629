//! One layer on its way from the registry to disk.
//!
//! ```text
//! task      body --chunks--> thread 1   Blob: counts, hash == blob digest
//!                                       '--> gunzip or unzstd
//!                                            '--pieces--> thread 2   Content: hash == diff id
//!                                                                    '--> unpack: layers/HEX.N.partial/fs
//! ```
//! Every byte is touched once, while it downloads; nothing compressed is kept. Two threads, because decoding takes about
//! as long as hashing and writing what comes out of it: an image of one large layer keeps two processors busy. The
//! directory gets its final name only when both digests match. Whoever stops listening to the download ends the threads:
//! the channel closes early, and the partial directory goes with the error.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use anyhow::Context;
use corten_proto::id::Digest;

use super::blob::{Blob, Chunks};
use super::decode::{self, Content};
use super::error::PullError;
use super::hash::{Hasher, compare};
use super::manifest::{Descriptor, Packing};
use super::snapshot::implied;
use super::unpack::{self, InvalidEntry, Unpacked, Usage};
use crate::tree;

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

/// How much of a layer is still read after it was refused, for the digest to tell whether the host or the image is wrong.
const WORTH_READING: u64 = 64 << 20;

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
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(error = format!("{error:#}"), "remove a partial layer");
        }
    }
}

/// Unpacks what arrives on `chunks` into `partial/fs`. Blocks; for a thread of its own, and starts another.
pub(super) fn unpack(chunks: Chunks, expected: &Expected, partial: &Partial) -> Result<Usage, PullError> {
    let root = make_root(partial).map_err(|error| PullError::local(&error))?;
    let mut blob = Blob::new(chunks, &expected.blob);
    let arrived = blob.received();
    let applied = thread::scope(|scope| {
        let (output, content) = decode::way(Hasher::like(&expected.diff_id));
        let applying = thread::Builder::new()
            .name("layer".into())
            .spawn_scoped(scope, move || apply(content, root, arrived))
            .context("start a thread")?;
        decode::decode(&mut blob, expected.packing, &output);
        // The end of the archive to the other thread.
        drop(output);
        applying
            .join()
            .unwrap_or_else(|_panic| anyhow::bail!("the thread panicked"))
    });
    let refused = match applied {
        Err(error) if !error.chain().any(|cause| cause.is::<InvalidEntry>()) => {
            return Err(PullError::local(&error.context("unpack")));
        }
        applied => applied.map_err(|error| PullError::refused(format!("{error:#}"))),
    };
    let refused = match refused {
        Err(refusal) if blob.left() > WORTH_READING => return Err(refusal),
        refused => refused,
    };
    // A broken blob often shows as a broken archive first; the digest tells which it is.
    blob.finish()?;
    let (unpacked, diff_id) = refused?;
    compare("unpacked it has the digest", &diff_id, &expected.diff_id)?;
    implied::save(partial.path(), &unpacked.implied).map_err(|error| PullError::local(&error))?;
    Ok(unpacked.usage)
}

/// Applies the whole archive and returns what it has become and the digest of the archive.
fn apply(mut content: Content, root: OwnedFd, arrived: Arc<AtomicU64>) -> anyhow::Result<(Unpacked, Digest)> {
    let unpacked = unpack::unpack(&mut content, root, arrived)?;
    Ok((unpacked, content.digest()))
}

fn make_root(partial: &Partial) -> anyhow::Result<OwnedFd> {
    let path = partial.path().join("fs");
    std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    let root = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    Ok(root.into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sha2::{Digest as _, Sha256};
    use tokio::sync::mpsc;

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
    fn what_is_refused_is_read_on_only_while_little_is_left() {
        let mut tar = vec![0; 512 << 10];
        tar[0] = b'x';
        let wrong = Digest::from_sha256(&[7; 32]);
        let length = tar.len() as u64;
        // However much has been read when the refusal is noticed: never more than is worth reading is left, and always more.
        let table = [
            (WORTH_READING, "ends 66584576 bytes before"),
            (length + WORTH_READING + (1 << 20), "checksum"),
        ];
        for (size, says) in table {
            let error = run(&tar, Some((size, wrong.clone()))).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
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
