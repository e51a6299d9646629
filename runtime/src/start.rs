//! Starting a container that is created: init, which waits on the exec fifo, goes on to its program.
//!
//! ```text
//!   init                        start
//!   open the fifo for writing   open it for reading     either waits for the other
//!   startContainer hooks
//!   EXECUTES               -->                          the runtime has nothing more to do but execve
//!   execve                 -->  end of the fifo         it is closed on execve
//!   a text, then exit      -->                          at any point: why the program does not run
//! ```
//! The end alone does not say that the program runs: init may have been killed. So it says before what it is about to do.
//! What is then left is an end within execve itself, by SIGKILL or for want of memory, which looks from here like that of a
//! program that ended at once: of a process that is not its child the kernel tells nobody more.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use corten_proto::id::ContainerId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{ContainerState, Spec};

use crate::container::{Created, locked_in, run_all_hooks};
use crate::error::Error;
use crate::interrupt::{self, Interrupt};
use crate::log;
use crate::notify::Notify;
use crate::signal;
use crate::state::Status;

/// What init writes to the fifo before it executes its program. No error message begins with it.
pub(crate) const EXECUTES: [u8; 1] = [0];

/// How much is read of why a program could not be run, in bytes.
const MAX_FAILURE: usize = 64 << 10;

/// Starts a container that is created: returns when its program runs, or could not.
pub fn start(root: &Path, id: &ContainerId) -> Result<()> {
    let (directory, state) = locked_in(root, id, "start", &[Status::Created])?;
    let init = signal::open_process(state.pid, state.start_time)?.ok_or(Error::NotRunning)?;
    let notify = Notify::listen(directory.path())?;
    let created = Created { directory, state, init };
    start_created(&created)?;
    wait_until_ready(created, notify)
}

/// Waits until a service manager that wants to know has been told that the container is ready, or it has ended.
pub fn wait_until_ready(created: Created, notify: Option<Notify>) -> Result<()> {
    let Created { directory, state, init } = created;
    // Others may do something to it meanwhile.
    drop(directory);
    notify.map_or(Ok(()), |notify| notify.wait(init.as_fd(), state.pid))
}

/// The same, for whoever has just created it.
pub fn start_created(created: &Created) -> Result<()> {
    let mut fifo = created.directory.open_fifo()?;
    wait_for_exec(&mut fifo, &created.init)?;
    run_poststart_hooks(&created.directory.spec()?, created);
    Ok(())
}

/// Runs the poststart hooks. The program runs too: a signal that ends a hook is for the program, as with runc, and whoever
/// stays in the foreground waits to see what becomes of it.
pub(crate) fn run_poststart_hooks(spec: &Spec, created: &Created) {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_deref());
    let interrupt = log::best_effort("watch for signals", Interrupt::watch()).flatten();
    let (state, status) = (&created.state, ContainerState::Running);
    let interrupted = run_all_hooks("poststart", hooks, state, status, interrupt.as_ref());
    if let Some(interrupted) = interrupted {
        let sent = signal::send(&created.init, interrupted.0 as i32);
        log::best_effort("pass a signal on", sent);
    }
}

/// Reads the fifo to its end, which is the program's beginning if init has said so, and no more.
fn wait_for_exec(fifo: &mut std::fs::File, init: &OwnedFd) -> Result<()> {
    let mut text = Vec::new();
    let interrupt = Interrupt::watch()?;
    loop {
        let files = [Some(fifo.as_fd()), Some(init.as_fd())];
        // A hang-up too: the writer has come and gone.
        let [written, _] = interrupt::wait(files, interrupt.as_ref(), None)?.unwrap_or_default();
        // poll looks at one descriptor after the other: between the two looks a short program can have begun and ended.
        // What the fifo shows once init has ended is final.
        if !written && !is_readable(fifo)? {
            bail!("init ended before it was started");
        }
        let mut buffer = [0u8; 1024];
        match fifo.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) if text.len() >= MAX_FAILURE => break,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("read the exec fifo"),
        }
    }
    outcome(&text)
}

/// What init has said on the fifo, all of it.
fn outcome(text: &[u8]) -> Result<()> {
    ensure!(!text.is_empty(), "init ended before it could run the program");
    let failure = text.strip_prefix(&EXECUTES).unwrap_or(text);
    ensure!(failure.is_empty(), "{}", String::from_utf8_lossy(failure));
    Ok(())
}

/// There is something to read, or the writer has gone.
fn is_readable(fifo: &std::fs::File) -> Result<bool> {
    let mut descriptors = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).context("poll")?;
    Ok(descriptors[0].any() == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_says_on_the_fifo() {
        for (text, error) in [
            (&b"\0"[..], None),
            (b"", Some("init ended before")),
            (b"\0execve(/x): ENOENT", Some("execve(/x): ENOENT")),
            (b"hooks.startContainer: no", Some("hooks.startContainer: no")),
        ] {
            let told = outcome(text).err().map(|error| error.to_string());
            assert_eq!(told.is_some(), error.is_some(), "{text:?}: {told:?}");
            assert!(
                told.unwrap_or_default().starts_with(error.unwrap_or_default()),
                "{text:?}"
            );
        }
    }
}
