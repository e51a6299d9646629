//! A file of the archive: its name, its content without secrets, and what is missing of it; and how much a part may have.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::mask;

/// Most bytes of one file; of longer ones the end is kept, where the latest is.
const MAX: u64 = 1 << 20;
/// Largest document: one that is cut is none, and nobody could say what in it is a secret.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Most bytes of one part; what is read after that is left out.
const MAX_PART: usize = 16 << 20;
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
    /// What would fill it is not installed.
    absent: bool,
}

impl Entry {
    /// Text, masked.
    pub(super) fn text(name: impl Into<String>, text: &str) -> Entry {
        Entry::masked(name, &mask::text(text))
    }

    /// In the place of what a program would print that is not there.
    pub(super) fn absent(name: impl Into<String>, program: &str) -> Entry {
        Entry {
            absent: true,
            ..Entry::text(name, &format!("{program}: not installed\n"))
        }
    }

    /// What holds no secret any more.
    fn masked(name: impl Into<String>, masked: &str) -> Entry {
        let limit = usize::try_from(MAX).unwrap_or(usize::MAX);
        let from = masked.ceil_char_boundary(masked.len().saturating_sub(limit));
        Entry {
            name: name.into(),
            cut: from > 0,
            absent: false,
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

    /// A text of the machine. Why it cannot be read is what is in it then.
    pub(super) fn file(name: impl Into<String>, path: &Path) -> Entry {
        match read_end(path) {
            Ok((text, cut)) => {
                let mut entry = Entry::text(name, &text);
                entry.cut |= cut;
                entry
            }
            Err(error) => Entry::text(name, &format!("{}: {error}\n", path.display())),
        }
    }

    /// A document of the machine. Of what is none its size is told, and nothing else: a secret in it has no name.
    pub(super) fn document(name: impl Into<String>, path: &Path) -> Entry {
        let read = open(path).and_then(|(file, size)| {
            let mut text = Vec::new();
            file.take(MAX_DOCUMENT).read_to_end(&mut text)?;
            Ok((text, size))
        });
        match read.map(|(text, size)| (serde_json::from_slice::<Value>(&text), size)) {
            Ok((Ok(document), _)) if document.is_object() => Entry::json(name, &document),
            Ok((_, size)) => Entry::text(name, &format!("no document, {size} bytes, left out\n")),
            Err(error) => Entry::text(name, &format!("{}: {error}\n", path.display())),
        }
    }

    /// What is to be said of it.
    pub(super) fn note(&self) -> &'static str {
        match (self.absent, self.cut) {
            (true, _) => ", its program is not installed",
            (false, true) => ", its beginning left out",
            (false, false) => "",
        }
    }
}

/// The first entries that a part has room for; what is not read is only counted.
pub(super) fn within_part(part: &str, entries: impl Iterator<Item = Entry>) -> Vec<Entry> {
    let (mut total, mut kept) = (0, Vec::new());
    for entry in entries {
        total += entry.content.len();
        let text = format!("{total} bytes; what comes after {} was not read\n", entry.name);
        kept.push(entry);
        if total >= MAX_PART {
            kept.push(Entry::text(format!("{part}/left-out.txt"), &text));
            break;
        }
    }
    kept
}

/// A regular file, and its size.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(std::io::Error::other("no regular file")),
    }
}

/// The last [`MAX`] bytes of a file, and whether there is more. Files of /proc have no length: of those the first.
fn read_end(path: &Path) -> std::io::Result<(String, bool)> {
    let (mut file, size) = open(path)?;
    let skipped = size.saturating_sub(MAX);
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
    fn what_is_no_document_is_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole = r#"{"envs": [{"key": "A", "value": "planted"}]}"#;
        for (text, expected) in [
            (whole, "\"value\": \"***\""),
            (&whole[..40], "no document, 40 bytes, left out\n"),
            ("\"planted\"", "no document, 9 bytes, left out\n"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let content = String::from_utf8(Entry::document("a", file.path()).content).unwrap();
            assert!(content.contains(expected), "{content}");
            assert!(!content.contains("planted"), "{content}");
        }
    }

    #[test]
    fn a_part_that_is_full_is_not_read_on() {
        let mut read = 0;
        let entries = (0..100).map(|n| {
            read += 1;
            Entry::text(n.to_string(), &"a ".repeat(1 << 19))
        });
        let kept = within_part("p", entries);
        assert_eq!((read, kept.len()), (16, 17));
        assert_eq!(kept[16].name, "p/left-out.txt");
    }

    #[test]
    fn a_file_that_cannot_be_read_says_why() {
        let entry = Entry::file("a", Path::new("/nowhere/a"));
        assert!(String::from_utf8_lossy(&entry.content).starts_with("/nowhere/a: "));
        let directory = Entry::file("a", Path::new("/"));
        assert!(String::from_utf8_lossy(&directory.content).contains("no regular file"));
    }
}
