//! An unpacked layer as an archive again: the reverse of `unpack`.
//!
//! The archive holds everything the directory does: names in order, owners, modes, times in nanoseconds, extended
//! attributes, hard links, devices, holes; overlayfs's whiteouts become those of layers. The same directory always gives the
//! same bytes. They are not the bytes that the layer was unpacked from: the order of entries, the form of headers and entries
//! that overwrote each other are not kept, so the diff id is another one.
//!
//! A container's own files are written in the same way while others may have them too: everything goes by [`Place`], and a
//! name that becomes a link or a fifo meanwhile leads nowhere.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tar::{EntryType, Header};

use super::holes::{self, Content};
use super::place::{Attributes, Place};

/// Largest owner that a header has room for: seven octal digits.
const MAX_ID: u32 = 0o7_777_777;

/// What marks a directory that hides the one below it (overlayfs).
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Most pieces of a file with holes; one of more is written as a file without.
const MAX_PIECES: usize = 100_000;

/// Writes the layer whose files are in `dir`.
pub(super) fn write(dir: &Path, out: impl Write) -> Result<()> {
    write_as(dir, Form::Layer, out)
}

/// Writes what is in `dir` and nothing of what it hides of the layers below. Sockets are left out: whoever listens there is
/// no file.
pub(super) fn write_files(dir: &Path, out: impl Write) -> Result<()> {
    write_as(dir, Form::Files, out)
}

/// What an archive is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A layer, with whiteouts.
    Layer,
    /// To be unpacked by whoever knows no whiteouts.
    Files,
}

fn write_as(dir: &Path, form: Form, out: impl Write) -> Result<()> {
    let mut writer = LayerWriter {
        root: Place::root(dir)?,
        archive: tar::Builder::new(out),
        form,
        linked: HashMap::new(),
    };
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let below = writer.entry(&path);
        let below = below.with_context(|| format!("entry {:?}", path.display()))?;
        // Backwards, so that they leave the stack in order.
        waiting.extend(below.into_iter().rev().map(|name| path.join(name)));
    }
    writer.archive.into_inner().context("end the archive")?.flush()?;
    Ok(())
}

