//! `corten-shim`: the supervisor of one pod.
//!
//! Started by the CRI server with a listening socket as descriptor 3, it outlives the server: it owns the standard IO,
//! the logs, the execs and the exits of the pod's containers, and runs the OCI runtime for all that changes them. One
//! thread, one epoll loop; start reading in `service.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use corten_proto::id::SandboxId;
use lexopt::ValueExt;
use nix::sys::stat::{Mode, umask};

use crate::report::report;
use crate::runtime::Runtime;
use crate::service::{Service, Timeouts};

mod attach;
mod audience;
mod cage;
mod clock;
mod console;
mod container;
mod events;
mod exits;
mod hold;
mod io;
mod log;
mod log_limit;
mod oom;
mod pause;
mod poll;
mod process;
mod reaper;
mod record;
mod report;
mod runtime;
mod service;
mod sys;
mod tail;
mod tasks;

const USAGE: &str = "\
corten-shim: the supervisor of one pod; started by corten-cri with a listening socket as descriptor 3

  --id ID              the sandbox's id
  --runtime PATH       the OCI runtime
  --runtime-root DIR   where the runtime keeps its state
  --pause-rootfs DIR   where the pause program is installed
  --systemd-cgroup     pass this to the runtime: systemd makes the cgroups
  --call-timeout SEC   kill a call of the runtime after this long [120]
  --idle-timeout SEC   end after this long without a container and a client [60]
  --hold user[,net]    instead of all that: make these namespaces and hold them until the end of the standard input
  --help  --version";

/// The command line.
struct Options {
    /// Shows in the process list whose shim this is; nothing else depends on it.
    _id: SandboxId,
    runtime: PathBuf,
    runtime_root: PathBuf,
    pause_rootfs: PathBuf,
    systemd_cgroup: bool,
    timeouts: Timeouts,
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)).and_then(|options| options.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let listener = sys::inherited_listener()?;
    detach()?;
    pause::install(&options.pause_rootfs)?;
    let runtime = Runtime::new(options.runtime, options.runtime_root, options.systemd_cgroup);
    Service::new(listener, runtime, options.timeouts)?.run()
}

/// Makes the process independent of whoever started it, and the parent of every orphan of the pod.
fn detach() -> Result<()> {
    best_effort("setsid", nix::unistd::setsid());
    nix::sys::prctl::set_child_subreaper(true).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    std::env::set_current_dir("/").context("chdir(/)")?;
    // Log directories are 0755 for the kubelet's readers; all other modes are given exactly where files are made.
    umask(Mode::from_bits_truncate(0o022));
    lower_oom_score();
    Ok(())
}

/// Without its shim a pod loses its output and its exits, so the kernel should look elsewhere first. Lowering the score
/// takes CAP_SYS_RESOURCE; where that is missing it stays as inherited. Containers get theirs from their spec.
fn lower_oom_score() {
    match std::fs::write("/proc/self/oom_score_adj", "-999") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        result => best_effort("write(/proc/self/oom_score_adj, -999)", result),
    }
}

/// Reports the failure of a step the shim can do without.
fn best_effort<T, E: std::fmt::Display>(step: &str, result: Result<T, E>) {
    if let Err(error) = result {
        report!("{step}: {error}");
    }
}

/// Reads the command line; nothing is left to do where it asked for help, the version or to hold namespaces.
fn parse(args: impl Iterator<Item = OsString>) -> Result<Option<Options>> {
    use lexopt::Arg::Long;
    let (mut id, mut runtime, mut runtime_root, mut pause_rootfs) = (None, None, None, None);
    let mut systemd_cgroup = false;
    let mut timeouts = Timeouts {
        call: Duration::from_secs(120),
        idle: Duration::from_secs(60),
    };
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("id") => id = Some(parser.value()?.parse()?),
            Long("runtime") => runtime = Some(absolute("--runtime", parser.value()?)?),
            Long("runtime-root") => runtime_root = Some(absolute("--runtime-root", parser.value()?)?),
            Long("pause-rootfs") => pause_rootfs = Some(absolute("--pause-rootfs", parser.value()?)?),
            Long("systemd-cgroup") => systemd_cgroup = true,
            Long("call-timeout") => timeouts.call = Duration::from_secs(parser.value()?.parse()?),
            Long("idle-timeout") => timeouts.idle = Duration::from_secs(parser.value()?.parse()?),
            Long("hold") => {
                let kinds: String = parser.value()?.parse()?;
                hold::run(&kinds)?;
                return Ok(None);
            }
            Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            Long("version") => {
                println!("corten-shim {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(Options {
        _id: id.context("--id: missing")?,
        runtime: runtime.context("--runtime: missing")?,
        runtime_root: runtime_root.context("--runtime-root: missing")?,
        pause_rootfs: pause_rootfs.context("--pause-rootfs: missing")?,
        systemd_cgroup,
        timeouts,
    }))
}

/// A path that means the same after the change of directory.
fn absolute(option: &str, value: OsString) -> Result<PathBuf> {
    let path = PathBuf::from(value);
    if !path.is_absolute() {
        bail!("{option} {}: must be an absolute path", path.display());
    }
    Ok(path)
}
