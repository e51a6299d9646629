//! The cases, and a runtime as they drive it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::bundle::Bundle;
use corten_tests::table::{Table, Unit};

/// How long a container under a tight limit may take to start or to fail.
const PATIENCE: Duration = Duration::from_secs(10);

/// The step between two limits that are tried, and the largest one, in KiB.
const LIMIT_STEP: u64 = 128;
const LARGEST_LIMIT: u64 = 32 << 10;

/// How often a container must start under a limit for that to count.
const LIMIT_TRIALS: usize = 5;

/// How many containers run at once.
const PARALLEL: usize = 8;

/// A runtime that is measured.
pub(crate) struct Peer {
    /// Its column.
    pub(crate) name: String,
    binary: PathBuf,
    root: PathBuf,
    count: AtomicU64,
}

impl Peer {
    /// A runtime with a state directory of its own below `dir`.
    pub(crate) fn new(dir: &Path, name: &str, binary: &Path) -> Result<Peer> {
        ensure!(binary.exists(), "{name}: {} does not exist", binary.display());
        let root = dir.join(format!("state-{name}"));
        fs::create_dir_all(&root).with_context(|| format!("mkdir {}", root.display()))?;
        Ok(Peer {
            name: name.to_owned(),
            binary: binary.to_owned(),
            root,
            count: AtomicU64::new(0),
        })
    }

    fn new_id(&self) -> String {
        format!("{}-{}", self.name, self.count.fetch_add(1, Ordering::Relaxed))
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).arg(subcommand);
        // A file, not a pipe: containers inherit it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// How long a command takes that must succeed.
    fn time(&self, command: &mut Command) -> Result<Duration> {
        let began = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("run {}", self.binary.display()))?;
        let taken = began.elapsed();
        ensure!(
            status.success(),
            "{}: {status}: {command:?}; without redirection it says why",
            self.name
        );
        Ok(taken)
    }

    /// Runs the bundle's container in the foreground.
    pub(crate) fn run(&self, bundle: &Bundle) -> Result<Duration> {
        let id = self.new_id();
        bundle.write(&id, &["/bin/true"], None)?;
        self.time(self.command("run").arg("--bundle").arg(&bundle.path).arg(&id))
    }

    fn create(&self, bundle: &Bundle, args: &[&str]) -> Result<(Created<'_>, Duration)> {
        let id = self.new_id();
        let pid_file = bundle.path.join("pid");
        bundle.write(&id, args, None)?;
        let mut command = self.command("create");
        command
            .arg("--bundle")
            .arg(&bundle.path)
            .arg("--pid-file")
            .arg(&pid_file);
        let taken = self.time(command.arg(&id))?;
        let pid = fs::read_to_string(&pid_file).context("read the pid file")?;
        let pid = Pid::from_raw(pid.trim().parse().with_context(|| format!("pid {pid:?}"))?);
        let created = Created {
            peer: self,
            id,
            pid: Some(pid),
        };
        Ok((created, taken))
    }
}

/// A container that is deleted by force unless it has been.
struct Created<'a> {
    peer: &'a Peer,
    id: String,
    /// Its init, until that has been waited for.
    pid: Option<Pid>,
}

impl Created<'_> {
    fn start(&self) -> Result<Duration> {
        self.peer.time(self.peer.command("start").arg(&self.id))
    }

    /// Waits until the container has ended by itself.
    fn wait(&mut self) -> Result<()> {
        if let Some(pid) = self.pid.take() {
            waitpid(pid, None).with_context(|| format!("waitpid({pid})"))?;
        }
        Ok(())
    }

    fn delete(mut self) -> Result<Duration> {
        let taken = self.peer.time(self.peer.command("delete").arg(&self.id))?;
        self.id.clear();
        Ok(taken)
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let deleted = self
            .peer
            .time(self.peer.command("delete").arg("--force").arg(&self.id))
            .map(drop);
        if let Err(error) = deleted.and_then(|()| self.wait()) {
            eprintln!("delete {}: {error:#}", self.id);
        }
    }
}

/// `run /bin/true`.
pub(crate) fn run(peers: &[Peer], bundle: &Bundle, rounds: usize, table: &mut Table) -> Result<()> {
    let mut samples = vec![Vec::with_capacity(rounds); peers.len()];
    for _ in 0..rounds {
        for (peer, samples) in peers.iter().zip(&mut samples) {
            samples.push(peer.run(bundle)?);
        }
    }
    table.add_medians(format!("{}: run", bundle.name), samples);
    Ok(())
}

/// Create, start and delete, each by itself and together.
pub(crate) fn lifecycle(peers: &[Peer], bundle: &Bundle, rounds: usize, table: &mut Table) -> Result<()> {
    const STEPS: [&str; 4] = ["create", "start", "delete", "create+start+delete"];
    let mut samples = vec![vec![Vec::with_capacity(rounds); peers.len()]; STEPS.len()];
    for _ in 0..rounds {
        for (index, peer) in peers.iter().enumerate() {
            let (mut created, create) = peer.create(bundle, &["/bin/true"])?;
            let start = created.start()?;
            created.wait()?;
            let delete = created.delete()?;
            for (samples, taken) in samples.iter_mut().zip([create, start, delete, create + start + delete]) {
                samples[index].push(taken);
            }
        }
    }
    for (step, samples) in STEPS.iter().zip(samples) {
        table.add_medians(format!("{}: {step}", bundle.name), samples);
    }
    Ok(())
}

