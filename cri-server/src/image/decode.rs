//! From a packed layer to its archive: the decoders, and the way of the archive to the thread that applies it.
//!
//! Measured on a layer of programs (315 MB, 116 MB as gzip), MB/s of archive on one core: zlib-rs 480, libdeflate 600 (which
//! needs the whole layer in memory, so it is no choice), zstd's C library 1090, the same in Rust (ruzstd) 300. Hence C for
//! zstd, linked statically, and Rust for gzip.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use corten_proto::id::Digest;
use flate2::bufread::MultiGzDecoder;

use super::blob::{Blob, read_buffered};
use super::hash::Hasher;
use super::manifest::Packing;

/// Largest window of a zstd frame, as a power of two: 8 MiB, what decoders should take and encoders not exceed
/// (RFC 8878, 3.1.1.1.2). It is most of the memory that a layer needs here.
const MAX_WINDOW_LOG: u32 = 23;

/// How much larger than what has arrived an archive may be, and what it takes on disk: just above what gzip can reach, 1032 times. zstd can reach
/// 100,000 times, and with it a small blob could fill any disk.
pub(super) const MAX_RATIO: u64 = 1100;

/// Archives up to this size may be packed by any ratio.
pub(super) const FREE_SIZE: u64 = 256 << 20;

/// Size of a piece of the archive, and how many may wait to be applied.
const PIECE: usize = 128 << 10;
const PIECES_WAITING: usize = 4;

/// The sending end of an archive's way.
pub(super) struct Output {
    pieces: SyncSender<io::Result<Vec<u8>>>,
    used: Receiver<Vec<u8>>,
}

/// The receiving end: the archive as a reader that hashes what passes.
pub(super) struct Content {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    /// How much of `current` was taken.
    taken: usize,
    hash: Hasher,
}

/// Both ends of the way between the threads of a layer.
pub(super) fn way(hash: Hasher) -> (Output, Content) {
    let (sender, receiver) = sync_channel(PIECES_WAITING);
    let (used_sender, used_receiver) = channel();
    let output = Output {
        pieces: sender,
        used: used_receiver,
    };
    let content = Content {
        pieces: receiver,
        used: used_sender,
        current: Vec::new(),
        taken: 0,
        hash,
    };
    (output, content)
}

/// Unpacks `blob` into `output` until either ends. What is wrong with the packing is told to the receiving end.
pub(super) fn decode(blob: &mut Blob<'_>, packing: Packing, output: &Output) {
    let received = blob.received();
    let delivered = decoder(blob, packing).and_then(|decoder| deliver(decoder, &received, output));
    if let Err(error) = delivered {
        let what = match packing {
            Packing::Plain => "plain",
            Packing::Gzip => "gzip",
            // The library's text for a window beyond the limit speaks of memory only.
            Packing::Zstd => "zstd, of windows up to 8 MiB",
        };
        let error = io::Error::new(error.kind(), format!("not valid {what}: {error}"));
        // A receiving end that is gone has failed, and knows why.
        drop(output.pieces.send(Err(error)));
    }
}

fn decoder<'a>(blob: &'a mut Blob<'_>, packing: Packing) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packing {
        Packing::Plain => Box::new(blob),
        Packing::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Packing::Zstd => Box::new(unzstd(blob)?),
    })
}

/// Undoes zstd, within the memory that every decoder should have.
pub(super) fn unzstd<'a>(packed: impl BufRead + 'a) -> io::Result<impl Read + 'a> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}

fn deliver(mut decoder: impl Read, received: &AtomicU64, output: &Output) -> io::Result<()> {
    let mut unpacked = 0;
    loop {
        let mut piece = output.used.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let filled = fill(&mut decoder, &mut piece)?;
        piece.truncate(filled);
        unpacked += filled as u64;
        let received = received.load(Ordering::Relaxed);
        if unpacked > FREE_SIZE && unpacked / MAX_RATIO > received {
            return Err(io::Error::other(format!(
                "{unpacked} bytes out of {received} are more than {MAX_RATIO} times as many"
            )));
        }
        if filled == 0 || output.pieces.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

/// Reads until `buffer` is full or nothing is left: decoders return what one piece of a download has become.
fn fill(decoder: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match decoder.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

impl Content {
    /// The digest of what was read.
    pub(super) fn digest(self) -> Digest {
        self.hash.finish()
    }
}

impl BufRead for Content {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.current.len()
            && let Ok(piece) = self.pieces.recv()
        {
            self.taken = 0;
            let used = std::mem::replace(&mut self.current, piece?);
            // Nobody there: the decoder has come to its end.
            drop(self.used.send(used));
            self.hash.update(&self.current);
        }
        Ok(&self.current[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}
