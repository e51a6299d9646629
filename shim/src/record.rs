//! The exit record on its way to the disk.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use corten_proto::exit::{ExitRecord, MAX_REASON};

/// Puts an exit record in place by rename, so that a reader finds all of it or none. Not synced: after a power cut the
/// containers are gone anyway. Only for the user the shim runs as: the end of the output is in it.
pub(crate) fn write_exit_record(path: &Path, record: &ExitRecord) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    write_private(&temporary, record).with_context(|| format!("write({})", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("rename({}, {})", temporary.display(), path.display()))
}

fn write_private(path: &Path, record: &ExitRecord) -> Result<()> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // One that was left here unfinished has the mode it was made with.
    file.set_permissions(Permissions::from_mode(0o600))?;
    // Through a small buffer: the shim's memory is to stay what it is.
    let mut writer = BufWriter::with_capacity(1024, file);
    serde_json::to_writer(&mut writer, record)?;
    writer.flush().context("flush")
}

/// What is kept of the reason of a signal.
pub(crate) fn bounded(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason.shrink_to_fit();
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_unfinished_becomes_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("exit.json");
        let partial = dir.path().join("exit.json.partial");
        std::fs::write(&partial, "{").expect("write");
        std::fs::set_permissions(&partial, Permissions::from_mode(0o644)).expect("chmod");
        write_exit_record(&path, &ExitRecord::default()).expect("write the record");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_long_reason_is_cut() {
        let reason = format!("{}ä", "x".repeat(MAX_REASON - 1));
        assert_eq!(bounded(reason), "x".repeat(MAX_REASON - 1));
        assert_eq!(bounded("short".into()), "short");
    }
}
