//! A container's standard IO: the shim's ends of its pipes or of its terminal, and the log and the attached clients
//! (`audience.rs`) that they flow into.
//!
//! Output is always drained, with a log or without one, and with or without a connected server: a container must never
//! stall on a full pipe because of us.

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use corten_proto::exit::Tail;
use corten_proto::id::ContainerId;
use nix::errno::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::audience::Audience;
use crate::console::Console;
use crate::log::{Lines, Location, Log, Stream};
use crate::poll::{Poll, Source, Token};
use crate::report::report;

/// Read at once, in bytes.
const CHUNK: usize = 16 * 1024;

/// Read from one stream before the others get their turn, in bytes.
const TURN: usize = 8 * CHUNK;

/// What a container without a terminal reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// Nothing.
    Empty,
    /// What attached clients write, for as long as it runs.
    Open,
    /// What the first attached client writes.
    Once,
}

/// How a container's standard IO is set up.
pub(crate) struct Layout {
    /// A terminal instead of pipes; the socket's path is where the runtime sends it.
    pub(crate) console: Option<PathBuf>,
    pub(crate) stdin: Stdin,
    pub(crate) log: Option<Location>,
    /// Longest piece of a line in the log, in bytes.
    pub(crate) max_line: usize,
    /// Most bytes of the log's file.
    pub(crate) log_limit: Option<u64>,
}

/// The container's ends, which the runtime inherits and the shim then closes.
pub(crate) struct ContainerEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl ContainerEnds {
    pub(crate) fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }
}

/// The shim's ends.
pub(crate) struct Io {
    log: Option<Log>,
    outputs: Vec<Output>,
    console: Option<Console>,
    terminal: bool,
    input: Input,
    pub(crate) audience: Audience,
}

/// Why a client gets no standard input.
#[derive(Debug)]
pub(crate) enum NoInput {
    /// The container was created without.
    Closed,
    /// It was for the first client that asked.
    Given,
    /// The descriptor could not be duplicated.
    Failed(std::io::Error),
}

impl fmt::Display for NoInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoInput::Closed => f.write_str("the container was created without"),
            NoInput::Given => f.write_str("the container was created with stdin_once, and an earlier client had it"),
            NoInput::Failed(error) => write!(f, "fcntl(F_DUPFD_CLOEXEC): {error}"),
        }
    }
}

/// The writing side of a container's standard input, where it has no terminal.
enum Input {
    /// It is empty.
    Closed,
    /// Held, so that a read waits instead of ending; clients get a duplicate.
    Open(OwnedFd),
    /// The first client gets the only one.
    Once(OwnedFd),
    /// It has.
    Given,
}

/// One stream the container writes to.
struct Output {
    stream: Stream,
    fd: OwnedFd,
    token: Option<Token>,
    lines: Lines,
}

impl Io {
    /// Opens the log and makes the pipes, or the socket for the terminal.
    pub(crate) fn open(layout: Layout) -> Result<(Io, ContainerEnds)> {
        let log = layout
            .log
            .map(|location| Log::open(location, layout.max_line, layout.log_limit))
            .transpose()?;
        let mut io = Io {
            log,
            outputs: Vec::new(),
            console: None,
            terminal: false,
            input: Input::Closed,
            audience: Audience::default(),
        };
        if let Some(path) = layout.console {
            // Standard IO of the container is the terminal; the runtime itself needs none.
            io.console = Some(Console::listen(path)?);
            let ends = ContainerEnds {
                stdin: null()?,
                stdout: null()?,
                stderr: null()?,
            };
            return Ok((io, ends));
        }
        let stdin = io.input_for(layout.stdin)?;
        let stdout = io.pipe_for(Stream::Stdout)?;
        let stderr = io.pipe_for(Stream::Stderr)?;
        Ok((io, ContainerEnds { stdin, stdout, stderr }))
    }

