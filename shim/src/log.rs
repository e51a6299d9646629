//! A container's log in the CRI format, and the file it is in.
//!
//! ```text
//!   2026-01-31T09:05:00.000000001Z stdout F a whole line
//!   2026-01-31T09:05:00.000000002Z stderr P 16 KiB of a longer line, or what stood before the end without a line break
//! ```
//! Invariants: the file holds whole records only, each written in one piece; every byte a container wrote is in a
//! record or counted as lost. The path is resolved beneath the pod's log directory with no symbolic link, for a pod's
//! volumes can reach into it (CVE-2025-0750).
//!
//! A log may have a limit, in bytes of its file: what would go beyond is dropped and counted like what a full disk refuses,
//! and the file says so at its end. Rotation lifts it, as the new file begins at nothing; so does a file that has become
//! shorter.
//!
//! Left out on purpose: rotation (the kubelet renames and asks to reopen) and fsync (a log is not worth stalling on).
//! A write blocks where the file system does; only the pod of this shim waits for it.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use corten_proto::exit::Tail;
use corten_proto::log::parse_path;
use nix::errno::Errno;
use nix::unistd::{Whence, ftruncate, lseek};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::clock;
use crate::log_limit::Limit;
use crate::report::report;
use crate::tail;

/// Most content of one record, in bytes, unless the container has a limit of its own; what the kubelet's reader is built
/// for.
pub(crate) const DEFAULT_LINE: usize = 16 * 1024;

/// Output is cut into pieces of this size before it is made into records. A record has up to 41 bytes for one byte of
/// content, so this bounds the batch that is written at once.
const PIECE: usize = 1024;

/// A batch is written when it is longer than this, in bytes.
const BATCH: usize = 16 * 1024;

/// Which of a container's outputs a record is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    fn tag(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        }
    }
}

/// Records that are written together.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<u8>,
    /// What the container wrote of it, in bytes.
    output: usize,
}

impl Batch {
    /// Appends one record, of a line that ends with it (F) or goes on (P).
    fn push(&mut self, stream: Stream, now_ns: i64, full: bool, content: &[&[u8]]) {
        clock::append_rfc3339(now_ns, &mut self.records);
        self.records.extend_from_slice(stream.tag());
        self.records.extend_from_slice(if full { b"F " } else { b"P " });
        for part in content {
            self.records.extend_from_slice(part);
            self.output += part.len();
        }
        self.output += usize::from(full);
        self.records.push(b'\n');
    }
}

/// Cuts one stream into records: the part of a line that has not ended yet is kept until it does.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Appends the records that `data` completes to `batch`, each with `max_line` bytes of content at most.
    fn feed(&mut self, stream: Stream, now_ns: i64, mut data: &[u8], max_line: usize, batch: &mut Batch) {
        while !data.is_empty() {
            let newline = data.iter().position(|b| *b == b'\n');
            let line = &data[..newline.unwrap_or(data.len())];
            let room = max_line - self.pending.len();
            if line.len() > room {
                batch.push(stream, now_ns, false, &[&self.pending, &line[..room]]);
                self.pending.clear();
                data = &data[room..];
            } else if let Some(newline) = newline {
                batch.push(stream, now_ns, true, &[&self.pending, line]);
                // Released, not kept: most streams never have an unfinished line again.
                self.pending = Vec::new();
                data = &data[newline + 1..];
            } else {
                self.pending.extend_from_slice(line);
                data = &[];
            }
        }
    }

    /// Appends what never got its line break, at the end of the stream.
    fn finish(&mut self, stream: Stream, now_ns: i64, batch: &mut Batch) {
        if !self.pending.is_empty() {
            batch.push(stream, now_ns, false, &[&self.pending]);
            self.pending = Vec::new();
        }
    }
}

/// Where a log is: a file beneath the pod's log directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    directory: PathBuf,
    path: PathBuf,
}

impl Location {
    /// Checks a log directory and the path in it. An empty path means that there is no log.
    pub(crate) fn parse(directory: &str, path: &str) -> Result<Option<Location>> {
        let parsed = parse_path(path).map_err(|rule| anyhow!("log_path {path:?}: {rule}"))?;
        let Some(path) = parsed else {
            return Ok(None);
        };
        ensure!(
            Path::new(directory).is_absolute(),
            "log_directory {directory:?}: must be an absolute path"
        );
        ensure!(
            !directory.contains('\0'),
            "log_directory {directory:?}: must hold no NUL byte"
        );
        Ok(Some(Location {
            directory: directory.into(),
            path,
        }))
    }

