//! Thousands of pods one after the other, and what stays of them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::peer::{Peer, processes};

/// Pods before the first look: caches fill, allocators take what they keep.
const WARM_UP: usize = 100;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(60);
/// How much the server's memory may grow over all pods, in KiB: allocators keep a little.
const MEMORY: i64 = 2048;
/// How many threads more it may have: those for blocking work come and go, up to a number of their own.
const THREADS: i64 = 16;

/// What there is: of the server, and of the namespaces that the soak has for itself.
type Count = (&'static str, fn(&Peer) -> Result<i64>);

const COUNTS: [Count; 10] = [
    ("server RSS, KiB", |peer| status(peer.pid, "VmRSS:")),
    ("server threads", |peer| status(peer.pid, "Threads:")),
    ("server descriptors", |peer| entries(&format!("/proc/{}/fd", peer.pid))),
    ("processes", |_| Ok(i64::try_from(processes().len())?)),
    ("shims", |peer| Ok(i64::try_from(peer.shims().len())?)),
    ("mounts", |_| lines("/proc/self/mountinfo")),
    ("cgroups", Peer::cgroups),
    ("network links", |_| lines("/proc/self/net/dev")),
    ("network namespaces", |peer| peer.entries_below("run/netns")),
    ("files and addresses", Peer::files),
];

/// Runs `pods` pods with one container each, from run to removal, and fails if anything has grown.
pub(crate) fn run(peer: &Peer, pods: usize) -> Result<()> {
    live(peer, WARM_UP)?;
    let before = look(peer)?;
    let began = Instant::now();
    live(peer, pods)?;
    println!("{pods} pods in {:.0} s", began.elapsed().as_secs_f64());
    let after = look(peer)?;
    println!("{:<24}{:>12}{:>12}{:>12}", "", "before", "after", "growth");
    let mut grown = Vec::new();
    for ((name, _), (before, after)) in COUNTS.iter().zip(before.iter().zip(&after)) {
        let growth = after - before;
        println!("{name:<24}{before:>12}{after:>12}{growth:>12}");
        let allowed = match *name {
            "server RSS, KiB" => MEMORY,
            "server threads" => THREADS,
            _ => 0,
        };
        if growth > allowed {
            grown.push(*name);
        }
    }
    ensure!(grown.is_empty(), "grown: {}", grown.join(", "));
    Ok(())
}

fn live(peer: &Peer, pods: usize) -> Result<()> {
    let mut told = Instant::now();
    for number in 0..pods {
        let pod = peer.run()?;
        let container = peer.create(&pod, peer.container_config(&["echo", "hello"]))?;
        peer.start(&container)?;
        let status = peer.wait_exit(&container)?;
        ensure!(status.exit_code == 0, "pod {number}: exit code {}", status.exit_code);
        let log = Path::new(&pod.config.log_directory).join("main.log");
        let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        ensure!(text.ends_with(" stdout F hello\n"), "pod {number}: {text:?}");
        peer.remove(&container)?;
        peer.stop_pod(&pod)?;
        peer.remove_pod(&pod)?;
        // The kubelet's part.
        fs::remove_dir_all(&pod.config.log_directory).context("remove the pod's logs")?;
        if told.elapsed() > PROGRESS {
            println!("{number} pods");
            told = Instant::now();
        }
    }
    Ok(())
}

fn look(peer: &Peer) -> Result<Vec<i64>> {
    // What the kernel and the shims' ends leave to a moment later.
    std::thread::sleep(Duration::from_secs(3));
    COUNTS
        .iter()
        .map(|(name, count)| count(peer).with_context(|| format!("count {name}")))
        .collect()
}

fn status(pid: u32, key: &str) -> Result<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    Ok(value.with_context(|| format!("no {key}"))?.parse()?)
}

fn entries(directory: &str) -> Result<i64> {
    let count = fs::read_dir(directory)
        .with_context(|| format!("list {directory}"))?
        .count();
    Ok(i64::try_from(count)?)
}

fn lines(path: &str) -> Result<i64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(i64::try_from(text.lines().count())?)
}
