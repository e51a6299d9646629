//! `corten events`: statistics and notices of a container, one JSON document per line, in runc's form.
//!
//! Statistics come every interval, notices (`oom`) when they happen; the command ends with the container. With `--stats`
//! it is the statistics of now, once.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::print;
use crate::cgroup::{Cgroup, Event};
use crate::error::Error;
use crate::state::{Directory, Status};
use crate::{cli, signal};

/// Prints statistics, once or until the container ends.
pub(super) fn events(root: &Path, flags: &cli::Events) -> Result<()> {
    let directory = Directory::open(root, &flags.id)?;
    let state = directory.state()?;
    let status = directory.status(&state);
    if matches!(status, Status::Stopped | Status::Creating) {
        bail!("container {} is not running", flags.id);
    }
    let cgroup = Cgroup::open(state.cgroup.clone());
    if flags.stats {
        return print_event("stats", Some(cgroup.stats()?), flags);
    }
    let init = signal::open_process(state.pid, state.start_time)?.ok_or(Error::NotRunning)?;
    let mut watch = cgroup.watch_oom()?;
    let mut next = Instant::now() + flags.interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        // A millisecond later rather than once more for what is left of one.
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1;
        let mut descriptors = [
            PollFd::new(init.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), watch.events),
        ];
        match poll(
            &mut descriptors,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX),
        ) {
            Err(Errno::EINTR) => continue,
            result => result.context("poll")?,
        };
        let ended = descriptors[0].any() == Some(true);
        // Also at the end: the container may have ended of it.
        let Some(kills) = unless_ended(&init, watch.kills())? else {
            return Ok(());
        };
        for _ in 0..kills {
            print_event("oom", None, flags)?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            let Some(stats) = unless_ended(&init, cgroup.stats())? else {
                return Ok(());
            };
            print_event("stats", Some(stats), flags)?;
            next += flags.interval;
        }
    }
}

/// What was read of the cgroup. A failure is none once init has ended: somebody deletes the cgroup meanwhile.
fn unless_ended<T>(init: &OwnedFd, read: Result<T>) -> Result<Option<T>> {
    let mut descriptors = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
    match read {
        Err(_) if poll(&mut descriptors, PollTimeout::ZERO).context("poll")? > 0 => Ok(None),
        read => read.map(Some),
    }
}

fn print_event(kind: &'static str, data: Option<crate::cgroup::Stats>, flags: &cli::Events) -> Result<()> {
    let event = Event {
        kind,
        id: flags.id.as_str(),
        data,
    };
    let text = serde_json::to_string(&event).context("encode an event")?;
    print(&format!("{text}\n"))
}