    /// Opens the file for appending and makes what is missing of it, directories 0755 and the file 0640. The flag says
    /// whether the file was made.
    fn open(&self) -> Result<(File, bool)> {
        let mut directory = self.directory()?;
        if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            directory = make_beneath(directory, parent)?;
        }
        let name = self.path.file_name().context("a parsed path has a file name")?;
        // Without NONBLOCK the open of a FIFO somebody put there would wait for its reader.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags, mode| open_beneath(&directory, Path::new(name), flags, Mode::from_bits_retain(mode));
        let (file, made) = match open(flags | OFlags::CREATE | OFlags::EXCL, 0o640) {
            Ok(file) => (file, true),
            // openat2 refuses a mode where nothing is made.
            Err(Errno::EEXIST) => (open(flags, 0).with_context(|| self.opening())?, false),
            Err(errno) => return Err(errno).with_context(|| self.opening()),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).with_context(|| self.opening())?.st_mode);
        ensure!(kind == FileType::RegularFile, "{}: not a regular file", self.opening());
        Ok((File::from(file), made))
    }

    fn directory(&self) -> Result<OwnedFd> {
        let path = &self.directory;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .with_context(|| format!("mkdir({}, 0755)", path.display()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open({}, O_PATH)", path.display()))
    }

    fn remove(&self) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let mut directory = self.directory()?;
        if !parent.as_os_str().is_empty() {
            directory = make_beneath(directory, parent)?;
        }
        let name = self.path.file_name().context("a parsed path has a file name")?;
        rustix::fs::unlinkat(&directory, name, AtFlags::empty()).with_context(|| format!("unlink({self})"))
    }

    fn opening(&self) -> String {
        format!("open the log {self}")
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.directory.join(&self.path).display())
    }
}

/// `openat2` (Linux 5.6) that no symbolic link, magic link or ".." leads out of `directory`.
fn open_beneath(directory: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, path, flags, mode, resolve).map_err(|e| Errno::from_raw(e.raw_os_error()))
}

/// Opens the directory `path` beneath `directory`, making each level that is missing.
fn make_beneath(mut directory: OwnedFd, path: &Path) -> Result<OwnedFd> {
    for part in path.components() {
        let name = Path::new(part.as_os_str());
        match rustix::fs::mkdirat(&directory, name, Mode::from_bits_retain(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("mkdirat(.., {}, 0755)", path.display()));
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = open_beneath(&directory, name, flags, Mode::empty())
            .with_context(|| format!("openat2(.., {}, O_PATH)", path.display()))?;
    }
    Ok(directory)
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    location: Location,
    file: File,
    /// The file was made for a container that does not exist yet; it goes if that one never will.
    provisional: bool,
    /// Longest content of a record.
    max_line: usize,
    limit: Option<Limit>,
    gap: Option<Gap>,
    /// Bytes of output lost in all gaps before this one.
    lost: u64,
}

/// Output that could not be written, since the last write that succeeded.
#[derive(Debug)]
struct Gap {
    bytes: u64,
    cause: Refusal,
}

/// Why a record is not in the log.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Failed(Errno),
    /// The file may not be longer than this, in bytes.
    Limit(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Failed(errno) => errno.fmt(f),
            Refusal::Limit(bytes) => write!(f, "the log has reached its limit of {bytes} bytes"),
        }
    }
}

impl Log {
    /// Opens the log of a container about to be created; dropped without [`keep`](Log::keep) it removes what it made.
    /// With `limit` the file may have so many bytes at most.
    pub(crate) fn open(location: Location, max_line: usize, limit: Option<u64>) -> Result<Log> {
        let (file, provisional) = location.open()?;
        Ok(Log {
            limit: limit.map(|bytes| Limit::of(bytes, &file)).transpose()?,
            location,
            file,
            provisional,
            max_line,
            gap: None,
            lost: 0,
        })
    }

