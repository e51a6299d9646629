//! Processes the shim watches: how they are started, how they ended, and how a whole tree of them is killed.
//!
//! A watched process is held by its pidfd (Linux 5.3), so that a signal can never reach a stranger who got the number.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};

use crate::report::report;

/// A running or ended process, by number and by descriptor.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    fd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code; 128 + signal where a signal ended it.
    pub(crate) code: i32,
    /// The signal, 0 where there was none.
    pub(crate) signal: i32,
    /// A core was dumped.
    pub(crate) dumped: bool,
}

impl Ended {
    /// From what the wait calls give: one of the two is set.
    pub(crate) fn new(code: Option<i32>, signal: Option<i32>, dumped: bool) -> Ended {
        match signal {
            Some(signal) => Ended {
                code: 128 + signal,
                signal,
                dumped,
            },
            None => Ended {
                code: code.unwrap_or(-1),
                signal: 0,
                dumped: false,
            },
        }
    }
}

impl Process {
    /// Opens a process that is known not to have been reaped.
    pub(crate) fn open(pid: i32) -> Result<Process> {
        let number = Pid::from_raw(pid).with_context(|| format!("pid {pid}: not a process"))?;
        let fd = pidfd_open(number, PidfdFlags::empty()).with_context(|| format!("pidfd_open({pid})"))?;
        Ok(Process { pid, fd })
    }

    /// Sends a signal. A process that has ended meanwhile is no error.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("pidfd_send_signal({}, {signal:?})", self.pid)),
        }
    }

    /// Reaps the process if it has ended. An error means that it is no child of ours.
    pub(crate) fn reap(&self) -> Result<Option<Ended>> {
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Whether the process has ended, without reaping it. An error means that it is no child of ours.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(self.wait(options)?.is_some())
    }

    fn wait(&self, options: WaitIdOptions) -> Result<Option<Ended>> {
        let status = waitid(WaitId::PidFd(self.fd.as_fd()), options)
            .with_context(|| format!("waitid(P_PIDFD, {})", self.pid))?;
        Ok(status.map(|status| Ended::new(status.exit_status(), status.terminating_signal(), status.dumped())))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Starts a program with the given standard IO and nothing else of ours: no other descriptor, no blocked signal, no
/// environment but PATH.
pub(crate) fn spawn(program: &Path, args: &[CString], stdio: [BorrowedFd<'_>; 3]) -> Result<Process> {
    let call = || format!("posix_spawn({})", program.display());
    let mut actions = PosixSpawnFileActions::init().with_context(call)?;
    for (target, fd) in (0..).zip(stdio) {
        actions.add_dup2(fd.as_raw_fd(), target).with_context(call)?;
    }
    let mut attributes = PosixSpawnAttr::init().with_context(call)?;
    // The shim blocks what its signalfd receives, Rust's start-up ignores SIGPIPE, and whoever started the server may
    // have ignored more: nothing of it is for a container. (glibc has 32 and 33, its own, ignored all the same.)
    attributes.set_sigmask(&SigSet::empty()).with_context(call)?;
    attributes.set_sigdefault(&SigSet::all()).with_context(call)?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags).with_context(call)?;
    let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
    let pid = posix_spawn(program, &actions, &attributes, args, &environment).with_context(call)?;
    Process::open(pid.as_raw()).inspect_err(|_| kill_child(pid.as_raw()))
}

/// SIGKILL to a child that cannot be held: nobody would learn of its end, and nothing may run on unseen. The number is
/// its own as long as it has not been reaped.
pub(crate) fn kill_child(pid: i32) {
    let Some(number) = Pid::from_raw(pid) else {
        return;
    };
    if let Err(errno) = kill_process(number, Signal::KILL) {
        report!("kill({pid}, SIGKILL): {errno}");
    }
}

/// SIGKILL to a process and everything that descends from it.
///
/// The tree is stopped before it is killed, from the root down and until nothing new turns up, so that it cannot grow
/// out of reach meanwhile. What had detached from it before (a double fork whose middle process has ended) is not
/// found: the exec's cgroup has it (`cage.rs`).
pub(crate) fn kill_tree(leader: &Process) -> Result<()> {
    /// A tree that still grows after this many looks is killed as far as it is known.
    const LOOKS: usize = 16;
    leader.signal(Signal::STOP)?;
    let mut stopped: BTreeMap<i32, Process> = BTreeMap::new();
    for _ in 0..LOOKS {
        let known = stopped.keys().copied().chain([leader.pid]).collect();
        let found = descendants(&parents()?, &known);
        if found.is_empty() {
            break;
        }
        for pid in found {
            // Gone since the look: nothing is left to stop.
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            // The number may have been given to a stranger between the look and the open; after it, no more.
            if parent(pid).is_some_and(|parent| known.contains(&parent) || stopped.contains_key(&parent)) {
                process.signal(Signal::STOP)?;
                stopped.insert(pid, process);
            }
        }
    }
    for process in stopped.values().chain([leader]) {
        process.signal(Signal::KILL)?;
    }
    Ok(())
}

/// Those of `parents` (pid to parent's pid) that descend from a process in `known` and are not in it.
fn descendants(parents: &BTreeMap<i32, i32>, known: &BTreeSet<i32>) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    let mut generation: BTreeSet<i32> = known.clone();
    while !generation.is_empty() {
        let children = parents
            .iter()
            .filter(|(pid, parent)| generation.contains(parent) && !known.contains(pid) && !found.contains(pid));
        generation = children.map(|(pid, _)| *pid).collect();
        found.extend(&generation);
    }
    found
}

