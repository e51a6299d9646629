//! The user namespace of a pod while the pod is being made, and the network namespace that it owns.
//!
//! Neither can be made by this process, which has many threads, nor by one that it forks; `corten-shim --hold` makes them
//! (its `hold.rs` has the protocol). The holder lives until the infra container has joined: after that the infra
//! container keeps the user namespace, and the bind mount below `netns_dir` the network namespace.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::spec::user_namespace::IdMap;

/// A process that holds a pod's namespaces. Dropping it ends the process.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Makes a user namespace with these ids, and with `network` a network namespace in it. `shim` is the shim's
    /// executable. Blocks.
    pub fn start(shim: &Path, map: IdMap, network: bool) -> Result<Holder> {
        let mut command = Command::new(shim);
        command
            .args(["--hold", if network { "user,net" } else { "user" }])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("execute {}", shim.display()))?;
        let mut holder = Holder(child);
        holder.wait_until_made().context("make a user namespace")?;
        // The groups first: while they can still be given up.
        holder.write_map("gid_map", map.gid, map.length)?;
        holder.write_map("uid_map", map.uid, map.length)?;
        Ok(holder)
    }

    /// The namespace of this kind, by the kernel's name, for as long as the holder lives.
    pub fn path(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.0.id()))
    }

    fn wait_until_made(&mut self) -> Result<()> {
        let (mut told, mut error) = ([0u8; 1], String::new());
        let output = self.0.stdout.as_mut().context("it has no output")?;
        if output.read(&mut told).context("read from the holder")? == 1 {
            return Ok(());
        }
        let stderr = self.0.stderr.as_mut().context("it has no stderr")?;
        stderr.read_to_string(&mut error).context("read from the holder")?;
        ensure!(error.is_empty(), "{}", error.trim());
        anyhow::bail!("the holder ended at once")
    }

    fn write_map(&self, file: &str, first: u32, length: u32) -> Result<()> {
        let (path, map) = (format!("/proc/{}/{file}", self.0.id()), format!("0 {first} {length}\n"));
        fs::write(&path, &map).with_context(|| format!("write {map:?} to {path}"))
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
