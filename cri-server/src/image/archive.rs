//! An archive of images as a file: which names are in it, and where in the file their content is.
//!
//! An archive may come packed and its parts in any order, and the part that says what the others are is often the last.
//! So it is first written, unpacked once, to a file without a name below the store's root, which is gone with the process
//! however that ends. Then its headers alone are read, and each part is read where it is.
//!
//! The archive is a stranger's: the number of its entries, the size of what is kept in memory and the size of the whole
//! are bounded, and a name that comes twice or links that lead nowhere are refused. Nothing is believed of what it says
//! about its parts: their digests are checked by whoever reads them.
//!
//! Left out: packings other than gzip and zstd; entries of 8 GiB and more whose size is in a PAX record.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tar::EntryType;
use tokio::sync::mpsc;

use super::decode::unzstd;
use super::error::PullError;

/// Largest archive, unpacked: no more than fits a large disk.
const MAX_ARCHIVE: u64 = 256 << 30;

/// Bytes written between two looks at the room that is left, and the part of the disk that must be.
pub(super) const CHECK_EVERY: u64 = 64 << 20;
const LEFT_FREE: u64 = 20;

/// Most entries. An image has a few for each of at most 127 layers.
const MAX_ENTRIES: usize = 100_000;

/// Longest name, and longest header that extends another.
const MAX_EXTENSION: u64 = 64 << 10;

/// How many links may lead from one to the next.
const MAX_LINKS: usize = 8;

/// Where an archive comes from.
pub enum ArchiveSource {
    /// Piece by piece.
    Pieces(mpsc::Receiver<Result<Bytes, PullError>>),
    /// A file of this node. Packed, it is read piece by piece too.
    File(File),
}

/// A part of the archive's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Section {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Item {
    File(Section),
    /// The name it stands for.
    Link(String),
}

/// An archive whose parts can be read.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    items: HashMap<String, Item>,
}

impl Archive {
    /// Takes in the whole of `source`; a file must not be packed. Blocks. `dir` is where an unpacked copy may lie.
    pub(super) fn open(source: ArchiveSource, dir: &Path) -> Result<Archive, PullError> {
        let file = match source {
            ArchiveSource::Pieces(pieces) => {
                let mut pieces = Pieces::new(pieces);
                let spooled = spool(&mut pieces, dir);
                // What broke off shows as a broken archive; the cause is what counts.
                match pieces.failure {
                    Some(failure) => return Err(failure),
                    None => spooled?,
                }
            }
            ArchiveSource::File(file) => file,
        };
        let items = index(&file)?;
        Ok(Archive { file, items })
    }

