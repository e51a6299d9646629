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
//! Holes of sparse files are made holes. Times are of modification; a directory's is set after what it holds.
//!
//! | module | owns |
//! |---|---|
//! | `header`, `archive`, `sparse` | the archive's form, pure |
//! | `entry` | one entry in the kernel's terms, pure: names, ids, times, which xattrs are kept |
//! | `implied` | directories without an entry |
//! | `account` | what the layer takes, and how much it may |
//! | `parent`, `at` | the directory being filled; system calls relative to it |
//!
//! Refused besides what is malformed: aufs's own metadata, and directories deeper than 512 levels.

mod account;
mod archive;
mod at;
mod entry;
mod header;
mod implied;
mod parent;
mod sparse;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::account::{Account, BLOCK};
use self::archive::{Archive, Entry, Kind};
use self::at::{
    Present, missing, present, proc_path, resolve, set_attributes, set_attributes_at, set_opaque, set_own_times,
    special,
};
pub(super) use self::entry::InvalidEntry;
use self::entry::{Node, clean, ensure_valid, invalid, quoted, split};
use self::parent::Parent;
use self::sparse::Map;
use crate::tree;

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

/// What an archive has become.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) usage: Usage,
    /// Directories that it has files in and no entry for, by path.
    pub(super) implied: Vec<String>,
}

/// Applies the archive in `input` to the empty directory `root`, opened for reading. Reads to the end of `input`, also
/// what follows the archive's end. `arrived` is how much there is of the packed layer, now and later.
///
/// An error with an [`InvalidEntry`] in its chain is the archive's fault; any other is this node's.
pub(super) fn unpack(input: impl BufRead, root: OwnedFd, arrived: Arc<AtomicU64>) -> Result<Unpacked> {
    let mut tree = Tree::new(root, arrived)?;
    let mut archive = Archive::new(input);
    while let Some(entry) = archive.next()? {
        let applied = tree.apply(&entry, &mut archive);
        applied.with_context(|| format!("entry {}", entry.shown()))?;
    }
    archive.drain()?;
    tree.finish()
}

/// The directory that a layer grows in.
struct Tree {
    root: Rc<OwnedFd>,
    parent: Parent,
    account: Account,
}

impl Tree {
    fn new(root: OwnedFd, arrived: Arc<AtomicU64>) -> Result<Self> {
        // What an archive without an entry for its root means by it.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).context("fchmod of the layer's root")?;
        let account = Account::new(&root, arrived)?;
        let parent = Parent::root(root)?;
        Ok(Tree {
            root: Rc::clone(&parent.fd),
            parent,
            account,
        })
    }

