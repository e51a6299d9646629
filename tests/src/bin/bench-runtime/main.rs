//! Measures OCI runtimes beside each other: the numbers of `hack/bench-runtime.sh`, which prepares the machine for it.
//!
//! ```text
//! bench-runtime --dir DIR [--rounds N] [--seconds N] [--seccomp FILE] NAME=BINARY...
//! bench-runtime --peak-rss COMMAND [ARGUMENT...]
//! ```
//! Each round runs every runtime once, one after the other, so that whatever slows the machine down slows them all.
//! Printed are medians, and the first runtime's as a share of each other's. DIR is taken for bundles, states and layers;
//! its name is in every id and cgroup path.
//!
//! The second form runs a command and prints the largest resident set of it and of what it waited for, in KiB: a process of
//! its own for each measurement, as the kernel only ever raises that number.

mod bundle;
mod measure;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use bundle::Bundle;
use corten_tests::table::Table;
use measure::Peer;

/// What the command line asks for.
struct Options {
    dir: PathBuf,
    rounds: usize,
    seconds: u64,
    seccomp: Option<PathBuf>,
    peers: Vec<Peer>,
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "--peak-rss") {
        println!("{}", measure::peak_rss_of(args)?);
        return Ok(());
    }
    let options = options()?;
    // The inits of containers that were created become children of this process.
    nix::sys::prctl::set_child_subreaper(true).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    let bundles = bundles(&options)?;
    let mut table = Table::new(options.peers.iter().map(|peer| peer.name.clone()).collect());
    for bundle in &bundles {
        warm_up(&options, bundle)?;
        measure::run(&options.peers, bundle, options.rounds, &mut table)?;
        measure::lifecycle(&options.peers, bundle, options.rounds, &mut table)?;
        measure::exec(&options.peers, bundle, options.rounds, &mut table)?;
        table.print_new();
    }
    let plain = bundles.first().context("no bundle")?;
    measure::peak_rss(&options.peers, plain, &mut table)?;
    measure::smallest_limit(&options.peers, plain, &mut table)?;
    measure::parallel(&options.peers, plain, options.seconds, &mut table)?;
    table.print_new();
    Ok(())
}

/// The page cache, and a runtime's own caches: the second start is what counts.
fn warm_up(options: &Options, bundle: &Bundle) -> Result<()> {
    for peer in options.peers.iter().cycle().take(3 * options.peers.len()) {
        peer.run(bundle)?;
    }
    Ok(())
}

/// The same container three times: as it is, with a seccomp profile, and on an overlay of many layers.
fn bundles(options: &Options) -> Result<Vec<Bundle>> {
    let mut bundles = vec![Bundle::new(&options.dir, "plain")?];
    if let Some(profile) = &options.seccomp {
        let text = std::fs::read(profile).with_context(|| format!("read {}", profile.display()))?;
        let profile = serde_json::from_slice(&text).with_context(|| format!("parse {}", profile.display()))?;
        bundles.push(Bundle::new(&options.dir, "seccomp")?.with_seccomp(profile)?);
    }
    bundles.push(Bundle::new(&options.dir, "40 layers")?.on_overlay(40)?);
    Ok(bundles)
}

fn options() -> Result<Options> {
    let (mut dir, mut rounds, mut seconds, mut seccomp, mut binaries) = (None, 50, 30, None, Vec::new());
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("seccomp") => seccomp = Some(PathBuf::from(parser.value()?)),
            Value(value) => binaries.push(value.string()?),
            other => bail!(other.unexpected()),
        }
    }
    let dir = dir.context("--dir: missing")?;
    ensure!(rounds > 0, "--rounds: must be greater than zero");
    ensure!(!binaries.is_empty(), "NAME=BINARY: missing");
    let peer = |text: &String| {
        let (name, binary) = text
            .split_once('=')
            .with_context(|| format!("{text:?}: must be NAME=BINARY"))?;
        Peer::new(&dir, name, Path::new(binary))
    };
    let peers = binaries.iter().map(peer).collect::<Result<_>>()?;
    Ok(Options {
        dir,
        rounds,
        seconds,
        seccomp,
        peers,
    })
}
