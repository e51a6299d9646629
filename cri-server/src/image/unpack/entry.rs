//! One entry of a layer's archive in the kernel's terms.
//!
//! What comes out of here is checked: a relative path without `.` and `..`, ids and times the kernel takes, no xattr that
//! belongs to the mount. Left out: times of access and change, names of owners, and access lists in the text form of
//! `SCHILY.acl`, as by the other tools that unpack images.

use std::ffi::CString;

use anyhow::{Result, ensure};
use rustix::fs::{Gid, Mode, Timespec, Uid};

use super::archive::{Entry, Kind};

/// Longest name of a file inside a layer, in bytes: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;

/// Limits of an extended attribute (linux/limits.h).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65536;

/// Most characters of what the archive says that a message repeats.
const MAX_QUOTED: usize = 200;

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

pub(super) fn ensure_valid(holds: bool, rule: &str) -> Result<()> {
    ensure!(holds, invalid(rule));
    Ok(())
}

/// What the archive says, for messages: in quotes and on one line, and cut, because the whole may be longer than what a
/// caller's connection takes for an error.
pub(super) fn quoted(text: &[u8]) -> String {
    // No character has more than four bytes.
    let cut = text.len() > 4 * MAX_QUOTED;
    let text = String::from_utf8_lossy(if cut { &text[..4 * MAX_QUOTED] } else { text });
    let mut kept: String = text.chars().take(MAX_QUOTED).collect();
    if kept.len() < text.len() || cut {
        kept.push('…');
    }
    format!("{kept:?}")
}

/// A file to be made.
pub(super) struct Node {
    /// Relative, without `.` and `..`; empty for the root.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: Mode,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) modified: Timespec,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
}

impl Node {
    /// Checks and converts an entry.
    pub(super) fn parse(entry: &Entry) -> Result<Node> {
        let header = &entry.header;
        let link = entry.link()?;
        ensure_valid(!link.contains(&0), "its target holds a NUL byte")?;
        ensure_valid(link.len() < MAX_PATH, "its target is longer than 4095 bytes")?;
        let mode = u32::try_from(header.mode()? & 0o7777)?;
        Ok(Node {
            path: clean(&entry.path()?)?,
            kind: entry.kind,
            mode: Mode::from_raw_mode(mode),
            uid: Uid::from_raw(id(entry, "uid", header.uid()?)?),
            gid: Gid::from_raw(id(entry, "gid", header.gid()?)?),
            modified: modified(entry)?,
            xattrs: xattrs(entry)?,
            link,
            device: device(entry)?,
        })
    }
}

fn id(entry: &Entry, key: &str, of_header: i64) -> Result<u32> {
    let value = match entry.number(key)? {
        Some(value) => value.cast_signed(),
        None => of_header,
    };
    // The kernel's "no change", so no file can have it.
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| invalid(format!("{key} {value}: 0 to 4294967294")))
}

fn device(entry: &Entry) -> Result<(u32, u32)> {
    if !matches!(entry.kind, Kind::Char | Kind::Block) {
        return Ok((0, 0));
    }
    let (major, minor) = entry.header.device()?;
    // What the kernel keeps of either; it would cut off the rest.
    let fits = (0..1 << 12).contains(&major) && (0..1 << 20).contains(&minor);
    ensure!(fits, invalid(format!("device {major}:{minor}: at most 4095:1048575")));
    Ok((u32::try_from(major)?, u32::try_from(minor)?))
}

fn modified(entry: &Entry) -> Result<Timespec> {
    let of_header = entry.header.mtime()?;
    let record = entry.records().iter().rev().find(|(key, _)| key == b"mtime");
    match record {
        Some((_, value)) if !value.is_empty() => parse_time(value),
        _ => Ok(Timespec {
            tv_sec: of_header,
            tv_nsec: 0,
        }),
    }
}

fn xattrs(entry: &Entry) -> Result<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    for (key, value) in entry.records() {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.extend(xattr(name, value, entry.kind)?);
        }
    }
    Ok(xattrs)
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

/// The xattr to set for a PAX record; `None` for one that is not the image's to choose, or that no file here can have.
///
/// | kept | dropped |
/// |---|---|
/// | `security.capability`, `security.ima` | the rest of `security.`: labels and sums that this node's modules give |
/// | `trusted.` | |
/// | `system.posix_acl_access`, `system.posix_acl_default` | the rest of `system.`: names of other filesystems |
/// | `user.`, of files and directories | `user.` of other types, and every other beginning: Linux has no such names (xattr(7)) |
fn xattr(name: &[u8], value: &[u8], kind: Kind) -> Result<Option<Xattr>> {
    // It would lead overlayfs to other directories than the layers', or make it take the layer for another.
    ensure_valid(
        !name.starts_with(b"trusted.overlay."),
        "xattr trusted.overlay.*: belongs to the mount",
    )?;
    let kept = match name {
        b"security.capability" | b"security.ima" => true,
        b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ if name.starts_with(b"trusted.") => true,
        _ => name.starts_with(b"user.") && matches!(kind, Kind::Regular | Kind::Directory),
    };
    if !kept {
        return Ok(None);
    }
    let fits = name.len() <= MAX_XATTR_NAME && value.len() <= MAX_XATTR_VALUE;
    ensure!(
        fits,
        invalid(format!(
            "xattr {}: at most 255 bytes of name and 65536 of value",
            quoted(name)
        ))
    );
    let name = CString::new(name).map_err(|_nul| invalid("xattr name holds a NUL byte"))?;
    Ok(Some((name, value.to_vec())))
}

/// A PAX time: seconds, and optionally a dot and a fraction; nanoseconds are kept.
fn parse_time(text: &[u8]) -> Result<Timespec> {
    let malformed = || invalid(format!("mtime {}: seconds.fraction", quoted(text)));
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
    fn what_is_quoted_is_one_short_line() {
        let long = "ä".repeat(200);
        let table: [(&[u8], String); 5] = [
            (b"a\nb", r#""a\nb""#.to_owned()),
            (long.as_bytes(), format!("\"{long}\"")),
            (&[b'x'; 201], format!("\"{}…\"", "x".repeat(200))),
            (&[0xff; 4000], format!("\"{}…\"", "\u{fffd}".repeat(200))),
            (
                &"\u{10ffff}".repeat(200).into_bytes(),
                format!("{:?}", "\u{10ffff}".repeat(200)),
            ),
        ];
        for (text, shown) in table {
            assert_eq!(quoted(text), shown);
        }
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
    fn xattrs_are_kept_dropped_or_refused_by_name() {
        let named = |name: &str, kind| xattr(name.as_bytes(), b"x", kind);
        for name in ["trusted.overlay.redirect", "trusted.overlay.opaque", "trusted.a\0b"] {
            assert!(named(name, Kind::Regular).is_err(), "{name}");
        }
        for name in [
            "security.capability",
            "security.ima",
            "system.posix_acl_default",
            "trusted.a",
            "user.a",
        ] {
            assert!(named(name, Kind::Directory).unwrap().is_some(), "{name}");
        }
        for name in [
            "security.selinux",
            "security.evm",
            "system.nfs4_acl",
            "com.apple.quarantine",
        ] {
            assert!(named(name, Kind::Regular).unwrap().is_none(), "{name}");
        }
        assert!(named("user.a", Kind::Symlink).unwrap().is_none());
        assert!(named(&format!("user.{}", "a".repeat(251)), Kind::Regular).is_err());
        assert!(xattr(b"user.a", &[0; 65537], Kind::Regular).is_err());
    }
}
