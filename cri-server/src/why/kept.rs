//! The deaths of containers that are removed: one file each, the oldest go.
//!
//! ```text
//!   exits/00001769850000000000-ID.json      the time of the end first: names in order are deaths in order
//! ```
//! A file is put in place by rename before anything of the container goes, so that a server that is killed in between
//! has it twice and never not at all. What a power cut leaves unreadable is passed over.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Death;
use crate::node::remove_file;
use crate::record;
use crate::recover::entries;
use crate::store::now;

/// Most files, and most bytes of them together.
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 1 << 20;

/// Keeps a death; the oldest ones go for it.
pub(super) fn keep(directory: &Path, death: &Death) -> Result<()> {
    // A time that is still to come would keep it for ever.
    let ended = death.finished_at.clamp(0, now());
    let name = format!("{ended:020}-{}.json", death.id);
    record::write(&directory.join(name), death)?;
    prune(directory, MAX_FILES, MAX_BYTES)
}

/// Removes what a server that was killed had not finished writing.
pub(crate) fn tidy(directory: &Path) -> Result<()> {
    let mut unfinished = entries(directory)?;
    unfinished.retain(|path| path.extension().is_some_and(|extension| extension == "partial"));
    unfinished.iter().try_for_each(|path| remove_file(path))
}

/// All that are kept, oldest first.
pub(super) fn all(directory: &Path) -> Result<Vec<Death>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let paths = files(directory)?.into_iter();
    let deaths = paths.filter_map(|path| match record::read_optional(&path) {
        Ok(death) => death,
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    });
    Ok(deaths.collect())
}

fn prune(directory: &Path, max_files: usize, max_bytes: u64) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for path in files(directory)?.iter().rev() {
        count += 1;
        // One that another call has just removed takes nothing.
        bytes += fs::metadata(path).map_or(0, |metadata| metadata.len());
        if count > max_files || bytes > max_bytes {
            remove_file(path)?;
        }
    }
    Ok(())
}

/// The files in their order; without those that are being written.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = entries(directory).context("the exits of removed containers")?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::super::find::tests::death;
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let deaths = all(directory).unwrap();
        deaths.iter().map(|death| death.id.to_string()).collect()
    }

    #[test]
    fn the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(names(&dir.path().join("none")).is_empty());
        for n in [3, 1, 2] {
            keep(dir.path(), &death(&format!("c{n}"), "a", n)).unwrap();
        }
        assert_eq!(names(dir.path()), ["c1", "c2", "c3"]);
        keep(dir.path(), &death("c3", "a", 3)).unwrap();
        assert_eq!(names(dir.path()), ["c1", "c2", "c3"], "a removal that is repeated");
        keep(dir.path(), &death("future", "a", i64::MAX)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        keep(dir.path(), &death("later", "a", now())).unwrap();
        assert_eq!(names(dir.path())[3..], ["future", "later"], "a clock that was wrong");
        remove_file(&files(dir.path()).unwrap()[3]).unwrap();
        remove_file(&files(dir.path()).unwrap()[3]).unwrap();
        prune(dir.path(), 2, MAX_BYTES).unwrap();
        assert_eq!(names(dir.path()), ["c2", "c3"]);
        let one = fs::metadata(&files(dir.path()).unwrap()[0]).unwrap().len();
        prune(dir.path(), 2, one + 1).unwrap();
        assert_eq!(names(dir.path()), ["c3"]);
    }

    #[test]
    fn what_cannot_be_read_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00000000000000000001-torn.json"), "").unwrap();
        fs::write(dir.path().join("00000000000000000002-late.partial"), "{").unwrap();
        keep(dir.path(), &death("c3", "a", 3)).unwrap();
        assert_eq!(names(dir.path()), ["c3"]);
        tidy(dir.path()).unwrap();
        let left = entries(dir.path()).unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..300 {
            keep(dir.path(), &death(&format!("c{n}"), "a", n)).unwrap();
        }
        let names = names(dir.path());
        assert_eq!((names.len(), names[0].as_str()), (MAX_FILES, "c44"));
    }
}
