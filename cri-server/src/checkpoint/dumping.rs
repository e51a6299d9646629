//! The end of a `RUNTIME checkpoint` that nobody waits for any more, and of the CRIU it has started.
//!
//! Both outlive a server that is killed, and CRIU a runtime that is. While they live the container cannot be let go on: the
//! runtime has its lock, and CRIU leaves the container's freezer as it has found it, which is frozen. They are known by
//! their arguments, which name the directory that is written to: no pid is kept that could have become another's.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The verb of the runtime.
const VERB: &[u8] = b"checkpoint";
/// How long they may take to end after SIGTERM, and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends what writes a checkpoint below `directory`, with all that it has started, and waits for that.
pub(crate) fn end(directory: &Path) -> Result<()> {
    let mut all = Vec::new();
    for pid in processes()? {
        // Opened first: what is read afterwards is of this process, or of none.
        let Some(process) = open(pid) else { continue };
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if writes(&arguments, directory) {
            all.push(process);
            descendants(pid, &mut all);
        }
    }
    // The runtimes come before what they have started, but a CRIU that is told to end as well does no harm.
    signal(&all, Signal::TERM);
    if !wait(&all)? {
        signal(&all, Signal::KILL);
        ensure!(wait(&all)?, "what writes to {} does not end", directory.display());
    }
    Ok(())
}

/// Whether these are the arguments of a runtime that saves a container below `directory`.
fn writes(arguments: &[u8], directory: &Path) -> bool {
    let all = || arguments.split(|&byte| byte == 0);
    let within = |argument: &[u8]| {
        let path = Path::new(OsStr::from_bytes(argument));
        path != directory && path.starts_with(directory)
    };
    all().any(|argument| argument == VERB) && all().any(within)
}

fn processes() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

fn descendants(pid: i32, all: &mut Vec<OwnedFd>) {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        if let Some(process) = open(child) {
            all.push(process);
            descendants(child, all);
        }
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// One that has ended needs none.
fn signal(all: &[OwnedFd], signal: Signal) {
    for process in all {
        pidfd_send_signal(process, signal).ok();
    }
}

/// Waits until all have ended, for a while; whether they have.
fn wait(all: &[OwnedFd]) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    for process in all {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut files = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if poll(&mut files, timeout).context("wait for a process")? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn arguments_of_those_who_write_there() {
        let table: [(&[&str], bool); 5] = [
            (&["/r", "checkpoint", "--image-path", "/a/.partial/content", "id"], true),
            (&["/r", "restore", "--image-path", "/a/.partial/content", "id"], false),
            (
                &["/r", "checkpoint", "--image-path", "/a/.partial2/content", "id"],
                false,
            ),
            (&["/r", "checkpoint", "--image-path", "/a/.partial", "id"], false),
            (&["checkpoint"], false),
        ];
        for (arguments, expected) in table {
            let bytes = arguments.join("\0");
            assert_eq!(
                writes(bytes.as_bytes(), Path::new("/a/.partial")),
                expected,
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn a_runtime_and_what_it_has_started_end_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let shell = |script: &str, directory: &Path| -> Child {
            let images = directory.join("images");
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, "runtime", "checkpoint"]).arg(images);
            command.spawn().unwrap()
        };
        let (ours, others) = (dir.path().join("ours"), dir.path().join("others"));
        // Neither the runtime nor its CRIU hears of SIGTERM.
        let pid = dir.path().join("pid");
        let script = format!(
            "trap '' TERM; sleep 60 & echo $! >{0}.new; mv {0}.new {0}; wait",
            pid.display()
        );
        let mut runtime = shell(&script, &ours);
        let mut other = shell("sleep 60; :", &others);
        while !pid.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let child: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        end(&ours).unwrap();
        assert!(runtime.try_wait().unwrap().is_some());
        let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
        assert!(other.try_wait().unwrap().is_none());
        end(&others).unwrap();
        other.wait().unwrap();
    }
}
