//! How the mount that holds a host path propagates, out of `/proc/self/mountinfo` (proc(5)). Pure.
//!
//! The mount is found by path components: `/var/lib/foo2` is not in a mount at `/var/lib/foo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// How mounts made below a mount are passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// Received only.
    Slave,
    /// Sent and received.
    Shared,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    path: PathBuf,
    propagation: Propagation,
}

/// Every line that parses.
pub(super) fn parse(table: &str) -> Vec<MountPoint> {
    table.lines().filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point options [tag...] - type source options`
fn parse_line(line: &str) -> Option<MountPoint> {
    let mut fields = line.split(' ');
    let path = unescape(fields.nth(4)?);
    let tags = fields.skip(1).take_while(|field| *field != "-");
    let propagation = tags.fold(Propagation::Private, |seen, tag| match tag {
        // A mount can be slave and shared at once; shared says more.
        tag if tag.starts_with("shared:") => Propagation::Shared,
        tag if tag.starts_with("master:") && seen == Propagation::Private => Propagation::Slave,
        _ => seen,
    });
    Some(MountPoint { path, propagation })
}

/// The propagation of the mount `path` lies in: the deepest mount point above it, of stacked ones the last.
pub(super) fn propagation(table: &[MountPoint], path: &Path) -> Propagation {
    table
        .iter()
        .filter(|mount| path.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.components().count())
        .map(|mount| mount.propagation)
        .unwrap_or_default()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The byte that `\ooo` at the start of `bytes` stands for.
fn octal(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /var/lib/foo rw - tmpfs tmpfs rw
23 21 0:21 / /mnt/a\\040b rw master:1 - tmpfs tmpfs rw
24 21 0:22 / /both rw shared:7 master:1 - tmpfs tmpfs rw
25 21 0:23 / /stack rw shared:9 - tmpfs tmpfs rw
26 25 0:24 / /stack rw - tmpfs tmpfs rw
broken
";

    #[test]
    fn the_mount_is_found_by_components() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 6);
        for (path, expected) in [
            ("/", Propagation::Shared),
            ("/var/lib/foo2", Propagation::Shared),
            ("/var/lib/foo/x", Propagation::Private),
            ("/mnt/a b/c", Propagation::Slave),
            ("/both", Propagation::Shared),
            ("/stack/x", Propagation::Private),
        ] {
            assert_eq!(propagation(&table, Path::new(path)), expected, "{path}");
        }
    }
}
