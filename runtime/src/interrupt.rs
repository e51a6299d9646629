//! Signals that end a command of ours while it waits for a program of somebody else's.
//!
//! Whoever stays in the foreground keeps its signals back for the container's program (`foreground.rs`). A hook without a
//! timeout, or a CRIU that says nothing, could then hold the command for ever, with SIGKILL as the only way out, which
//! undoes nothing. So those who wait for such a program look at the signals too:
//!
//! | waits for | a signal that asks for the end |
//! |---|---|
//! | hooks up to startContainer, CRIU | ends the wait with [`Interrupted`]; what was begun is undone on the way up, and `main` dies of the signal |
//! | poststart hooks | ends the hook, leaves out the others, and goes to the container's program, which runs already |
//! | poststop hooks | waits for their end: they are part of the undoing |
//!
//! All other signals stay where they are. So do those that our caller has set to be ignored (nohup(1), a shell's background
//! jobs): they end nothing here. What stays goes to the program once the command waits for that, as with runc.
//!
//! Nothing is handed down: a signal that is kept back can be read through any signalfd for it. Where none is kept back
//! there is nothing to look at; the signal ends the process by itself, as it does runc.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::signal::is_ignored;

/// The signals by which a user, a terminal or a service manager asks a program to end.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// The command was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted(pub Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted by {}", self.0)
    }
}

impl std::error::Error for Interrupted {}

impl Interrupted {
    /// Ends this process as the signal would have, for whoever asks how it ended: a shell stops a loop at a program that
    /// died of SIGINT, not at an exit code.
    pub fn die(self) -> Result<()> {
        crate::sys::signal::set_default(self.0).context("sigaction")?;
        let own = SigSet::from(self.0);
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&own), None).context("sigprocmask")?;
        nix::sys::signal::raise(self.0).context("raise")
    }
}

/// Whether this is what an error comes from.
pub fn caused(error: &anyhow::Error) -> Option<Interrupted> {
    error.downcast_ref().copied()
}

/// The signals that this process keeps back and that ask for its end.
#[derive(Debug)]
pub struct Interrupt(SignalFd);

impl Interrupt {
    /// `None` where none of them is kept back, or only what is ignored: that too the kernel keeps for a signalfd.
    pub fn watch() -> Result<Option<Interrupt>> {
        let kept = SigSet::thread_get_mask().context("pthread_sigmask")?;
        let mut ending = SigSet::empty();
        for signal in ENDING.into_iter().filter(|&signal| kept.contains(signal)) {
            if !is_ignored(signal).with_context(|| format!("sigaction({signal})"))? {
                ending.add(signal);
            }
        }
        if ending == SigSet::empty() {
            return Ok(None);
        }
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&ending, flags).context("signalfd")?;
        Ok(Some(Interrupt(signals)))
    }

    /// An error once there has been such a signal.
    fn check(&self) -> Result<()> {
        let Some(info) = self.0.read_signal().context("read the signalfd")? else {
            return Ok(());
        };
        let number = i32::try_from(info.ssi_signo).context("a signal's number")?;
        Err(Interrupted(Signal::try_from(number).context("a signal's number")?).into())
    }
}

/// Waits until one of these can be read or has hung up, and says of each whether; `None` when the deadline comes first.
/// An interrupt is an error, unless the first of the files is ready too: that is the end of what is waited for, after which
/// a signal is for what comes next, and stays where it is.
pub fn wait<const N: usize>(
    files: [Option<BorrowedFd<'_>>; N],
    interrupt: Option<&Interrupt>,
    deadline: Option<Instant>,
) -> Result<Option<[bool; N]>> {
    let interruption = interrupt.map(|interrupt| interrupt.0.as_fd());
    let all = files.iter().chain(std::iter::once(&interruption)).flatten();
    let mut polled: Vec<PollFd<'_>> = all.map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, lest the last millisecond be spent in a busy loop. A wait longer than poll takes is cut in two.
        let longest = match left {
            Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut polled, longest) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => continue,
            result => result.context("poll")?,
        };
        let mut ready = polled.iter().map(|file| file.any() == Some(true));
        let mut ready = files.map(|file| file.is_some() && ready.next().unwrap_or_default());
        if let (Some(interrupt), Some(first)) = (interrupt, ready.first_mut()) {
            // Looked at again: poll looks at one after the other, and the signal may have followed upon the end.
            *first = *first || files[0].is_some_and(is_ready);
            if !*first {
                interrupt.check()?;
            }
        }
        return Ok(Some(ready));
    }
}

fn is_ready(file: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(file, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{pthread_sigmask, raise};

    use super::*;

    #[test]
    fn what_can_be_read_and_what_not() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        let files = || [None, Some(reader.as_fd()), None];
        assert_eq!(wait(files(), None, soon()).unwrap(), None);
        nix::unistd::write(&writer, b"x").unwrap();
        assert_eq!(wait(files(), None, None).unwrap(), Some([false, true, false]));
    }

    #[test]
    fn signals_that_are_kept_back_end_a_wait() {
        assert!(Interrupt::watch().unwrap().is_none());
        // In a thread of its own, whose mask ends with it.
        let thread = std::thread::spawn(|| {
            let mut kept = SigSet::empty();
            kept.extend([Signal::SIGTERM, Signal::SIGUSR1]);
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&kept), None).unwrap();
            let interrupt = Interrupt::watch().unwrap().unwrap();
            let soon = || Some(Instant::now() + Duration::from_millis(5));
            let look = || wait([None], Some(&interrupt), soon());
            // Not one of those that ask for an end.
            raise(Signal::SIGUSR1).unwrap();
            assert_eq!(look().unwrap(), None);
            raise(Signal::SIGTERM).unwrap();
            let (reader, writer) = nix::unistd::pipe().unwrap();
            drop(writer);
            let end = wait([Some(reader.as_fd())], Some(&interrupt), None).unwrap();
            assert_eq!(end, Some([true]), "the end comes first");
            wait([None, Some(reader.as_fd())], Some(&interrupt), None).unwrap_err();
            raise(Signal::SIGTERM).unwrap();
            let error = look().unwrap_err().context("while waiting");
            assert_eq!(caused(&error), Some(Interrupted(Signal::SIGTERM)));
            assert_eq!(look().unwrap(), None, "said once");
        });
        thread.join().unwrap();
    }
}
