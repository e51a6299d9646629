//! Plugins that a killed server left running.
//!
//! They are found by the sandbox's id in their environment (CNI_CONTAINERID), which the programs that plugins run have
//! too: address management, iptables. A signal at the server's death (PR_SET_PDEATHSIG) would end the plugin alone and
//! leave those; it is bound to the thread that started it besides, and threads of a pool come and go. A process group
//! on record would have to be told from a later one of the same number.
//!
//! Each process is killed by itself through a descriptor: whoever puts the id into an environment of his own gets
//! nothing killed but that.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use corten_proto::id::SandboxId;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long the killed may take to go; one that waits for a device may take for ever.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(10);

/// Ends every process that was run for the sandbox as a plugin or by one. Blocks until they have gone.
pub(super) fn end(id: &SandboxId) -> Result<()> {
    let variable = format!("CNI_CONTAINERID={id}");
    let deadline = Instant::now() + LIMIT;
    // Until a look finds none: the killed may have started others meanwhile.
    loop {
        let found = find(variable.as_bytes())?;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} processes with {variable} do not end", found.len());
        }
        for process in found {
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => bail!("pidfd_send_signal SIGKILL: {errno}"),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// The processes with `variable` in the environment that they were executed with.
fn find(variable: &[u8]) -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        // Before the environment is read: if the number has a new owner by then, the descriptor is of the old one.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(errno) => bail!("pidfd_open {}: {errno}", pid.as_raw_nonzero()),
        };
        if environment(pid).is_ok_and(|it| it.split(|byte| *byte == 0).any(|it| it == variable)) {
            found.push(process);
        }
    }
    Ok(found)
}

/// Empty for a zombie and for threads of the kernel; an error for a process that has gone.
fn environment(pid: Pid) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))
}
