//! The children of the shim: those it knows, and the orphans it inherits.
//!
//! A known child (a call of the runtime, a container's init, an exec's first process) is in the table with its pidfd,
//! and that becomes readable when it ends. Orphans come to the shim because it is a subreaper; SIGCHLD tells of them.
//!
//! Invariant: while a call of the runtime may still name a new child (`create`, `restore`, `exec`), only orphans are reaped
//! that are older than the call, for the child it is about to name may be among the others, already ended. Its zombie keeps
//! pid and exit code until it is asked.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::cage::Cage;
use crate::events::Requester;
use crate::poll::{Poll, Source, Token};
use crate::process::{Ended, Process, begun, children, kill_tree};
use crate::runtime::Invocation;

/// What a known child is to the shim.
#[derive(Debug)]
pub(crate) enum Role {
    /// A call of the runtime.
    Call(Call),
    /// The init of a container.
    Init(ContainerId),
    /// The first process of an exec.
    Exec(Exec),
}

/// A call of the runtime in flight.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) container: ContainerId,
    pub(crate) operation: Operation,
    pub(crate) invocation: Invocation,
    /// Who waits for the answer; nobody where the shim itself wanted it.
    pub(crate) requester: Option<Requester>,
    /// When it is killed if it has not ended.
    pub(crate) deadline: Instant,
    /// The deadline has passed and the call was killed.
    pub(crate) overdue: bool,
}

impl Call {
    /// Whether it may name a new child.
    fn expects(&self) -> bool {
        matches!(
            self.operation,
            Operation::Create | Operation::Restore | Operation::Exec { .. }
        )
    }
}

/// What a call of the runtime is for.
#[derive(Debug)]
pub(crate) enum Operation {
    Create,
    /// Makes a container that runs at once.
    Restore,
    /// Removes what a `create` or `restore` made that cannot be used; this error is its answer.
    UndoCreate(String),
    Start,
    Kill,
    Delete,
    Exec {
        exec_id: String,
        /// Killed before it was known what there is to kill.
        killed: bool,
        cage: Option<Cage>,
        /// The runtime is being asked for its support of cgroups; the exec itself begins after that.
        postponed: Option<Launch>,
    },
}

/// What an exec is begun with.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) process: PathBuf,
    pub(crate) console: Option<PathBuf>,
    pub(crate) stdio: [OwnedFd; 3],
}

/// An exec: the container's id and the exec's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecId {
    pub(crate) container: ContainerId,
    pub(crate) exec_id: String,
}

/// An exec that has begun.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) id: ExecId,
    /// The client it is run for.
    pub(crate) client: u64,
    /// Its cgroup, where the runtime knows to put it into one.
    pub(crate) cage: Option<Cage>,
}

impl Exec {
    /// SIGKILL to its first process, which is `leader`, and to all that it has started.
    pub(crate) fn kill(&self, leader: &Process) -> Result<()> {
        // The cgroup holds all of them; to look for descendants takes walks over /proc.
        match self.cage.as_ref().map(Cage::kill) {
            Some(Ok(())) => leader.signal(Signal::KILL),
            Some(Err(cause)) => kill_tree(leader).and(Err(cause)),
            None => kill_tree(leader),
        }
    }
}

/// A known child.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) process: Process,
    pub(crate) role: Role,
    token: Token,
}

/// All known children, by pid.
#[derive(Default)]
pub(crate) struct Children {
    by_pid: BTreeMap<i32, Child>,
}

impl Children {
    /// Watches a child from now on. Refused if it is none of ours: its exit would never be learned.
    pub(crate) fn adopt(&mut self, process: Process, role: Role, poll: &mut Poll) -> Result<()> {
        process
            .has_ended()
            .with_context(|| format!("process {} is no child of the shim", process.pid))?;
        let token = poll.add(&process, Source::Child(process.pid))?;
        let pid = process.pid;
        self.by_pid.insert(pid, Child { process, role, token });
        Ok(())
    }

    /// Takes a child out of the table if it has ended.
    pub(crate) fn reap(&mut self, pid: i32, poll: &mut Poll) -> Result<Option<(Child, Ended)>> {
        let Some(child) = self.by_pid.get(&pid) else {
            return Ok(None);
        };
        let Some(ended) = child.process.reap()? else {
            return Ok(None);
        };
        Ok(self.take(pid, poll).map(|child| (child, ended)))
    }

