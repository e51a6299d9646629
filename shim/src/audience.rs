//! The clients attached to a container's output.
//!
//! ```text
//!   container --> shim --> log
//!                     \--> pipe --> client, as fast as it reads: what does not fit is dropped and told later
//! ```
//! Invariants: no client holds up the container, the log or another client; nothing is kept in memory for one. A pipe
//! is watched for as long as it is held, so that one whose reader has gone is closed though nothing is written to it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use corten_proto::id::ContainerId;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::FileType;

use crate::log::Stream;
use crate::poll::{Poll, Source, Token};
use crate::report::report;

/// Most pipes of attached clients that one container has at once.
pub(crate) const MAX_PIPES: usize = 64;

/// What a pipe may hold, in bytes: the most that a process without CAP_SYS_RESOURCE may ask for. The kernel takes memory
/// for what lies in it only.
const PIPE_SIZE: i32 = 1024 * 1024;

/// How long a client is waited for after the container's end, to be told of what it has missed.
const LINGER: Duration = Duration::from_secs(2);

/// The pipe of one attached client for one stream.
struct Pipe {
    number: u32,
    stream: Stream,
    fd: OwnedFd,
    token: Token,
    /// Bytes that did not fit, and that the client has not been told of.
    dropped: u64,
}

/// All pipes of a container's attached clients.
#[derive(Default)]
pub(crate) struct Audience {
    pipes: Vec<Pipe>,
    next: u32,
    /// The container has written its last; pipes still owed a notice are closed at this time.
    until: Option<Instant>,
}

impl Audience {
    /// Adds pipes, which must be writing ends and non-blocking: all of them, or none.
    pub(crate) fn add_all(
        &mut self,
        id: &ContainerId,
        pipes: impl IntoIterator<Item = (Stream, OwnedFd)>,
        poll: &mut Poll,
    ) -> Result<()> {
        let before = self.count();
        let added = pipes
            .into_iter()
            .try_for_each(|(stream, fd)| self.add(id, stream, fd, poll));
        added.inspect_err(|_| close(&mut self.pipes.split_off(before), poll))
    }

    fn add(&mut self, id: &ContainerId, stream: Stream, fd: OwnedFd, poll: &mut Poll) -> Result<()> {
        // Best effort: a smaller pipe drops sooner.
        fcntl(&fd, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)).unwrap_or_default();
        let number = self.next;
        let token = poll.add(&fd, Source::Attached(id.clone(), number))?;
        self.next = self.next.wrapping_add(1);
        self.pipes.push(Pipe {
            number,
            stream,
            fd,
            token,
            dropped: 0,
        });
        Ok(())
    }

    /// How many pipes there are.
    pub(crate) fn count(&self) -> usize {
        self.pipes.len()
    }

    /// Gives `data`, the latest output of `stream`, to everyone who wants it.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8], poll: &mut Poll) {
        let gone = |pipe: &mut Pipe| pipe.stream == stream && !pipe.write(data, poll);
        close(&mut self.pipes.extract_if(.., gone).collect(), poll);
    }

    /// A pipe has room again, or its reader has gone.
    pub(crate) fn ready(&mut self, number: u32, poll: &mut Poll) {
        let over = self.until.is_some();
        let done = |pipe: &mut Pipe| pipe.number == number && (!pipe.catch_up(poll) || (over && pipe.dropped == 0));
        close(&mut self.pipes.extract_if(.., done).collect(), poll);
    }

    /// The container has written its last: closes every pipe but those whose client is to be told of a gap.
    pub(crate) fn end(&mut self, now: Instant, poll: &mut Poll) {
        close(&mut self.pipes.extract_if(.., |pipe| pipe.dropped == 0).collect(), poll);
        self.until = Some(now + LINGER);
    }

    /// When what is left is to be closed.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until.filter(|_| !self.pipes.is_empty())
    }

    /// Closes every pipe.
    pub(crate) fn close(&mut self, poll: &mut Poll) {
        close(&mut self.pipes, poll);
    }
}

fn close(pipes: &mut Vec<Pipe>, poll: &mut Poll) {
    for pipe in pipes.drain(..) {
        poll.remove(pipe.token, &pipe.fd);
    }
}

impl Pipe {
    /// Writes what fits and counts the rest. False if the reader has gone.
    fn write(&mut self, data: &[u8], poll: &Poll) -> bool {
        if self.dropped > 0 && !self.catch_up(poll) {
            return false;
        }
        let mut written = 0;
        while self.dropped == 0 && written < data.len() {
            match nix::unistd::write(&self.fd, &data[written..]) {
                Ok(count) => written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return false,
            }
        }
        let missed = (data.len() - written) as u64;
        if missed > 0 && self.dropped == 0 {
            self.watch(true, poll);
        }
        self.dropped += missed;
        true
    }

    /// Tells the client of what it has missed, if it has and there is room. False if it has gone.
    fn catch_up(&mut self, poll: &Poll) -> bool {
        if self.dropped == 0 {
            return !self.is_abandoned();
        }
        // Shorter than PIPE_BUF, so that the kernel takes all of it or nothing. It begins a line: the gap may be in one.
        let text = format!(
            "\r\n[corten-shim: {} bytes of output dropped: read too slowly]\r\n",
            self.dropped
        );
        match nix::unistd::write(&self.fd, text.as_bytes()) {
            Ok(_) => {
                self.dropped = 0;
                self.watch(false, poll);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    /// Waits for room in the pipe, or no longer.
    fn watch(&self, room: bool, poll: &Poll) {
        if let Err(error) = poll.set_writable(self.token, &self.fd, room) {
            report!("an attached client will not be told of a gap: {error:#}");
        }
    }

    /// The reader has gone.
    fn is_abandoned(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

/// Whether a descriptor is one that output can be written to without ever waiting.
pub(crate) fn check_pipe(fd: &OwnedFd) -> Result<()> {
    const RULE: &str = "must be the writing end of a pipe, and non-blocking";
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).context("fstat(descriptor)")?.st_mode);
    let flags = fcntl(fd, FcntlArg::F_GETFL).context("fcntl(descriptor, F_GETFL)")?;
    let flags = OFlag::from_bits_truncate(flags);
    ensure!(kind == FileType::Fifo, "descriptor of an output: {RULE}");
    ensure!(
        flags & OFlag::O_ACCMODE == OFlag::O_WRONLY,
        "descriptor of an output: {RULE}"
    );
    ensure!(flags.contains(OFlag::O_NONBLOCK), "descriptor of an output: {RULE}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_clients_pipes_all_are_added_or_none() {
        let id: ContainerId = "c".parse().expect("valid id");
        let mut poll = Poll::new().expect("epoll");
        let mut audience = Audience::default();
        let pipe = || nix::unistd::pipe().expect("pipe");
        let (first, second) = (pipe(), pipe());
        // The kernel does not wait for files.
        let file = std::fs::File::open("/proc/self/exe").expect("this executable");
        let pipes = [(Stream::Stdout, first.1), (Stream::Stderr, file.into())];
        assert!(audience.add_all(&id, pipes, &mut poll).is_err());
        assert_eq!(audience.count(), 0);
        audience
            .add_all(&id, [(Stream::Stdout, second.1)], &mut poll)
            .expect("a pipe alone");
        assert_eq!(audience.count(), 1);
    }
}
