//! Waiting for a process in the foreground: signals are forwarded to it, its terminal is relayed to ours, and its exit
//! code becomes ours.
//!
//! One loop over descriptors (a signalfd, the process's pidfd, the terminal's ends), each read and written only when
//! poll says so; whatever the process or the other side does, the loop ends when the process does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::termios::{OptionalActions, Termios};

use crate::notify::Notify;
use crate::{console, log, signal};

/// At most this many bytes are written at once: what a pipe that is ready takes without blocking.
const CHUNK: usize = 4096;

/// Signals that are ours: our children's, our own pipes', and the ones that stop who misuses a terminal.
const NOT_FORWARDED: [Signal; 5] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGTSTP,
];

/// A wait that is prepared for.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
    /// Where the terminal will arrive.
    console: Option<OwnedFd>,
    /// Where the process says that it is ready.
    notify: Option<Notify>,
}

impl Foreground {
    /// Prepares: from here on signals are kept for the process that is to come, or end a wait for something that comes
    /// before it ([`crate::interrupt`]). With `terminal` the second value is the
    /// console socket for it.
    pub fn begin(terminal: bool) -> Result<(Foreground, Option<OwnedFd>)> {
        let signals = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None).context("sigprocmask")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).context("signalfd")?;
        let (console, theirs) = if terminal {
            console::pair().map(|(a, b)| (Some(a), Some(b)))?
        } else {
            (None, None)
        };
        let foreground = Foreground {
            signals,
            console,
            notify: None,
        };
        Ok((foreground, theirs))
    }

    /// The same, telling a service manager, whose unit's process is this one, when the process is ready.
    pub fn telling(self, notify: Option<Notify>) -> Foreground {
        Foreground { notify, ..self }
    }

    /// Waits for the end of `process`, a child of ours.
    pub fn wait(mut self, process: &OwnedFd) -> Result<ExitCode> {
        let mut relay = self.console.as_ref().map(Relay::receive).transpose()?;
        while !self.turn(process, &mut relay)? {}
        if let Some(relay) = &mut relay {
            relay.drain();
        }
        drop(relay);
        exit_code(process)
    }

    /// Waits for something to happen and deals with it; whether the process has ended.
    fn turn(&mut self, process: &OwnedFd, relay: &mut Option<Relay>) -> Result<bool> {
        let mut descriptors = vec![
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        descriptors.extend(
            self.notify
                .iter()
                .map(|notify| PollFd::new(notify.as_fd(), PollFlags::POLLIN)),
        );
        let relayed = descriptors.len();
        descriptors.extend(relay.iter().flat_map(Relay::interests).flatten());
        match poll(&mut descriptors, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok(false),
            result => result.context("poll")?,
        };
        let ready: Vec<bool> = descriptors
            .iter()
            .map(|descriptor| descriptor.any() == Some(true))
            .collect();
        drop(descriptors);
        if ready[1] {
            self.forward(process, relay.as_ref())?;
        }
        if let Some(notify) = self.notify.as_mut().filter(|_| ready[2]) {
            let told = notify.pass_on(nix::unistd::getpid().as_raw());
            log::best_effort("pass readiness on", told);
        }
        if let Some(relay) = relay {
            relay.turn(&ready[relayed..]);
        }
        Ok(ready[0])
    }

    fn forward(&self, process: &OwnedFd, relay: Option<&Relay>) -> Result<()> {
        while let Some(info) = self.signals.read_signal().context("read the signalfd")? {
            let number = i32::try_from(info.ssi_signo).context("a signal's number")?;
            match relay {
                Some(relay) if number == libc::SIGWINCH => relay.resize(),
                _ if NOT_FORWARDED.iter().any(|&own| own as i32 == number) => {}
                // A process that has become somebody else's cannot be signalled; its exit is waited for all the same.
                _ => drop(log::best_effort("forward a signal", signal::send(process, number))),
            }
        }
        Ok(())
    }
}