    /// Bytes of output that could not be written, told in the log or not yet.
    pub(crate) fn lost(&self) -> u64 {
        self.lost + self.gap.as_ref().map_or(0, |gap| gap.bytes)
    }

    /// The container exists: its log stays.
    pub(crate) fn keep(&mut self) {
        self.provisional = false;
    }

    /// Opens the path anew; the old file stays in use where that fails.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let (file, _made) = self.location.open()?;
        let limit = self.limit.as_ref().map(|limit| Limit::of(limit.bytes, &file));
        self.limit = limit.transpose()?;
        self.file = file;
        Ok(())
    }

    /// The end of what `stream` has written into the file in use, whatever its name is by now; none where the end was lost.
    pub(crate) fn tail(&self, stream: Stream) -> Result<Option<Tail>> {
        if self.gap.is_some() {
            return Ok(None);
        }
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::open(&path).with_context(|| format!("open({path})"));
        file.and_then(|file| tail::read(file, stream))
            .map(Some)
            .with_context(|| format!("read the log {}", self.location))
    }

    /// Writes the records that `data`, the latest output of one stream, completes.
    pub(crate) fn append(&mut self, stream: Stream, lines: &mut Lines, data: &[u8]) {
        let now_ns = clock::now_ns();
        let mut batch = Batch::default();
        for piece in data.chunks(PIECE) {
            lines.feed(stream, now_ns, piece, self.max_line, &mut batch);
            if batch.records.len() > BATCH {
                self.write(&std::mem::take(&mut batch));
            }
        }
        self.write(&batch);
    }

    /// Writes what one stream left unfinished at its end.
    pub(crate) fn finish(&mut self, stream: Stream, lines: &mut Lines) {
        let mut batch = Batch::default();
        lines.finish(stream, clock::now_ns(), &mut batch);
        self.write(&batch);
    }

    /// Writes whole records, or none and counts what is lost. A full disk must not stall the container, which may be
    /// the one that is going to free space; so nothing is kept for later.
    fn write(&mut self, batch: &Batch) {
        if batch.records.is_empty() {
            return;
        }
        let written = match &self.gap {
            None => self.put(&batch.records),
            // Notice and records at once: a notice alone would fit where records do not, again and again.
            Some(gap) => self.put(&[gap.notice(), batch.records.clone()].concat()),
        };
        match (written, self.gap.take()) {
            (Ok(()), None) => {}
            (Ok(()), Some(gap)) => {
                self.lost += gap.bytes;
                report!("write({}): works again, {} bytes lost", self.location, gap.bytes);
            }
            (Err(cause), gap) => {
                let mut gap = gap.unwrap_or_else(|| {
                    report!("write({}): {cause}; output is dropped", self.location);
                    self.mark_end(cause);
                    Gap { bytes: 0, cause }
                });
                gap.bytes += batch.output as u64;
                self.gap = Some(gap);
            }
        }
    }
}

impl Log {
    /// Appends all of `records` or none.
    fn put(&mut self, records: &[u8]) -> Result<(), Refusal> {
        if let Some(limit) = &mut self.limit
            && !limit.admits(records.len(), &self.file)
        {
            return Err(Refusal::Limit(limit.bytes));
        }
        write_whole(&mut self.file, records).map_err(Refusal::Failed)?;
        if let Some(limit) = &mut self.limit {
            limit.grown(records.len());
        }
        Ok(())
    }

    /// Says at the end of a log that has reached its limit why there is no more; room is left for that.
    fn mark_end(&mut self, cause: Refusal) {
        let (Refusal::Limit(_), Some(limit)) = (cause, &mut self.limit) else {
            return;
        };
        let mut batch = Batch::default();
        let text = format!("[corten-shim: {cause}; more is dropped until it is rotated]");
        batch.push(Stream::Stderr, clock::now_ns(), true, &[text.as_bytes()]);
        if limit.admits_notice(batch.records.len()) && write_whole(&mut self.file, &batch.records).is_ok() {
            limit.grown(batch.records.len());
        }
    }
}

