//! The end of what a container wrote, for its exit record: read back from its log, so that nothing is kept in memory
//! while it runs.
//!
//! No more than the last [`WINDOW`] of the file is looked at, a piece at a time. What was rotated away is not looked for,
//! and what a full disk has lost is not there.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use corten_proto::exit::{MAX_TAIL, Tail};

use crate::log::Stream;

/// How much of the log is searched, in bytes.
const WINDOW: u64 = 256 * 1024;

/// Read at once, in bytes: the shim's memory is to stay what it is.
const PIECE: usize = 4 * 1024;

/// Longer than the time, the stream and the tag of a record are together, in bytes.
const MAX_HEADER: usize = 64;

/// The last words of `stream` in a log.
pub(crate) fn read(mut log: File, stream: Stream) -> Result<Tail> {
    let length = log.metadata().context("fstat")?.len();
    let begin = length.saturating_sub(WINDOW);
    log.seek(SeekFrom::Start(begin)).context("lseek")?;
    let mut collector = Collector::new(stream, begin == 0);
    let mut piece = vec![0; PIECE];
    // A process that has outlived init may still make the file grow.
    let mut left = length - begin;
    while left > 0 {
        let count = log.read(&mut piece).context("read")?;
        if count == 0 {
            break;
        }
        collector.feed(&piece[..count]);
        left = left.saturating_sub(count as u64);
    }
    Ok(Tail {
        stream: stream.name().to_owned(),
        text: String::from_utf8_lossy(collector.words()).into_owned(),
    })
}

/// What the shim's own records begin with.
const OWN: &[u8] = b"[corten-shim: ";

/// Where in a record the next byte is.
enum At {
    /// In one that has begun before the window, or is none.
    Unknown,
    Header(Vec<u8>),
    Content {
        wanted: bool,
        full: bool,
        /// How much of it is like the beginning of a notice of ours, while all of it is.
        alike: Option<usize>,
    },
}

/// Collects the content of one stream's records, and forgets all but the end.
struct Collector {
    stream: Stream,
    at: At,
    words: Vec<u8>,
}

impl Collector {
    fn new(stream: Stream, from_the_beginning: bool) -> Collector {
        let at = match from_the_beginning {
            true => At::Header(Vec::new()),
            false => At::Unknown,
        };
        Collector {
            stream,
            at,
            words: Vec::with_capacity(2 * MAX_TAIL),
        }
    }

    fn feed(&mut self, mut data: &[u8]) {
        while let Some(&first) = data.first() {
            if let At::Header(header) = &mut self.at {
                header.push(first);
                data = &data[1..];
                if first == b'\n' {
                    self.at = At::Header(Vec::new());
                } else if header.iter().filter(|byte| **byte == b' ').count() == 3 {
                    self.at = parse(header, self.stream);
                } else if header.len() > MAX_HEADER {
                    self.at = At::Unknown;
                }
                continue;
            }
            let newline = data.iter().position(|byte| *byte == b'\n');
            let line = &data[..newline.unwrap_or(data.len())];
            self.content(line, newline.is_some());
            if newline.is_some() {
                self.at = At::Header(Vec::new());
            }
            data = &data[newline.map_or(data.len(), |at| at + 1)..];
        }
    }

    /// A piece of a record's content. What begins like a notice of ours is kept back until it is none.
    fn content(&mut self, piece: &[u8], is_end: bool) {
        let At::Content {
            wanted: true,
            full,
            alike,
        } = self.at
        else {
            return;
        };
        let missing = alike.map_or(&[][..], |length| &OWN[length..]);
        let count = missing.len().min(piece.len());
        let alike = alike.filter(|length| {
            let is_alike = missing[..count] == piece[..count];
            if !is_alike {
                self.push(&OWN[..*length]);
            }
            is_alike
        });
        let alike = alike.map(|length| length + count);
        let wanted = alike != Some(OWN.len());
        if alike.is_none() {
            self.push(piece);
        }
        if wanted && is_end {
            self.push(&OWN[..alike.unwrap_or(0)]);
            if full {
                self.push(b"\n");
            }
        }
        self.at = At::Content { wanted, full, alike };
    }

