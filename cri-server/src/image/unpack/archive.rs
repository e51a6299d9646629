//! The structure of an archive: entries one after the other, their extensions and their content. Reads, writes nothing.
//!
//! ```text
//! [L: long name] [K: long link] [x: PAX records] header [GNU sparse map] content   each padded to 512 bytes
//! two blocks of zeros, then whatever fills the last record
//! ```
//! Memory is bounded: the content passes by, and what precedes it has a limit. Where readers of the field disagree on
//! what an archive says (a link with content, a name in two extensions, a lone block of zeros, a global PAX header that
//! is more than a comment) it is refused.

use std::io::{self, BufRead};

use anyhow::{Context, Result};

use super::entry::{ensure_valid, invalid, quoted};
use super::header::{BLOCK, Header, Record, decimal, parse_records, until_nul};
use super::sparse::{self, Map, Pax};

/// Most bytes of the extensions before one entry. They are kept in memory, and their length is the image's word.
const MAX_EXTENSIONS: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Directory,
    Symlink,
    /// Another name of an earlier entry's file.
    Link,
    Char,
    Block,
    Fifo,
}

/// The archive that `input` delivers.
pub(super) struct Archive<R> {
    input: R,
    /// Of the present entry's content.
    left: u64,
    /// After it.
    padding: u64,
}

/// One entry: its header, and what the extensions before it say instead.
pub(super) struct Entry {
    pub(super) header: Header,
    pub(super) kind: Kind,
    /// Where the content belongs, if the file has holes.
    pub(super) sparse: Option<Map>,
    extensions: Extensions,
}

#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    /// In the archive's order.
    records: Vec<Record>,
    bytes: u64,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Archive {
            input,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry, whose content [`Archive::content`] has; what is left of the one before is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                let complete = extensions.bytes == 0;
                ensure_valid(complete, "the archive ends between an extension and its entry")?;
                return Ok(None);
            };
            match header.flag() {
                b'L' => extensions.name = Some(until_nul(&self.extension(&header, &mut extensions)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.extension(&header, &mut extensions)?).to_vec()),
                b'x' => extensions.records = parse_records(&self.extension(&header, &mut extensions)?, counts)?,
                b'g' => check_global(&parse_records(
                    &self.extension(&header, &mut Extensions::default())?,
                    counts,
                )?)?,
                _ => {
                    let name = header.name();
                    let entry = self.begin(header, extensions);
                    let entry = entry.with_context(|| format!("entry {}", quoted(&name)));
                    return entry.map(Some);
                }
            }
        }
    }

    /// The next piece of the entry's content; empty at its end.
    pub(super) fn content(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let piece = fill(&mut self.input)?;
        ensure_valid(!piece.is_empty(), "the archive ends inside the content")?;
        let length = usize::try_from(self.left).map_or(piece.len(), |left| left.min(piece.len()));
        Ok(&piece[..length])
    }

    /// Marks the first `count` bytes of the content as taken.
    pub(super) fn consume(&mut self, count: usize) {
        self.left -= count as u64;
        self.input.consume(count);
    }

    /// Reads what follows the last entry.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            let length = fill(&mut self.input)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip(&mut self) -> Result<()> {
        loop {
            let length = self.content()?.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        let padding = usize::try_from(std::mem::take(&mut self.padding))?;
        let mut filling = [0; BLOCK];
        let read = self.read(&mut filling[..padding])?;
        ensure_valid(read == padding, "the archive ends inside a block")
    }

    /// The header that comes next; `None` at the end, which two blocks of zeros mark, or nothing at all.
    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.block()? else { return Ok(None) };
        let header = Header(block);
        if !header.is_zero() {
            header.check_sum()?;
            return Ok(Some(header));
        }
        let second = self.block()?;
        let ends = second.is_none_or(|second| Header(second).is_zero());
        ensure_valid(ends, "a lone block of zeros between entries")?;
        Ok(None)
    }

    /// The content of an extension.
    fn extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<Vec<u8>> {
        let size = size(header.size()?)?;
        extensions.bytes = extensions.bytes.saturating_add(size).saturating_add(BLOCK as u64);
        let bounded = extensions.bytes <= MAX_EXTENSIONS;
        ensure_valid(bounded, "headers of more than 1048576 bytes")?;
        self.expect(size);
        let mut data = Vec::with_capacity(usize::try_from(size)?);
        loop {
            let piece = self.content()?;
            if piece.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
    }

    fn begin(&mut self, header: Header, extensions: Extensions) -> Result<Entry> {
        let stored = match extensions.number("size")? {
            Some(size) => size,
            None => size(header.size()?)?,
        };
        let mut entry = Entry {
            kind: Kind::Regular,
            header,
            sparse: None,
            extensions,
        };
        entry.kind = kind(entry.header.flag(), &entry.path()?)?;
        let has_content = entry.kind == Kind::Regular;
        ensure_valid(
            has_content || stored == 0,
            "content of something that is no regular file",
        )?;
        if has_content {
            entry.sparse = self.sparse(&entry, stored)?;
        }
        if entry.sparse.is_none() {
            self.expect(stored);
        }
        Ok(entry)
    }

    /// The map of a file with holes, after which its content follows.
    fn sparse(&mut self, entry: &Entry, stored: u64) -> Result<Option<Map>> {
        let map = if entry.header.flag() == b'S' {
            let map = self.gnu_map(&entry.header)?;
            self.expect(stored);
            map
        } else {
            match sparse::from_records(&entry.extensions.records)? {
                Pax::None => return Ok(None),
                Pax::Whole(map) => {
                    self.expect(stored);
                    map
                }
                Pax::BeforeContent(size) => {
                    self.expect(stored);
                    sparse::before_content(size, || self.content_block())?
                }
            }
        };
        map.check(self.left)?;
        Ok(Some(map))
    }

    fn gnu_map(&mut self, header: &Header) -> Result<Map> {
        let fields = &header.0;
        let mut chunks = Vec::new();
        sparse::add_gnu(&mut chunks, &fields[386..482])?;
        let mut continues = fields[482] != 0;
        while continues {
            let block = self.block()?;
            let block = block.ok_or_else(|| invalid("the archive ends inside a sparse map"))?;
            sparse::add_gnu(&mut chunks, &block[..504])?;
            continues = block[504] != 0;
        }
        let size = size(super::header::number("sparse size", &fields[483..495])?)?;
        Ok(Map { size, chunks })
    }

    /// The next block of the content itself.
    fn content_block(&mut self) -> Result<[u8; BLOCK]> {
        let holds = self.left >= BLOCK as u64;
        ensure_valid(holds, "sparse: the map is longer than the content")?;
        let block = self.block()?;
        self.left -= BLOCK as u64;
        block.ok_or_else(|| invalid("the archive ends inside the content"))
    }

    /// The next block; `None` if the archive ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        match self.read(&mut block)? {
            BLOCK => Ok(Some(block)),
            0 => Ok(None),
            _ => Err(invalid("the archive ends inside a block")),
        }
    }

    /// Fills `buffer`, or as much of it as there is left.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let piece = fill(&mut self.input)?;
            let length = piece.len().min(buffer.len() - filled);
            if length == 0 {
                break;
            }
            buffer[filled..filled + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            filled += length;
        }
        Ok(filled)
    }
}

