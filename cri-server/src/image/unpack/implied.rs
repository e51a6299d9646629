//! Directories that an archive has files in and no entry for: it says nothing of their owner, mode, times and xattrs,
//! which the layers below may know (`snapshot::implied`).

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::CWD;

/// Most bytes of names that are kept. What is beyond keeps the attributes that it was made with.
const MAX_BYTES: usize = 1 << 20;

/// Such directories of a layer, by their paths without links; names that are no text are left out.
#[derive(Default)]
pub(super) struct Implied {
    paths: BTreeSet<String>,
    bytes: usize,
}

impl Implied {
    /// The open directory `dir` of the layer was made without an entry.
    pub(super) fn add(&mut self, root: BorrowedFd<'_>, dir: BorrowedFd<'_>) {
        let Some(path) = path(root, dir) else { return };
        if self.bytes + path.len() <= MAX_BYTES {
            self.bytes += path.len();
            self.paths.insert(path);
        }
    }

    /// It has an entry after all.
    pub(super) fn remove(&mut self, root: BorrowedFd<'_>, dir: BorrowedFd<'_>) {
        // Most archives have an entry for each.
        if !self.paths.is_empty()
            && let Some(path) = path(root, dir)
        {
            self.paths.remove(&path);
        }
    }

    pub(super) fn into_paths(self) -> Vec<String> {
        self.paths.into_iter().collect()
    }
}

/// Where an open directory is below the root. The name of the entry would not tell: links may have led there.
fn path(root: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Option<String> {
    let name = |fd: BorrowedFd<'_>| {
        let link = rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()).ok()?;
        link.into_string().ok()
    };
    let (root, dir) = (name(root)?, name(dir)?);
    Some(dir.strip_prefix(&root)?.trim_start_matches('/').to_owned())
}
