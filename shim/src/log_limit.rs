//! The limit of a log's file: counted, not asked of the filesystem, which may have no quotas.
//!
//! Room is left below the limit for the notice that it has been met.

use std::fs::File;

use anyhow::{Context, Result};

/// Room for the notice, in bytes.
const NOTICE: u64 = 256;

/// How long the file may become.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) bytes: u64,
    /// What we know of it.
    length: u64,
    /// It has been met. Only another or a shorter file changes that: else short records would slip in where longer ones
    /// did not fit, each with a notice of its own.
    full: bool,
}

impl Limit {
    pub(crate) fn of(bytes: u64, file: &File) -> Result<Limit> {
        Ok(Limit {
            bytes,
            length: file.metadata().context("fstat of a log")?.len(),
            full: false,
        })
    }

    /// Whether so many bytes more fit into the file.
    pub(crate) fn admits(&mut self, more: usize, file: &File) -> bool {
        if self.full || !self.fits(more) {
            // Somebody may have cut it (copytruncate).
            let now = file.metadata().map_or(self.length, |metadata| metadata.len());
            self.full &= now >= self.length;
            self.length = now;
            self.full |= !self.fits(more);
        }
        !self.full
    }

    /// Whether a notice of so many bytes fits into a file that has met its limit.
    pub(crate) fn admits_notice(&self, more: usize) -> bool {
        self.length + more as u64 <= self.bytes
    }

    /// So much has been written.
    pub(crate) fn grown(&mut self, by: usize) {
        self.length += by as u64;
    }

    fn fits(&self, more: usize) -> bool {
        self.length + more as u64 + NOTICE <= self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_and_what_makes_room() {
        let file = tempfile::tempfile().expect("a file");
        let mut limit = Limit::of(1000, &file).expect("a limit");
        assert!(
            limit.admits(744, &file) && !limit.admits(745, &file),
            "room for the notice"
        );
        assert!(!limit.admits(1, &file), "full stays full");
        file.set_len(500).expect("truncate");
        limit.length = 600;
        assert!(limit.admits(244, &file), "the file has become shorter");
        limit.grown(244);
        assert!(limit.admits_notice(256) && !limit.admits_notice(257));
    }
}
