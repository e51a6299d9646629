//! The header blocks of an entry: the ustar or GNU header, and the extensions before it.
//!
//! ```text
//! [L: long name] [K: long link] [x: PAX records "LENGTH KEY=VALUE\n"] header   each padded to 512 bytes
//! ```
//! The tar crate finds the blocks and checks their sums, but it splits PAX records at line breaks, and a value may hold
//! one: a file capability, for example. Read its way, such a record hides those after it or passes for others, which is
//! how archives have meant different things to different readers (CVE-2026-33055). So the records are read here, by their
//! length, and where the two readings differ in what decides where the next entry begins, the layer is refused.

use anyhow::Result;
use tar::{EntryType, Header};

use super::entry::{ensure_valid, invalid, malformed};

/// Size of a block, the archive's unit.
const BLOCK: usize = 512;

/// Key and value of a PAX record.
type Record = (Vec<u8>, Vec<u8>);

/// A header and what its extensions say instead.
#[derive(Debug)]
pub(super) struct Extended {
    pub(super) header: Header,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    /// Keys and values in the archive's order.
    pub(super) records: Vec<Record>,
}

impl Extended {
    /// Reads the blocks from the end of one entry's content to the beginning of the next one's.
    pub(super) fn parse(mut blocks: &[u8]) -> Result<Extended> {
        let (mut name, mut link, mut records) = (None, None, Vec::new());
        loop {
            let cut = || invalid("its headers are cut off");
            let block = blocks.get(..BLOCK).ok_or_else(cut)?;
            let header = Header::from_byte_slice(block);
            let kind = header.entry_type();
            if !(kind.is_gnu_longname() || kind.is_gnu_longlink() || kind == EntryType::XHeader) {
                return Ok(Extended {
                    header: header.clone(),
                    name,
                    link,
                    records,
                });
            }
            let size = usize::try_from(header.entry_size().map_err(malformed)?).unwrap_or(usize::MAX);
            let data = blocks[BLOCK..].get(..size).ok_or_else(cut)?;
            match kind {
                EntryType::GNULongName => name = Some(until_nul(data)),
                EntryType::GNULongLink => link = Some(until_nul(data)),
                _ => records = parse_records(data)?,
            }
            let next = BLOCK + size.next_multiple_of(BLOCK);
            blocks = blocks.get(next..).ok_or_else(cut)?;
        }
    }

    /// The entry's name.
    pub(super) fn path(&self) -> Vec<u8> {
        let long = self.record(b"path").or(self.name.as_deref());
        long.map_or_else(|| self.header.path_bytes().into_owned(), <[u8]>::to_vec)
    }

    /// The target of a link; empty where there is none.
    pub(super) fn link(&self) -> Vec<u8> {
        let long = self.record(b"linkpath").or(self.link.as_deref());
        let short = || self.header.link_name_bytes().unwrap_or_default().into_owned();
        long.map_or_else(short, <[u8]>::to_vec)
    }

    /// A number of the header, or of the PAX record that is there for what a header cannot hold.
    pub(super) fn number(&self, key: &str, of_header: std::io::Result<u64>) -> Result<u64> {
        let Some(text) = self.record(key.as_bytes()) else {
            return of_header.map_err(malformed);
        };
        decimal(text).ok_or_else(|| invalid(format!("PAX record {key}: must be a decimal number")))
    }

    /// The last record of a key; an empty value means the header's (POSIX, pax, "Extended Header").
    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        let found = self.records.iter().rev().find(|(known, _)| known == key);
        found
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
    }
}

fn until_nul(data: &[u8]) -> Vec<u8> {
    data.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn parse_records(mut data: &[u8]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    // Some writers fill the rest of the block.
    while data.first().is_some_and(|byte| *byte != 0) {
        let (record, rest) = split_record(data).ok_or_else(|| invalid("malformed PAX record"))?;
        records.push(record);
        data = rest;
    }
    ensure_valid(data.iter().all(|byte| *byte == 0), "malformed PAX record")?;
    Ok(records)
}

/// The first record and what follows it. Its length counts everything: its own digits, the blank and the line break.
fn split_record(data: &[u8]) -> Option<(Record, &[u8])> {
    let blank = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let record = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((
        (record[..equals].to_vec(), record[equals + 1..].to_vec()),
        &data[length..],
    ))
}

/// Digits only: no sign and no blank, which `parse` would partly take.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `KEY VALUE` of every record.
    fn read(data: &[u8]) -> Option<Vec<String>> {
        let records = parse_records(data).ok()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let shown = |(key, value): &Record| format!("{} {}", text(key), text(value));
        Some(records.iter().map(shown).collect())
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        assert_eq!(read(b"").unwrap(), [""; 0]);
        assert_eq!(read(b"7 a=bc\n").unwrap(), ["a bc"]);
        assert_eq!(read(b"5 a=\n6 b==\n\0\0").unwrap(), ["a ", "b ="]);
        // A line that looks like a record belongs to the value it is in.
        assert_eq!(read(b"19 x=y\n11 path=/z\n\n").unwrap(), ["x y\n11 path=/z\n"]);
        let bad: [&[u8]; 9] = [
            b"x",
            b"6 a=bc\n",
            b"8 a=bc\n",
            b"99 a=b\n",
            b"5 abc\n",
            b"+6 a=b\n",
            b" a=b\n",
            b"0 a=b\n",
            b"6 a=b\n\0x",
        ];
        for data in bad {
            assert!(read(data).is_none(), "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn extensions_replace_what_the_header_says() {
        let mut builder = tar::Builder::new(Vec::new());
        let pax: [(&str, &[u8]); 3] = [("path", b"new\nname"), ("linkpath", b""), ("uid", b"7")];
        builder.append_pax_extensions(pax).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("old").unwrap();
        header.set_link_name("target").unwrap();
        header.set_uid(5);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        let extended = Extended::parse(&archive).unwrap();
        assert_eq!(
            (extended.path(), extended.link()),
            (b"new\nname".to_vec(), b"target".to_vec())
        );
        assert_eq!(extended.number("uid", extended.header.uid()).unwrap(), 7);
        assert_eq!(extended.number("gid", Ok(3)).unwrap(), 3);
        for length in [0, 100, 512, 600, 1024] {
            assert!(Extended::parse(&archive[..length]).is_err(), "{length}");
        }
    }
}
