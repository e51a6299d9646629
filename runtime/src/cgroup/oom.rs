//! Hearing of it when the kernel kills in a container for want of memory.
//!
//! v1 signals an eventfd that is registered beside the memory controller's files (cgroup-v1/memory.rst, "OOM control");
//! v2 changes memory.events, which poll(2) answers with POLLPRI. Both wake for more than kills (v1 when the cgroup goes),
//! so that what counts is the kernel's number of kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::poll::PollFlags;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, openat};

use super::Cgroup;

/// A watch on a cgroup.
#[derive(Debug)]
pub struct OomWatch<'a> {
    cgroup: &'a Cgroup,
    fd: OwnedFd,
    /// What poll waits for.
    pub events: PollFlags,
    kills: u64,
}

impl Cgroup {
    /// Begins to watch: kills from now on are told of.
    pub fn watch_oom(&self) -> Result<OomWatch<'_>> {
        let directory = self.controller("memory")?;
        let directory = directory.ok_or_else(|| anyhow!("watch for memory kills: there is no memory cgroup"))?;
        let file = if self.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let open = openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = open.with_context(|| format!("open {}/{file}", directory.path.display()))?;
        let (fd, events) = if self.is_v2() {
            (file, PollFlags::POLLPRI)
        } else {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
            // The registration outlives the file's descriptor.
            directory.write(
                "cgroup.event_control",
                &format!("{} {}", event.as_raw_fd(), file.as_raw_fd()),
            )?;
            (event, PollFlags::POLLIN)
        };
        Ok(OomWatch {
            cgroup: self,
            fd,
            events,
            kills: self.oom_kills()?,
        })
    }
}

impl OomWatch<'_> {
    /// How many processes have been killed since the last look. Takes away what woke poll.
    pub fn kills(&mut self) -> Result<u64> {
        if self.cgroup.is_v2() {
            // poll wakes again for what has not been read through this very descriptor.
            let mut buffer = [0; 1024];
            rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Start(0)).context("seek memory.events")?;
            let _gone = rustix::io::read(&self.fd, &mut buffer);
        } else {
            // EAGAIN: nothing has come.
            let _none = rustix::io::read(&self.fd, &mut [0; 8]);
        }
        let now = self.cgroup.oom_kills()?;
        Ok(now.saturating_sub(std::mem::replace(&mut self.kills, now)))
    }
}

impl AsFd for OomWatch<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
