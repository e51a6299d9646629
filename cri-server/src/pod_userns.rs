//! The user namespace of a pod while the pod is being made, and the network namespace that it owns.
//!
//! Neither can be made by this process, which has many threads, nor by one that it forks; `corten-shim --hold` makes them
//! (its `hold.rs` has the protocol). The holder lives until the infra container has joined: after that the infra
//! container keeps the user namespace, and the bind mount below `netns_dir` the network namespace.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::own_process::unburden;
use crate::spec::user_namespace::IdMap;

/// How long the holder may take to make the namespaces.
const LIMIT: Duration = Duration::from_secs(10);

/// A process that holds a pod's namespaces. Dropping it ends the process, and blocks until it has ended.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Makes a user namespace with these ids, and with `network` a network namespace in it. `shim` is the shim's
    /// executable. Blocks.
    pub fn start(shim: &Path, map: IdMap, network: bool) -> Result<Holder> {
        let mut command = Command::new(shim);
        unburden(&mut command);
        command
            .args(["--hold", if network { "user,net" } else { "user" }])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("execute {}", shim.display()))?;
        let mut holder = Holder(child);
        holder.wait_until_made(LIMIT).context("make a user namespace")?;
        // The groups first: while they can still be given up.
        holder.write_map("gid_map", map.gid, map.length)?;
        holder.write_map("uid_map", map.uid, map.length)?;
        Ok(holder)
    }

    /// The namespace of this kind, by the kernel's name, for as long as the holder lives.
    pub fn path(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.0.id()))
    }

    fn wait_until_made(&mut self, limit: Duration) -> Result<()> {
        let (mut told, mut error) = ([0u8; 1], String::new());
        let output = self.0.stdout.as_mut().context("it has no output")?;
        wait_readable(output, limit)?;
        if output.read(&mut told).context("read from the holder")? == 1 {
            return Ok(());
        }
        // It has no more to say; what it has said must not be waited for either.
        self.0.kill().context("end the holder")?;
        let stderr = self.0.stderr.as_mut().context("it has no stderr")?;
        stderr.read_to_string(&mut error).context("read from the holder")?;
        ensure!(error.is_empty(), "{}", error.trim());
        bail!("the holder ended at once")
    }

    fn write_map(&self, file: &str, first: u32, length: u32) -> Result<()> {
        let (path, map) = (format!("/proc/{}/{file}", self.0.id()), format!("0 {first} {length}\n"));
        fs::write(&path, &map).with_context(|| format!("write {map:?} to {path}"))
    }
}

/// Waits until there is something to read, or nothing will come any more.
fn wait_readable(output: &impl AsFd, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => bail!("no answer from the holder in {limit:?}"),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll the holder's output"),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            tracing::warn!("end the holder of a user namespace: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_does_not_do_its_part() {
        let table = [
            ("exec sleep 1000", "no answer"),
            ("echo refused >&2", "refused"),
            ("echo refused >&2; exec >&-; exec sleep 1000", "refused"),
            ("true", "ended at once"),
        ];
        for (script, word) in table {
            let limit = match word {
                "no answer" => Duration::from_millis(50),
                _ => LIMIT,
            };
            let mut command = Command::new("sh");
            let piped = command.args(["-c", script]).stdin(Stdio::piped());
            let child = piped.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let error = Holder(child).wait_until_made(limit).expect_err(script);
            assert!(error.to_string().contains(word), "{script}: {error:#}");
        }
    }
}