struct LayerWriter<W: Write> {
    root: Place,
    archive: tar::Builder<W>,
    form: Form,
    /// The first name of every file that has several.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> LayerWriter<W> {
    /// Writes one entry, and returns the names in it if it is a directory.
    fn entry(&mut self, path: &Path) -> Result<Vec<OsString>> {
        let place = self.root.at(path).context("open its place")?;
        let metadata = place.metadata();
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.directory(path, &place)?;
            return place.names();
        }
        if place.is_whiteout() {
            return self.whiteout(path).map(|()| Vec::new());
        }
        // No archive has a type for it, and no layer's archive made one.
        if kind.is_socket() && self.form == Form::Files {
            return Ok(Vec::new());
        }
        ensure!(!kind.is_socket(), "a socket cannot be in a layer");
        if metadata.nlink() > 1 {
            let file = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&file).cloned() {
                let fields = Fields::new(path, EntryType::Link, metadata).link(first.as_os_str().as_bytes());
                return fields.append(&mut self.archive, io::empty()).map(|()| Vec::new());
            }
            self.linked.insert(file, path.to_owned());
        }
        self.other(path, &place)?;
        Ok(Vec::new())
    }

    fn directory(&mut self, path: &Path, place: &Place) -> Result<()> {
        let name = match path.as_os_str().is_empty() {
            true => Path::new("./"),
            false => path,
        };
        let attributes = place.xattrs()?;
        let is_opaque = attributes.iter().any(|(name, _)| name == OPAQUE);
        let fields = Fields::new(name, EntryType::Directory, place.metadata()).xattrs(&attributes);
        fields.append(&mut self.archive, io::empty())?;
        if is_opaque {
            self.mark(&path.join(".wh..wh..opq"))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &Path) -> Result<()> {
        let hidden = path.file_name().context("the root is a directory")?;
        let mut name = OsString::from(".wh.");
        name.push(hidden);
        self.mark(&path.with_file_name(name))
    }

    /// An entry that only its name matters of.
    fn mark(&mut self, path: &Path) -> Result<()> {
        if self.form == Form::Files {
            return Ok(());
        }
        Fields::mark(path).append(&mut self.archive, io::empty())
    }

    /// What is neither a directory nor a whiteout.
    fn other(&mut self, path: &Path, place: &Place) -> Result<()> {
        let metadata = place.metadata();
        let kind = metadata.file_type();
        let attributes = place.xattrs()?;
        if kind.is_file() {
            let file = place.content()?;
            return match holes::pieces(&file, metadata).context("look for holes")? {
                None => self.regular(path, &file, metadata, &attributes),
                Some(pieces) => self.sparse(path, &file, metadata, &attributes, pieces),
            };
        }
        let fields = |kind| Fields::new(path, kind, metadata).xattrs(&attributes);
        let fields = if kind.is_symlink() {
            fields(EntryType::Symlink).link(&place.target()?)
        } else if kind.is_fifo() {
            fields(EntryType::Fifo)
        } else if kind.is_block_device() {
            fields(EntryType::Block).device(metadata.rdev())?
        } else {
            fields(EntryType::Char).device(metadata.rdev())?
        };
        fields.append(&mut self.archive, io::empty())
    }

    fn regular(&mut self, path: &Path, file: &File, metadata: &Metadata, attributes: &Attributes) -> Result<()> {
        let mut fields = Fields::new(path, EntryType::Regular, metadata).xattrs(attributes);
        fields.header.set_size(metadata.len());
        // Shorter, it would shift the rest of the archive: that is an error.
        let whole = [(0, metadata.len())];
        fields.append(&mut self.archive, Content::new(file, &whole))
    }

    /// A file with holes, in the form PAX 1.0 (see `unpack::sparse`): its map before its content.
    fn sparse(
        &mut self,
        path: &Path,
        file: &File,
        metadata: &Metadata,
        attributes: &Attributes,
        mut pieces: Vec<(u64, u64)>,
    ) -> Result<()> {
        // As GNU tar tells of a hole at the end.
        if pieces
            .last()
            .is_none_or(|(offset, length)| offset + length < metadata.len())
        {
            pieces.push((metadata.len(), 0));
        }
        if pieces.len() > MAX_PIECES {
            return self.regular(path, file, metadata, attributes);
        }
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &pieces {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        let stored: u64 = pieces.iter().map(|(_, length)| length).sum();
        // Whoever does not know the form makes a file that is known by its name to be none.
        let name = path.file_name().context("the root is a directory")?;
        let stand_in = path.with_file_name("GNUSparseFile.0").join(name);
        let mut fields = Fields::new(&stand_in, EntryType::Regular, metadata).xattrs(attributes);
        fields.record("GNU.sparse.major", b"1");
        fields.record("GNU.sparse.minor", b"0");
        fields.record("GNU.sparse.name", path.as_os_str().as_bytes());
        fields.record("GNU.sparse.realsize", metadata.len().to_string().as_bytes());
        fields.header.set_size(map.len() as u64 + stored);
        fields.append(&mut self.archive, map.as_slice().chain(Content::new(file, &pieces)))
    }
}

/// A header, and the records for what it has no room for.
struct Fields {
    header: Header,
    records: Vec<(String, Vec<u8>)>,
}

impl Fields {
    fn new(path: &Path, kind: EntryType, metadata: &Metadata) -> Fields {
        let mut fields = Fields::mark(path);
        let header = &mut fields.header;
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().min(MAX_ID).into());
        header.set_gid(metadata.gid().min(MAX_ID).into());
        for (key, id) in [("uid", metadata.uid()), ("gid", metadata.gid())] {
            if id > MAX_ID {
                fields.record(key, id.to_string().as_bytes());
            }
        }
        let header = &mut fields.header;
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        header.set_mtime(u64::try_from(seconds).unwrap_or_default());
        if nanoseconds != 0 || seconds < 0 {
            fields.record("mtime", decimal(seconds, nanoseconds).as_bytes());
        }
        fields
    }

    /// A regular file of nobody in particular.
    fn mark(path: &Path) -> Fields {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        let mut fields = Fields {
            header,
            records: Vec::new(),
        };
        let path = path.as_os_str().as_bytes();
        let ustar = fields.header.as_ustar_mut();
        if ustar.is_some_and(|header| !put(&mut header.name, path)) {
            fields.record("path", path);
        }
        fields
    }

    fn link(mut self, target: &[u8]) -> Fields {
        let header = self.header.as_ustar_mut();
        if header.is_some_and(|header| !put(&mut header.linkname, target)) {
            self.record("linkpath", target);
        }
        self
    }

    fn device(mut self, device: u64) -> Result<Fields> {
        self.header.set_device_major(rustix::fs::major(device))?;
        self.header.set_device_minor(rustix::fs::minor(device))?;
        Ok(self)
    }

    fn xattrs(mut self, attributes: &Attributes) -> Fields {
        for (name, value) in attributes {
            // overlayfs's own say something here only; the label is every node's own.
            if !name.starts_with(b"trusted.overlay.") && name != b"security.selinux" {
                let key = format!("SCHILY.xattr.{}", String::from_utf8_lossy(name));
                self.record(&key, value);
            }
        }
        self
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        self.records.push((key.to_owned(), value.to_vec()));
    }

    fn append<W: Write>(mut self, archive: &mut tar::Builder<W>, content: impl Read) -> Result<()> {
        let records = self.records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        archive.append_pax_extensions(records).context("write the records")?;
        self.header.set_cksum();
        archive.append(&self.header, content).context("write")
    }
}