/// The exit code of a child that has ended; 128 + signal where a signal ended it.
fn exit_code(process: &OwnedFd) -> Result<ExitCode> {
    let wait = || rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait)
        .context("waitid")?
        .context("waitid: no status")?;
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Ok(ExitCode::from(u8::try_from(code & 0xff).expect("masked")))
}

/// Bytes on their way from one descriptor to another.
#[derive(Debug, Default)]
struct Flow {
    pending: Vec<u8>,
    closed: bool,
}

impl Flow {
    /// What to wait for: room to write where there is something to write, else something to read; nothing once the
    /// source is closed, whose hang-up poll would report for ever.
    fn interest<'a>(&self, from: BorrowedFd<'a>, to: BorrowedFd<'a>) -> Option<PollFd<'a>> {
        match (self.pending.is_empty(), self.closed) {
            (false, _) => Some(PollFd::new(to, PollFlags::POLLOUT)),
            (true, false) => Some(PollFd::new(from, PollFlags::POLLIN)),
            (true, true) => None,
        }
    }

    /// Reads or writes once. An end that fails is closed: a terminal's master says EIO when its last slave is gone.
    fn turn(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
        if self.pending.is_empty() {
            let mut buffer = [0u8; CHUNK];
            match rustix::io::read(from, &mut buffer) {
                Ok(0) => self.closed = true,
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_gone) => self.closed = true,
            }
            return;
        }
        match rustix::io::write(to, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_gone) => {
                self.pending.clear();
                self.closed = true;
            }
        }
    }
}

/// Our terminal and the container's, connected. Dropping it puts ours back into the mode it had.
#[derive(Debug)]
struct Relay {
    master: OwnedFd,
    saved: Option<Termios>,
    input: Flow,
    output: Flow,
}

impl Relay {
    fn receive(socket: &OwnedFd) -> Result<Relay> {
        let master = console::receive(socket)?;
        rustix::io::ioctl_fionbio(&master, true).context("ioctl(FIONBIO)")?;
        // Where our standard input is no terminal there is no mode to change and no size to copy.
        let saved = rustix::termios::tcgetattr(std::io::stdin()).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("tcsetattr")?;
        }
        let relay = Relay {
            master,
            saved,
            input: Flow::default(),
            output: Flow::default(),
        };
        relay.resize();
        Ok(relay)
    }

    /// What the two directions wait for.
    fn interests(&self) -> [Option<PollFd<'_>>; 2] {
        let (stdin, stdout) = standard_streams();
        [
            self.input.interest(stdin, self.master.as_fd()),
            self.output.interest(self.master.as_fd(), stdout),
        ]
    }

    /// `ready` is in the order of the interests there were.
    fn turn(&mut self, ready: &[bool]) {
        let (stdin, stdout) = standard_streams();
        let [input, output] = self.interests().map(|interest| interest.is_some());
        let mut ready = ready.iter();
        if input && ready.next() == Some(&true) {
            self.input.turn(stdin, self.master.as_fd());
        }
        if output && ready.next() == Some(&true) {
            self.output.turn(self.master.as_fd(), stdout);
        }
    }

    /// What the process wrote before it ended is still in the terminal.
    fn drain(&mut self) {
        let (_, stdout) = standard_streams();
        loop {
            self.output.turn(self.master.as_fd(), stdout);
            if self.output.pending.is_empty() {
                let mut more = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut more, PollTimeout::ZERO).is_ok_and(|count| count > 0);
                if self.output.closed || !ready {
                    return;
                }
            }
        }
    }

    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            let set = rustix::termios::tcsetwinsize(&self.master, size).context("ioctl(TIOCSWINSZ)");
            log::best_effort("resize the terminal", set);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let restored = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, saved);
            log::best_effort("restore the terminal", restored.context("tcsetattr"));
        }
    }
}

/// Standard input and output, by number: the buffers of the standard library have no part in this.
fn standard_streams() -> (BorrowedFd<'static>, BorrowedFd<'static>) {
    (rustix::stdio::stdin(), rustix::stdio::stdout())
}
