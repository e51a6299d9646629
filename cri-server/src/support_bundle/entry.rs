//! A file of the archive: its name, its content without secrets, and what is missing of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::mask;

/// Most bytes of one file; of longer ones the end is kept, where the latest is.
const MAX: u64 = 1 << 20;
/// Most files of one part: pods, containers, images, threads.
pub(super) const MAX_FILES: usize = 500;

/// A file of the archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its path in the archive.
    pub(super) name: String,
    /// What is in it.
    pub(super) content: Vec<u8>,
    /// Its beginning was left out.
    cut: bool,
}

impl Entry {
    /// Text, masked.
    pub(super) fn text(name: impl Into<String>, text: &str) -> Entry {
        Entry::masked(name, &mask::text(text))
    }

    /// What holds no secret any more.
    fn masked(name: impl Into<String>, masked: &str) -> Entry {
        let limit = usize::try_from(MAX).unwrap_or(usize::MAX);
        let from = masked.ceil_char_boundary(masked.len().saturating_sub(limit));
        Entry {
            name: name.into(),
            cut: from > 0,
            content: masked.as_bytes()[from..].to_vec(),
        }
    }

    /// A document, masked; as it was read or as it is kept in memory.
    pub(super) fn json(name: impl Into<String>, document: &impl Serialize) -> Entry {
        match serde_json::to_value(document) {
            Ok(mut value) => {
                mask::json(&mut value);
                Entry::masked(name, &format!("{value:#}\n"))
            }
            Err(error) => Entry::text(name, &format!("encode: {error}\n")),
        }
    }

    /// A file of the machine: a document where it is one, else text. Why it cannot be read is what is in it then.
    pub(super) fn file(name: impl Into<String>, path: &Path) -> Entry {
        let (text, cut) = match read_end(path) {
            Ok(read) => read,
            Err(error) => (format!("{}: {error}\n", path.display()), false),
        };
        let mut entry = match serde_json::from_str::<Value>(&text) {
            Ok(document) if document.is_object() => Entry::json(name, &document),
            _ => Entry::text(name, &text),
        };
        entry.cut |= cut;
        entry
    }

    /// What is to be said of it.
    pub(super) fn note(&self) -> &'static str {
        if self.cut { ", its beginning left out" } else { "" }
    }
}

/// The last [`MAX`] bytes of a file, and whether there is more. Files of /proc have no length: of those the first.
fn read_end(path: &Path) -> std::io::Result<(String, bool)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("no regular file"));
    }
    let skipped = metadata.len().saturating_sub(MAX);
    if skipped > 0 {
        file.seek(SeekFrom::Start(skipped))?;
    }
    let mut bytes = Vec::new();
    file.take(MAX).read_to_end(&mut bytes)?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), skipped > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_file_the_end_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = usize::try_from(MAX).unwrap();
        std::fs::write(file.path(), format!("first{}last", "\n".repeat(size))).unwrap();
        let entry = Entry::file("a", file.path());
        assert!(entry.content.ends_with(b"last") && entry.content.len() <= size);
        assert!(entry.note().contains("left out"));
        assert_eq!(Entry::text("a", "short").note(), "");
    }

    #[test]
    fn a_file_that_cannot_be_read_says_why() {
        let entry = Entry::file("a", Path::new("/nowhere/a"));
        assert!(String::from_utf8_lossy(&entry.content).starts_with("/nowhere/a: "));
        let directory = Entry::file("a", Path::new("/"));
        assert!(String::from_utf8_lossy(&directory.content).contains("no regular file"));
    }
}
