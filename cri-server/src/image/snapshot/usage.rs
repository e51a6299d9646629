//! What containers have written: asked of the filesystem where it counts by project, else found by a slow walk.
//!
//! The walk is a thread's that rests nine times as long as it works and ten seconds between two rounds, so that a container
//! with millions of files costs a tenth of a processor at most and nobody waits for it. It sees files as they are when it
//! comes by; the numbers are as old as the last round. A container newer than that is looked at when it is asked for, as
//! long as it has a few files only. What a container removes meanwhile is no error.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::quota::{self, LayerLimits, Projects};

/// Between two rounds of the walk.
const PAUSE: Duration = Duration::from_secs(10);
/// Files looked at between two rests.
const BATCH: usize = 256;
/// How much longer a rest is than the work before it.
const REST: u32 = 9;

/// What files take on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks of files and directories, in bytes.
    pub bytes: u64,
    /// Files of every type.
    pub inodes: u64,
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Usage>>(all: I) -> Usage {
        all.fold(Usage::default(), |sum, one| Usage {
            bytes: sum.bytes + one.bytes,
            inodes: sum.inodes + one.inodes,
        })
    }
}

/// The accounts of the containers below one directory.
pub(super) enum Accounts {
    /// The filesystem's.
    Projects(Projects),
    /// Our own.
    Walk(Walker),
}

impl Accounts {
    /// Accounts for the containers in `containers`; with a limit they must be the filesystem's.
    pub(super) fn open(containers: &Path, limits: LayerLimits) -> Result<Accounts> {
        match Projects::open(containers, limits)? {
            Some(projects) => Ok(Accounts::Projects(projects)),
            None => Ok(Accounts::Walk(Walker::start(containers)?)),
        }
    }

    /// What one container has written, and when that was found; none if it is not known (yet).
    pub(super) fn of(&self, dir: &Path) -> Option<(Usage, SystemTime)> {
        match self {
            Accounts::Projects(projects) => projects.usage(dir).map(|usage| (usage, SystemTime::now())),
            Accounts::Walk(walker) => {
                let round = walker.round();
                match round.usages.get(dir.file_name()?) {
                    Some(usage) => Some((*usage, round.at)),
                    None => {
                        drop(round);
                        glance(&super::writable_dir(dir)?).map(|usage| (usage, SystemTime::now()))
                    }
                }
            }
        }
    }

    /// The project of the container in `dir`, where there are projects.
    pub(super) fn project(&self, dir: &Path) -> Option<u32> {
        match self {
            Accounts::Projects(_) => quota::project_of(dir),
            Accounts::Walk(_) => None,
        }
    }

    /// Gives back what [`Accounts::project`] was, once its files are gone.
    pub(super) fn release(&self, project: Option<u32>) {
        if let (Accounts::Projects(projects), Some(project)) = (self, project) {
            projects.release(project);
        }
    }

    /// What all have written together, and when that was found.
    pub(super) fn total(&self, containers: &Path) -> (Usage, SystemTime) {
        match self {
            Accounts::Projects(projects) => {
                let entries = fs::read_dir(containers).into_iter().flatten().flatten();
                let usages = entries.filter_map(|entry| projects.usage(&entry.path()));
                (usages.sum(), SystemTime::now())
            }
            Accounts::Walk(walker) => {
                let round = walker.round();
                (round.usages.values().copied().sum(), round.at)
            }
        }
    }
}

/// What is written in a container that no round has seen yet: at once if it is a few files, none if a walk would be due.
fn glance(writable: &Path) -> Option<Usage> {
    Walk::new(writable, |_| None).run()
}

/// What the last round has found.
struct Round {
    /// By the name of the container's directory.
    usages: HashMap<std::ffi::OsString, Usage>,
    at: SystemTime,
}

struct Shared {
    round: Mutex<Round>,
    closing: Mutex<bool>,
    close: Condvar,
}

/// The thread that walks, ended by its drop.
pub(super) struct Walker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Walker {
    fn start(containers: &Path) -> Result<Walker> {
        let shared = Arc::new(Shared {
            round: Mutex::new(Round {
                usages: HashMap::new(),
                at: SystemTime::now(),
            }),
            closing: Mutex::new(false),
            close: Condvar::new(),
        });
        let (walked, containers) = (Arc::clone(&shared), containers.to_owned());
        let thread = std::thread::Builder::new()
            .name("usage-walker".into())
            .spawn(
                move || {
                    while walked.walk_all(&containers).is_some() && walked.rest(PAUSE).is_some() {}
                },
            )
            .context("start the thread that walks")?;
        Ok(Walker {
            shared,
            thread: Some(thread),
        })
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        *self.shared.closing.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.close.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the usage walker panicked");
        }
    }
}

