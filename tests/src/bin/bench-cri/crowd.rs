//! Many pods at once: how long lists take, and what the pods cost while nothing happens.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use corten_tests::table::{Table, Unit};

use crate::peer::{Peer, Pod, processes};

/// How often each list is asked for.
const CALLS: usize = 30;
/// How long an idle server is watched.
const IDLE: Duration = Duration::from_secs(20);
/// Before that: what is under way has ended.
const SETTLE: Duration = Duration::from_secs(3);

/// Calls that answer with everything there is, and one that has next to nothing to answer: what any call takes.
const CALLS_OF_A_CROWD: [&str; 5] = [
    "Version",
    "ListPodSandbox",
    "ListContainers",
    "ListContainerStats",
    "ListPodSandboxStats",
];

/// Runs half of `pods` on every server and measures what they cost, then the other half and times the lists.
pub(crate) fn measure(peers: &[Peer], pods: usize, table: &mut Table) -> Result<()> {
    let mut crowds = Vec::new();
    for peer in peers {
        crowds.push(run(peer, pods / 2)?);
    }
    thread::sleep(SETTLE);
    costs(peers, pods / 2, table)?;
    for (crowd, peer) in crowds.iter_mut().zip(peers) {
        crowd.extend(run(peer, pods - pods / 2)?);
    }
    thread::sleep(SETTLE);
    lists(peers, pods, table);
    for (crowd, peer) in crowds.iter().zip(peers) {
        for pod in crowd {
            peer.stop_pod(pod)?;
            peer.remove_pod(pod)?;
        }
    }
    Ok(())
}

fn run(peer: &Peer, pods: usize) -> Result<Vec<Pod>> {
    let one = |_| {
        let pod = peer.run()?;
        let container = peer.create(&pod, peer.container_config(&["sleep", "100000"]))?;
        peer.start(&container)?;
        Ok(pod)
    };
    (0..pods).map(one).collect()
}

/// Memory and processor time of the servers, their shims and the infra containers' programs.
fn costs(peers: &[Peer], pods: usize, table: &mut Table) -> Result<()> {
    let (mut resident, mut per_pod, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for peer in peers {
        let mut helpers = peer.shims();
        helpers.extend(pauses(&helpers));
        let shares: Result<Vec<f64>> = helpers
            .iter()
            .map(|&pid| kibibytes(pid, "smaps_rollup", "Pss:"))
            .collect();
        per_pod.push(shares?.iter().sum::<f64>() / pods as f64);
        resident.push(kibibytes(peer.pid, "status", "VmRSS:")?);
        helpers.push(peer.pid);
        let (began, before) = (Instant::now(), ticks(&helpers)?);
        thread::sleep(IDLE);
        // In ticks of 10 ms.
        idle.push((ticks(&helpers)? - before) * 10.0 / began.elapsed().as_secs_f64());
    }
    table.add(format!("server RSS, {pods} pods"), Unit::Kibibytes, resident);
    table.add("shim + pause PSS, per pod".to_owned(), Unit::Kibibytes, per_pod);
    table.add(format!("idle, {pods} pods"), Unit::MilliCpus, idle);
    Ok(())
}

/// The infra containers' programs: children of the shims.
fn pauses(shims: &[u32]) -> Vec<u32> {
    let is_pause = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let parent = stat(*pid).and_then(|fields| Ok(fields.get(1).context("no parent")?.parse()?));
        name.trim() == "pause" && parent.is_ok_and(|parent| shims.contains(&parent))
    };
    processes().into_iter().filter(is_pause).collect()
}

fn kibibytes(pid: u32, file: &str, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    Ok(value.with_context(|| format!("{path}: no {key}"))?.parse()?)
}

/// The fields of `/proc/PID/stat` after the name, which may hold anything (proc_pid_stat(5)).
fn stat(pid: u32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let (_, rest) = text.rsplit_once(')').context("stat has a name")?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// Processor time of all of them, in ticks.
fn ticks(pids: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for &pid in pids {
        for field in stat(pid)?.iter().skip(11).take(2) {
            sum += field.parse::<f64>()?;
        }
    }
    Ok(sum)
}

fn lists(peers: &[Peer], pods: usize, table: &mut Table) {
    for name in CALLS_OF_A_CROWD {
        let mut samples = vec![Vec::new(); peers.len()];
        for _ in 0..CALLS {
            for (samples, peer) in samples.iter_mut().zip(peers) {
                let began = Instant::now();
                // One that a server does not have is shown as a dash.
                if peer.cri.undecoded(name).is_ok() {
                    samples.push(began.elapsed());
                }
            }
        }
        table.add_percentiles(&format!("{name}, {pods} pods"), &samples);
    }
}
