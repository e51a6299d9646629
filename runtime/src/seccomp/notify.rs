//! The listener's way from the process it listens to, through the parent, to the agent (config-linux.md, "The Container
//! Process State").
//!
//! The parent takes the descriptor out of the child by pidfd_getfd (Linux 5.6), for which it may have to be allowed to
//! trace it: the child is under the filter already and may not be able to send it. That a parent who is not root may not,
//! the child being undumpable, to which it is sent after all. The parent's own copy is closed when the agent has it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr};
use nix::sys::socket::{connect, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use oci_spec::runtime::{ContainerProcessState, ContainerState};
use rustix::process::PidfdGetfdFlags;

use super::Filter;
use crate::socket;
use crate::spawn::Child;
use crate::state::State;

/// How long the agent may take to accept a connection and to read from it.
const PATIENCE: TimeVal = TimeVal::new(10, 0);

/// The name of the only descriptor there is, as the specification has it.
pub(super) const DESCRIPTOR: &str = "seccompFd";

/// Hands the listener with this number in `child`, or the one it sends next, to the agent of its filter.
pub fn hand_over(
    filter: Option<&Filter>,
    child: &Child,
    descriptor: Option<RawFd>,
    state: &State,
    status: ContainerState,
) -> Result<()> {
    let agent = filter.and_then(|filter| filter.listener.as_ref());
    let agent = agent.context("a listener of a process that has no agent")?;
    let listener = match descriptor {
        Some(descriptor) => rustix::process::pidfd_getfd(child.pidfd(), descriptor, PidfdGetfdFlags::empty())
            .with_context(|| format!("linux.seccomp: pidfd_getfd({}, {descriptor})", child.pid))?,
        None => socket::receive(child.channel.as_fd())
            .context("linux.seccomp: receive the listener")?
            .context("linux.seccomp: the process has sent no listener")?,
    };
    let mut message = ContainerProcessState::default();
    message
        .set_version(state.oci_version.clone())
        .set_fds(vec![DESCRIPTOR.to_owned()])
        .set_pid(child.pid)
        .set_metadata(agent.metadata.clone())
        .set_state(state.oci(status));
    let text = serde_json::to_vec(&message).context("encode the container process state")?;
    send(&agent.path, &text, &listener).with_context(|| format!("linux.seccomp.listenerPath: {}", agent.path.display()))
}

/// One connection, one message, the descriptor with its first byte.
fn send(path: &Path, text: &[u8], listener: &OwnedFd) -> Result<()> {
    let agent = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("socket")?;
    // Of the connect, too, where the agent's queue is full (unix(7)).
    setsockopt(&agent, sockopt::SendTimeout, &PATIENCE).context("setsockopt(SO_SNDTIMEO)")?;
    connect(agent.as_raw_fd(), &UnixAddr::new(path).context("the path")?).context("connect")?;
    let descriptors = [listener.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(
        agent.as_raw_fd(),
        &[IoSlice::new(text)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .context("sendmsg")?;
    ensure!(sent > 0, "sendmsg: nothing was taken");
    let mut rest = UnixStream::from(agent.as_fd().try_clone_to_owned().context("dup")?);
    std::io::Write::write_all(&mut rest, &text[sent..]).context("send the rest")
}
