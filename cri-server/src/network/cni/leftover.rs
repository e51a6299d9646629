//! Plugins that a killed server left running.
//!
//! They are found by the sandbox's id in their environment (CNI_CONTAINERID), which the programs that plugins run have
//! too: address management, iptables. A signal at the server's death (PR_SET_PDEATHSIG) would end the plugin alone and
//! leave those; it is bound to the thread that started it besides, and threads of a pool come and go. A process group
//! on record would have to be told from a later one of the same number.
//!
//! Each process is killed by itself through a descriptor: whoever puts the id into an environment of his own gets
//! nothing killed but that. An environment is memory of its process, which says itself where it begins and ends, and how
//! it is filled: so that those of containers are left alone, and of the others no more is read than a plugin could have.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use corten_proto::id::SandboxId;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long the killed may take to go; one that waits for a device may take for ever.
const LIMIT: Duration = Duration::from_secs(5);
/// The part of an environment that is looked at, in bytes: what plugins get from the server is a few KiB.
const MAX_ENVIRONMENT: u64 = 1 << 20;
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

/// The processes with `variable` in the environment that they were executed with. Plugins and their children are in the
/// server's pid namespace.
fn find(variable: &[u8]) -> Result<Vec<OwnedFd>> {
    let own = pid_namespace("self").context("look at the own pid namespace")?;
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
        // A process that has gone is in no namespace.
        if !pid_namespace(&pid.as_raw_nonzero().to_string()).is_ok_and(|it| it == own) {
            continue;
        }
        if environment(pid).is_ok_and(|it| it.split(|byte| *byte == 0).any(|it| it == variable)) {
            found.push(process);
        }
    }
    Ok(found)
}

/// The number of the pid namespace that a process is in.
fn pid_namespace(process: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{process}/ns/pid"))?.ino())
}

/// Empty for a zombie and for threads of the kernel; an error for a process that has gone.
fn environment(pid: Pid) -> io::Result<Vec<u8>> {
    let mut environment = Vec::new();
    let file = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero()))?;
    file.take(MAX_ENVIRONMENT).read_to_end(&mut environment)?;
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that is ended and waited for at the end of the test.
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn of_an_endless_environment_a_part_is_read() {
        // A single variable has at most 128 KiB.
        let large = (0..9).map(|number| (format!("LARGE{number}"), "x".repeat(120 << 10)));
        let child = Command::new("sleep").arg("1000").env_clear().envs(large).spawn();
        let child = Ended(child.unwrap());
        let read = environment(Pid::from_child(&child.0)).unwrap();
        assert_eq!(read.len() as u64, MAX_ENVIRONMENT);
    }

    #[test]
    fn processes_of_containers_are_not_looked_at() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let variable = "CNI_CONTAINERID=sandbox-of-a-liar";
        let script = format!("exec env {variable} sh -c 'echo; exec sleep 1000'");
        for (program, own, number) in [
            ("setsid", &[][..], 1),
            ("unshare", &["--pid", "--fork", "--kill-child"], 0),
        ] {
            let mut command = Command::new(program);
            let child = command.args(own).args(["sh", "-c", &script]).stdout(Stdio::piped());
            let mut child = Ended(child.spawn().unwrap());
            // Once it has the environment.
            let mut told = [0];
            child.0.stdout.take().unwrap().read_exact(&mut told).unwrap();
            assert_eq!(find(variable.as_bytes()).unwrap().len(), number, "{program}");
        }
    }
}
