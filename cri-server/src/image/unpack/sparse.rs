//! Sparse files: where a file has content and where it has holes. Pure.
//!
//! ```text
//! GNU       type S; four chunks in the header, 21 in each block that follows while its last byte says there are more
//! PAX 0.0   records GNU.sparse.offset and .numbytes in turn        PAX 0.1   record GNU.sparse.map "offset,length,..."
//! PAX 1.0   GNU.sparse.major=1; "count\noffset\nlength\n..." before the content, filled up to a block
//! ```
//! All forms that GNU tar has ever written, because all of them are in images: layers are often made by it.

use anyhow::Result;

use super::entry::{ensure_valid, invalid};
use super::header::{BLOCK, Record, decimal, number};

/// Most pieces of one file: with them its map takes 16 MiB at most, and no real file has as many.
const MAX_CHUNKS: u64 = 1 << 18;

/// What a file is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// How long the file is, holes included.
    pub(super) size: u64,
    /// Offset and length of what is no hole, in order.
    pub(super) chunks: Vec<(u64, u64)>,
}

impl Map {
    /// Checks the order of the chunks and that they take `stored`, what the archive has of the file.
    pub(super) fn check(&self, stored: u64) -> Result<()> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, length) in &self.chunks {
            ensure_valid(*offset >= end, "sparse: the pieces overlap or are out of order")?;
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= self.size)
                .ok_or_else(|| invalid("sparse: a piece is beyond the file's end"))?;
            sum += length;
        }
        ensure_valid(sum == stored, "sparse: the pieces are not as long as the content")?;
        let fits = i64::try_from(self.size).is_ok();
        ensure_valid(fits, "sparse: larger than any file")
    }
}

/// Adds the chunks of a GNU header (`block[386..482]`) or of a block after it (`block[..504]`).
pub(super) fn add_gnu(chunks: &mut Vec<(u64, u64)>, descriptors: &[u8]) -> Result<()> {
    for descriptor in descriptors.chunks_exact(24) {
        // The first empty one ends the list.
        if descriptor[0] == 0 {
            break;
        }
        let field = |part: &[u8]| u64::try_from(number("sparse", part)?).map_err(|_negative| wrong());
        chunks.push((field(&descriptor[..12])?, field(&descriptor[12..])?));
        ensure_valid((chunks.len() as u64) < MAX_CHUNKS, "sparse: too many pieces")?;
    }
    Ok(())
}

/// The form that PAX records tell of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pax {
    None,
    /// The map is among the records.
    Whole(Map),
    /// The map precedes the content of a file this long.
    BeforeContent(u64),
}