    /// Content comes in pieces that are no longer than what is kept, so that twice that much is always room enough.
    fn push(&mut self, content: &[u8]) {
        if self.words.len() + content.len() > 2 * MAX_TAIL {
            self.words.drain(..self.words.len().saturating_sub(MAX_TAIL));
        }
        self.words.extend_from_slice(content);
    }

    fn words(&self) -> &[u8] {
        &self.words[self.words.len().saturating_sub(MAX_TAIL)..]
    }
}

/// `TIME STREAM TAG `, the last blank included.
fn parse(header: &[u8], wanted: Stream) -> At {
    let mut fields = header.split(|byte| *byte == b' ').skip(1);
    match (fields.next(), fields.next()) {
        (Some(stream), Some(tag @ (b"F" | b"P"))) => At::Content {
            wanted: stream == wanted.name().as_bytes(),
            full: tag == b"F",
            alike: Some(0),
        },
        _ => At::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-31T09:05:00.000000001Z";

    fn words(log: &[u8], from_the_beginning: bool, piece: usize) -> String {
        let mut collector = Collector::new(Stream::Stderr, from_the_beginning);
        log.chunks(piece).for_each(|piece| collector.feed(piece));
        String::from_utf8_lossy(collector.words()).into_owned()
    }

    #[test]
    fn one_stream_is_taken_and_its_lines_are_joined() {
        let log = format!(
            "{TIME} stdout F out\n{TIME} stderr P long \n{TIME} stderr F line\nno record at all\n\n{TIME} stderr F \n{TIME} stderr P end\n"
        );
        for piece in [1, 2, 7, 4096] {
            assert_eq!(words(log.as_bytes(), true, piece), "long line\n\nend", "{piece}");
            assert_eq!(words(&log.as_bytes()[9..], false, piece), "long line\n\nend", "{piece}");
        }
        let cut = format!("stderr F of a record\n{TIME} stderr F b\n");
        assert_eq!(words(cut.as_bytes(), false, 5), "b\n");
        assert_eq!(words(b"", true, 1), "");
        let endless = "x".repeat(10_000);
        assert_eq!(words(endless.as_bytes(), true, 100), "");
    }

    #[test]
    fn the_shims_own_records_are_no_words_of_the_container() {
        let log = format!(
            "{TIME} stderr F [corten\n{TIME} stderr F last\n{TIME} stderr F [corten-shim: 9 bytes of output lost: x]\n\
             {TIME} stderr P [corten-shim\n{TIME} stderr F  [corten-shim: said it\n"
        );
        for piece in [1, 2, 7, 40, 4096] {
            let text = words(log.as_bytes(), true, piece);
            assert_eq!(text, "[corten\nlast\n[corten-shim [corten-shim: said it\n", "{piece}");
        }
    }

    #[test]
    fn the_end_is_kept() {
        let log: String = (0..2000).map(|n| format!("{TIME} stderr F line {n}\n")).collect();
        let text = words(log.as_bytes(), true, PIECE);
        assert_eq!(text.len(), MAX_TAIL);
        assert!(text.ends_with("line 1998\nline 1999\n"), "{text}");
    }

    #[test]
    fn a_file_is_searched_from_near_its_end() {
        let mut file = tempfile::tempfile().expect("a file");
        let log: String = (0..20_000)
            .map(|n| format!("{TIME} stdout F {n}\n"))
            .chain([format!("{TIME} stderr P last\n")])
            .collect();
        std::io::Write::write_all(&mut file, log.as_bytes()).expect("write");
        assert!(log.len() as u64 > 2 * WINDOW);
        let tail = read(file, Stream::Stderr).expect("read");
        assert_eq!((tail.stream.as_str(), tail.text.as_str()), ("stderr", "last"));
    }
}
