//! /proc/PID/mountinfo, and which of its mounts a descriptor is on.
//!
//! A line is taken apart without a copy of it: a host has thousands, and most readers want one of them.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, StatxFlags, statx};

/// `STATX_ATTR_MOUNT_ROOT` of linux/stat.h: the file is the root of a mount. Linux 5.8.
const MOUNT_ROOT: u64 = 0x2000;

/// A line: `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [TAG..] - KIND SOURCE FILESYSTEM_OPTIONS`, proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// As `statx` names it too.
    pub id: u64,
    /// The mount it is on.
    pub parent: u64,
    /// Device of the filesystem, `MAJOR:MINOR`.
    pub device: &'a str,
    /// What of the filesystem is mounted.
    pub root: Cow<'a, Path>,
    /// From the root of the process.
    pub place: Cow<'a, Path>,
    /// Of the mount, not of its filesystem.
    pub options: &'a str,
    /// The filesystem's type.
    pub kind: &'a str,
    /// Of the filesystem.
    pub filesystem_options: &'a str,
}

impl<'a> Line<'a> {
    /// `None` for what is no such line.
    pub fn parse(line: &'a str) -> Option<Line<'a>> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (mut fields, mut filesystem) = (mount.split(' '), filesystem.split(' '));
        Some(Line {
            id: fields.next()?.parse().ok()?,
            parent: fields.next()?.parse().ok()?,
            device: fields.next()?,
            root: unescape(fields.next()?),
            place: unescape(fields.next()?),
            options: fields.next()?,
            kind: filesystem.next()?,
            filesystem_options: filesystem.nth(1)?,
        })
    }

    /// The mount has this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|own| own == option)
    }
}

/// The mounts that a process sees, as text. The process is named by its pid, or as `self`.
pub fn read(process: &str) -> Result<String> {
    let path = format!("/proc/{process}/mountinfo");
    std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

/// All lines of a text, for whoever must not overlook one.
pub fn parse(text: &str) -> Result<Vec<Line<'_>>> {
    let parse = |line| Line::parse(line).with_context(|| format!("mountinfo: {line:?}"));
    text.lines().map(parse).collect()
}

/// Blanks, tabs, newlines and backslashes are a backslash and three octal digits.
fn unescape(field: &str) -> Cow<'_, Path> {
    if !field.contains('\\') {
        return Cow::Borrowed(Path::new(field));
    }
    let bytes = field.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain)).into()
}

/// The mount whose root this file is; `None` for a file within one.
pub fn mounted_at(file: impl AsFd) -> Result<Option<u64>> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).context("statx(STATX_MNT_ID)")?;
    // Linux 5.8 has both; without them every file would pass for one within a mount.
    let known = stat.stx_attributes_mask.bits() & MOUNT_ROOT != 0;
    ensure!(known, "statx: this kernel does not tell the root of a mount");
    Ok((stat.stx_attributes.bits() & MOUNT_ROOT != 0).then_some(stat.stx_mnt_id))
}

/// The line of a mount.
pub fn find<'a, 'l>(lines: &'a [Line<'l>], id: u64) -> Result<&'a Line<'l>> {
    let found = lines.iter().find(|line| line.id == id);
    found.with_context(|| format!("mount {id} is in no line of mountinfo"))
}

/// The places below `directory` that something is mounted on.
pub fn below<'a>(lines: &'a [Line<'_>], directory: &'a Path) -> impl Iterator<Item = &'a Path> {
    let places = lines.iter().map(|line| line.place.as_ref());
    places.filter(move |place| place.starts_with(directory) && *place != directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = r"36 35 98:0 /mnt1 /mnt\0402/a\134b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let line = Line::parse(text).unwrap();
        assert_eq!((line.id, line.parent, line.device), (36, 35, "98:0"));
        assert_eq!(
            (&*line.root, &*line.place),
            (Path::new("/mnt1"), Path::new("/mnt 2/a\\b"))
        );
        assert!(line.has("noatime") && !line.has("ro") && !line.has("errors=continue"));
        assert_eq!((line.kind, line.filesystem_options), ("ext3", "rw,errors=continue"));
        for bad in [
            "",
            "x",
            "36 35 98:0 /",
            "a b c d e f - g h i",
            "36 35 98:0 / / rw - ext3",
        ] {
            assert!(Line::parse(bad).is_none(), "{bad}");
            assert!(parse(&format!("{text}\n{bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_this_process() {
        let text = read("self").unwrap();
        let own = parse(&text).unwrap();
        let root = std::fs::File::open("/proc").unwrap();
        let proc = find(&own, mounted_at(&root).unwrap().unwrap()).unwrap();
        assert_eq!((&*proc.place, proc.kind), (Path::new("/proc"), "proc"));
        let within = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(mounted_at(within).unwrap(), None);
    }

    #[test]
    fn escapes() {
        for (field, path) in [
            ("/a", "/a"),
            ("/a\\040b\\134", "/a b\\"),
            ("\\", "\\"),
            ("\\9x", "\\9x"),
            ("\\04", "\\04"),
        ] {
            assert_eq!(unescape(field), Path::new(path), "{field}");
        }
    }
}
