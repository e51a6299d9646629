//! Applies a layer's archive to a directory, entry by entry.
//!
//! Invariants: no path is resolved outside the directory (`openat2` with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS for
//! every parent, no link followed in a last component), so `..`, absolute names and links that an earlier entry made lead
//! nowhere else (CVE-2021-32760, CVE-2025-11395 and their kin). What cannot be applied as written is an error: a layer
//! is whole or it is not there. The directory is private to the server (0700 above it) while this runs.
//!
//! Whiteouts become overlayfs's: `.wh.NAME` a character device 0:0, `.wh..wh..opq` the xattr trusted.overlay.opaque.
//! They speak of the layers below, so what the same layer holds stays (OCI image-spec, layer.md).
//!
//! Left out: GNU sparse files and aufs's own metadata, both refused; security.selinux, which is the node's to choose.

mod at;
mod entry;
mod header;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::EntryType;

use self::at::{
    Present, missing, open_parent, present, proc_path, resolve, set_attributes, set_attributes_at, set_opaque,
    set_times, special,
};
pub(super) use self::entry::InvalidEntry;
use self::entry::{Node, clean, ensure_valid, invalid, malformed, split};
use self::header::Extended;

/// The prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";

/// The name that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// File contents in whole 4 KiB blocks, and one block a directory.
    pub(super) bytes: u64,
    /// Files of every type.
    pub(super) inodes: u64,
}

/// The directory that a layer grows in.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory of the last entry: archives list a directory's entries one after the other.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Times of directories, set at the end because every entry inside changes them.
    directories: BTreeMap<Vec<u8>, Timespec>,
    usage: Usage,
    buffer: Vec<u8>,
}

impl Tree {
    /// A tree that grows in the empty directory `root`, opened for reading.
    pub(super) fn new(root: OwnedFd) -> Result<Self> {
        // What an archive without an entry for its root means by it.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).context("fchmod of the layer's root")?;
        let usage = Usage { bytes: 4096, inodes: 1 };
        Ok(Tree {
            root,
            last_parent: None,
            directories: BTreeMap::new(),
            usage,
            buffer: vec![0; 128 * 1024],
        })
    }

