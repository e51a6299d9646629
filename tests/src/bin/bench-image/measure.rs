//! What a command, or the daemon that works for it, takes.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use sha2::{Digest as _, Sha256};

/// The measures of one run.
pub(crate) struct Taken {
    wall: Duration,
    cpu: Duration,
    /// Highest resident size, in KiB.
    rss: u64,
    /// Bytes for the disk.
    written: u64,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, cpu) = (self.wall.as_secs_f64(), self.cpu.as_secs_f64());
        write!(f, "{wall:.3} {cpu:.3} {} {}", self.rss, self.written >> 20)
    }
}

/// Runs `command`; with `daemon`, a process id, measures that instead.
pub(crate) fn run(command: &[OsString], daemon: Option<u32>) -> Result<Taken> {
    let before = match daemon {
        Some(pid) => {
            // Forgets the highest resident size so far (proc_pid_clear_refs(5)).
            fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak memory")?;
            of_daemon(pid)?
        }
        None => Used::default(),
    };
    let started = Instant::now();
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).stdout(Stdio::null());
    let status = process.status().with_context(|| format!("run {:?}", command[0]))?;
    let wall = started.elapsed();
    ensure!(status.success(), "{:?}: {status}", command[0]);
    let after = match daemon {
        Some(pid) => of_daemon(pid)?,
        None => of_children()?,
    };
    Ok(Taken {
        wall,
        cpu: after.cpu - before.cpu,
        rss: after.rss,
        written: after.written - before.written,
    })
}

#[derive(Default)]
struct Used {
    cpu: Duration,
    rss: u64,
    written: u64,
}

fn of_daemon(pid: u32) -> Result<Used> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    // After the name, which may hold anything: the 14th and 15th field of all, in ticks of 10 ms.
    let stat = read("stat")?;
    let fields = stat.rsplit_once(')').context("stat has a name")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse::<u64>)
        .sum();
    Ok(Used {
        cpu: Duration::from_millis(ticks * 10),
        rss: number(&read("status")?, "VmHWM:")?,
        written: number(&read("io")?, "write_bytes:")?,
    })
}

fn number(text: &str, key: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value
        .with_context(|| format!("no {key}"))?
        .parse()
        .with_context(|| format!("{key} is no number"))
}

fn of_children() -> Result<Used> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()).cast_unsigned())
    };
    Ok(Used {
        cpu: time(usage.user_time()) + time(usage.system_time()),
        rss: usage.max_rss().cast_unsigned(),
        // In blocks of 512 bytes (getrusage(2)).
        written: usage.block_writes().cast_unsigned() * 512,
    })
}

/// Inflates and hashes a gzip-packed layer in memory: what any pull of it has to do at least.
pub(crate) fn limit(blob: &std::path::Path) -> Result<()> {
    let packed = fs::read(blob).with_context(|| format!("read {}", blob.display()))?;
    std::hint::black_box(Sha256::digest(&packed));
    let mut decoder = flate2::bufread::MultiGzDecoder::new(packed.as_slice());
    let mut hash = Sha256::new();
    let mut piece = vec![0; 128 << 10];
    loop {
        let count = decoder.read(&mut piece).context("inflate")?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
    }
    std::hint::black_box(hash.finalize());
    Ok(())
}
