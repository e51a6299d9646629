//! Each call of a pod's life, and pods per second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use corten_tests::table::{Table, Unit};

use crate::peer::Peer;

/// The calls in their order; the first three together make a running container.
const CALLS: [&str; 9] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "pod to running container",
];

/// Rounds that nobody looks at: caches, the bridge, the first of everything.
const WARM_UP: usize = 3;

/// Times every call, in `rounds` rounds of one pod with one container on each server.
pub(crate) fn calls(peers: &[Peer], rounds: usize, table: &mut Table) -> Result<()> {
    let mut samples = vec![vec![Vec::new(); peers.len()]; CALLS.len()];
    for round in 0..rounds + WARM_UP {
        for (column, peer) in peers.iter().enumerate() {
            let taken = life(peer)?;
            if round >= WARM_UP {
                for (call, taken) in taken.into_iter().enumerate() {
                    samples[call][column].push(taken);
                }
            }
        }
    }
    for (call, samples) in CALLS.iter().zip(&samples) {
        table.add_percentiles(call, samples);
    }
    Ok(())
}

/// How long each call of one pod takes.
fn life(peer: &Peer) -> Result<[Duration; CALLS.len()]> {
    let began = Instant::now();
    let mut last = began;
    let mut lap = || {
        let now = Instant::now();
        now - std::mem::replace(&mut last, now)
    };
    let pod = peer.run()?;
    let run = lap();
    let container = peer.create(&pod, peer.container_config(&["sleep", "1000"]))?;
    let create = lap();
    peer.start(&container)?;
    let start = lap();
    let running = began.elapsed();
    peer.exec(&container, &["true"])?;
    let exec = lap();
    peer.stop(&container)?;
    let stop = lap();
    peer.remove(&container)?;
    let remove = lap();
    peer.stop_pod(&pod)?;
    let stop_pod = lap();
    peer.remove_pod(&pod)?;
    let remove_pod = lap();
    Ok([run, create, start, exec, stop, remove, stop_pod, remove_pod, running])
}

/// Pods per second from their run to their removal, by one client and by eight.
pub(crate) fn rate(peers: &[Peer], pods: usize, table: &mut Table) -> Result<()> {
    for clients in [1, 8] {
        let rates: Result<Vec<f64>> = peers.iter().map(|peer| rate_of(peer, clients, pods)).collect();
        table.add(format!("pods, {clients} at a time"), Unit::PerSecond, rates?);
    }
    Ok(())
}

fn rate_of(peer: &Peer, clients: usize, pods: usize) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        let client = || -> Result<()> {
            while next.fetch_add(1, Ordering::Relaxed) < pods {
                let pod = peer.run()?;
                let container = peer.create(&pod, peer.container_config(&["sleep", "1000"]))?;
                peer.start(&container)?;
                peer.stop_pod(&pod)?;
                peer.remove_pod(&pod)?;
            }
            Ok(())
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let joined = clients
            .into_iter()
            .map(|it| it.join().map_err(|_panic| anyhow!("a client panicked"))?);
        joined.collect::<Result<()>>()
    })?;
    Ok(pods as f64 / began.elapsed().as_secs_f64())
}