    /// Applies one entry and reads its content to the end. `headers` are the blocks between the content of the entry
    /// before and its own.
    pub(super) fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, headers: &[u8]) -> Result<()> {
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let extended = Extended::parse(headers)?;
        Node::parse(&extended, entry.size())
            .and_then(|node| self.place(&node, entry))
            .with_context(|| format!("entry {:?}", String::from_utf8_lossy(&extended.path())))
    }

    /// Sets what had to wait for the last entry, and returns what the tree takes.
    pub(super) fn finish(self) -> Result<Usage> {
        for (path, modified) in &self.directories {
            let (dir, name) = split(path);
            // A later entry may have put something else in the directory's place, or in that of one above it.
            let parent = match resolve(self.root.as_fd(), dir) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                found => found.context("openat2 of a directory whose time is due")?,
            };
            if present(parent.as_fd(), name)? == Present::Directory {
                set_times(parent.as_fd(), name, *modified)?;
            }
        }
        Ok(self.usage)
    }

    fn place<R: Read>(&mut self, node: &Node, content: &mut tar::Entry<'_, R>) -> Result<()> {
        if node.path.is_empty() {
            ensure_valid(node.kind == EntryType::Directory, "the root must be a directory")?;
            self.directories.insert(Vec::new(), node.modified);
            return set_attributes(self.root.as_fd(), node);
        }
        let (dir, name) = split(&node.path);
        let parent = self.parent(dir)?;
        let parent = parent.as_fd();
        if name == OPAQUE {
            return set_opaque(parent, b".");
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden);
        }
        let before = present(parent, name)?;
        if node.kind == EntryType::Directory {
            return self.directory(parent, name, node, before);
        }
        self.clear(parent, name, before)?;
        if before == Present::Directory {
            self.forget_below(&node.path);
        }
        self.usage.inodes += 1;
        match node.kind {
            EntryType::Regular | EntryType::Continuous => self.regular(parent, name, node, content),
            EntryType::Symlink => {
                let target = OsStr::from_bytes(&node.link);
                rustix::fs::symlinkat(target, parent, OsStr::from_bytes(name))
                    .or_else(|errno| missing(errno, format!("symlinkat to {target:?}: {errno}")))?;
                set_attributes_at(parent, name, node)
            }
            EntryType::Link => {
                self.usage.inodes -= 1;
                self.hard_link(parent, name, &node.link)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => special(parent, name, node),
            other => Err(invalid(format!("type {other:?} is not supported"))),
        }
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], node: &Node, before: Present) -> Result<()> {
        if before != Present::Directory {
            self.clear(parent, name, before)?;
            rustix::fs::mkdirat(parent, OsStr::from_bytes(name), Mode::RWXU).context("mkdirat")?;
            self.count_directory();
        }
        if before == Present::Whiteout {
            // The whiteout that made way hid a directory below, and still has to.
            set_opaque(parent, name)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty())
            .context("openat of the directory")?;
        self.directories.insert(node.path.clone(), node.modified);
        set_attributes(opened.as_fd(), node)
    }

    fn regular<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
        content: &mut tar::Entry<'_, R>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::RUSR | Mode::WUSR)
            .context("openat of the new file")?;
        let mut file = std::fs::File::from(opened);
        let mut written = 0;
        loop {
            let count = content.read(&mut self.buffer).map_err(malformed)?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count]).context("write the content")?;
            written += count as u64;
        }
        ensure_valid(written == content.size(), "the archive ends inside the content")?;
        self.usage.bytes += blocks(written);
        set_attributes(file.as_fd(), node)?;
        set_times(parent, name, node.modified)
    }

    fn hard_link(&mut self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<()> {
        let target = clean(target).context("target of the hard link")?;
        let (dir, target_name) = split(&target);
        let shown = String::from_utf8_lossy(&target);
        let target_parent = resolve(self.root.as_fd(), dir)
            .or_else(|errno| missing(errno, format!("hard link to {shown:?}: {errno}")))?;
        // No AT_SYMLINK_FOLLOW: a link to a symbolic link links the symbolic link.
        rustix::fs::linkat(
            &target_parent,
            OsStr::from_bytes(target_name),
            parent,
            OsStr::from_bytes(name),
            AtFlags::empty(),
        )
        .or_else(|errno| missing(errno, format!("hard link to {shown:?}: {errno}")))
    }

    /// Hides `hidden` of the layers below.
    fn whiteout(&mut self, parent: BorrowedFd<'_>, hidden: &[u8]) -> Result<()> {
        ensure_valid(!hidden.starts_with(WHITEOUT), "aufs metadata is not supported")?;
        ensure_valid(!matches!(hidden, b"" | b"." | b".."), "a whiteout must name a file")?;
        match present(parent, hidden)? {
            Present::Nothing => {
                let mode = Mode::empty();
                rustix::fs::mknodat(parent, OsStr::from_bytes(hidden), FileType::CharacterDevice, mode, 0)
                    .context("mknodat of the whiteout")?;
                self.usage.inodes += 1;
                Ok(())
            }
            // This layer's directory would merge with the one below.
            Present::Directory => set_opaque(parent, hidden),
            Present::Whiteout | Present::Other => Ok(()),
        }
    }

    /// Makes way for an entry: of two with one name the later stands.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &[u8], before: Present) -> Result<()> {
        match before {
            Present::Nothing => return Ok(()),
            Present::Directory => {
                // Through the descriptor's path, and from there on std descends by descriptors itself.
                let path = proc_path(parent, name);
                std::fs::remove_dir_all(&path).context("remove the directory of the same name")?;
            }
            Present::Whiteout | Present::Other => {
                rustix::fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty())
                    .context("unlinkat of the earlier entry")?;
                self.usage.inodes = self.usage.inodes.saturating_sub(1);
            }
        }
        // The remembered parent may have been inside what went.
        self.last_parent = None;
        Ok(())
    }

    /// Drops the times that were due below a directory which is gone.
    fn forget_below(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.directories.remove(path);
        let due = self.directories.range(below.clone()..).map(|(known, _)| known);
        let gone: Vec<_> = due.take_while(|known| known.starts_with(&below)).cloned().collect();
        for known in gone {
            self.directories.remove(&known);
        }
    }

    fn parent(&mut self, dir: &[u8]) -> Result<Rc<OwnedFd>> {
        if let Some((_, fd)) = self.last_parent.as_ref().filter(|(path, _)| path == dir) {
            return Ok(Rc::clone(fd));
        }
        let fd = match resolve(self.root.as_fd(), dir) {
            Err(Errno::NOENT) => self.make_parents(dir)?,
            found => found.or_else(|errno| missing(errno, format!("its directory: {errno}")))?,
        };
        let fd = Rc::new(fd);
        self.last_parent = Some((dir.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Makes the directories that lead to an entry and have none of their own (yet).
    fn make_parents(&mut self, dir: &[u8]) -> Result<OwnedFd> {
        let ends = dir
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        for end in ends.chain([dir.len()]) {
            let prefix = &dir[..end];
            match resolve(self.root.as_fd(), prefix) {
                Err(Errno::NOENT) => {}
                found => {
                    found.or_else(|errno| missing(errno, format!("its directory: {errno}")))?;
                    continue;
                }
            }
            let (above, name) = split(prefix);
            let parent = open_parent(self.root.as_fd(), above)?;
            let before = present(parent.as_fd(), name)?;
            ensure_valid(before == Present::Nothing, "its directory is a link that leads nowhere")?;
            rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::RWXU).context("mkdirat of a parent")?;
            // After mkdirat, because the umask is the process's.
            rustix::fs::chmodat(
                &parent,
                OsStr::from_bytes(name),
                Mode::from_raw_mode(0o755),
                AtFlags::empty(),
            )
            .context("chmodat of a parent")?;
            self.count_directory();
        }
        open_parent(self.root.as_fd(), dir)
    }

    fn count_directory(&mut self) {
        self.usage.inodes += 1;
        self.usage.bytes += 4096;
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(4096) * 4096
}
