//! A container that was started, and the processes that a runtime has left to this one.

use std::fs;
use std::path::Path;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::command::contents;
use super::{Report, Running, wait_until};

/// Whether this is a child that has not been reaped: then its pid cannot be another process's.
pub(super) fn still_ours(pid: Pid) -> bool {
    waitid(
        Id::Pid(pid),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
    )
    .is_ok()
}

/// Takes the exit of a container's init; one that was reaped before is fine.
pub(super) fn reap(pid: Pid) -> Option<WaitStatus> {
    wait_until(|| match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(status) => Some(Some(status)),
        Err(_not_ours) => Some(None),
    })
    .flatten()
}

/// A container made by `create` or `run --detach`.
pub struct Container {
    /// The host's pid of its init.
    pub pid: Pid,
    pub(super) made_by: Running,
}

impl Container {
    /// What it has written to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.made_by.stdout()
    }

    /// What it, and the command that made it, have written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        contents(&self.made_by.stderr)
    }

    /// Waits until stdout holds `text`.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let found = wait_until(|| self.stdout().contains(text).then_some(()));
        assert!(
            found.is_some(),
            "no {text:?} in {:?}; stderr {:?}",
            self.stdout(),
            self.stderr()
        );
    }

    /// Waits for its init to exit: the code, or 128 + n after signal n.
    ///
    /// # Panics
    /// Where it does not exit, or somebody else reaped it.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        wait_for(self.pid)
    }

    /// The report it printed.
    ///
    /// # Panics
    /// Where it printed none.
    #[must_use]
    #[track_caller]
    pub fn report(&self) -> Report {
        Report::parse(&self.stdout())
    }
}

pub(super) fn read_pid(file: &Path) -> Pid {
    let text = fs::read_to_string(file).expect("read the pid file");
    Pid::from_raw(text.parse().expect("a pid file holds digits alone"))
}

/// Waits for a process a runtime left to this one: the code, or 128 + n after signal n.
///
/// # Panics
/// Where it does not exit, or somebody else reaped it.
#[track_caller]
pub fn wait_for(pid: Pid) -> i32 {
    match reap(pid) {
        Some(WaitStatus::Exited(_, code)) => code,
        Some(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        other => panic!("{pid}: {other:?}"),
    }
}
