//! A packed layer as it arrives: counted and hashed, read by whoever unpacks it.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::error::PullError;
use super::hash::{Hasher, compare};
use super::manifest::Descriptor;

/// Pieces of a download, or why it broke off.
pub(super) type Chunks = mpsc::Receiver<Result<Bytes, PullError>>;

/// What arrives on a channel, checked against its descriptor.
pub(super) struct Blob<'a> {
    chunks: Chunks,
    descriptor: &'a Descriptor,
    current: Bytes,
    hash: Hasher,
    received: Arc<AtomicU64>,
    /// Why it broke off: an `io::Error` on its way through the decoder would lose it.
    failure: Option<PullError>,
}

impl<'a> Blob<'a> {
    pub(super) fn new(chunks: Chunks, descriptor: &'a Descriptor) -> Self {
        Blob {
            chunks,
            descriptor,
            current: Bytes::new(),
            hash: Hasher::like(&descriptor.digest),
            received: Arc::default(),
            failure: None,
        }
    }

    /// How many bytes have arrived, now and later.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// How many bytes are still to arrive.
    pub(super) fn left(&self) -> u64 {
        self.descriptor.size - self.received.load(Ordering::Relaxed)
    }

    /// Reads what is left, and checks that the whole is what the descriptor says.
    pub(super) fn finish(mut self) -> Result<(), PullError> {
        while self.failure.is_none() {
            match self.fill_buf().map(<[u8]>::len) {
                Ok(0) => break,
                Ok(length) => self.consume(length),
                Err(_kept) => {}
            }
        }
        match self.failure {
            Some(failure) => Err(failure),
            None => compare(
                "its content has the digest",
                &self.hash.finish(),
                &self.descriptor.digest,
            ),
        }
    }

    fn receive(&mut self) -> Result<Option<Bytes>, PullError> {
        let size = self.descriptor.size;
        let left = self.left();
        match self.chunks.blocking_recv() {
            Some(Ok(chunk)) if chunk.len() as u64 > left => Err(PullError::refused(format!(
                "larger than the {size} bytes of its descriptor"
            ))),
            Some(Ok(chunk)) => {
                self.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                self.hash.update(&chunk);
                Ok(Some(chunk))
            }
            Some(Err(failure)) => Err(failure),
            None if left > 0 => Err(PullError::refused(format!(
                "ends {left} bytes before the {size} of its descriptor"
            ))),
            None => Ok(None),
        }
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            let received = match self.failure.clone() {
                Some(failure) => Err(failure),
                None => self.receive(),
            };
            match received {
                Ok(Some(chunk)) => self.current = chunk,
                Ok(None) => break,
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(io::Error::other("the download broke off"));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        drop(self.current.split_to(count));
    }
}

/// [`Read::read`] of a source whose own way to be read is by its buffer.
pub(super) fn read_buffered(source: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let available = source.fill_buf()?;
    let count = available.len().min(buffer.len());
    buffer[..count].copy_from_slice(&available[..count]);
    source.consume(count);
    Ok(count)
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}
