//! One header block of an archive, and the records of a PAX extension. Pure.
//!
//! ```text
//! 0 name 100 mode 108 uid 116 gid 124 size 136 mtime 148 sum 156 type 157 link 257 magic 329 major 337 minor 345 prefix
//! ```
//! Read here and not by a crate, because every difference between two readers of an archive is a hole (CVE-2026-33055
//! and its kin): records are as long as they say and not as their lines, numbers are the whole field and not its low
//! bytes, and what two readers may take for different things is refused.

use anyhow::Result;

use super::entry::{ensure_valid, invalid};

/// Size of a block, the archive's unit.
pub(super) const BLOCK: usize = 512;

/// Most records of one extension that are kept: of extended attributes an image has a few, of the pieces of a sparse file
/// in the oldest form two each.
const MAX_RECORDS: usize = 10_000;

/// Key and value of a PAX record.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// One block.
pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    /// Whether nothing is written there: the mark of an archive's end.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Compares the block with its sum, in which the sum's own field counts as blanks. Old writers added signed bytes.
    pub(super) fn check_sum(&self) -> Result<()> {
        let bytes = || self.0[..148].iter().chain(&[b' '; 8]).chain(&self.0[156..]);
        let unsigned: i64 = bytes().map(|byte| i64::from(*byte)).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        let noted = number("checksum", &self.0[148..156])?;
        ensure_valid(noted == unsigned || noted == signed, "a header's checksum is wrong")
    }

    /// The type flag.
    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// The name; POSIX has room for its directories in another field.
    pub(super) fn name(&self) -> Vec<u8> {
        let (name, prefix) = (until_nul(&self.0[..100]), until_nul(&self.0[345..500]));
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    /// The target of a link.
    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.0[157..257])
    }

    pub(super) fn mode(&self) -> Result<i64> {
        number("mode", &self.0[100..108])
    }

    pub(super) fn uid(&self) -> Result<i64> {
        number("uid", &self.0[108..116])
    }

    pub(super) fn gid(&self) -> Result<i64> {
        number("gid", &self.0[116..124])
    }

    pub(super) fn size(&self) -> Result<i64> {
        number("size", &self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Result<i64> {
        number("mtime", &self.0[136..148])
    }

    /// Major and minor number. The seventh edition's archives have neither.
    pub(super) fn device(&self) -> Result<(i64, i64)> {
        let has_numbers = &self.0[257..262] == b"ustar";
        ensure_valid(has_numbers, "a device in a header without room for its numbers")?;
        let major = number("major device number", &self.0[329..337])?;
        Ok((major, number("minor device number", &self.0[337..345])?))
    }
}

/// A number as headers have it: octal digits, or, with the top bit set, a base-256 number of two's complement (GNU). An
/// empty field is 0.
pub(super) fn number(what: &str, field: &[u8]) -> Result<i64> {
    let wrong = || invalid(format!("{what} {:?}: no number", String::from_utf8_lossy(field)));
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Seven bits are the number's, of which the highest is its sign. At most 12 bytes: no overflow.
        let first = i128::from(first & 0x3f) - i128::from(first & 0x40);
        let value = rest.iter().fold(first, |value, byte| value * 256 + i128::from(*byte));
        return i64::try_from(value).map_err(|_too_large| wrong());
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Ok(0);
    }
    // Digits only: the standard library would take a sign.
    let octal = digits.iter().all(|byte| matches!(byte, b'0'..=b'7'));
    let text = std::str::from_utf8(digits).ok().filter(|_| octal).ok_or_else(wrong)?;
    i64::from_str_radix(text, 8).map_err(|_too_large| wrong())
}

pub(super) fn until_nul(data: &[u8]) -> &[u8] {
    data.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Those of the records `LENGTH KEY=VALUE\n` of a PAX extension whose keys `counts` takes. All are checked; the others
/// need no memory, of which each takes many times the bytes of a short one.
pub(super) fn parse_records(mut data: &[u8], counts: impl Fn(&[u8]) -> bool) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let (key, value, rest) = split_record(data).ok_or_else(|| invalid("malformed PAX record"))?;
        if counts(key) {
            ensure_valid(records.len() < MAX_RECORDS, "more than 10000 PAX records")?;
            records.push((key.to_vec(), value.to_vec()));
        }
        data = rest;
    }
    Ok(records)
}

/// Key and value of the first record, and what follows it. Its length counts everything: its own digits, the blank and the line break.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let record = data.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &data[length..]))
}

/// Digits only: no sign and no blank, which `parse` would partly take.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `KEY VALUE` of every record.
    fn read(data: &[u8]) -> Option<Vec<String>> {
        let records = parse_records(data, |_| true).ok()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let shown = |(key, value): &Record| format!("{} {}", text(key), text(value));
        Some(records.iter().map(shown).collect())
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        assert_eq!(read(b"").unwrap(), [""; 0]);
        assert_eq!(read(b"7 a=bc\n").unwrap(), ["a bc"]);
        assert_eq!(read(b"5 a=\n6 b==\n").unwrap(), ["a ", "b ="]);
        // A line that looks like a record belongs to the value it is in.
        assert_eq!(read(b"19 x=y\n11 path=/z\n\n").unwrap(), ["x y\n11 path=/z\n"]);
        let bad: [&[u8]; 10] = [
            b"x",
            b"6 a=b\n\0\0",
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
    fn only_records_that_count_are_kept_and_not_endlessly_many() {
        let of = |record: &[u8], count| parse_records(&record.repeat(count), |key| key != b"x");
        assert!(of(b"6 x=b\n", 100_000).unwrap().is_empty());
        assert!(of(b"6 xa=\n6 x=b\n", 10_000).is_ok_and(|kept| kept.len() == 10_000));
        let error = of(b"6 a=b\n", 10_001).unwrap_err().to_string();
        assert!(error.contains("more than 10000"), "{error}");
    }

    #[test]
    fn numbers() {
        let good: [(&[u8], i64); 9] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777777\0", 0o77_777_777_777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", i64::MIN),
        ];
        for (field, value) in good {
            assert_eq!(number("x", field).unwrap(), value, "{field:?}");
        }
        let bad: [&[u8]; 7] = [
            b"-0000001",
            b"+0000001",
            b"00000008",
            b"0x000001",
            b"1 1     ",
            // One more than 64 bits hold, and one less.
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
        ];
        for field in bad {
            assert!(number("x", field).is_err(), "{field:?}");
        }
    }
}
