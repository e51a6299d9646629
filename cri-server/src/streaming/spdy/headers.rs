//! SPDY/3 header blocks: names and values, compressed by a zlib stream that lasts as long as the connection.
//!
//! ```text
//!   | count (32) |  then for each: | length (32) | name | length (32) | value |
//! ```
//!
//! A peer chooses what a few bytes unfold to, so that unfolding stops at [`MAX_BLOCK`]. The stream is of no use after
//! that, and the connection ends.

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::dictionary::dictionary;

/// Longest block, unfolded.
const MAX_BLOCK: usize = 64 << 10;
/// Most headers of a block.
const MAX_HEADERS: u32 = 64;

/// Names in lower case, and values.
pub(crate) type Headers = Vec<(String, String)>;

/// The value of a header.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(own, _)| own == name);
    found.map(|(_, value)| value.as_str())
}

/// Unfolds the blocks of one connection, in the order in which they come.
pub(super) struct Unfold {
    zlib: Decompress,
    dictionary: Vec<u8>,
}

impl Unfold {
    pub(super) fn new() -> Self {
        Unfold {
            zlib: Decompress::new(true),
            dictionary: dictionary(),
        }
    }

    /// The headers of a compressed block.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Headers> {
        let plain = self.inflate(block).context("unfold a header block")?;
        parse(&plain).context("read a header block")
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let before = (self.zlib.total_in(), plain.len());
            let result = self.zlib.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - before.0).context("more used than there is")?;
            block = block.get(used..).context("more used than there is")?;
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&self.dictionary)
                        .context("another dictionary than SPDY/3's")?;
                    continue;
                }
                result => result?,
            };
            if block.is_empty() && plain.len() < plain.capacity() {
                return Ok(plain);
            }
            ensure!(plain.len() < MAX_BLOCK, "it unfolds to more than {MAX_BLOCK} bytes");
            ensure!(used > 0 || plain.len() > before.1, "it is not all one zlib stream");
            plain.reserve(plain.len().clamp(1024, MAX_BLOCK));
        }
    }
}

/// Folds the blocks of one connection, in the order in which they are sent.
pub(super) struct Fold(Compress);

impl Fold {
    pub(super) fn new() -> Result<Self> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary())
            .context("prime the header compression")?;
        Ok(Fold(zlib))
    }

    /// The block of no headers: no answer of ours has any.
    pub(super) fn empty(&mut self) -> Result<Vec<u8>> {
        let mut block = Vec::with_capacity(64);
        self.0
            .compress_vec(&0u32.to_be_bytes(), &mut block, FlushCompress::Sync)?;
        Ok(block)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers> {
    let count = number(&mut plain)?;
    ensure!(count <= MAX_HEADERS, "{count} headers, more than {MAX_HEADERS}");
    let mut headers = Headers::new();
    for _ in 0..count {
        let (name, value) = (text(&mut plain)?.to_ascii_lowercase(), text(&mut plain)?);
        ensure!(header(&headers, &name).is_none(), "{name:?} is there twice");
        headers.push((name, value));
    }
    ensure!(plain.is_empty(), "{} bytes after the last header", plain.len());
    Ok(headers)
}

fn number(plain: &mut &[u8]) -> Result<u32> {
    let Some((bytes, rest)) = plain.split_first_chunk() else {
        bail!("it is cut off");
    };
    *plain = rest;
    Ok(u32::from_be_bytes(*bytes))
}

fn text(plain: &mut &[u8]) -> Result<String> {
    let length = number(plain)? as usize;
    let (bytes, rest) = plain.split_at_checked(length).context("it is cut off")?;
    *plain = rest;
    let text = std::str::from_utf8(bytes).context("a name or value is not UTF-8")?;
    Ok(text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A block as a client writes it.
    pub(crate) fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    impl Fold {
        pub(crate) fn bytes(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(256 << 10);
            self.0.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
            block
        }
    }

    #[test]
    fn blocks_of_one_connection() {
        let (mut fold, mut unfold) = (Fold::new().unwrap(), Unfold::new());
        for (name, value) in [
            ("streamtype", "error"),
            ("StreamType", "data"),
            ("port", "80"),
            ("port", ""),
        ] {
            let block = fold.bytes(&plain(&[(name, value), ("requestid", "1")]));
            let expected = [
                (name.to_lowercase(), value.to_owned()),
                ("requestid".into(), "1".into()),
            ];
            assert_eq!(unfold.block(&block).unwrap(), expected);
        }
        let empty = fold.empty().unwrap();
        assert!(unfold.block(&empty).unwrap().is_empty());
    }

    /// SYN_STREAM's block as another implementation (Go's compress/zlib) wrote it.
    #[test]
    fn a_block_of_another_implementation() {
        let block = b"\x78\xf9\xe3\xc6\xa7\xc2";
        let mut zlib = Decompress::new(true);
        let error = zlib.decompress_vec(block, &mut Vec::with_capacity(64), FlushDecompress::Sync);
        assert_eq!(error.unwrap_err().needs_dictionary(), Some(0xe3c6_a7c2));
        assert_eq!(zlib.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn bombs_stop_early() {
        for size in [MAX_BLOCK + 1, 16 << 20] {
            let block = Fold::new().unwrap().bytes(&vec![0; size]);
            let error = Unfold::new().block(&block).unwrap_err();
            assert!(format!("{error:#}").contains("unfolds to more than"), "{error:#}");
        }
    }

    #[test]
    fn blocks_that_cannot_be() {
        let headers = |count: u32, rest: &[u8]| [&count.to_be_bytes()[..], rest].concat();
        let table: [(Vec<u8>, &str); 7] = [
            (vec![0, 0], "cut off"),
            (headers(65, b""), "65 headers"),
            (headers(u32::MAX, b""), "headers, more than"),
            (headers(1, b"\xff\xff\xff\xffa"), "cut off"),
            (headers(1, b"\0\0\0\x01a\0\0\0\x02b"), "cut off"),
            (headers(1, b"\0\0\0\x01a\0\0\0\x01\xff"), "not UTF-8"),
            (plain(&[("a", "1"), ("A", "2")]), "twice"),
        ];
        for (plain, text) in table {
            let block = Fold::new().unwrap().bytes(&plain);
            let error = Unfold::new().block(&block).unwrap_err();
            assert!(format!("{error:#}").contains(text), "{plain:?}: {error:#}");
        }
        assert!(Unfold::new().block(b"no zlib at all").is_err());
    }
}
