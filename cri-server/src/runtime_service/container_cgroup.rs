//! The cgroup of a container that runs, as an update has to see it: what memory is in use, and which processes there are.
//!
//! It is found by the init's own `/proc/PID/cgroup`, up to the part that carries the container's id: what the container
//! has made below for itself belongs to it. Every process is held by its directory in /proc and asked for its cgroup before
//! anything is written, because its number may be another's by then.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;

use crate::stats::{Cgroups, Process};

/// The v1 hierarchy that is looked at: the one with the limit that an update is careful about.
const CONTROLLER: &str = "memory";
/// How often the processes are listed anew to find those that were forked meanwhile.
const MAX_PASSES: usize = 20;
/// Deepest cgroup below the container's that is looked into; a container makes them as it likes.
const MAX_DEPTH: usize = 32;
/// Most cgroups that are looked into, the container's own among them.
const MAX_CGROUPS: usize = 4096;
/// The file of a process that an update changes.
const SCORE: &str = "oom_score_adj";

/// Where the container's memory is accounted.
#[derive(Clone)]
pub(super) struct ContainerCgroup {
    id: ContainerId,
    directory: PathBuf,
    v2: bool,
}

impl ContainerCgroup {
    /// The cgroup of container `id`, whose init has this pid.
    pub(super) fn of(init: i32, id: &ContainerId) -> Result<ContainerCgroup> {
        let process = Process::open(init).with_context(|| format!("init of {id}, process {init}, has ended"))?;
        let cgroups = Cgroups::of(&process, id.as_str())
            .with_context(|| format!("process {init}, init of {id}, is in no cgroup of the container"))?;
        let directory = cgroups
            .directory(CONTROLLER)
            .with_context(|| format!("{id} is in no cgroup of the controller {CONTROLLER}"))?;
        Ok(ContainerCgroup {
            id: id.clone(),
            directory: directory.to_owned(),
            v2: cgroups.is_v2(),
        })
    }

    /// Bytes of memory in use, caches among them: what the kernel holds against the limit.
    pub(super) fn memory_usage(&self) -> Result<u64> {
        let name = if self.v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let path = self.directory.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{}: {text:?}", path.display()))
    }

    /// Gives every process this oom_score_adj. Dropping the result without `keep` gives them back what they had;
    /// that blocks as this does, for as long as the container is large.
    pub(super) fn adjust_oom_score(&self, score: i32) -> Result<OomScores> {
        let mut scores = OomScores::new(&self.id);
        let mut seen = BTreeSet::new();
        for _ in 0..MAX_PASSES {
            let mut members = Members::default();
            members.add(&self.directory, 0)?;
            let Members { mut pids, .. } = members;
            pids.retain(|pid| seen.insert(*pid));
            if pids.is_empty() {
                return Ok(scores);
            }
            for pid in pids {
                scores.adjust(pid, score)?;
            }
        }
        bail!(
            "set oom_score_adj: the processes in {} do not stop forking",
            self.directory.display()
        )
    }
}

/// The oom_score_adj that processes had before an update.
#[must_use = "dropping it undoes the change"]
pub(super) struct OomScores {
    id: ContainerId,
    /// By pid.
    before: Vec<(i32, String)>,
}

impl OomScores {
    fn new(id: &ContainerId) -> Self {
        OomScores {
            id: id.clone(),
            before: Vec::new(),
        }
    }

    /// The new scores stay.
    pub(super) fn keep(mut self) {
        self.before.clear();
    }

    /// One process; one that has ended meanwhile is no error.
    fn adjust(&mut self, pid: i32, score: i32) -> Result<()> {
        let Some(process) = Process::of(pid, &self.id) else {
            return Ok(());
        };
        let before = match process.read(SCORE) {
            Err(error) if has_ended(&error) => return Ok(()),
            before => before.with_context(|| format!("read {SCORE} of {pid}"))?,
        };
        match process.write(SCORE, &score.to_string()) {
            Err(error) if has_ended(&error) => return Ok(()),
            written => written.with_context(|| format!("write {score} to {SCORE} of {pid}"))?,
        }
        self.before.push((pid, before));
        Ok(())
    }
}

impl Drop for OomScores {
    fn drop(&mut self) {
        for (pid, before) in &self.before {
            let Some(process) = Process::of(*pid, &self.id) else {
                continue;
            };
            match process.write(SCORE, before) {
                Err(error) if !has_ended(&error) => tracing::warn!(pid, "restore its {SCORE}: {error}"),
                _ => {}
            }
        }
    }
}

fn has_ended(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// The processes of a cgroup and of all below it.
#[derive(Default)]
struct Members {
    pids: Vec<i32>,
    cgroups: usize,
}

impl Members {
    /// Adds a cgroup's, and those of all below it. One that is removed meanwhile has none.
    fn add(&mut self, directory: &Path, depth: usize) -> Result<()> {
        self.cgroups += 1;
        if self.cgroups > MAX_CGROUPS {
            bail!("more than {MAX_CGROUPS} cgroups, at {}", directory.display());
        }
        let path = directory.join("cgroup.procs");
        let gone = |error: &std::io::Error| has_ended(error) || error.raw_os_error() == Some(nix::libc::ENODEV);
        let text = match fs::read_to_string(&path) {
            Err(error) if gone(&error) => return Ok(()),
            // A threaded cgroup: its processes are listed in the one above.
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => String::new(),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        self.pids
            .extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        if depth == MAX_DEPTH {
            return Ok(());
        }
        let entries = match fs::read_dir(directory) {
            Err(error) if gone(&error) => return Ok(()),
            entries => entries.with_context(|| format!("list {}", directory.display()))?,
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(&entry.path(), depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_the_containers_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id().cast_signed();
        let process = Process::open(pid).unwrap();
        let score = || process.read(SCORE).unwrap();
        let before = score();
        let id = ContainerId::random().unwrap();
        let mut scores = OomScores::new(&id);
        scores.adjust(pid, 777).unwrap();
        assert_eq!(score(), before);
        // As if it had got the number of one that was adjusted.
        scores.before.push((pid, "778".to_owned()));
        drop(scores);
        assert_eq!(score(), before);
        child.kill().unwrap();
        child.wait().unwrap();
        OomScores::new(&id).adjust(pid, 1).unwrap();
    }

    #[test]
    fn a_tree_is_looked_into_up_to_a_limit() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = |path: &str, procs: &str| {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::write(root.path().join(path).join("cgroup.procs"), procs).unwrap();
        };
        cgroup("", "1\n2\n");
        cgroup("a/b", "3\n");
        cgroup("a", "");
        let mut members = Members::default();
        members.add(root.path(), 0).unwrap();
        assert_eq!(members.pids, [1, 2, 3]);
        (0..MAX_CGROUPS).for_each(|number| cgroup(&format!("a/{number}"), ""));
        let error = Members::default().add(root.path(), 0).unwrap_err().to_string();
        assert!(error.contains("more than 4096 cgroups"), "{error}");
    }
}
