//! How fast a container's output becomes a log.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use corten_proto::cri;
use corten_tests::table::{Table, Unit};

use crate::peer::Peer;

/// Bytes of a line with its end, and lines that a container writes: about 100 MB.
const LINE: usize = 100;
const LINES: usize = 1_000_000;

/// Runs of which the fastest counts: the disk is others' too.
const RUNS: usize = 3;

/// Megabytes of output per second, from the start of a container that writes as fast as it can to its end.
pub(crate) fn throughput(peers: &[Peer], table: &mut Table) -> Result<()> {
    let mut best = vec![0.0_f64; peers.len()];
    for _ in 0..RUNS {
        for (best, peer) in best.iter_mut().zip(peers) {
            *best = best.max(run(peer)?);
        }
    }
    table.add("log of 100-byte lines".to_owned(), Unit::MegabytesPerSecond, best);
    Ok(())
}

fn run(peer: &Peer) -> Result<f64> {
    let pod = peer.run()?;
    let directory = Path::new(&pod.config.log_directory).to_owned();
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let lines = directory.join("lines");
    write_lines(&lines).with_context(|| format!("write {}", lines.display()))?;
    let mut config = peer.container_config(&["cat", "/lines"]);
    config.mounts.push(cri::Mount {
        container_path: "/lines".to_owned(),
        host_path: lines.display().to_string(),
        readonly: true,
        ..Default::default()
    });
    let container = peer.create(&pod, config)?;
    peer.start(&container)?;
    let status = peer.wait_exit(&container)?;
    let logged = fs::read(directory.join("main.log")).context("read the log")?;
    let found = logged.iter().filter(|&&byte| byte == b'\n').count();
    ensure!(found == LINES, "{}: {found} of {LINES} lines in the log", peer.name);
    peer.stop_pod(&pod)?;
    peer.remove_pod(&pod)?;
    fs::remove_dir_all(&directory).context("remove the log")?;
    let seconds = (status.finished_at - status.started_at) as f64 / 1e9;
    Ok((LINE * LINES) as f64 / 1e6 / seconds)
}

fn write_lines(path: &Path) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    for number in 0..LINES {
        writeln!(file, "{number:>width$}", width = LINE - 1)?;
    }
    file.flush()
}
