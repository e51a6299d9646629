//! One entry of a layer's archive in the kernel's terms.
//!
//! What comes out of here is checked: a relative path without `.` and `..`, ids and times the kernel takes, no xattr that
//! belongs to the mount. Left out: GNU sparse files, refused; security.selinux, which is the node's to choose, dropped.

use std::ffi::CString;

use anyhow::{Result, ensure};
use rustix::fs::{Gid, Mode, Timespec, Uid};
use tar::EntryType;

use super::header::Extended;

/// Longest name of a file inside a layer, in bytes: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;

/// Name and value of an extended attribute.
pub(super) type Xattr = (CString, Vec<u8>);

/// An entry that must not or cannot be applied: the layer is at fault, not this node.
#[derive(Debug)]
pub(in crate::image) struct InvalidEntry(String);

impl std::fmt::Display for InvalidEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidEntry {}

pub(super) fn invalid(rule: impl Into<String>) -> anyhow::Error {
    InvalidEntry(rule.into()).into()
}

/// What the archive's reader could not make sense of.
pub(super) fn malformed(error: std::io::Error) -> anyhow::Error {
    invalid(error.to_string())
}

pub(super) fn ensure_valid(holds: bool, rule: &str) -> Result<()> {
    ensure!(holds, invalid(rule));
    Ok(())
}

/// A file to be made.
pub(super) struct Node {
    /// Relative, without `.` and `..`; empty for the root.
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryType,
    pub(super) mode: Mode,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) modified: Timespec,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
}

impl Node {
    /// Checks and converts a header with its extensions. `size` is how much content follows, in bytes.
    pub(super) fn parse(extended: &Extended, size: u64) -> Result<Node> {
        let header = &extended.header;
        ensure_valid(
            extended.number("size", header.entry_size())? == size,
            "its size can be read in two ways",
        )?;
        let (modified, xattrs) = from_records(extended)?;
        let id = |key: &str, value| {
            let value = extended.number(key, value)?;
            // The kernel's "no change", so no file can have it.
            let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| invalid(format!("{key} {value}: at most 4294967294")))
        };
        // GNU tar leaves the fields empty, which is no number, where there is no device.
        let mut device = (0, 0);
        if matches!(header.entry_type(), EntryType::Char | EntryType::Block) {
            device.0 = header.device_major().map_err(malformed)?.unwrap_or(0);
            device.1 = header.device_minor().map_err(malformed)?.unwrap_or(0);
        }
        Ok(Node {
            path: clean(&extended.path())?,
            kind: header.entry_type(),
            mode: Mode::from_raw_mode(header.mode().map_err(malformed)? & 0o7777),
            uid: Uid::from_raw(id("uid", header.uid())?),
            gid: Gid::from_raw(id("gid", header.gid())?),
            modified,
            xattrs,
            link: extended.link(),
            device,
        })
    }
}

/// The time of modification and the xattrs.
fn from_records(extended: &Extended) -> Result<(Timespec, Vec<Xattr>)> {
    let seconds = extended.header.mtime().map_err(malformed)?;
    let tv_sec = i64::try_from(seconds).map_err(|_too_large| invalid("mtime: out of range"))?;
    let mut modified = Timespec { tv_sec, tv_nsec: 0 };
    let mut xattrs = Vec::new();
    for (key, value) in &extended.records {
        if key == b"mtime" {
            modified = parse_time(value)?;
        } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.extend(xattr(name, value)?);
        } else {
            ensure_valid(!key.starts_with(b"GNU.sparse."), "sparse files are not supported")?;
        }
    }
    Ok((modified, xattrs))
}

/// The components of an entry's name, joined again: relative, without empty ones and `.`.
pub(super) fn clean(name: &[u8]) -> Result<Vec<u8>> {
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
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        // The root itself is its own `.`.
        None if path.is_empty() => (b"", b"."),
        None => (b"", path),
    }
}

/// The xattr to set for a PAX record; `None` for one that is the node's to choose.
fn xattr(name: &[u8], value: &[u8]) -> Result<Option<Xattr>> {
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
    let malformed = || invalid(format!("mtime {:?}: seconds.fraction", String::from_utf8_lossy(text)));
    let text = std::str::from_utf8(text).map_err(|_not_text| malformed())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let whole: i64 = seconds.parse().map_err(|_not_a_number| malformed())?;
    let nanos: i64 = digits.parse().map_err(|_not_a_number| malformed())?;
    ensure!(fraction.bytes().all(|byte| byte.is_ascii_digit()), malformed());
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
        for bad in ["..", "../a", "a/../b", "a/..", "/..", "a\0b", &"x".repeat(4096)] {
            assert!(clean(bad.as_bytes()).unwrap_err().is::<InvalidEntry>(), "{bad:?}");
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
        for bad in ["", ".5", "x", "1.-5", "1.+5", "1.2.3", "99999999999999999999"] {
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