/// What the records of an entry say about holes.
pub(super) fn from_records(records: &[Record]) -> Result<Pax> {
    let value = |key: &str| {
        let found = records.iter().rev().find(|(known, _)| known == key.as_bytes());
        found.map(|(_, value)| value.as_slice())
    };
    let major = match (value("GNU.sparse.major"), value("GNU.sparse.minor")) {
        (Some(b"1"), Some(b"0") | None) => 1,
        (None | Some(b"0"), _) => 0,
        _ => return Err(invalid("sparse: a form that is not supported")),
    };
    let size = value("GNU.sparse.realsize").or(value("GNU.sparse.size"));
    if major == 1 {
        return Ok(Pax::BeforeContent(length(size)?));
    }
    let listed = |(key, _): &&Record| matches!(key.as_slice(), b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
    let numbers: Result<Vec<u64>> = match value("GNU.sparse.map") {
        Some(map) => map.split(|byte| *byte == b',').map(|text| length(Some(text))).collect(),
        None => records
            .iter()
            .filter(listed)
            .map(|(_, text)| length(Some(text)))
            .collect(),
    };
    let numbers = numbers?;
    if size.is_none() && numbers.is_empty() {
        let stray = records.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        ensure_valid(!stray, "sparse: no size")?;
        return Ok(Pax::None);
    }
    Ok(Pax::Whole(Map {
        size: length(size)?,
        chunks: pairs(&numbers)?,
    }))
}

/// The map that precedes the content: read a block at a time by `next_block`.
pub(super) fn before_content(size: u64, mut next_block: impl FnMut() -> Result<[u8; BLOCK]>) -> Result<Map> {
    let (mut numbers, mut text, mut count) = (Vec::new(), Vec::new(), None);
    loop {
        for byte in next_block()? {
            if byte != b'\n' {
                text.push(byte);
                ensure_valid(text.len() < 21, "sparse: a malformed map")?;
                continue;
            }
            let number = length(Some(&text))?;
            text.clear();
            match count {
                None if number < MAX_CHUNKS => count = Some(number * 2),
                None => return Err(invalid("sparse: too many pieces")),
                Some(_) => numbers.push(number),
            }
            // The rest of the block is filling.
            if count == Some(numbers.len() as u64) {
                let chunks = pairs(&numbers)?;
                return Ok(Map { size, chunks });
            }
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    ensure_valid(rest.is_empty(), "sparse: an offset without a length")?;
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

fn length(text: Option<&[u8]>) -> Result<u64> {
    let text = text.filter(|text| !text.is_empty());
    text.and_then(decimal).ok_or_else(wrong)
}

fn wrong() -> anyhow::Error {
    invalid("sparse: a length or offset that is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(&str, &str)]) -> Vec<Record> {
        let record = |(key, value): &(&str, &str)| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        list.iter().map(record).collect()
    }

    #[test]
    fn the_three_pax_forms() {
        let map = |size, chunks: &[(u64, u64)]| {
            Pax::Whole(Map {
                size,
                chunks: chunks.to_vec(),
            })
        };
        let table: [(&[(&str, &str)], Pax); 4] = [
            (&[("path", "a")], Pax::None),
            (
                &[
                    ("GNU.sparse.size", "9"),
                    ("GNU.sparse.offset", "1"),
                    ("GNU.sparse.numbytes", "2"),
                    ("GNU.sparse.offset", "5"),
                    ("GNU.sparse.numbytes", "0"),
                ],
                map(9, &[(1, 2), (5, 0)]),
            ),
            (
                &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,2,5,4")],
                map(9, &[(1, 2), (5, 4)]),
            ),
            (
                &[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.realsize", "77"),
                ],
                Pax::BeforeContent(77),
            ),
        ];
        for (list, expected) in table {
            assert_eq!(from_records(&records(list)).unwrap(), expected);
        }
        for bad in [
            &[("GNU.sparse.major", "2")][..],
            &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "1")],
            &[("GNU.sparse.major", "1")],
            &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,2,3")],
            &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,-2")],
            &[("GNU.sparse.map", "1,2")],
            &[("GNU.sparse.name", "a")],
        ] {
            assert!(from_records(&records(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_map_before_the_content() {
        let read = |text: &str| {
            let mut rest = text.as_bytes().to_vec();
            before_content(100, || {
                ensure_valid(!rest.is_empty(), "ended")?;
                rest.resize(rest.len().next_multiple_of(BLOCK), 0);
                let tail = rest.split_off(BLOCK);
                Ok(std::mem::replace(&mut rest, tail).try_into().unwrap())
            })
        };
        assert_eq!(read("0\n").unwrap().chunks, []);
        assert_eq!(read("2\n0\n5\n90\n10\n").unwrap().chunks, [(0, 5), (90, 10)]);
        let many: String = (0..300).map(|place| format!("{}\n1\n", place * 2)).collect();
        assert_eq!(read(&format!("300\n{many}")).unwrap().chunks.len(), 300);
        for bad in [
            "",
            "2\n1\n",
            "x\n",
            "-1\n",
            "1\n1\n\n",
            "99999999999\n",
            "000000000000000000000001\n",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunks_are_in_order_within_the_file_and_all_there() {
        let check = |chunks: &[(u64, u64)], stored| {
            Map {
                size: 100,
                chunks: chunks.to_vec(),
            }
            .check(stored)
        };
        check(&[], 0).unwrap();
        check(&[(0, 10), (10, 5), (100, 0)], 15).unwrap();
        for (chunks, stored) in [
            (&[(0, 10)][..], 9),
            (&[(0, 10), (9, 1)], 11),
            (&[(50, 1), (0, 1)], 2),
            (&[(99, 2)], 2),
            (&[(u64::MAX, 2)], 2),
        ] {
            assert!(check(chunks, stored).is_err(), "{chunks:?}");
        }
    }
}
