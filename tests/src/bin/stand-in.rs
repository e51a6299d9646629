//! `stand-in`: four small programs in one, by the name it is run as; see `critest-images`, which puts them into images.
//!
//! ```text
//! pause          ends on SIGTERM or SIGINT, and reaps what its process namespace leaves to it
//! nonewprivs     prints `Effective uid: N`; its image has it setuid root
//! pgrep NAME     prints the processes whose name holds NAME; 1 if there is none
//! ipcs           lists segments of shared memory, as `ipcs -m`
//! ```
//! Debian's busybox has neither `pgrep` nor `ipcs`. The columns are procps' and util-linux', as far as anybody reads them.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::geteuid;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [program, arguments @ ..] = words.as_slice() else {
        bail!("no name to go by");
    };
    let name = Path::new(program).file_name().and_then(|name| name.to_str());
    match (name.unwrap_or_default(), arguments) {
        ("pause", _) => pause(),
        ("nonewprivs", _) => {
            println!("Effective uid: {}", geteuid());
            Ok(ExitCode::SUCCESS)
        }
        ("pgrep", [wanted]) => pgrep(wanted),
        ("ipcs", _) => ipcs(),
        (name, _) => bail!("{name}: none of pause, nonewprivs, pgrep NAME, ipcs"),
    }
}

fn pause() -> Result<ExitCode> {
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("sigprocmask")?;
    while signals.wait().context("sigwait")? == Signal::SIGCHLD {
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)
        ) {}
    }
    Ok(ExitCode::SUCCESS)
}

fn pgrep(wanted: &str) -> Result<ExitCode> {
    let mut found = ExitCode::FAILURE;
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let entry = entry.context("read /proc")?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end between the two looks.
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.contains(wanted) && pid != std::process::id() {
            println!("{pid}");
            found = ExitCode::SUCCESS;
        }
    }
    Ok(found)
}

fn ipcs() -> Result<ExitCode> {
    let segments = fs::read_to_string("/proc/sysvipc/shm").context("read /proc/sysvipc/shm")?;
    println!("\n------ Shared Memory Segments --------");
    println!("key        shmid      owner      perms      bytes      nattch");
    for line in segments.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [key, id, perms, size, _, _, attached, uid, ..] = fields.as_slice() else {
            bail!("/proc/sysvipc/shm: {line:?}");
        };
        let key: i32 = key.parse().with_context(|| format!("/proc/sysvipc/shm: key {key}"))?;
        println!("0x{key:08x} {id:<10} {uid:<10} {perms:<10} {size:<10} {attached}");
    }
    Ok(ExitCode::SUCCESS)
}