/// What can fail here is the download or the packing, never this node.
fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    input.fill_buf().map_err(|error: io::Error| invalid(error.to_string()))
}

fn size(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_negative| invalid(format!("size {value}: must not be negative")))
}

/// Whether a PAX record of this key says anything that is applied.
fn counts(key: &[u8]) -> bool {
    matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime")
        || key.starts_with(b"SCHILY.xattr.")
        || key.starts_with(b"GNU.sparse.")
}

/// A global PAX header speaks of all entries that follow: to POSIX and to GNU tar, and to the readers of Go not at all.
/// `records` are those that count.
fn check_global(records: &[Record]) -> Result<()> {
    records.first().map_or(Ok(()), |(key, _)| {
        let key = quoted(key);
        Err(invalid(format!("global PAX record {key} is not supported")))
    })
}

/// What an entry of this type flag and name is.
fn kind(flag: u8, path: &[u8]) -> Result<Kind> {
    let names_directory = path.ends_with(b"/");
    match flag {
        // The seventh edition's archives have no type of directories.
        0 if names_directory => Ok(Kind::Directory),
        b'0' | b'7' if names_directory => Err(invalid("a regular file whose name ends in /")),
        0 | b'0' | b'7' | b'S' => Ok(Kind::Regular),
        b'1' => Ok(Kind::Link),
        b'2' => Ok(Kind::Symlink),
        b'3' => Ok(Kind::Char),
        b'4' => Ok(Kind::Block),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        other => Err(invalid(format!("type {:?} is not supported", char::from(other)))),
    }
}

impl Entry {
    /// The name for messages, quoted.
    pub(super) fn shown(&self) -> String {
        quoted(&self.path().unwrap_or_else(|_unclear| self.header.name()))
    }

    /// The name, as raw as it was written.
    pub(super) fn path(&self) -> Result<Vec<u8>> {
        let mut long = self.extensions.either(b"path", self.extensions.name.as_ref())?;
        if self.sparse.is_some() {
            // The other name is made up for readers that do not know of holes.
            long = self.extensions.record(b"GNU.sparse.name").or(long);
        }
        Ok(long.map_or_else(|| self.header.name(), <[u8]>::to_vec))
    }

