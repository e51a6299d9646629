//! Making the container's init, or an exec's process, by `clone3`, directly or through a process in between.
//!
//! ```text
//! direct                            with a process between
//!   corten --clone3--> child          corten --clone3--> between: joins namespaces
//!                                       |                  '--clone3(CLONE_PARENT)--> child
//!                                       '------------ is the parent of both -----------'
//! ```
//! Either way the child is corten's own, and becomes its reaper's when corten exits. The first of the two processes is in the
//! container's cgroup before it does anything: it is cloned into it on v2, and enters it by itself on v1
//! ([`Cgroup::enter`]); a child that follows inherits that.
//!
//! Both processes make themselves undumpable before they enter any namespace that exists (CVE-2016-9962): nobody in the
//! container can trace them, or reach a file through their /proc entries.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::cgroup::Cgroup;
use crate::namespaces;
use crate::sync::{self, Channel, FromChild, FromParent};
use crate::sys::clone::{Cloned, clone3, exit_now};

/// A process that is not yet what it is to become. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    /// Host pid.
    pub pid: i32,
    /// The other half of the conversation.
    pub channel: Channel,
    pidfd: Option<OwnedFd>,
}

/// What a child finds when it begins.
#[derive(Debug)]
pub struct Start {
    /// The other half of the conversation.
    pub channel: Channel,
    /// There was a process between: `Mapped` tells when the parent knows this child.
    pub between: bool,
}

/// What is to be made.
pub struct Plan<'a> {
    /// The child's new namespaces.
    pub new: CloneFlags,
    /// The child's cgroup.
    pub cgroup: &'a Cgroup,
    /// The child stays dumpable until it has heard `Mapped`: a parent who is not root can write to the /proc files of no
    /// other. Without a process between; nobody is in the child's new namespaces yet who could make use of it.
    pub dumpable: bool,
    /// What a process between has to do before the child is cloned.
    pub between: Option<&'a dyn Fn() -> Result<()>>,
    /// The offsets of a new time namespace, which the first process enters before anything else: its files in /proc are
    /// its own only as long as it is dumpable. With a user namespace that is joined, that is before it; the time
    /// namespace then belongs to the runtime's.
    pub time_offsets: Option<&'a str>,
}

/// Makes the child. `body` is its life: it ends in `execve` or in an error, which the parent is told.
///
/// The caller says `Mapped` where it is due.
pub fn spawn(plan: &Plan<'_>, body: impl FnOnce(&Start) -> Result<Infallible>) -> Result<Child> {
    let (ours, theirs) = sync::pair()?;
    let cgroup = plan.cgroup.clone_fd();
    let between = plan.between.is_some();
    let flags = if between { CloneFlags::empty() } else { plan.new };
    let cloned = clone3(flags, cgroup.as_ref().map(AsFd::as_fd));
    match cloned.with_context(|| format!("clone3({flags:?})"))? {
        Cloned::Child => {
            drop(ours);
            let start = Start {
                channel: theirs,
                between,
            };
            live(plan, cgroup.is_some(), &start, body)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let child = Child {
                pid,
                channel: ours,
                pidfd: Some(pidfd),
            };
            if between { child.successor() } else { Ok(child) }
        }
    }
}

/// Aborts a child that panics: unwinding would run the destructors on its stack, which are its parent's.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The child's side, from the first instruction to the last.
fn live(plan: &Plan<'_>, placed: bool, start: &Start, body: impl FnOnce(&Start) -> Result<Infallible>) -> ! {
    let _abort = AbortOnUnwind;
    let time = plan.time_offsets.map_or(Ok(()), namespaces::enter_new_time);
    let shut = || {
        if plan.dumpable && plan.between.is_none() {
            Ok(())
        } else {
            undumpable()
        }
    };
    let Err(error) = time
        .and_then(|()| shut())
        .and_then(|()| if placed { Ok(()) } else { plan.cgroup.enter() })
        .and_then(|()| plan.between.map_or(Ok(()), |join| cross(start, plan.new, join)))
        .and_then(|()| body(start));
    give_up(&start.channel, &error)
}

/// Ends a child with an error.
pub(crate) fn give_up(channel: &Channel, error: &anyhow::Error) -> ! {
    channel.send_failure(error);
    exit_now(1)
}

/// The life of the process between; returns in the child proper only.
fn cross(start: &Start, new: CloneFlags, join: &dyn Fn() -> Result<()>) -> Result<()> {
    join()?;
    let flags = new | CloneFlags::CLONE_PARENT;
    match clone3(flags, None).with_context(|| format!("clone3({flags:?})"))? {
        // The parent names the child before it says anything else to it, and waits for nothing but this process.
        Cloned::Child => start.channel.expect(FromParent::Mapped),
        Cloned::Parent { pid, .. } => {
            start.channel.send(&FromChild::Spawned { pid })?;
            exit_now(0)
        }
    }
}

/// Shuts out everybody but root of the machine from this process's memory and files.
pub(crate) fn undumpable() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).context("prctl(PR_SET_DUMPABLE, 0)")
}

impl Child {
    /// A descriptor for the process.
    pub fn pidfd(&self) -> &OwnedFd {
        self.pidfd.as_ref().expect("only release and drop take it")
    }

    /// Lets the process live on its own; it is no longer killed with this value.
    pub fn release(mut self) -> OwnedFd {
        self.pidfd.take().expect("only release and drop take it")
    }

    /// The child's next message. Its failure, and its death, are errors.
    pub fn receive(&self) -> Result<Option<FromChild>> {
        match self.channel.receive()? {
            Some(FromChild::Failed { error }) => bail!(error),
            message => Ok(message),
        }
    }

    /// Why something could not be done to the child: where it has ended, it knows better.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match self.channel.is_readable().then(|| self.receive()) {
            Some(Err(failure)) => failure,
            _ => error,
        }
    }

    /// Waits for the process between and takes its child for this one's.
    ///
    /// The wait comes first: once that process is gone its message has been sent or never will be, whereas a read
    /// could wait for ever, the child holding the same socket.
    fn successor(mut self) -> Result<Child> {
        let wait = || rustix::process::waitid(WaitId::PidFd(self.pidfd().as_fd()), WaitIdOptions::EXITED);
        rustix::io::retry_on_intr(wait).context("waitid")?;
        let message = if self.channel.is_readable() {
            self.receive()?
        } else {
            None
        };
        let Some(FromChild::Spawned { pid }) = message else {
            bail!("the process that joins the namespaces ended before its work was done");
        };
        // Not yet reaped by anyone, so that the pid is this child's even if it is dead already.
        let named = Pid::from_raw(pid).context("init's pid is 0")?;
        let pidfd =
            rustix::process::pidfd_open(named, PidfdFlags::empty()).with_context(|| format!("pidfd_open({pid})"))?;
        self.pid = pid;
        self.pidfd = Some(pidfd);
        Ok(self)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else {
            return;
        };
        let kill = || -> Result<()> {
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).context("pidfd_send_signal")?;
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context("waitid")?;
            Ok(())
        };
        crate::log::best_effort("kill the unfinished process", kill());
    }
}
