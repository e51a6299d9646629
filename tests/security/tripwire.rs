//! What no container may touch: files of a test outside of every root, which hostile links lead to, and the host's own
//! settings and devices.
//!
//! A [`Tripwire`] is compared after every case, a [`Host`] around every test. The host is shared with other tests, which
//! make and remove temporary files, mounts and links all the time: of it only that is compared which nobody may change.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The text of every file of a tripwire: nothing inside a container may ever show it.
pub(crate) const SECRET: &str = "secret of the host";

/// Settings that the kernel changes by itself, or that any program does by running.
const COUNTERS: [&str; 14] = [
    "kernel/random/",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/tainted",
    "kernel/perf_event_max_sample_rate",
    "kernel/seccomp",
    "kernel/keys/",
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/aio-nr",
    "fs/quota/",
    "vm/stat_refresh",
];

/// Files with names, owners and modes that a change of any kind shows in.
#[derive(Debug)]
pub(crate) struct Tripwire {
    directory: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Tripwire {
    /// # Panics
    /// Where the files cannot be made.
    pub(crate) fn new(marker: &str) -> Tripwire {
        let directory = tempfile::Builder::new()
            .prefix(&format!("{marker}-tripwire-"))
            .tempdir()
            .expect("make a directory of the test");
        let at = directory.path();
        fs::set_permissions(at, Permissions::from_mode(0o755)).expect("open the directory to all");
        fs::create_dir_all(at.join("directory/inner")).expect("make a directory of the test");
        fs::create_dir(at.join("empty")).expect("make a directory of the test");
        for (name, mode) in [
            ("file", 0o600),
            ("directory/file", 0o640),
            ("directory/inner/file", 0o666),
        ] {
            fs::write(at.join(name), SECRET).expect("write a file of the test");
            fs::set_permissions(at.join(name), Permissions::from_mode(mode)).expect("set a mode");
            chown(at.join(name), Some(1234), Some(1234)).expect("set an owner");
        }
        symlink("file", at.join("link")).expect("make a symlink");
        // As on a host whose /dev is bound into a container.
        symlink("pts/ptmx", at.join("directory/ptmx")).expect("make a symlink");
        let before = tree(at);
        Tripwire { directory, before }
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What has changed, one line each.
    pub(crate) fn changes(&self) -> Vec<String> {
        differences(&self.before, &tree(self.directory.path()))
    }

    /// # Panics
    /// Where anything has changed.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, what: &dyn std::fmt::Debug) {
        let changes = self.changes();
        assert!(changes.is_empty(), "{what:?} has changed the host: {changes:#?}");
    }
}

/// Every file below a directory with all that can be changed about it; the time of the last change of its inode says
/// the rest.
fn tree(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat a file of the test");
        if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("read a directory of the test").flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
        let text = meta
            .is_file()
            .then(|| fs::read(&path).expect("read a file of the test"));
        let line = format!(
            "inode {} mode {:o} owner {}:{} links {} size {} modified {}.{} changed {}.{} device {} -> {:?} {:?}",
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.rdev(),
            fs::read_link(&path).ok(),
            text.map(|text| String::from_utf8_lossy(&text).into_owned()),
        );
        found.insert(path, line);
    }
    found
}

fn differences(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let gone = before.keys().filter(|path| !after.contains_key(*path));
    let mut lines: Vec<String> = gone.map(|path| format!("{} is gone", path.display())).collect();
    for (path, now) in after {
        match before.get(path) {
            None => lines.push(format!("{} is new: {now}", path.display())),
            Some(was) if was != now => lines.push(format!("{} was {was}, is {now}", path.display())),
            Some(_) => {}
        }
    }
    lines
}

/// The host's settings, device nodes, and files of accounts and names.
#[derive(Debug)]
pub(crate) struct Host(BTreeMap<PathBuf, String>);