    /// Whether it has a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Where the file of this name is.
    pub(super) fn find(&self, name: &str) -> Result<Section, PullError> {
        let mut name = clean(name).unwrap_or_default();
        for _ in 0..MAX_LINKS {
            match self.items.get(&name) {
                Some(Item::File(section)) => return Ok(*section),
                Some(Item::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        Err(PullError::refused(format!("archive: it has no file {name:?}")))
    }

    /// The whole content of a file of at most `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, PullError> {
        let section = self.find(name)?;
        if section.size > limit {
            let size = section.size;
            return Err(PullError::refused(format!(
                "archive: {name:?} has {size} bytes, at most {limit}"
            )));
        }
        self.read_at(section)
    }

    /// The content of a section, which the caller knows to be small.
    pub(super) fn read_at(&self, section: Section) -> Result<Vec<u8>, PullError> {
        let size = usize::try_from(section.size).unwrap_or(usize::MAX);
        let mut content = vec![0; size];
        let read = self.file.read_exact_at(&mut content, section.offset);
        let read = read.context("read the archive");
        read.map_err(|error| PullError::local(&error))?;
        Ok(content)
    }
}

/// Writes `source` to a file without a name, its gzip packing undone.
fn spool(source: &mut impl Read, dir: &Path) -> Result<File, PullError> {
    let mut start = Vec::new();
    source
        .by_ref()
        .take(MAGIC as u64)
        .read_to_end(&mut start)
        .map_err(|error| malformed(&error))?;
    let packing = Packing::of(&start);
    let whole = BufReader::with_capacity(256 << 10, io::Cursor::new(start).chain(source));
    let mut content: Box<dyn Read + '_> = match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Packing::Zstd => Box::new(unzstd(whole).map_err(|error| malformed(&error))?),
        Packing::None => Box::new(whole),
        Packing::Other(name) => {
            let text = format!("archive: packed with {name}; only gzip, zstd and unpacked archives are supported");
            return Err(PullError::refused(text));
        }
    };
    let mut file = tempfile::tempfile_in(dir)
        .with_context(|| format!("make a file in {}", dir.display()))
        .map_err(|error| PullError::local(&error))?;
    let mut limited = content.by_ref().take(MAX_ARCHIVE + 1);
    let written = copy(&mut limited, &mut file)?;
    if written > MAX_ARCHIVE {
        return Err(PullError::refused(format!(
            "archive: unpacked it has more than {MAX_ARCHIVE} bytes"
        )));
    }
    Ok(file)
}

/// `io::copy`, with failures to read told from those to write.
fn copy(from: &mut impl Read, to: &mut File) -> Result<u64, PullError> {
    let mut buffer = vec![0; 256 << 10];
    let (mut total, mut unchecked) = (0, 0);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(malformed(&error)),
        };
        let written = io::Write::write_all(to, &buffer[..count]).context("write the unpacked archive");
        written.map_err(|error| PullError::local(&error))?;
        total += count as u64;
        unchecked += count as u64;
        if unchecked >= CHECK_EVERY {
            unchecked = 0;
            check_space(to)?;
        }
    }
}

/// A few kilobytes may unpack to more than there is room for, and a full disk costs a node its pods.
pub(crate) fn check_space(file: &File) -> Result<(), PullError> {
    let space = rustix::fs::fstatvfs(file).context("fstatvfs of an archive");
    let space = space.map_err(|error| PullError::local(&error))?;
    if space.f_bavail < space.f_blocks / LEFT_FREE {
        let error = anyhow::anyhow!("the archive would leave less than a {LEFT_FREE}th of the disk free");
        return Err(PullError::local(&error));
    }
    Ok(())
}

fn malformed(error: &io::Error) -> PullError {
    PullError::refused(format!("archive: {error}"))
}

/// How many bytes tell a packing.
const MAGIC: usize = 6;

/// How an archive or a layer is packed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
    /// One that is known by name only.
    Other(&'static str),
}

impl Packing {
    pub(super) fn of(start: &[u8]) -> Packing {
        let known: [(&[u8], Packing); 4] = [
            (b"\x1f\x8b", Packing::Gzip),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
            (b"\xfd7zXZ\0", Packing::Other("xz")),
            (b"BZh", Packing::Other("bzip2")),
        ];
        let found = known.iter().find(|(magic, _)| start.starts_with(magic));
        found.map_or(Packing::None, |(_, packing)| *packing)
    }
}

/// Whether an archive in a file must be unpacked to be read. Blocks.
pub(super) fn is_packed(file: &File) -> Result<bool, PullError> {
    let mut start = [0; MAGIC];
    let read = file.read_at(&mut start, 0).context("read the archive");
    let count = read.map_err(|error| PullError::local(&error))?;
    Ok(Packing::of(&start[..count]) != Packing::None)
}

