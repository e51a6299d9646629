//! Running from a program that nobody can change.
//!
//! A process of ours in a container can be reached there as /proc/PID/exe. Were that the runtime's file on the host, the
//! container could write to it (CVE-2019-5736). So commands that put a process of ours into a container execute
//! themselves again, from one of two places:
//!
//! | from | what it costs | what is shared with the host's file |
//! |---|---|---|
//! | an overlay of the program's directory, detached, read-only, without a layer that could be written | 0.1 ms | its pages in memory, and whatever the host writes to the file in place |
//! | a copy in sealed memory | 0.7 ms for each MB | nothing |
//!
//! The overlay comes first, as with runc: whatever a container remounts, there is no upper layer that a write could go to.
//! But the host's own file answers no writer with "text file busy" while it runs from there: installed over with `cp`, it
//! changes under the processes that run it, and the inits that wait for their start die of it. So it is replaced by rename,
//! as `install` and `mv` do; where it must be written in place, `CORTEN_SEAL=copy` keeps what runs apart from it.
//!
//! It is the entry of the program that executes it (`entry/entry.rs`); what is here sees only that it is so. The copy is
//! for where there can be no such mount (an ordinary user, a kernel without overlayfs), and for whoever sets
//! `CORTEN_SEAL=copy`: it also withstands a kernel that lets a reader of a file change its pages (CVE-2022-0847), at least
//! as far as this file goes. Whoever starts `corten` often can start it from sealed memory to begin with, which is
//! recognised.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, MemfdFlags, SealFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use crate::sys::fd::is_sealed;

/// Says which of the two it is to be: `copy`, or else the overlay where that can be had.
const CHOICE: &str = "CORTEN_SEAL";

/// Tells the program, when its entry has executed it from an overlay, the id of that mount. Who sets it is our caller, who
/// chooses what is executed anyway, and is only kept from mistakes: it counts where the program was in fact executed from
/// that mount, a read-only one of an overlay. That there is no upper layer is not looked at.
const MOUNT: &str = "_CORTEN_SEALED_MOUNT";

/// statx(2): an id that no other mount gets until the next boot. Linux 6.8; before, ids are used again.
const UNIQUE_MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// statfs(2).
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// How often sealing is tried, and how long is waited in between; the kernel itself waits up to 150 ms each time.
const SEAL_ATTEMPTS: usize = 20;
const SEAL_INTERVAL: Duration = Duration::from_millis(5);

/// Makes sure that this program runs from where nobody can change it: returns if it does, else executes a copy.
pub fn ensure() -> Result<()> {
    let own = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let choice = std::env::var_os(CHOICE);
    let copy_only = match choice.as_deref().map(OsStr::as_bytes) {
        Some(b"copy") => true,
        None | Some(b"" | b"overlay") => false,
        Some(other) => bail!("{CHOICE}={:?}: must be copy or overlay", String::from_utf8_lossy(other)),
    };
    if is_sealed(own.as_fd()) || !copy_only && std::env::var_os(MOUNT).is_some_and(|id| runs_from(&own, &id)) {
        return Ok(());
    }
    let copy = copy(own).context("make a sealed copy of this program")?;
    execute(&copy)
}

/// Executes `program` with our arguments and environment.
fn execute(program: &OwnedFd) -> Result<()> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).expect("arguments came as C strings");
    let args: Vec<_> = std::env::args_os().map(|arg| text(&arg)).collect();
    let env: Vec<_> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(&name)
        })
        .collect();
    nix::unistd::fexecve(program, &args, &env).context("execute a sealed copy of this program")?;
    Ok(())
}

/// Whether `program` is on a read-only overlay, in the mount of this id.
fn runs_from(program: &File, id: &OsStr) -> bool {
    let on_overlay = rustix::fs::fstatfs(program).is_ok_and(|stat| stat.f_type == OVERLAYFS_MAGIC);
    let read_only = rustix::fs::fstatvfs(program).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    on_overlay && read_only && mount_id(program.as_fd()).is_ok_and(|own| OsStr::new(&own.to_string()) == id)
}

fn mount_id(file: BorrowedFd<'_>) -> Result<u64> {
    let wanted = StatxFlags::MNT_ID | UNIQUE_MOUNT_ID;
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted).context("statx of this program")?;
    ensure!(
        stat.stx_mask & wanted.bits() != 0,
        "statx of this program: the kernel names no mount"
    );
    Ok(stat.stx_mnt_id)
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