impl Host {
    /// Looks at the host. `CORTEN_TRIPWIRE=all` is for a machine of its own, where nothing else runs: then all of /etc
    /// and /dev and the mounts of its first process count too.
    pub(crate) fn look() -> Host {
        let mut found = BTreeMap::new();
        for part in ["kernel", "fs", "vm", "user", "abi", "debug"] {
            settings(&Path::new("/proc/sys").join(part), &mut found);
        }
        nodes(Path::new("/dev"), &mut found);
        for name in [
            "passwd",
            "group",
            "shadow",
            "hosts",
            "hostname",
            "resolv.conf",
            "mtab",
            "ld.so.preload",
        ] {
            let path = Path::new("/etc").join(name);
            let stat = fs::symlink_metadata(&path)
                .map(|meta| (meta.ino(), meta.mode(), meta.uid(), meta.size(), meta.mtime()));
            found.insert(path, format!("{stat:?}"));
        }
        if std::env::var("CORTEN_TRIPWIRE").is_ok_and(|value| value == "all") {
            found.extend(tree(Path::new("/etc")));
            let mounts = fs::read_to_string("/proc/1/mountinfo").expect("read the host's mounts");
            found.insert("/proc/1/mountinfo".into(), mounts);
        }
        Host(found)
    }

    /// # Panics
    /// Where anything has changed.
    #[track_caller]
    pub(crate) fn assert_same(&self) {
        let changes = differences(&self.0, &Host::look().0);
        assert!(changes.is_empty(), "the host has changed: {changes:#?}");
    }
}

/// Every setting that can be read.
fn settings(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.to_string_lossy().into_owned();
        let counts = COUNTERS
            .iter()
            .any(|counter| name.contains(&format!("/proc/sys/{counter}")));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !counts => settings(&path, found),
            Ok(kind) if kind.is_file() && !counts => {
                // Some block for ever, or may not be read even by root.
                let file = fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                let mut text = String::new();
                if file.and_then(|mut file| file.read_to_string(&mut text)).is_ok() {
                    found.insert(path, text);
                }
            }
            _ => {}
        }
    }
}

/// The entries of a directory of devices: what they are and whose, not when they were used.
fn nodes(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        // Loop devices and terminals come and go with those who use them.
        let kind = meta.file_type();
        let fixed = kind.is_char_device() || kind.is_symlink() || kind.is_file() || kind.is_fifo();
        if fixed {
            let target = fs::read_link(entry.path()).ok();
            let line = format!(
                "mode {:o} owner {} device {} -> {target:?}",
                meta.mode(),
                meta.uid(),
                meta.rdev()
            );
            found.insert(entry.path(), line);
        }
    }
}

/// The tripwire shows each of the things that have been done to hosts.
#[test]
fn every_kind_of_change_is_seen() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 8] = [
        ("a new file", |at| fs::write(at.join("empty/new"), "").expect("write")),
        ("a new directory", |at| {
            fs::create_dir(at.join("directory/new")).expect("mkdir")
        }),
        ("a removed link", |at| {
            fs::remove_file(at.join("directory/ptmx")).expect("unlink")
        }),
        ("other content", |at| {
            fs::write(at.join("file"), "12345678901234567 ").expect("write")
        }),
        ("another mode", |at| {
            fs::set_permissions(at.join("file"), Permissions::from_mode(0o644)).expect("chmod");
        }),
        ("another owner", |at| {
            chown(at.join("directory/file"), Some(0), None).expect("chown")
        }),
        ("another link", |at| {
            fs::hard_link(at.join("file"), at.join("empty/hard")).expect("link")
        }),
        ("an exchange", |at| {
            fs::rename(at.join("directory"), at.join("moved")).expect("rename");
            symlink("moved", at.join("directory")).expect("symlink");
        }),
    ];
    for (what, change) in changes {
        let tripwire = Tripwire::new("self-test");
        assert_eq!(tripwire.changes(), Vec::<String>::new());
        change(tripwire.directory());
        assert!(!tripwire.changes().is_empty(), "{what} is not seen");
    }
}

/// What is looked at on the host has in it what attacks were after, where the kernel has it.
#[test]
fn the_host_s_settings_are_looked_at() {
    let Host(found) = Host::look();
    for path in [
        "kernel/core_pattern",
        "kernel/pid_max",
        "kernel/hostname",
        "vm/overcommit_memory",
    ] {
        assert!(found.contains_key(&Path::new("/proc/sys").join(path)), "{path}");
    }
    assert!(
        found.contains_key(Path::new("/dev/null")) && found.len() > 300,
        "{}",
        found.len()
    );
}