impl Shared {
    /// Sleeps; none if the server ends.
    fn rest(&self, time: Duration) -> Option<()> {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.close.wait_timeout_while(closing, time, |closing| !*closing);
        let (closing, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!*closing).then_some(())
    }

    /// One round; none if the server ends meanwhile.
    fn walk_all(&self, containers: &Path) -> Option<()> {
        let mut usages = HashMap::new();
        for entry in fs::read_dir(containers).into_iter().flatten().flatten() {
            let Some(writable) = super::writable_dir(&entry.path()) else {
                continue;
            };
            let usage = Walk::new(&writable, |time| self.rest(time)).run()?;
            usages.insert(entry.file_name(), usage);
        }
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        *round = Round {
            usages,
            at: SystemTime::now(),
        };
        Some(())
    }
}

/// One tree on its way to be counted. The container owns it and changes it meanwhile: every directory is opened from the
/// root without following a link.
struct Walk<R> {
    root: Option<OwnedFd>,
    pending: Vec<PathBuf>,
    usage: Usage,
    /// Files of several names that were counted.
    seen: std::collections::HashSet<u64>,
    rest: R,
    looked_at: usize,
    since: Instant,
}

impl<R: FnMut(Duration) -> Option<()>> Walk<R> {
    fn new(root: &Path, rest: R) -> Self {
        Walk {
            root: fs::File::open(root).ok().map(OwnedFd::from),
            pending: vec![PathBuf::from(".")],
            usage: Usage::default(),
            seen: Default::default(),
            rest,
            looked_at: 0,
            since: Instant::now(),
        }
    }

    fn run(mut self) -> Option<Usage> {
        let Some(root) = self.root.take() else {
            return Some(Usage::default());
        };
        while let Some(path) = self.pending.pop() {
            // What is gone, or too deep to be named, is not counted.
            if let Ok(dir) = open_beneath(root.as_fd(), &path) {
                self.directory(&path, dir)?;
            }
        }
        Some(self.usage)
    }

    fn directory(&mut self, path: &Path, dir: OwnedFd) -> Option<()> {
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else {
            return Some(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            // A directory counts itself; `..` is the one above.
            if name == b".." || (name == b"." && path != Path::new(".")) {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let Ok(stat) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory || stat.st_nlink < 2 || self.seen.insert(stat.st_ino) {
                self.usage.inodes += 1;
                self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
            if is_directory && name != OsStr::new(".") {
                self.pending.push(path.join(name));
            }
            self.breathe()?;
        }
        Some(())
    }

    fn breathe(&mut self) -> Option<()> {
        self.looked_at += 1;
        if !self.looked_at.is_multiple_of(BATCH) {
            return Some(());
        }
        (self.rest)(self.since.elapsed() * REST)?;
        self.since = Instant::now();
        Some(())
    }
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, Mode::empty(), within)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn count(root: &Path) -> (Usage, usize) {
        let mut rests = 0;
        let counted = Walk::new(root, |_| {
            rests += 1;
            Some(())
        });
        (counted.run().expect("nobody closes"), rests)
    }

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 64 << 10]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        symlink(outside.path(), root.join("out")).unwrap();
        let (usage, rests) = count(&root);
        assert_eq!(usage.inodes, 5, "three directories, one file, one link");
        assert!((64 << 10..256 << 10).contains(&usage.bytes), "{usage:?}");
        assert_eq!(rests, 0);
        assert_eq!(glance(&root), Some(usage), "a few files are counted at once");
        for number in 0..BATCH {
            fs::write(root.join(format!("a/{number}")), "").unwrap();
        }
        assert_eq!(count(&root).1, 1, "it rests");
        assert_eq!(glance(&root), None, "so many are left to the thread");
        assert_eq!(count(&root.join("missing")).0, Usage::default());
    }

    #[test]
    fn a_walk_ends_when_the_server_does() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..BATCH {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(Walk::new(dir.path(), |_| None).run(), None);
    }
}
