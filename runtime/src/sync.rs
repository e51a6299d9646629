//! What the two halves of a create, or of an exec, say to each other over a socket pair.
//!
//! ```text
//!   init (child)                        container (parent)
//!   Spawned { pid }    -->              only where a process in between has made init: who init is
//!                      <-- Mapped       the parent knows init, and its uid_map and gid_map are written; only with
//!                                       a process in between, or with a new user namespace
//!   RunHooks           -->              namespaces and mounts exist: prestart and createRuntime; only if there are any
//!                      <-- HooksDone
//!   Listening { fd }   -->              under a seccomp filter that notifies; the parent takes that descriptor of the
//!                                       child's and gives it to the agent before it answers anything else
//!   Ready              -->              all is done but the last program: state.json says created
//!                      <-- Proceed      init waits on the exec fifo; an exec executes its program, and the
//!                                       socket's end of file is the news that it could
//!   Failed { error }   -->              at any point; the parent reports it and undoes
//! ```
//! The socket is of type SOCK_SEQPACKET: a message arrives whole or not at all. A side that dies is an end of file to
//! the other: init then exits, so that a killed parent leaves no child behind. Nothing of the specification travels
//! here, both halves have it in memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes; a longer error text is cut.
const MAX_MESSAGE: usize = 16 * 1024;

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// The process between has made the child proper, by this pid of the parent's pid namespace.
    Spawned {
        /// The child proper.
        pid: i32,
    },
    /// Time for the hooks of the runtime namespace.
    RunHooks,
    /// The child is under a seccomp filter with a listener.
    Listening {
        /// The listener's number in the child; none where it comes with the next message.
        descriptor: Option<RawFd>,
    },
    /// Everything is done but the last program.
    Ready,
    /// The child gives up.
    Failed {
        /// The whole chain, one line.
        error: String,
    },
}

/// What the parent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromParent {
    /// The child is known by its pid, and its id mappings are written.
    Mapped,
    /// The hooks have run.
    HooksDone,
    /// The parent has recorded the child, which may go on alone.
    Proceed,
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// The parent's end and the child's.
pub fn pair() -> Result<(Channel, Channel)> {
    let (parent, child) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("socketpair(AF_UNIX, SOCK_SEQPACKET)")?;
    Ok((Channel(parent), Channel(child)))
}

impl Channel {
    /// The descriptor's number, for the child that closes all others.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Sends one message. A peer that is gone is an error, not a signal.
    pub fn send(&self, message: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(message).context("encode a message")?;
        ensure!(
            bytes.len() <= MAX_MESSAGE,
            "a message of {} bytes is longer than {MAX_MESSAGE}",
            bytes.len()
        );
        send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).context("send to the other half")?;
        Ok(())
    }

    /// The same by write(2), the one system call no seccomp profile can make the child wait for an agent in. SIGPIPE is
    /// ignored as long as there is a channel.
    pub fn write(&self, message: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(message).context("encode a message")?;
        let written = rustix::io::write(&self.0, &bytes).context("write to the other half")?;
        ensure!(
            written == bytes.len(),
            "{written} of {} bytes were written",
            bytes.len()
        );
        Ok(())
    }

    /// Reports a failure, cut to what fits; whether anybody hears it no longer matters.
    pub fn send_failure(&self, error: &anyhow::Error) {
        let mut error = format!("{error:#}");
        // JSON may write one byte as six.
        let mut end = error.len().min(MAX_MESSAGE / 8);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        error.truncate(end);
        crate::log::best_effort("report a failure", self.send(&FromChild::Failed { error }));
    }

    /// The next message; `None` when the other end is closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let mut buffer = [0u8; MAX_MESSAGE];
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(nix::errno::Errno::EINTR) => {}
                // The peer went away with unread messages. Said once, and before what it has sent: that is still there.
                Err(nix::errno::Errno::ECONNRESET) => {}
                result => break result.context("receive from the other half")?,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        ensure!(
            length <= MAX_MESSAGE,
            "a message of {length} bytes is longer than {MAX_MESSAGE}"
        );
        serde_json::from_slice(&buffer[..length])
            .context("decode a message")
            .map(Some)
    }

    /// A message, or the end, can be read without waiting.
    pub fn is_readable(&self) -> bool {
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The child's side: waits for this one message.
    pub fn expect(&self, expected: FromParent) -> Result<()> {
        match self.receive::<FromParent>()? {
            Some(message) if message == expected => Ok(()),
            Some(message) => bail!("waiting for {expected:?}: got {message:?}"),
            None => bail!("waiting for {expected:?}: the runtime has gone"),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (parent, child) = pair().unwrap();
        child.send(&FromChild::Spawned { pid: 7 }).unwrap();
        child.send_failure(&anyhow::anyhow!("{}", "\u{1}ä".repeat(MAX_MESSAGE)));
        drop(child);
        assert!(matches!(parent.receive().unwrap(), Some(FromChild::Spawned { pid: 7 })));
        let Some(FromChild::Failed { error }) = parent.receive().unwrap() else {
            panic!("no failure")
        };
        assert!(error.starts_with('\u{1}') && error.len() <= MAX_MESSAGE / 8);
        assert!(parent.receive::<FromChild>().unwrap().is_none());
    }

    #[test]
    fn the_wrong_message_and_a_dead_parent_are_errors() {
        let (parent, child) = pair().unwrap();
        parent.send(&FromParent::HooksDone).unwrap();
        assert!(child.expect(FromParent::Mapped).is_err());
        drop(parent);
        let (parent, dead) = pair().unwrap();
        parent.send(&FromParent::HooksDone).unwrap();
        dead.send(&FromChild::Ready).unwrap();
        drop(dead);
        assert!(matches!(parent.receive().unwrap(), Some(FromChild::Ready)));
        assert!(parent.receive::<FromChild>().unwrap().is_none());
        let error = child.expect(FromParent::Proceed).unwrap_err().to_string();
        assert!(error.contains("the runtime has gone"), "{error}");
    }
}
