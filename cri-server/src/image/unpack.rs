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

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::EntryType;

/// The prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";

/// The name that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Longest name of a file inside a layer, in bytes: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;

/// What a layer takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// File contents in whole 4 KiB blocks, and one block a directory.
    pub(super) bytes: u64,
    /// Files of every type.
    pub(super) inodes: u64,
}

/// An entry that must not or cannot be applied: the layer is at fault, not this node.
#[derive(Debug)]
pub(super) struct InvalidEntry(String);

impl std::fmt::Display for InvalidEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidEntry {}

fn invalid(rule: impl Into<String>) -> anyhow::Error {
    InvalidEntry(rule.into()).into()
}

/// What the archive's reader could not make sense of.
fn malformed(error: std::io::Error) -> anyhow::Error {
    invalid(error.to_string())
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

/// An entry's header, PAX records included, in the kernel's terms.
struct Node {
    /// Relative, without `.` and `..`; empty for the root.
    path: Vec<u8>,
    kind: EntryType,
    mode: Mode,
    uid: Uid,
    gid: Gid,
    modified: Timespec,
    xattrs: Vec<(CString, Vec<u8>)>,
    link: Vec<u8>,
    device: (u32, u32),
}

/// What already has a name in the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Present {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

impl Tree {
    /// A tree that grows in the empty directory `root`, opened for reading.
    pub(super) fn new(root: OwnedFd) -> Result<Self> {
        // What an archive without an entry for its root means by it.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))
            .context("fchmod of the layer's root")?;
        let usage = Usage {
            bytes: 4096,
            inodes: 1,
        };
        Ok(Tree {
            root,
            last_parent: None,
            directories: BTreeMap::new(),
            usage,
            buffer: vec![0; 128 * 1024],
        })
    }

    /// Applies one entry and reads its content to the end.
    pub(super) fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        Node::parse(entry)
            .and_then(|node| self.place(&node, entry))
            .with_context(|| format!("entry {name:?}"))
    }

    /// Sets what had to wait for the last entry, and returns what the tree takes.
    pub(super) fn finish(self) -> Result<Usage> {
        for (path, modified) in &self.directories {
            let (dir, name) = split(path);
            let parent = open_parent(self.root.as_fd(), dir)?;
            // A later entry may have put something else in the directory's place.
            if present(parent.as_fd(), name)? == Present::Directory {
                set_times(parent.as_fd(), name, *modified)?;
            }
        }
        Ok(self.usage)
    }

    fn place<R: Read>(&mut self, node: &Node, content: &mut tar::Entry<'_, R>) -> Result<()> {
        if node.path.is_empty() {
            ensure_valid(
                node.kind == EntryType::Directory,
                "the root must be a directory",
            )?;
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
        self.usage.inodes += 1;
        match node.kind {
            EntryType::Regular | EntryType::Continuous => self.regular(parent, name, node, content),
            EntryType::Symlink => {
                rustix::fs::symlinkat(
                    OsStr::from_bytes(&node.link),
                    parent,
                    OsStr::from_bytes(name),
                )
                .with_context(|| {
                    format!("symlinkat to {:?}", String::from_utf8_lossy(&node.link))
                })?;
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

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
        before: Present,
    ) -> Result<()> {
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
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(
            parent,
            OsStr::from_bytes(name),
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .context("openat of the new file")?;
        let mut file = std::fs::File::from(opened);
        let mut written = 0;
        loop {
            let count = content.read(&mut self.buffer).map_err(malformed)?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count])
                .context("write the content")?;
            written += count as u64;
        }
        ensure_valid(
            written == content.size(),
            "the archive ends inside the content",
        )?;
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
        ensure_valid(
            !hidden.starts_with(WHITEOUT),
            "aufs metadata is not supported",
        )?;
        ensure_valid(
            !matches!(hidden, b"" | b"." | b".."),
            "a whiteout must name a file",
        )?;
        match present(parent, hidden)? {
            Present::Nothing => {
                let mode = Mode::empty();
                rustix::fs::mknodat(
                    parent,
                    OsStr::from_bytes(hidden),
                    FileType::CharacterDevice,
                    mode,
                    0,
                )
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
            ensure_valid(
                before == Present::Nothing,
                "its directory is a link that leads nowhere",
            )?;
            rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::RWXU)
                .context("mkdirat of a parent")?;
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

impl Node {
    fn parse<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Node> {
        let path = clean(&entry.path_bytes())?;
        let link = entry.link_name_bytes().unwrap_or_default().into_owned();
        let seconds = entry.header().mtime().map_err(malformed)?;
        let seconds =
            i64::try_from(seconds).map_err(|_too_large| invalid("mtime: out of range"))?;
        let mut modified = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut xattrs = Vec::new();
        for record in entry
            .pax_extensions()
            .map_err(malformed)?
            .into_iter()
            .flatten()
        {
            let record = record.map_err(malformed)?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            if key == b"mtime" {
                modified = parse_time(value)?;
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                xattrs.extend(xattr(name, value)?);
            } else {
                ensure_valid(
                    !key.starts_with(b"GNU.sparse."),
                    "sparse files are not supported",
                )?;
            }
        }
        let header = entry.header();
        let id = |value: u64, what: &str| {
            // The kernel's "no change", so no file can have it.
            let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| invalid(format!("{what} {value}: at most 4294967294")))
        };
        let major = header.device_major().map_err(malformed)?.unwrap_or(0);
        let minor = header.device_minor().map_err(malformed)?.unwrap_or(0);
        Ok(Node {
            path,
            kind: header.entry_type(),
            mode: Mode::from_raw_mode(header.mode().map_err(malformed)? & 0o7777),
            uid: Uid::from_raw(id(header.uid().map_err(malformed)?, "uid")?),
            gid: Gid::from_raw(id(header.gid().map_err(malformed)?, "gid")?),
            modified,
            xattrs,
            link,
            device: (major, minor),
        })
    }
}

fn ensure_valid(holds: bool, rule: &str) -> Result<()> {
    ensure!(holds, invalid(rule));
    Ok(())
}

/// A failed look-up inside the layer: the layer's fault where it is about names, else the node's.
fn missing<T>(errno: Errno, message: String) -> Result<T> {
    match errno {
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::LOOP
        | Errno::XDEV
        | Errno::PERM
        | Errno::MLINK
        | Errno::NAMETOOLONG => Err(invalid(message)),
        _ => Err(anyhow::Error::new(errno).context(message)),
    }
}

/// The components of an entry's name, joined again: relative, without empty ones and `.`.
fn clean(name: &[u8]) -> Result<Vec<u8>> {
    ensure_valid(name.len() < MAX_PATH, "longer than 4095 bytes")?;
    ensure_valid(!name.contains(&0), "holds a NUL byte")?;
    let mut path = Vec::with_capacity(name.len());
    for component in name
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
    {
        ensure_valid(component != b"..", "must not hold \"..\"")?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// Directory and last component of a cleaned path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        // The root itself is its own `.`.
        None if path.is_empty() => (b"", b"."),
        None => (b"", path),
    }
}

/// Opens directory `path` of the tree; links in it are followed as if `root` were `/`.
fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() {
        b".".as_slice()
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), within) {
            // A rename or mount anywhere on the system while a `..` was crossed (openat2(2)): not a fault, try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

fn open_parent(root: BorrowedFd<'_>, dir: &[u8]) -> Result<OwnedFd> {
    resolve(root, dir)
        .with_context(|| format!("openat2 of directory {:?}", String::from_utf8_lossy(dir)))
}

fn present(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Present> {
    match rustix::fs::statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Present::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Present::Whiteout,
            _ => Present::Other,
        }),
        Err(Errno::NOENT) => Ok(Present::Nothing),
        Err(errno) => missing(errno, format!("statat: {errno}")),
    }
}

fn special(parent: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<()> {
    let (major, minor) = node.device;
    let (kind, device) = match node.kind {
        EntryType::Char => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        EntryType::Block => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        _ => (FileType::Fifo, 0),
    };
    ensure_valid(
        kind != FileType::CharacterDevice || device != 0,
        "character device 0:0 means a deleted file to overlayfs",
    )?;
    rustix::fs::mknodat(parent, OsStr::from_bytes(name), kind, node.mode, device)
        .with_context(|| format!("mknodat of {kind:?} {major}:{minor}"))?;
    set_attributes_at(parent, name, node)
}

/// Owner, mode and xattrs, in this order: a change of owner clears set-id bits and file capabilities.
fn set_attributes(fd: BorrowedFd<'_>, node: &Node) -> Result<()> {
    rustix::fs::fchown(fd, Some(node.uid), Some(node.gid)).context("fchown")?;
    rustix::fs::fchmod(fd, node.mode).context("fchmod")?;
    for (name, value) in &node.xattrs {
        let set = rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty());
        set.with_context(|| format!("fsetxattr {name:?}"))?;
    }
    Ok(())
}

/// The same for what cannot be opened without side effects: links, devices, fifos.
fn set_attributes_at(parent: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<()> {
    let (uid, gid) = (Some(node.uid), Some(node.gid));
    rustix::fs::chownat(
        parent,
        OsStr::from_bytes(name),
        uid,
        gid,
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .context("fchownat")?;
    if node.kind != EntryType::Symlink {
        // Follows links, but this name was made a line ago as something else, and the tree is private.
        rustix::fs::chmodat(parent, OsStr::from_bytes(name), node.mode, AtFlags::empty())
            .context("fchmodat")?;
    }
    for (key, value) in &node.xattrs {
        let path = proc_path(parent, name);
        rustix::fs::lsetxattr(&path, key.as_c_str(), value, XattrFlags::empty())
            .with_context(|| format!("lsetxattr {key:?}"))?;
    }
    set_times(parent, name, node.modified)
}

fn set_times(parent: BorrowedFd<'_>, name: &[u8], modified: Timespec) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: modified,
    };
    rustix::fs::utimensat(
        parent,
        OsStr::from_bytes(name),
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .context("utimensat")
}

fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    rustix::fs::setxattr(
        proc_path(parent, name),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .context("setxattr trusted.overlay.opaque")
}

/// `name` below an open directory, for the calls that take no descriptor: xattrs of what cannot be opened.
fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    debug_assert!(!name.contains(&b'/') && CWD.as_raw_fd() != parent.as_raw_fd());
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(OsStr::from_bytes(name))
}

/// The xattr to set for a PAX record; `None` for one that is the node's to choose.
fn xattr(name: &[u8], value: &[u8]) -> Result<Option<(CString, Vec<u8>)>> {
    // It would lead overlayfs to other directories than the layers', or make it take the layer for another.
    ensure_valid(
        !name.starts_with(b"trusted.overlay."),
        "xattr trusted.overlay.*: belongs to the mount",
    )?;
    if name == b"security.selinux" {
        return Ok(None);
    }
    let name = CString::new(name).map_err(|_nul| invalid("xattr name holds a NUL byte"))?;
    Ok(Some((name, value.to_vec())))
}

/// A PAX time: seconds, and optionally a dot and a fraction; nanoseconds are kept.
fn parse_time(text: &[u8]) -> Result<Timespec> {
    let malformed = || {
        invalid(format!(
            "mtime {:?}: seconds.fraction",
            String::from_utf8_lossy(text)
        ))
    };
    let text = std::str::from_utf8(text).map_err(|_not_text| malformed())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let whole: i64 = seconds.parse().map_err(|_not_a_number| malformed())?;
    let nanos: i64 = digits.parse().map_err(|_not_a_number| malformed())?;
    ensure!(
        fraction.bytes().all(|byte| byte.is_ascii_digit()),
        malformed()
    );
    // -1.25 is 1.25 s before 1970, and the kernel counts nanoseconds upwards.
    if seconds.starts_with('-') && nanos > 0 {
        let whole = whole.checked_sub(1).ok_or_else(malformed)?;
        return Ok(Timespec {
            tv_sec: whole,
            tv_nsec: 1_000_000_000 - nanos,
        });
    }
    Ok(Timespec {
        tv_sec: whole,
        tv_nsec: nanos,
    })
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(4096) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_and_have_no_way_up() {
        let table: [(&str, &str); 6] = [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/a", "a"),
            ("./", ""),
            ("", ""),
            ("a/./b", "a/b"),
        ];
        for (name, path) in table {
            assert_eq!(clean(name.as_bytes()).unwrap(), path.as_bytes(), "{name}");
        }
        for bad in [
            "..",
            "../a",
            "a/../b",
            "a/..",
            "/..",
            "a\0b",
            &"x".repeat(4096),
        ] {
            assert!(
                clean(bad.as_bytes()).unwrap_err().is::<InvalidEntry>(),
                "{bad:?}"
            );
        }
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
        assert_eq!(split(b"a"), (b"".as_slice(), b"a".as_slice()));
    }

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            ("5", 5, 0),
            ("5.5", 5, 500_000_000),
            ("5.1234567899", 5, 123_456_789),
            ("-1.25", -2, 750_000_000),
            ("-3", -3, 0),
            ("-0.5", -1, 500_000_000),
        ] {
            assert_eq!(
                parse_time(text.as_bytes()).unwrap(),
                Timespec {
                    tv_sec: seconds,
                    tv_nsec: nanos
                },
                "{text}"
            );
        }
        for bad in [
            "",
            ".5",
            "x",
            "1.-5",
            "1.+5",
            "1.2.3",
            "99999999999999999999",
        ] {
            assert!(parse_time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn xattrs_of_the_mount_are_refused() {
        assert!(xattr(b"trusted.overlay.redirect", b"/").is_err());
        assert!(xattr(b"security.selinux", b"x").unwrap().is_none());
        assert!(xattr(b"security.capability", b"x").unwrap().is_some());
    }
}