/// Copies `text` into a header's field; false where it does not fit.
fn put(field: &mut [u8], text: &[u8]) -> bool {
    let end = text.len().min(field.len());
    field[..end].copy_from_slice(&text[..end]);
    end == text.len()
}

/// Seconds and nanoseconds as one number, also before 1970: then the nanoseconds count forwards from the second before.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds @ 0.., nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
        (seconds, nanoseconds) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_too() {
        let table = [
            (5, 1, "5.000000001"),
            (5, 0, "5"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 250_000_000, "-1.750000000"),
            (-3, 0, "-3"),
        ];
        for (seconds, nanoseconds, text) in table {
            assert_eq!(decimal(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn a_directory_always_gives_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("f"), name).unwrap();
        }
        std::fs::hard_link(dir.path().join("a/f"), dir.path().join("b/g")).unwrap();
        let mut twice = [Vec::new(), Vec::new()];
        for out in &mut twice {
            write(dir.path(), out).unwrap();
        }
        assert_eq!(twice[0], twice[1]);
        let mut archive = tar::Archive::new(twice[0].as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            (entry.path().unwrap().display().to_string(), link)
        });
        let entries: Vec<_> = entries.collect();
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["./", "a", "a/f", "b", "b/f", "b/g", "c", "c/f"]);
        assert_eq!(entries[5].1.as_deref(), Some("a/f"));
    }

    /// Names are a directory or a file and a link by turns while the files are written, as neighbours that share a container's files can have it.
    #[test]
    fn names_that_change_meanwhile_lead_nowhere_outside() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let outer = tempfile::tempdir().unwrap();
        let (tree, host) = (outer.path().join("tree"), outer.path().join("host"));
        for dir in [&tree.join("d/sub"), &host.join("sub")] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(tree.join("d/sub/f"), "inside").unwrap();
        std::fs::write(tree.join("f"), "inside").unwrap();
        std::fs::write(host.join("sub/f"), "SECRET").unwrap();
        let links = outer.path().join("links");
        std::fs::create_dir(&links).unwrap();
        std::os::unix::fs::symlink(&host, links.join("d")).unwrap();
        std::os::unix::fs::symlink(host.join("sub/f"), links.join("f")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for name in ["d", "f"] {
                        let (one, other) = (tree.join(name), links.join(name));
                        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                    }
                }
            });
            let leaked = (0..3000).any(|_| {
                let mut out = Vec::new();
                // An error too is an answer.
                drop(write_files(&tree, &mut out));
                out.windows(6).any(|text| text == b"SECRET")
            });
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!leaked);
        });
    }
}
