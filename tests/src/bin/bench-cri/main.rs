//! Measures CRI servers beside each other: the numbers of `hack/bench-cri.sh` and `hack/soak.sh`, which prepare the machine.
//!
//! ```text
//! bench-cri bench --dir DIR --image IMAGE --parent CGROUP [--rounds N] [--pods N] [--crowd N] PEER...
//! bench-cri soak  --dir DIR --image IMAGE --parent CGROUP [--pods N] PEER
//! PEER = NAME=SOCKET=PID=SHIM      a running server, its process, and the name of its shims' executable
//! ```
//! Each round drives every server once, one after the other, so that whatever slows the machine down slows them all.
//! Printed are percentiles, and the first server's as a share of each other's. `bench` does this for each call of a pod's
//! life, pods per second with one client and with eight, lists and statistics of a crowd of pods, what a crowd costs
//! while it is idle, and the throughput of a log; `soak` runs pods one after the other and prints what the server and
//! the machine hold before and after.

mod crowd;
mod lifecycle;
mod log;
mod peer;
mod soak;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use corten_tests::table::Table;
use lexopt::prelude::*;

use peer::Peer;

/// What the command line asks for.
struct Options {
    command: String,
    rounds: usize,
    pods: usize,
    crowd: usize,
    peers: Vec<Peer>,
}

fn main() -> Result<()> {
    let options = options()?;
    for peer in &options.peers {
        peer.pull()?;
    }
    match options.command.as_str() {
        "bench" => bench(&options),
        "soak" => soak::run(options.peers.first().context("no server")?, options.pods),
        other => bail!("{other:?}: must be bench or soak"),
    }
}

fn bench(options: &Options) -> Result<()> {
    let peers = &options.peers;
    let mut table = Table::new(peers.iter().map(|peer| peer.name.clone()).collect());
    lifecycle::calls(peers, options.rounds, &mut table)?;
    table.print_new();
    lifecycle::rate(peers, options.pods, &mut table)?;
    table.print_new();
    log::throughput(peers, &mut table)?;
    table.print_new();
    crowd::measure(peers, options.crowd, &mut table)?;
    table.print_new();
    Ok(())
}

fn options() -> Result<Options> {
    let (mut command, mut dir, mut image, mut parent) = (None, None, None, None);
    let (mut rounds, mut pods, mut crowd, mut peers) = (40, 100, 200, Vec::new());
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            Long("image") => image = Some(parser.value()?.string()?),
            Long("parent") => parent = Some(parser.value()?.string()?),
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("pods") => pods = parser.value()?.parse()?,
            Long("crowd") => crowd = parser.value()?.parse()?,
            Value(value) if command.is_none() => command = Some(value.string()?),
            Value(value) => peers.push(value.string()?),
            other => bail!(other.unexpected()),
        }
    }
    let (dir, image) = (dir.context("--dir: missing")?, image.context("--image: missing")?);
    let parent = parent.context("--parent: missing")?;
    ensure!(rounds > 0 && pods > 0 && crowd > 0, "numbers must be greater than zero");
    ensure!(!peers.is_empty(), "NAME=SOCKET=PID=SHIM: missing");
    let peers = peers.iter().map(|text| Peer::new(text, &dir, &image, &parent));
    Ok(Options {
        command: command.context("bench or soak: missing")?,
        rounds,
        pods,
        crowd,
        peers: peers.collect::<Result<_>>()?,
    })
}