    /// Reaps whoever else has ended. A known child can be among them, if it ended since its pidfd was asked.
    pub(crate) fn reap_any(&mut self, poll: &mut Poll) -> Result<Option<(Option<Child>, Ended)>> {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
            Ok(Some((pid, status))) => {
                let ended = Ended::new(
                    status.exit_status(),
                    status.terminating_signal(),
                    nix::libc::WCOREDUMP(status.as_raw()),
                );
                Ok(Some((self.take(pid.as_raw_pid(), poll), ended)))
            }
            Err(errno) => Err(errno).context("waitpid(-1, WNOHANG)"),
        }
    }

    /// Reaps the orphans that have ended and began before every call that may still name a new child.
    ///
    /// Younger ones wait for the end of the call: one that hangs leaves as many zombies as orphans end meanwhile, up to the
    /// pod's limit of processes, and each of them is looked at again with every SIGCHLD.
    pub(crate) fn reap_elders(&self) -> Result<()> {
        let calls = self.calls().filter(|(_, call)| call.expects());
        // A call whose time is not known is as old as can be.
        let Some(first) = calls.map(|(process, _)| begun(process.pid).unwrap_or(0)).min() else {
            return Ok(());
        };
        let orphans = children().into_iter().filter(|pid| !self.by_pid.contains_key(pid));
        for pid in orphans.filter(|&pid| begun(pid).is_some_and(|begun| begun < first)) {
            match rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
                Ok(_) | Err(rustix::io::Errno::CHILD) => {}
                Err(errno) => return Err(errno).with_context(|| format!("waitpid({pid}, WNOHANG)")),
            }
        }
        Ok(())
    }

    fn take(&mut self, pid: i32, poll: &mut Poll) -> Option<Child> {
        let child = self.by_pid.remove(&pid)?;
        poll.remove(child.token, &child.process);
        Some(child)
    }

    /// A call is in flight that may name a new child.
    pub(crate) fn expects(&self) -> bool {
        self.calls().any(|(_, call)| call.expects())
    }

    /// The calls of the runtime in flight, with their processes.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&Process, &Call)> {
        self.by_pid.values().filter_map(|child| match &child.role {
            Role::Call(call) => Some((&child.process, call)),
            _ => None,
        })
    }

    /// The same, to be changed.
    pub(crate) fn calls_mut(&mut self) -> impl Iterator<Item = (&Process, &mut Call)> {
        self.by_pid.values_mut().filter_map(|child| match &mut child.role {
            Role::Call(call) => Some((&child.process, call)),
            _ => None,
        })
    }

    /// The init of a container that has one.
    pub(crate) fn init(&self, id: &ContainerId) -> Option<&Process> {
        self.by_pid.values().find_map(|child| match &child.role {
            Role::Init(container) if container == id => Some(&child.process),
            _ => None,
        })
    }

    /// The execs that have begun, with their first processes.
    pub(crate) fn execs(&self) -> impl Iterator<Item = (&Process, &Exec)> {
        self.by_pid.values().filter_map(|child| match &child.role {
            Role::Exec(exec) => Some((&child.process, exec)),
            _ => None,
        })
    }

    /// The exec of this id, if it has begun.
    pub(crate) fn exec(&self, id: &ExecId) -> Option<(&Process, &Exec)> {
        self.execs().find(|(_, exec)| exec.id == *id)
    }

    /// How many execs a container has, those not yet started included.
    pub(crate) fn exec_count(&self, id: &ContainerId) -> usize {
        let of_container = |child: &&Child| match &child.role {
            Role::Exec(exec) => exec.id.container == *id,
            Role::Call(call) => call.container == *id && matches!(call.operation, Operation::Exec { .. }),
            Role::Init(_) => false,
        };
        self.by_pid.values().filter(of_container).count()
    }
}

/// Blocks the signals the shim handles and opens the descriptor that receives them instead.
///
/// SIGTERM, SIGINT and SIGHUP are received to be ignored: a pod must outlive whoever stops the service it was started
/// from. What ends a shim is `Shutdown`.
pub(crate) fn signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Number::SIGCHLD, Number::SIGTERM, Number::SIGINT, Number::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("sigprocmask(SIG_BLOCK)")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd4")
}