    /// Makes the pipe of standard input, where there is to be one, and returns the container's end. The other end does not
    /// block, for the clients that get it: no pipe is worth a thread to wait at.
    fn input_for(&mut self, stdin: Stdin) -> Result<OwnedFd> {
        if stdin == Stdin::Empty {
            return null();
        }
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true).context("ioctl(pipe, FIONBIO)")?;
        self.input = match stdin {
            Stdin::Once => Input::Once(write),
            _ => Input::Open(write),
        };
        Ok(read)
    }

    /// The container has a terminal, which has arrived.
    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// The descriptor of a client that attaches: the terminal's master, or the writing side of standard input if asked.
    pub(crate) fn input(&mut self, asked: bool) -> Result<Option<OwnedFd>, NoInput> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(NoInput::Failed);
        if self.terminal {
            // Without its one output, the container has closed it and is about to end.
            return self.outputs.first().map(|output| copy(&output.fd)).transpose();
        }
        if !asked {
            return Ok(None);
        }
        match std::mem::replace(&mut self.input, Input::Given) {
            Input::Closed => {
                self.input = Input::Closed;
                Err(NoInput::Closed)
            }
            Input::Open(fd) => {
                let copy = copy(&fd);
                self.input = Input::Open(fd);
                copy.map(Some)
            }
            Input::Once(fd) => Ok(Some(fd)),
            Input::Given => Err(NoInput::Given),
        }
    }

    /// Takes back what [`input`](Io::input) has just given, which reaches no client: the next one is to get it.
    pub(crate) fn take_back(&mut self, fd: Option<OwnedFd>) {
        // Only the one of `Once` is no duplicate.
        if let (Input::Given, Some(fd)) = (&self.input, fd) {
            self.input = Input::Once(fd);
        }
    }

    /// Makes the pipe of one stream and returns the container's end. Only the shim's end is non-blocking: the flag
    /// belongs to the open file, and programs do not expect it on theirs.
    fn pipe_for(&mut self, stream: Stream) -> Result<OwnedFd> {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&read, true).context("ioctl(pipe, FIONBIO)")?;
        self.outputs.push(Output::new(stream, read));
        Ok(write)
    }

    /// Where the runtime is to send the terminal.
    pub(crate) fn console_socket(&self) -> Option<&std::path::Path> {
        self.console.as_ref().map(Console::path)
    }

    /// `create` has succeeded: takes the container's terminal and begins to read.
    ///
    /// Before this nothing is read, so that what a failing runtime wrote to the container's stderr is still there to
    /// be reported ([`last_words`](Io::last_words)) and does not end in a log.
    pub(crate) fn begin(&mut self, id: &ContainerId, poll: &mut Poll) -> Result<()> {
        if let Some(console) = self.console.take() {
            self.outputs.push(Output::new(Stream::Stdout, console.master()?));
            self.terminal = true;
        }
        for output in &mut self.outputs {
            let source = Source::Output(id.clone(), output.stream);
            output.token = Some(poll.add(&output.fd, source)?);
        }
        Ok(())
    }

    /// The container is sure to exist: its log stays.
    pub(crate) fn keep_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.keep();
        }
    }

    /// What lies unread in the container's stderr, at most 4 KiB of it.
    pub(crate) fn last_words(&self) -> String {
        let mut text = [0u8; 4096];
        let stderr = self.outputs.iter().find(|output| output.stream == Stream::Stderr);
        let count = stderr.map_or(0, |output| nix::unistd::read(&output.fd, &mut text).unwrap_or(0));
        String::from_utf8_lossy(&text[..count]).into_owned()
    }

    /// Moves what `stream` holds into the log, up to one turn of it.
    pub(crate) fn pump(&mut self, stream: Stream, poll: &mut Poll) {
        let Some(index) = self.outputs.iter().position(|output| output.stream == stream) else {
            return;
        };
        let audience = &mut self.audience;
        if self.outputs[index].pump(self.log.as_mut(), audience, poll) == Pumped::Ended {
            self.close(index, poll);
        }
    }

    /// Every stream has been read to its end.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.is_empty()
    }

    /// Reads what there is and lets go of every stream, ended or not.
    pub(crate) fn end(&mut self, poll: &mut Poll) {
        // A pipe holds 1 MiB at most (fs.pipe-max-size), so this reads all unless somebody still writes.
        const TURNS: usize = 1024 * 1024 / TURN + 1;
        while let Some(output) = self.outputs.first_mut() {
            let audience = &mut self.audience;
            let more = |_: &usize| output.pump(self.log.as_mut(), audience, poll) == Pumped::More;
            let _turns = (0..TURNS).take_while(more).count();
            self.close(0, poll);
        }
        self.audience.close(poll);
    }

    /// Opens the log's path anew; without a log there is nothing to do.
    pub(crate) fn reopen_log(&mut self) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    /// Bytes of output that are not in the log though they should be.
    pub(crate) fn lost(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::lost)
    }

    /// The end of its error output, or of a terminal's only one; none without a log.
    pub(crate) fn tail(&self) -> Option<Tail> {
        let stream = match self.terminal {
            true => Stream::Stdout,
            false => Stream::Stderr,
        };
        let tail = self.log.as_ref()?.tail(stream);
        tail.inspect_err(|cause| report!("the end of a container's output: {cause:#}"))
            .ok()
            .flatten()
    }

    fn close(&mut self, index: usize, poll: &mut Poll) {
        let mut output = self.outputs.swap_remove(index);
        if let Some(log) = &mut self.log {
            log.finish(output.stream, &mut output.lines);
        }
        if let Some(token) = output.token {
            poll.remove(token, &output.fd);
        }
    }
}