    /// The target of a link; empty where there is none.
    pub(super) fn link(&self) -> Result<Vec<u8>> {
        let long = self.extensions.either(b"linkpath", self.extensions.link.as_ref())?;
        Ok(long.unwrap_or(self.header.link()).to_vec())
    }

    /// The PAX record that stands for a number too large for its field.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        self.extensions.number(key)
    }

    /// Keys and values of the PAX records, in the archive's order.
    pub(super) fn records(&self) -> &[Record] {
        &self.extensions.records
    }
}

impl Extensions {
    /// The last record of a key; an empty value means the header's (POSIX, pax, "Extended Header").
    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        let found = self.records.iter().rev().find(|(known, _)| known == key);
        found
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
    }

    /// A text that PAX and GNU have extensions for. With both, readers differ in which they take.
    fn either<'a>(&'a self, key: &[u8], gnu: Option<&'a Vec<u8>>) -> Result<Option<&'a [u8]>> {
        let (pax, gnu) = (self.record(key), gnu.map(Vec::as_slice));
        let agree = pax.is_none() || gnu.is_none() || pax == gnu;
        ensure_valid(agree, "its name or target differs between two extensions")?;
        Ok(pax.or(gnu))
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.record(key.as_bytes()) else {
            return Ok(None);
        };
        let number = decimal(text).filter(|number| i64::try_from(*number).is_ok());
        let wrong = || invalid(format!("PAX record {key}: must be a decimal number"));
        number.map(Some).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of this type, name and size, with a valid checksum.
    fn header(flag: u8, name: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn block(flag: u8, name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(flag, name, content.len() as u64).as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    /// Name, link and content of every entry.
    fn read(archive: &[u8]) -> Result<Vec<(String, String, usize)>> {
        let mut archive = Archive::new(archive);
        let mut found = Vec::new();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        while let Some(entry) = archive.next()? {
            let mut length = 0;
            loop {
                let piece = archive.content()?.len().min(100);
                if piece == 0 {
                    break;
                }
                archive.consume(piece);
                length += piece;
            }
            found.push((text(entry.path()?), text(entry.link()?), length));
        }
        archive.drain()?;
        Ok(found)
    }

    #[test]
    fn extensions_replace_what_the_header_says() {
        let records = b"17 path=new\nname\n13 linkpath=\n9 size=3\n";
        let mut archive = block(b'x', "pax", records);
        archive.extend(block(b'0', "old", b"abc"));
        archive.extend(block(b'L', "././@LongLink", b"long/name\0rest"));
        archive.extend(block(b'K', "././@LongLink", b"long/link\0"));
        archive.extend(block(b'g', "global", b"9 a=bcde\n"));
        archive.extend(block(b'2', "old", b""));
        archive.extend([0; 2 * BLOCK]);
        archive.extend(b"anything at all");
        let expected = [("new\nname", "", 3), ("long/name", "long/link", 0)];
        let expected = expected.map(|(path, link, size)| (path.to_owned(), link.to_owned(), size));
        assert_eq!(read(&archive).unwrap(), expected);
    }

    #[test]
    fn every_cut_that_is_not_between_entries_is_refused() {
        let mut archive = block(b'x', "pax", b"11 path=ab\n");
        archive.extend(block(b'0', "old", &[7; 700]));
        let ends = [0, archive.len()];
        for length in 0..=archive.len() {
            assert_eq!(read(&archive[..length]).is_ok(), ends.contains(&length), "{length}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let chain = |parts: &[Vec<u8>]| parts.concat();
        let file = || block(b'0', "a", b"");
        let mut wrong_sum = file();
        wrong_sum[0] = b'b';
        let negative = {
            let mut header = header(b'0', "a", 0);
            header.as_mut_bytes()[124..136].fill(0xff);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let table = [
            (wrong_sum, "checksum"),
            (negative, "must not be negative"),
            (block(b'1', "a", b"x"), "no regular file"),
            (block(b'5', "a", b"x"), "no regular file"),
            (block(b'0', "a/", b""), "ends in /"),
            (block(b'Q', "a", b""), "not supported"),
            (chain(&[vec![0; BLOCK], file()]), "lone block"),
            (
                chain(&[block(b'L', "", b"b\0"), block(b'x', "", b"9 path=c\n"), file()]),
                "differs between",
            ),
            (chain(&[block(b'x', "", b"8 size=-1\n"), file()]), "malformed PAX"),
            (chain(&[block(b'x', "", b"11 size=-1\n"), file()]), "decimal"),
            (block(b'x', "", &vec![b'x'; 1 << 20]), "headers of more than"),
            (block(b'g', "", b"8 uid=7\n"), "global PAX record \"uid\""),
            (block(b'g', "", b"no record"), "malformed PAX"),
        ];
        for (archive, says) in table {
            let error = format!("{:#}", read(&archive).map(drop).unwrap_err());
            assert!(error.contains(says), "{error} should say {says}");
        }
    }
}
