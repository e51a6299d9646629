//! What /proc says of a process: the files it has open, its limits.
//!
//! Which open files are sockets is told by their links alone, a call each: a microsecond a file.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use corten_proto::id::ContainerId;
use corten_runtime::cgroup::parse_memberships;
use rustix::fs::{CWD, Dir, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;

/// A process, held by its directory in /proc: what is read through it is never another process's that got its number.
pub(crate) struct Process {
    dir: OwnedFd,
}

impl Process {
    /// The process of this number; none if there is none.
    pub(crate) fn open(pid: i32) -> Option<Process> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        Some(Process { dir })
    }

    /// The same, if it is one of the container with this id: its number may have gone to another process.
    pub(crate) fn of(pid: i32, id: &ContainerId) -> Option<Process> {
        // Held before its cgroups are looked at: if it is in them then, it is no other.
        let process = Process::open(pid)?;
        let memberships = process.text("cgroup")?;
        is_below(&memberships, id.as_str()).then_some(process)
    }

    /// The namespace of this kind, by the kernel's name, that it is in.
    pub(crate) fn namespace(&self, kind: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.dir, format!("ns/{kind}"), flags, Mode::empty())?.into())
    }

    /// One of its files; none once it has ended.
    pub(crate) fn text(&self, file: &str) -> Option<String> {
        self.read(file).ok()
    }

    /// One of its files.
    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        let mut text = String::new();
        self.file(file, OFlags::RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes to one of its files.
    pub(crate) fn write(&self, file: &str, text: &str) -> io::Result<()> {
        self.file(file, OFlags::WRONLY)?.write_all(text.as_bytes())
    }

    fn file(&self, file: &str, flags: OFlags) -> io::Result<File> {
        Ok(openat(&self.dir, file, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// The soft limit of its open files.
    pub(super) fn max_open_files(&self) -> Option<u64> {
        soft_limit(&self.text("limits")?, "Max open files")
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.dir.as_raw_fd()
    }
}

/// Whether a process with these `memberships`, the text of its `cgroup`, is in or below a cgroup with the id in its name.
fn is_below(memberships: &str, id: &str) -> bool {
    parse_memberships(memberships).any(|(_, path)| path.split('/').any(|name| name.contains(id)))
}

/// What processes have open, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFiles {
    /// All of it.
    pub(super) files: Option<u64>,
    /// Sockets.
    pub(super) sockets: Option<u64>,
}

/// Most links that are read for one container: some 20 ms. One with more open has no number of sockets, lest it take the
/// time of all others; that of files the kernel counts for us, since Linux 6.2.
const MAX_LINKS: u64 = 16_384;

/// What these processes have open together. One that has ended has nothing.
pub(super) fn open_files(pids: &[i32]) -> OpenFiles {
    let (mut files, mut sockets, mut links) = (Some(0), Some(0), MAX_LINKS);
    for &pid in pids {
        let Ok(of_one) = of_process(pid, links) else { continue };
        let add = |sum: Option<u64>, one: Option<u64>| Some(sum? + one?);
        (files, sockets) = (add(files, of_one.files), add(sockets, of_one.sockets));
        // Those whose links were not read took none of them.
        links -= of_one.sockets.and(of_one.files).unwrap_or(0);
    }
    OpenFiles { files, sockets }
}

/// What one process has open, if that takes no more than so many links.
fn of_process(pid: i32, links: u64) -> Result<OpenFiles, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    // Zero before Linux 6.2.
    let counted = u64::try_from(fstat(&dir)?.st_size).ok().filter(|&size| size > 0);
    let unknown = OpenFiles {
        files: counted,
        sockets: None,
    };
    if counted.is_some_and(|counted| counted > links) {
        return Ok(unknown);
    }
    let (mut files, mut sockets) = (0, 0);
    for entry in Dir::read_from(&dir)?.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if files == links {
            return Ok(unknown);
        }
        files += 1;
        sockets += u64::from(is_socket(dir.as_fd(), name));
    }
    Ok(OpenFiles {
        files: Some(files),
        sockets: Some(sockets),
    })
}

fn is_socket(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    // One that is closed meanwhile is none.
    readlinkat(dir, name, Vec::with_capacity(64)).is_ok_and(|target| target.as_bytes().starts_with(b"socket:"))
}

/// A line of /proc/PID/limits: name, soft limit, hard limit, unit, in columns.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn soft_limits() {
        let text = "\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
";
        let table = [
            ("Max open files", Some(1024)),
            ("Max cpu time", None),
            ("Max pending signals", None),
        ];
        for (name, expected) in table {
            assert_eq!(soft_limit(text, name), expected, "{name}");
        }
    }

    #[test]
    fn own_files_and_sockets() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = open_files(&[pid]);
        let pairs: Vec<_> = (0..20)
            .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
            .collect();
        let after = open_files(&[pid]);
        // Other tests run beside this one and have files of their own.
        assert!(
            after.sockets.unwrap() >= before.sockets.unwrap() + 20,
            "{before:?} {after:?}"
        );
        assert!(after.files > after.sockets, "{after:?}");
        let nothing = OpenFiles {
            files: Some(0),
            sockets: Some(0),
        };
        assert_eq!(open_files(&[-1]), nothing, "no such process");
        let too_many = of_process(pid, 20).unwrap();
        assert_eq!(too_many.sockets, None, "more links than may be read");
        assert!(too_many.files.is_none_or(|files| files > 40), "{too_many:?}");
        drop(pairs);
    }

    #[test]
    fn a_process_by_its_directory() {
        let own = Process::open(std::process::id().try_into().unwrap()).unwrap();
        assert!(own.text("cgroup").unwrap().contains(":/"));
        assert!(own.max_open_files().unwrap() > 0);
        assert!(own.text("nothing").is_none());
        assert!(Process::open(-1).is_none());
        let namespace = own.namespace("pid").unwrap();
        let same = std::fs::metadata("/proc/self/ns/pid").unwrap();
        assert_eq!(namespace.metadata().unwrap().ino(), same.ino());
        assert!(own.namespace("none").is_err());
        let other: ContainerId = "f00d".repeat(16).parse().unwrap();
        assert!(Process::of(std::process::id().try_into().unwrap(), &other).is_none());
    }

    #[test]
    fn whose_process_it_is() {
        let table = [
            ("0::/kubepods/pod1/abc\n", true),
            ("0::/kubepods.slice/corten-abc.scope/init.scope\n", true),
            ("4:memory:/p/abc\n1:cpu,cpuacct:/p/abc\n0::/\n", true),
            ("1:name=systemd:/p/x:y\n0::/p/abc\n", true),
            ("0::/corten/other\n", false),
            ("0::/\n", false),
            ("", false),
        ];
        for (memberships, expected) in table {
            assert_eq!(is_below(memberships, "abc"), expected, "{memberships:?}");
        }
    }
}
