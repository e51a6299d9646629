//! What a layer takes of the disk, held against what has arrived of it and what is free.
//!
//! The length of the archive bounds neither: a piece of one byte of a sparse file takes a block, and so does a directory.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use super::Usage;
use super::entry::invalid;
use crate::image::archive::check_space;
use crate::image::decode::{FREE_SIZE, MAX_RATIO};

/// What a directory, and a piece of a file, takes at least.
pub(super) const BLOCK: u64 = 4096;

/// How many bytes may be written between two looks at what is free.
const CHECK_EVERY: u64 = 64 << 20;

/// What a layer takes so far.
pub(super) struct Account {
    pub(super) usage: Usage,
    /// The layer's directory.
    root: File,
    /// How much of the packed layer is here.
    arrived: Arc<AtomicU64>,
    /// How many bytes there were at the last look.
    checked: u64,
}

impl Account {
    /// The account of a directory that is still empty.
    pub(super) fn new(root: &OwnedFd, arrived: Arc<AtomicU64>) -> Result<Account> {
        let root = root.try_clone().context("dup of the layer's root")?;
        Ok(Account {
            usage: Usage {
                bytes: BLOCK,
                inodes: 1,
            },
            root: root.into(),
            arrived,
            checked: 0,
        })
    }

    pub(super) fn directories(&mut self, made: u64) -> Result<()> {
        self.usage.inodes += made;
        self.bytes(made * BLOCK)
    }

    /// Adds what was written.
    pub(super) fn bytes(&mut self, written: u64) -> Result<()> {
        self.usage.bytes += written;
        if self.usage.bytes - self.checked < CHECK_EVERY {
            return Ok(());
        }
        self.checked = self.usage.bytes;
        let (taken, arrived) = (self.usage.bytes, self.arrived.load(Ordering::Relaxed));
        ensure!(
            taken <= FREE_SIZE || taken / MAX_RATIO <= arrived,
            invalid(format!(
                "{taken} bytes on disk out of {arrived} are more than {MAX_RATIO} times as many"
            ))
        );
        Ok(check_space(&self.root)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::InvalidEntry;

    /// Adds 64 MiB until it is refused, at most 20 times; how many there were, and the refusal.
    fn fill(arrived: u64) -> (u64, Option<anyhow::Error>) {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap().into();
        let mut account = Account::new(&root, Arc::new(AtomicU64::new(arrived))).unwrap();
        let refused = (0..20).find_map(|_| account.bytes(CHECK_EVERY).err());
        (account.usage.bytes / CHECK_EVERY, refused)
    }

    #[test]
    fn a_small_blob_cannot_fill_the_disk() {
        assert!(fill(20 * CHECK_EVERY / MAX_RATIO + BLOCK).1.is_none());
        let (count, refused) = fill(10_000);
        assert_eq!(
            count,
            FREE_SIZE / CHECK_EVERY,
            "all that any ratio may have, and one block"
        );
        assert!(refused.unwrap().is::<InvalidEntry>());
    }
}