/// `exec /bin/true` in a container that runs.
pub(crate) fn exec(peers: &[Peer], bundle: &Bundle, rounds: usize, table: &mut Table) -> Result<()> {
    let mut containers = Vec::new();
    for peer in peers {
        let (created, _) = peer.create(bundle, &["/bin/sleep", "100000"])?;
        created.start()?;
        containers.push(created);
    }
    let mut samples = vec![Vec::with_capacity(rounds); peers.len()];
    for _ in 0..rounds {
        for (created, samples) in containers.iter().zip(&mut samples) {
            let mut command = created.peer.command("exec");
            samples.push(created.peer.time(command.arg(&created.id).arg("/bin/true"))?);
        }
    }
    table.add_medians(format!("{}: exec", bundle.name), samples);
    Ok(())
}

/// The largest process of a create.
pub(crate) fn peak_rss(peers: &[Peer], bundle: &Bundle, table: &mut Table) -> Result<()> {
    let mut values = Vec::new();
    for peer in peers {
        let id = peer.new_id();
        bundle.write(&id, &["/bin/true"], None)?;
        let pid_file = bundle.path.join("pid");
        let create = peer.command("create");
        let output = Command::new(std::env::current_exe().context("find this program")?)
            .arg("--peak-rss")
            .arg(create.get_program())
            .args(create.get_args())
            .arg("--bundle")
            .arg(&bundle.path)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&id)
            .stdin(Stdio::null())
            .output()
            .context("run this program")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let peak = text.trim().parse::<f64>();
        values.push(peak.with_context(|| format!("{}: {}", peer.name, String::from_utf8_lossy(&output.stderr)))?);
        let pid = fs::read_to_string(&pid_file).context("read the pid file")?;
        let pid = pid.trim().parse().map(Pid::from_raw).context("the pid file")?;
        drop(Created {
            peer,
            id,
            pid: Some(pid),
        });
    }
    table.add("peak RSS of create".to_owned(), Unit::Kibibytes, values);
    Ok(())
}

/// The child's side of [`peak_rss`]: runs the command, and answers in KiB.
pub(crate) fn peak_rss_of(mut command: impl Iterator<Item = OsString>) -> Result<i64> {
    let program = command.next().context("--peak-rss: missing the command")?;
    let mut command = Command::new(program)
        .args(command)
        // The container keeps what it inherits, and whoever reads this program's output waits for its end.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("spawn")?;
    let status = command.wait().context("wait")?;
    ensure!(status.success(), "{status}");
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?.max_rss())
}

/// The smallest memory limit under which `/bin/true` runs, found by halving.
pub(crate) fn smallest_limit(peers: &[Peer], bundle: &Bundle, table: &mut Table) -> Result<()> {
    let mut values = Vec::new();
    for peer in peers {
        let (mut fails, mut starts) = (0, LARGEST_LIMIT / LIMIT_STEP);
        ensure!(
            starts_under(peer, bundle, LARGEST_LIMIT)?,
            "{}: fails under {LARGEST_LIMIT} KiB",
            peer.name
        );
        while starts - fails > 1 {
            let middle = (fails + starts) / 2;
            if starts_under(peer, bundle, middle * LIMIT_STEP)? {
                starts = middle;
            } else {
                fails = middle;
            }
        }
        values.push(f64::from(u32::try_from(starts * LIMIT_STEP).unwrap_or(u32::MAX)));
    }
    table.add("smallest memory limit".to_owned(), Unit::Kibibytes, values);
    Ok(())
}

fn starts_under(peer: &Peer, bundle: &Bundle, limit: u64) -> Result<bool> {
    for _ in 0..LIMIT_TRIALS {
        let id = peer.new_id();
        bundle.write(&id, &["/bin/true"], Some(limit << 10))?;
        let mut command = peer.command("run");
        command.arg("--bundle").arg(&bundle.path).arg(&id).process_group(0);
        let mut child = command.spawn().with_context(|| format!("run {}", peer.name))?;
        if !ended_well(&mut child)? {
            // A runtime that failed may have left its container; whether there is one to delete does not matter.
            let status = peer.command("delete").arg("--force").arg(&id).status();
            status.context("delete")?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a process that may hang or be killed ends with success.
fn ended_well(child: &mut Child) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(status.success());
        }
        if Instant::now() > deadline {
            let group = Pid::from_raw(i32::try_from(child.id()).context("a pid")?);
            killpg(group, Signal::SIGKILL).context("kill a runtime that hangs")?;
            child.wait().context("wait")?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Containers per second with [`PARALLEL`] at a time.
pub(crate) fn parallel(peers: &[Peer], bundle: &Bundle, seconds: u64, table: &mut Table) -> Result<()> {
    let mut values = Vec::new();
    for peer in peers {
        let twins = (0..PARALLEL)
            .map(|index| bundle.twin(&format!("parallel-{}-{index}", peer.name)))
            .collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        let deadline = began + Duration::from_secs(seconds);
        let counts: Vec<Result<u32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = twins
                .iter()
                .map(|twin| {
                    scope.spawn(move || {
                        let mut count = 0;
                        while Instant::now() < deadline {
                            peer.run(twin)?;
                            count += 1;
                        }
                        Ok(count)
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u32>>| match thread.join() {
                Ok(count) => count,
                Err(_) => bail!("a thread has panicked"),
            };
            threads.into_iter().map(join).collect()
        });
        let total: u32 = counts.into_iter().sum::<Result<u32>>()?;
        values.push(f64::from(total) / began.elapsed().as_secs_f64());
    }
    table.add(format!("{PARALLEL} in parallel"), Unit::PerSecond, values);
    Ok(())
}
