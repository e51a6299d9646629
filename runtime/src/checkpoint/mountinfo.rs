//! /proc/PID/mountinfo, and which of its mounts a descriptor is on.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, StatxFlags, statx};

/// `STATX_ATTR_MOUNT_ROOT` of linux/stat.h: the file is the root of a mount. Linux 5.8.
const MOUNT_ROOT: u64 = 0x2000;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// As `statx` names it too.
    pub id: u64,
    /// Device of the filesystem, `MAJOR:MINOR`.
    pub device: String,
    /// From the root of the process.
    pub place: PathBuf,
    /// Of the mount, not of its filesystem.
    pub options: Vec<String>,
    /// The filesystem's type.
    pub kind: String,
}

impl Line {
    /// The mount has this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }
}

/// The mounts that a process sees.
pub fn of_process(pid: &str) -> Result<Vec<Line>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.lines()
        .map(|line| parse(line).with_context(|| format!("{path}: {line:?}")))
        .collect()
}

/// `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [TAG..] - TYPE SOURCE SUPER`, proc(5).
fn parse(line: &str) -> Option<Line> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    Some(Line {
        id: fields.next()?.parse().ok()?,
        device: fields.nth(1)?.to_owned(),
        place: unescape(fields.nth(1)?),
        options: fields.next()?.split(',').map(str::to_owned).collect(),
        kind: filesystem.split(' ').next()?.to_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes are three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
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
    OsString::from_vec(plain).into()
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
pub fn find(lines: &[Line], id: u64) -> Result<&Line> {
    let found = lines.iter().find(|line| line.id == id);
    found.with_context(|| format!("mount {id} is in no line of mountinfo"))
}

/// The places below `directory` that something is mounted on.
pub fn below<'a>(lines: &'a [Line], directory: &'a Path) -> impl Iterator<Item = &'a Path> {
    let places = lines.iter().map(|line| line.place.as_path());
    places.filter(move |place| place.starts_with(directory) && *place != directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = parse(r"36 35 98:0 /mnt1 /mnt\0402/a\134b rw,noatime master:1 - ext3 /dev/root rw,errors=continue")
            .unwrap();
        assert_eq!((line.id, line.place.as_path()), (36, Path::new("/mnt 2/a\\b")));
        assert!(line.has("noatime") && !line.has("ro") && line.kind == "ext3");
        for bad in ["", "x", "36 35 98:0 /", "a b c d e f - g"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        let own = of_process("self").unwrap();
        let root = std::fs::File::open("/proc").unwrap();
        let proc = find(&own, mounted_at(&root).unwrap().unwrap()).unwrap();
        assert_eq!((proc.place.as_path(), proc.kind.as_str()), (Path::new("/proc"), "proc"));
        assert_eq!(
            mounted_at(std::fs::File::open("/proc/self/status").unwrap()).unwrap(),
            None
        );
    }
}