/// Every process there is, with its parent.
fn parents() -> Result<BTreeMap<i32, i32>> {
    let entries = fs::read_dir("/proc").context("open(/proc)")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect())
}

/// The parent of a process that exists.
fn parent(pid: i32) -> Option<i32> {
    parse_parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The children of the shim; none where the kernel does not list them (CONFIG_PROC_CHILDREN).
pub(crate) fn children() -> Vec<i32> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// When a process began, in ticks since the boot.
pub(crate) fn begun(pid: i32) -> Option<u64> {
    parse_begun(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 22nd field of /proc/PID/stat.
fn parse_begun(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Whether a process has ended, or has been given its end and is on its way there.
pub(crate) fn is_dying(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.ok().as_deref().and_then(parse_dying).unwrap_or(true)
}

/// From the fields 3, 9 and 31 of /proc/PID/stat: state, flags and pending signals. A fatal signal is pending in every
/// thread; once it is taken up, the flags say so (PF_EXITING, PF_SIGNALED of linux/sched.h).
fn parse_dying(stat: &str) -> Option<bool> {
    const FLAGS: u64 = 0x4 | 0x400;
    const SIGKILL: u64 = 1 << 8;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ended = ["Z", "X", "x"].contains(fields.first()?);
    Some(ended || number(9)? & FLAGS != 0 || number(31)? & SIGKILL != 0)
}

/// The fourth field of /proc/PID/stat. The second is the command in parentheses and may hold anything.
fn parse_parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 8192 1 1";
        assert_eq!(parse_begun(stat), Some(123_456));
        assert_eq!(parse_begun("7 (sh) S 3 7 7 0"), None);
    }

    #[test]
    fn parents_are_parsed() {
        for (stat, expected) in [
            ("7 (sh) S 3 7 7 0", Some(3)),
            ("7 (a) b (c) R 41 7", Some(41)),
            ("7 (sh", None),
            ("", None),
        ] {
            assert_eq!(parse_parent(stat), expected, "{stat}");
        }
    }

    #[test]
    fn the_dying() {
        let stat = |state: &str, flags: u64, pending: u64| {
            let between = "0 ".repeat(21);
            format!("7 (a b) {state} 1 7 7 0 -1 {flags} {between}{pending} 0 0")
        };
        for (stat, expected) in [
            (stat("S", 0x40_0100, 0), Some(false)),
            (stat("S", 0x40_0100, 1 << 14), Some(false)),
            (stat("S", 0x40_0100, 1 << 8), Some(true)),
            (stat("R", 0x40_0104, 0), Some(true)),
            (stat("R", 0x40_0500, 0), Some(true)),
            (stat("Z", 0x40_0100, 0), Some(true)),
            ("7 (sh) S 1".to_owned(), None),
        ] {
            assert_eq!(parse_dying(&stat), expected, "{stat}");
        }
        assert!(!is_dying(std::process::id().cast_signed()));
        assert!(is_dying(i32::MAX));
    }

    #[test]
    fn descendants_of_a_tree() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 9)]);
        let of = |known: &[i32]| descendants(&parents, &known.iter().copied().collect());
        assert_eq!(of(&[2]), [3, 4]);
        assert_eq!(of(&[2, 3, 4]), [] as [i32; 0]);
        assert_eq!(of(&[5, 3]), [4, 6]);
        assert_eq!(of(&[8]), [] as [i32; 0]);
    }

    #[test]
    fn ends() {
        let ended = |code, signal, dumped| Ended { code, signal, dumped };
        assert_eq!(Ended::new(Some(3), None, false), ended(3, 0, false));
        assert_eq!(Ended::new(None, Some(9), false), ended(137, 9, false));
        assert_eq!(Ended::new(None, Some(11), true), ended(139, 11, true));
    }
}