/// Reads the headers of the archive: each name and where its content is.
fn index(file: &File) -> Result<HashMap<String, Item>, PullError> {
    let length = file.metadata().context("stat the archive");
    let length = length.map_err(|error| PullError::local(&error))?.len();
    let mut items = HashMap::new();
    let mut archive = tar::Archive::new(Whole { file, position: 0 });
    // Raw: the reader would keep extension headers of any length in memory.
    let entries = archive
        .entries_with_seek()
        .map_err(|error| malformed(&error))?
        .raw(true);
    let mut extension = Extension::default();
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|error| malformed(&error))?;
        if count >= MAX_ENTRIES {
            return Err(PullError::refused(format!("archive: more than {MAX_ENTRIES} entries")));
        }
        let section = Section {
            offset: entry.raw_file_position(),
            size: entry.size(),
        };
        if section.offset.checked_add(section.size).is_none_or(|end| end > length) {
            return Err(PullError::refused("archive: it ends inside an entry"));
        }
        if extension.take(&mut entry)? {
            continue;
        }
        let Extension { path, link } = std::mem::take(&mut extension);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let target = link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
        add(
            &mut items,
            entry.header().entry_type(),
            section,
            &path,
            &target.unwrap_or_default(),
        )?;
    }
    Ok(items)
}

/// Notes one entry. Directories and what else is no content is passed over.
fn add(
    items: &mut HashMap<String, Item>,
    kind: EntryType,
    section: Section,
    path: &[u8],
    target: &[u8],
) -> Result<(), PullError> {
    // No part of an image has another name.
    let (Ok(path), Ok(target)) = (std::str::from_utf8(path), std::str::from_utf8(target)) else {
        return Ok(());
    };
    let Some(name) = clean(path) else { return Ok(()) };
    let item = match kind {
        EntryType::Regular | EntryType::Continuous => Item::File(section),
        EntryType::Link => Item::Link(clean(target).unwrap_or_default()),
        // Docker before 25 wrote a layer once and links to it, relative to the link.
        EntryType::Symlink => {
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            Item::Link(clean(&format!("{dir}/{target}")).unwrap_or_default())
        }
        _ => return Ok(()),
    };
    match items.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(item);
            Ok(())
        }
        Entry::Occupied(occupied) => {
            let text = format!("archive: {:?} is in it twice", occupied.key());
            Err(PullError::refused(text))
        }
    }
}

/// A name without `.`, `..` and doubled slashes; `None` for what is no name or leads out of the archive.
fn clean(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extension {
    /// Takes in `entry` if it is such a header.
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, PullError> {
        let kind = entry.header().entry_type();
        let extends = kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
        if !extends {
            return Ok(kind.is_pax_global_extensions());
        }
        if entry.size() > MAX_EXTENSION {
            let text = format!("archive: a header of {} bytes, at most {MAX_EXTENSION}", entry.size());
            return Err(PullError::refused(text));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| malformed(&error))?;
        if kind.is_pax_local_extensions() {
            self.take_records(&content)?;
            return Ok(true);
        }
        while content.last() == Some(&0) {
            content.pop();
        }
        match kind.is_gnu_longname() {
            true => self.path = Some(content),
            false => self.link = Some(content),
        }
        Ok(true)
    }

    fn take_records(&mut self, content: &[u8]) -> Result<(), PullError> {
        for record in tar::PaxExtensions::new(content) {
            let record = record.map_err(|error| malformed(&error))?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let text = "archive: an entry's size in a PAX record (8 GiB and more) is not supported";
                    return Err(PullError::refused(text));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The archive's file, read by position: nobody else's position moves.
struct Whole<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl io::Seek for Whole<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let position = match to {
            io::SeekFrom::Start(position) => Some(position),
            io::SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            io::SeekFrom::End(_) => None,
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// What arrives piece by piece, as one stream. Blocks; for a thread of its own.
struct Pieces {
    pieces: mpsc::Receiver<Result<Bytes, PullError>>,
    current: Bytes,
    failure: Option<PullError>,
}

impl Pieces {
    fn new(pieces: mpsc::Receiver<Result<Bytes, PullError>>) -> Self {
        Pieces {
            pieces,
            current: Bytes::new(),
            failure: None,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.current = piece,
                Some(Err(failure)) => {
                    self.failure = Some(failure);
                    return Err(io::Error::other("it broke off"));
                }
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