impl Gap {
    /// Tells the log's reader of the gap.
    fn notice(&self) -> Vec<u8> {
        let mut batch = Batch::default();
        let text = format!("[corten-shim: {} bytes of output lost: {}]", self.bytes, self.cause);
        batch.push(Stream::Stderr, clock::now_ns(), true, &[text.as_bytes()]);
        batch.records
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.provisional
            && let Err(error) = self.location.remove()
        {
            report!("{error:#}");
        }
    }
}

/// Appends all of `records` to the file, or none: what a failing write left behind is cut off again.
fn write_whole(file: &mut File, records: &[u8]) -> Result<(), Errno> {
    let mut written = 0;
    while written < records.len() {
        match file.write(&records[written..]) {
            Ok(0) => return Err(Errno::ENOSPC),
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                truncate_tail(file, written);
                return Err(Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)));
            }
        }
    }
    Ok(())
}

/// Cuts the last `tail` bytes, which this process has just appended: after O_APPEND writes the offset is their end.
fn truncate_tail(file: &File, tail: usize) {
    let Ok(tail) = i64::try_from(tail) else {
        return;
    };
    if tail == 0 {
        return;
    }
    let cut = lseek(file, 0, Whence::SeekCur).and_then(|end| ftruncate(file, end - tail));
    if let Err(errno) = cut {
        report!("ftruncate of a log after a failed write: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces, ends the stream, and returns `(F or P, content)` of each record.
    fn records(pieces: &[&[u8]]) -> Vec<(char, Vec<u8>)> {
        let (mut lines, mut out) = (Lines::default(), Batch::default());
        for piece in pieces {
            lines.feed(Stream::Stdout, 0, piece, DEFAULT_LINE, &mut out);
        }
        lines.finish(Stream::Stdout, 0, &mut out);
        let header = b"1970-01-01T00:00:00.000000000Z stdout ".len();
        assert_eq!(out.output, pieces.iter().map(|piece| piece.len()).sum::<usize>());
        out.records
            .split_inclusive(|b| *b == b'\n')
            .map(|record| {
                (
                    char::from(record[header]),
                    record[header + 2..record.len() - 1].to_vec(),
                )
            })
            .collect()
    }

    #[test]
    fn lines_become_records() {
        let f = |text: &str| ('F', text.as_bytes().to_vec());
        let p = |text: &str| ('P', text.as_bytes().to_vec());
        let long = "x".repeat(DEFAULT_LINE);
        type Case<'a> = (&'a [&'a str], Vec<(char, Vec<u8>)>);
        let cases: &[Case<'_>] = &[
            (&[], vec![]),
            (&["a\n"], vec![f("a")]),
            (&["a\nb\n"], vec![f("a"), f("b")]),
            (&["\n\n"], vec![f(""), f("")]),
            (&["a", "b", "\n"], vec![f("ab")]),
            (&["a\r\n"], vec![f("a\r")]),
            (&["a\nb"], vec![f("a"), p("b")]),
            (&[&long, "\n"], vec![f(&long)]),
            (&[&long, "y\n"], vec![p(&long), f("y")]),
            (&[&long], vec![p(&long)]),
            (&["ab", &long, "\n"], vec![p(&format!("ab{}", &long[2..])), f("xx")]),
            (&[&long, &long, "\n"], vec![p(&long), f(&long)]),
        ];
        for (pieces, expected) in cases {
            let pieces: Vec<&[u8]> = pieces.iter().map(|p| p.as_bytes()).collect();
            assert_eq!(
                &records(&pieces),
                expected,
                "{:?}",
                pieces.iter().map(|p| p.len()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        assert_eq!(records(&[b"\xff\x00\xfe\n"]), vec![('F', b"\xff\x00\xfe".to_vec())]);
    }

    #[test]
    fn locations() {
        assert_eq!(Location::parse("", "").expect("no log"), None);
        assert!(Location::parse("/var/log/pods/x", "c/0.log").expect("valid").is_some());
        for (directory, path) in [
            ("var/log", "0.log"),
            ("", "0.log"),
            ("/var/log", "../0.log"),
            ("/var/log", "a/../0.log"),
            ("/var/log", "/etc/passwd"),
            ("/var/log", "."),
            ("/var/log", "dir/"),
            ("/var/log", "a\0b"),
        ] {
            assert!(Location::parse(directory, path).is_err(), "{directory} {path}");
        }
    }
}
