//! Files with holes on the disk: where their content is, and reading it alone.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Offset and length of every piece of a file's content, in order; `None` for a file without holes.
pub(super) fn pieces(file: &File, metadata: &Metadata) -> io::Result<Option<Vec<(u64, u64)>>> {
    let length = metadata.len();
    if metadata.blocks() * 512 >= length {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            // Where a filesystem does not know of holes, all is data.
            Err(Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(length);
        pieces.push((data, hole - data));
        at = hole;
    }
    Ok((pieces != [(0, length)]).then_some(pieces))
}

/// The pieces of a file, one after the other. A file that has become shorter is an error.
pub(super) struct Content<'a> {
    file: &'a File,
    pieces: std::slice::Iter<'a, (u64, u64)>,
    offset: u64,
    left: u64,
}

impl<'a> Content<'a> {
    pub(super) fn new(file: &'a File, pieces: &'a [(u64, u64)]) -> Self {
        Content {
            file,
            pieces: pieces.iter(),
            offset: 0,
            left: 0,
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let Some((offset, length)) = self.pieces.next() else {
                return Ok(0);
            };
            (self.offset, self.left) = (*offset, *length);
        }
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::other("the file became shorter while it was read"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_without_what_is_between() {
        let file = tempfile::tempfile().unwrap();
        let found = |file: &File| pieces(file, &file.metadata().unwrap()).unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        assert_eq!(found(&file), None);
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&[2; 4096], 1 << 30).unwrap();
        let expected = vec![(0, 8192), (1 << 30, 4096)];
        assert_eq!(found(&file), Some(expected.clone()));
        let mut content = Vec::new();
        Content::new(&file, &expected).read_to_end(&mut content).unwrap();
        assert_eq!(content, [vec![1; 8192], vec![2; 4096]].concat());
        file.set_len(4096).unwrap();
        Content::new(&file, &expected).read_to_end(&mut content).unwrap_err();
    }
}