/// What one turn of reading a stream came to.
#[derive(PartialEq, Eq)]
enum Pumped {
    /// The turn is over before the stream is.
    More,
    /// Nothing to read for now.
    Empty,
    Ended,
}

impl Output {
    fn new(stream: Stream, fd: OwnedFd) -> Output {
        Output {
            stream,
            fd,
            token: None,
            lines: Lines::default(),
        }
    }

    /// Reads one turn at most.
    fn pump(&mut self, mut log: Option<&mut Log>, audience: &mut Audience, poll: &mut Poll) -> Pumped {
        let mut buffer = vec![0; CHUNK];
        let mut taken = 0;
        while taken < TURN {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) => return Pumped::Ended,
                Ok(count) => {
                    taken += count;
                    if let Some(log) = &mut log {
                        log.append(self.stream, &mut self.lines, &buffer[..count]);
                    }
                    audience.write(self.stream, &buffer[..count], poll);
                    // A short read has emptied the pipe: asking again would cost a call a line.
                    if count < CHUNK {
                        return Pumped::Empty;
                    }
                }
                Err(Errno::EAGAIN) => return Pumped::Empty,
                Err(Errno::EINTR) => {}
                // EIO is how a terminal says that its last user has gone.
                Err(Errno::EIO) => return Pumped::Ended,
                Err(errno) => {
                    report!("read of a container's output: {errno}");
                    return Pumped::Ended;
                }
            }
        }
        Pumped::More
    }
}

/// The null device, for reading and writing.
pub(crate) fn null() -> Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null");
    Ok(file.context("open(/dev/null, O_RDWR)")?.into())
}

/// A pipe, closed on exec: (read end, write end).
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).context("pipe2(O_CLOEXEC)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_reached_nobody_is_there_for_the_next() {
        let layout = |stdin| Layout {
            console: None,
            stdin,
            log: None,
            max_line: 256,
            log_limit: None,
        };
        for (stdin, again) in [(Stdin::Once, false), (Stdin::Open, true)] {
            let (mut io, _ends) = Io::open(layout(stdin)).expect("pipes");
            let fd = io.input(true).expect("the first");
            io.take_back(fd);
            let fd = io.input(true).expect("taken back before");
            assert!(fd.is_some(), "{stdin:?}");
            assert_eq!(io.input(true).is_ok(), again, "{stdin:?}");
            io.take_back(None);
            assert_eq!(io.input(true).is_ok(), again, "{stdin:?}: nothing was taken back");
        }
    }
}