    /// Applies one entry, whose content is next in `archive`.
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let node = Node::parse(entry)?;
        let (dir, name) = split(&node.path);
        let made = self.parent.enter(dir)?;
        self.account.directories(made)?;
        if node.path.is_empty() {
            ensure_valid(node.kind == Kind::Directory, "the root must be a directory")?;
            self.parent.modified = node.modified;
            return set_attributes(self.root.as_fd(), &node);
        }
        if name == OPAQUE {
            return set_opaque(self.parent.fd.as_fd(), b".");
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(hidden);
        }
        match node.kind {
            Kind::Directory => self.directory(name, &node),
            Kind::Regular => self.regular(name, &node, entry.sparse.as_ref(), archive),
            _ => self.link_or_special(name, &node),
        }
    }

    /// Sets what had to wait for the last entry.
    fn finish(self) -> Result<Unpacked> {
        self.parent.leave()?;
        Ok(Unpacked {
            usage: self.account.usage,
            implied: self.parent.implied.into_paths(),
        })
    }

    fn directory(&mut self, name: &[u8], node: &Node) -> Result<()> {
        let parent = Rc::clone(&self.parent.fd);
        let parent = parent.as_fd();
        let before = present(parent, name)?;
        if before != Present::Directory {
            self.clear(parent, name, before)?;
            self.parent.check_depth()?;
            rustix::fs::mkdirat(parent, OsStr::from_bytes(name), Mode::RWXU)
                .or_else(|errno| missing(errno, format!("mkdirat: {errno}")))?;
            self.account.directories(1)?;
        }
        if before == Present::Whiteout {
            // The whiteout that made way hid a directory below, and still has to.
            set_opaque(parent, name)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty())
            .context("openat of the directory")?;
        self.parent.implied.remove(self.root.as_fd(), opened.as_fd());
        set_attributes(opened.as_fd(), node)?;
        set_own_times(opened.as_fd(), node.modified)
    }

    fn regular<R: BufRead>(
        &mut self,
        name: &[u8],
        node: &Node,
        sparse: Option<&Map>,
        content: &mut Archive<R>,
    ) -> Result<()> {
        let file = self.create(name)?;
        self.account.usage.inodes += 1;
        match sparse {
            None => fill(&file, content, &mut self.account)?,
            Some(map) => fill_sparse(&file, map, content, &mut self.account)?,
        }
        set_attributes(file.as_fd(), node)?;
        set_own_times(file.as_fd(), node.modified)
    }

    /// Makes an empty file in place of whatever has its name.
    fn create(&mut self, name: &[u8]) -> Result<File> {
        let parent = Rc::clone(&self.parent.fd);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&parent, OsStr::from_bytes(name), flags, Mode::RUSR | Mode::WUSR);
        let opened = match open() {
            // Seldom: of two entries with one name the later stands.
            Err(Errno::EXIST) => {
                let before = present(parent.as_fd(), name)?;
                self.clear(parent.as_fd(), name, before)?;
                open()
            }
            opened => opened,
        };
        let opened = opened.or_else(|errno| missing(errno, format!("openat of the new file: {errno}")))?;
        Ok(File::from(opened))
    }

    fn link_or_special(&mut self, name: &[u8], node: &Node) -> Result<()> {
        let parent = Rc::clone(&self.parent.fd);
        let parent = parent.as_fd();
        let before = present(parent, name)?;
        if node.kind == Kind::Link {
            return self.hard_link(parent, name, &node.link, before);
        }
        self.clear(parent, name, before)?;
        self.account.usage.inodes += 1;
        if node.kind != Kind::Symlink {
            return special(parent, name, node);
        }
        rustix::fs::symlinkat(OsStr::from_bytes(&node.link), parent, OsStr::from_bytes(name))
            .or_else(|errno| missing(errno, format!("symlinkat to {}: {errno}", quoted(&node.link))))?;
        set_attributes_at(parent, name, node)
    }

    fn hard_link(&mut self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8], before: Present) -> Result<()> {
        let target = clean(target).context("target of the hard link")?;
        let (dir, target_name) = split(&target);
        let shown = quoted(&target);
        let target_parent = resolve(self.root.as_fd(), dir)
            .or_else(|errno| missing(errno, format!("hard link to {shown}: {errno}")))?;
        self.clear(parent, name, before)?;
        // No AT_SYMLINK_FOLLOW: a link to a symbolic link links the symbolic link.
        rustix::fs::linkat(
            &target_parent,
            OsStr::from_bytes(target_name),
            parent,
            OsStr::from_bytes(name),
            AtFlags::empty(),
        )
        .or_else(|errno| missing(errno, format!("hard link to {shown}: {errno}")))
    }

    /// Hides `hidden` of the layers below.
    fn whiteout(&mut self, hidden: &[u8]) -> Result<()> {
        ensure_valid(!hidden.starts_with(WHITEOUT), "aufs metadata is not supported")?;
        ensure_valid(!matches!(hidden, b"" | b"." | b".."), "a whiteout must name a file")?;
        let parent = self.parent.fd.as_fd();
        match present(parent, hidden)? {
            Present::Nothing => {
                let mode = Mode::empty();
                rustix::fs::mknodat(parent, OsStr::from_bytes(hidden), FileType::CharacterDevice, mode, 0)
                    .context("mknodat of the whiteout")?;
                self.account.usage.inodes += 1;
                Ok(())
            }
            // This layer's directory would merge with the one below.
            Present::Directory => set_opaque(parent, hidden),
            Present::Whiteout | Present::Linked | Present::Other => Ok(()),
        }
    }

    /// Makes way for an entry: of two with one name the later stands.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &[u8], before: Present) -> Result<()> {
        match before {
            Present::Nothing => {}
            Present::Directory => {
                // By the descriptor's path, and from there on by descriptors.
                tree::remove(&proc_path(parent, name)).context("remove the directory of the same name")?;
            }
            Present::Whiteout | Present::Linked | Present::Other => {
                rustix::fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty())
                    .context("unlinkat of the earlier entry")?;
                // Under its other name the file stays.
                self.account.usage.inodes -= u64::from(before != Present::Linked);
            }
        }
        Ok(())
    }
}

/// Writes the content of an entry.
fn fill<R: BufRead>(mut file: &File, content: &mut Archive<R>, account: &mut Account) -> Result<()> {
    let mut written = 0;
    loop {
        let piece = content.content()?;
        if piece.is_empty() {
            return Ok(());
        }
        file.write_all(piece).context("write the content")?;
        let length = piece.len();
        let before = blocks(written);
        written += length as u64;
        account.bytes(blocks(written) - before)?;
        content.consume(length);
    }
}

/// Writes the pieces of a file with holes.
fn fill_sparse<R: BufRead>(file: &File, map: &Map, content: &mut Archive<R>, account: &mut Account) -> Result<()> {
    let sized = rustix::fs::ftruncate(file, map.size);
    sized.map_err(|errno| match errno {
        Errno::FBIG | Errno::INVAL => invalid(format!("ftruncate to {}: {errno}", map.size)),
        errno => anyhow::Error::new(errno).context("ftruncate"),
    })?;
    for (offset, length) in &map.chunks {
        let (mut offset, mut left) = (*offset, *length);
        while left > 0 {
            let piece = content.content()?;
            let length = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            ensure_valid(length > 0, "the archive ends inside the content")?;
            file.write_all_at(&piece[..length], offset)
                .context("write the content")?;
            content.consume(length);
            offset += length as u64;
            let before = blocks(left);
            left -= length as u64;
            account.bytes(before - blocks(left))?;
        }
    }
    Ok(())
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK) * BLOCK
}
