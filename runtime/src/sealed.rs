//! Running from a sealed copy of ourselves.
//!
//! A process of ours in a container can be reached there as /proc/PID/exe. Were that the runtime's file on the host, the
//! container could write to it (CVE-2019-5736). So commands that put a process of ours into a container run from a
//! copy in memory that nobody can change, whose pages are nobody else's either. Whoever starts `corten` often can
//! start it from such a copy to begin with, which is recognised.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::sys::fd::is_sealed;

/// How often sealing is tried, and how long is waited in between; the kernel itself waits up to 150 ms each time.
const SEAL_ATTEMPTS: usize = 20;
const SEAL_INTERVAL: Duration = Duration::from_millis(5);

/// Makes sure that this program runs from a sealed copy: returns if it does, else executes the copy.
pub fn ensure() -> Result<()> {
    let file = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let own: OwnedFd = file.into();
    if is_sealed(&own) {
        return Ok(());
    }
    let copy = copy(File::from(own)).context("make a sealed copy of this program")?;
    let text = |text: &std::ffi::OsStr| std::ffi::CString::new(text.as_bytes()).expect("arguments came as C strings");
    let args: Vec<_> = std::env::args_os().map(|arg| text(&arg)).collect();
    let env: Vec<_> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(&name)
        })
        .collect();
    nix::unistd::fexecve(&copy, &args, &env).context("execute a sealed copy of this program")?;
    Ok(())
}

/// A copy of `program` in a memory file that can be neither written nor resized.
fn copy(mut program: File) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 a memory file should say whether it is a program; before, the flag is unknown.
    let memory = match rustix::fs::memfd_create("corten", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("corten", flags),
        memory => memory,
    };
    let mut memory = File::from(memory.context("memfd_create")?);
    io::copy(&mut program, &mut memory).context("copy")?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    seal(&memory, all).context("fcntl(F_ADD_SEALS)")?;
    Ok(memory.into())
}

/// Adds the seals. The kernel cannot tell a page that is only on its way to a list of its own, or being moved, from one
/// that somebody could still write to: then it says, after a wait, that the file is busy, and is asked again.
fn seal(memory: &File, seals: SealFlags) -> rustix::io::Result<()> {
    for _ in 1..SEAL_ATTEMPTS {
        match rustix::fs::fcntl_add_seals(memory, seals) {
            Err(Errno::BUSY) => std::thread::sleep(SEAL_INTERVAL),
            result => return result,
        }
    }
    rustix::fs::fcntl_add_seals(memory, seals)
}
