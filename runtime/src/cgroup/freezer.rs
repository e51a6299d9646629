//! Holding every process of a container, and signals to all of them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::directory::Directory;
use super::{Cgroup, CgroupPaths, layout};

/// How long processes may take to stop. One in an uninterruptible system call stops when that ends.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// Its own name and `.`; the kernel counts one more for each directory in it.
const LINKS_WITHOUT_CHILDREN: u64 = 2;

/// The control files of a freezer.
struct Freezer {
    file: &'static str,
    freeze: &'static str,
    thaw: &'static str,
    /// Where the result stands, and how.
    state_file: &'static str,
    frozen: &'static str,
}

/// v1: a controller. `FREEZING` until every process has stopped.
const V1: Freezer = Freezer {
    file: "freezer.state",
    freeze: "FROZEN",
    thaw: "THAWED",
    state_file: "freezer.state",
    frozen: "FROZEN",
};

/// v2: of every cgroup, Linux 5.2.
const V2: Freezer = Freezer {
    file: "cgroup.freeze",
    freeze: "1",
    thaw: "0",
    state_file: "cgroup.events",
    frozen: "frozen 1",
};

impl Directory {
    /// Whether whatever comes into this cgroup is held at once.
    pub(super) fn is_frozen(&self) -> Result<bool> {
        for (file, frozen) in [("cgroup.freeze", "1"), (V1.state_file, V1.frozen)] {
            match self.try_read(file) {
                Ok(text) => return Ok(text.trim() == frozen),
                // Neither version has the other's file; and v1's is in the freezer's hierarchy alone.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("read {}/{file}", self.path.display())),
            }
        }
        Ok(false)
    }
}

/// Whether somebody has stopped the processes of the cgroup at `paths`, and not only those of one above it. A cgroup that is
/// gone is not.
///
/// One file by its path and no [`Cgroup`]: every command asks that looks at a container.
pub fn is_frozen(paths: &CgroupPaths) -> bool {
    let asked = |(hierarchy, directory): (&str, &Path)| match paths {
        CgroupPaths::V1(_) if !layout::has_controller(hierarchy, "freezer") => None,
        CgroupPaths::V1(_) => Some(directory.join("freezer.self_freezing")),
        CgroupPaths::V2(_) => Some(directory.join(V2.file)),
    };
    let text = paths.iter().find_map(asked).map(std::fs::read_to_string);
    matches!(text, Some(Ok(text)) if text.trim_end() == "1")
}

/// Whether something may keep what is killed from dying: on v1 no frozen process does. The container is paused, or there
/// are cgroups below its own, by which its processes can have frozen each other.
pub fn may_outlive_kill(paths: &CgroupPaths) -> bool {
    let freezer = |(hierarchy, directory)| layout::has_controller(hierarchy, "freezer").then_some(directory);
    let below = |directory: &Path| std::fs::metadata(directory).is_ok_and(|it| it.nlink() > LINKS_WITHOUT_CHILDREN);
    is_frozen(paths) || paths.iter().find_map(freezer).is_some_and(below)
}

impl Cgroup {
    /// Stops every process until [`Cgroup::thaw`]. If they do not stop in time they run on, and it is an error.
    pub fn freeze(&self) -> Result<()> {
        let Some((directory, freezer)) = self.freezer()? else {
            bail!("freeze the container: there is no freezer cgroup");
        };
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let mut pause = Duration::from_micros(50);
        loop {
            // Again each time: on v1 a process that forked while freezing is caught by another write.
            directory.write(freezer.file, freezer.freeze)?;
            if directory
                .read(freezer.state_file)?
                .lines()
                .any(|line| line == freezer.frozen)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.thaw()?;
                bail!(
                    "freeze {}: not frozen after {FREEZE_TIMEOUT:?}",
                    directory.path.display()
                );
            }
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Lets the processes run on.
    pub fn thaw(&self) -> Result<()> {
        match self.freezer()? {
            Some((directory, freezer)) => directory.write(freezer.file, freezer.thaw),
            None => Ok(()),
        }
    }

    /// The same for those in cgroups below, whoever has frozen them; on v2 they die without.
    pub fn thaw_killed(&self) -> Result<()> {
        self.thaw()?;
        match self.freezer()? {
            Some((directory, _)) if !self.is_v2() => thaw_below(directory),
            _ => Ok(()),
        }
    }

    /// Sends a signal to every process in the container's cgroup and below it. None there is fine.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let Some(directory) = self.signal_directory()? else {
            return Ok(());
        };
        if signal == libc::SIGKILL && self.is_v2() {
            match directory.try_write("cgroup.kill", "1") {
                Ok(()) | Err(Errno::NODEV) => return Ok(()),
                // Before Linux 5.14; the kernel says EOPNOTSUPP for a threaded cgroup.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("write 1 to {}/cgroup.kill", directory.path.display()));
                }
            }
        }
        if directory.processes()?.is_empty() {
            return Ok(());
        }
        // Held while they are counted: one that forks would else leave a child behind the list. Paused ones are, and stay so
        // unless they are to die, which no frozen process does on v1.
        let paused = is_frozen(&self.paths);
        let held = if paused { Held(None) } else { Held::hold(self) };
        let sent = directory.processes().and_then(|pids| signal_each(&pids, signal));
        held.release()?;
        if signal == libc::SIGKILL && !self.is_v2() {
            if paused {
                self.thaw()?;
            }
            thaw_below(directory)?;
        }
        sent
    }

    /// The directory to freeze the container by, for another program; none where there is no freezer.
    pub fn freezer_path(&self) -> Result<Option<std::path::PathBuf>> {
        Ok(self.freezer()?.map(|(directory, _)| directory.path.clone()))
    }

    /// The directory and files to freeze by; none where the cgroup is gone or no freezer is mounted.
    fn freezer(&self) -> Result<Option<(&Directory, Freezer)>> {
        let (controller, freezer) = if self.is_v2() { ("", V2) } else { ("freezer", V1) };
        Ok(self.controller(controller)?.map(|directory| (directory, freezer)))
    }
}

/// Thaws what the container has frozen of its own on v1: a frozen process does not die of SIGKILL there.
fn thaw_below(directory: &Directory) -> Result<()> {
    for child in directory.children()? {
        match child.try_write(V1.file, V1.thaw) {
            // Not the freezer's hierarchy, or gone since.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => thaw_below(&child)?,
            Err(error) => {
                return Err(error).with_context(|| format!("thaw {}", child.path.display()));
            }
        }
    }
    Ok(())
}

/// Sends a signal to each of these processes; one that is gone is fine.
pub(super) fn signal_each(pids: &[i32], signal: i32) -> Result<()> {
    for &pid in pids {
        let Some(raw) = Pid::from_raw(pid) else {
            continue;
        };
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(process) => crate::signal::send(process, signal).map(drop)?,
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("pidfd_open({pid})")),
        }
    }
    Ok(())
}

/// A container's processes, held if that was possible; let go at the latest when this is dropped.
struct Held<'a>(Option<&'a Cgroup>);

impl<'a> Held<'a> {
    fn hold(cgroup: &'a Cgroup) -> Self {
        // No freezer: this machine has none, or the cgroup is on its way out and that hierarchy's was the first to go.
        if matches!(cgroup.freezer(), Ok(None)) {
            return Held(None);
        }
        // With a process that does not stop the signal is sent all the same.
        let frozen = crate::log::best_effort("hold the processes for a signal", cgroup.freeze());
        Held(frozen.map(|()| cgroup))
    }

    fn release(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), Cgroup::thaw)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            crate::log::best_effort("let the processes run on", cgroup.thaw());
        }
    }
}
