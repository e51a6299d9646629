//! Runs the OCI runtime, and finds out why it failed.
//!
//! ```text
//!   RUNTIME --root DIR --log BUNDLE/runtime-N.log --log-format json [--systemd-cgroup] [--criu CRIU] VERB ... ID
//! ```
//! This is runc's command line, so every runtime that follows it can be used. Each invocation has a log and a pid file
//! of its own in the bundle, as several may run at once; both go with it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::MemfdFlags;
use serde_json::Value;

use crate::cage::Support;
use crate::container::Checkpoint;
use crate::process::{self, Ended, Process};
use crate::report::report;

/// Longest error text passed on, in bytes.
const MAX_ERROR: usize = 4096;

/// How to call the OCI runtime.
pub(crate) struct Runtime {
    path: PathBuf,
    root: PathBuf,
    /// Has it have systemd make the cgroups.
    systemd_cgroup: bool,
    /// Whether it can put an exec into a cgroup.
    pub(crate) cages: Support,
    /// Numbers the invocations, and the execs' cgroups.
    next: u64,
}

/// One call of the runtime.
pub(crate) enum Verb<'a> {
    Create {
        console_socket: Option<&'a Path>,
        stdio: [std::os::fd::BorrowedFd<'a>; 3],
    },
    /// From CRIU's images, in the place of create and start.
    Restore {
        checkpoint: &'a Checkpoint,
        console_socket: Option<&'a Path>,
        stdio: [std::os::fd::BorrowedFd<'a>; 3],
    },
    Start,
    Kill {
        signal: i32,
        all: bool,
    },
    Delete,
    /// Whether `exec` has the option for a cgroup: it fails where it has not.
    AskForCages,
    Exec {
        process: &'a Path,
        /// The exec's cgroup, as the option has it.
        cgroup: Option<String>,
        console_socket: Option<&'a Path>,
        stdio: [std::os::fd::BorrowedFd<'a>; 3],
    },
}

impl Verb<'_> {
    fn name(&self) -> &'static str {
        match self {
            Verb::Create { .. } => "create",
            Verb::Restore { .. } => "restore",
            Verb::Start => "start",
            Verb::Kill { .. } => "kill",
            Verb::Delete => "delete",
            Verb::AskForCages | Verb::Exec { .. } => "exec",
        }
    }
}

/// What remains of a call while the process runs; its files go with it.
#[derive(Debug)]
pub(crate) struct Invocation {
    verb: &'static str,
    log: PathBuf,
    pid_file: Option<PathBuf>,
    /// What it printed, where it has no container's standard IO.
    printed: Option<OwnedFd>,
}

impl Runtime {
    pub(crate) fn new(path: PathBuf, root: PathBuf, systemd_cgroup: bool) -> Runtime {
        Runtime {
            cages: Support::of(&path),
            path,
            root,
            systemd_cgroup,
            next: 1,
        }
    }

    /// A number that is used once.
    pub(crate) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Starts one call for the container `id`.
    pub(crate) fn spawn(&mut self, verb: &Verb<'_>, bundle: &Path, id: &str) -> Result<(Process, Invocation)> {
        let number = self.number();
        let mut invocation = Invocation {
            verb: verb.name(),
            log: bundle.join(format!("runtime-{number}.log")),
            pid_file: None,
            printed: None,
        };
        if let Verb::Create { .. } | Verb::Restore { .. } | Verb::Exec { .. } = verb {
            invocation.pid_file = Some(bundle.join(format!("runtime-{number}.pid")));
        }
        let args = self.arguments(verb, bundle, &invocation, id)?;
        let process = match verb {
            Verb::Create { stdio, .. } | Verb::Restore { stdio, .. } | Verb::Exec { stdio, .. } => {
                process::spawn(&self.path, &args, *stdio)?
            }
            Verb::Start | Verb::Kill { .. } | Verb::Delete | Verb::AskForCages => {
                let null = File::open("/dev/null").context("open(/dev/null)")?;
                let printed = rustix::fs::memfd_create(c"runtime output", MemfdFlags::CLOEXEC)
                    .context("memfd_create for the runtime's output")?;
                let stdio = [null.as_fd(), printed.as_fd(), printed.as_fd()];
                let process = process::spawn(&self.path, &args, stdio)?;
                invocation.printed = Some(printed);
                process
            }
        };
        Ok((process, invocation))
    }

    fn arguments(&self, verb: &Verb<'_>, bundle: &Path, invocation: &Invocation, id: &str) -> Result<Vec<CString>> {
        let text = |path: &Path| path.display().to_string();
        let mut args = vec![text(&self.path), "--root".into(), text(&self.root)];
        args.extend([
            "--log".into(),
            text(&invocation.log),
            "--log-format".into(),
            "json".into(),
        ]);
        args.extend(self.systemd_cgroup.then(|| "--systemd-cgroup".into()));
        if let Verb::Restore { checkpoint, .. } = verb
            && let Some(criu) = &checkpoint.criu
        {
            args.extend(["--criu".into(), text(criu)]);
        }
        args.push(verb.name().into());
        if let Some(pid_file) = &invocation.pid_file {
            args.extend(["--pid-file".into(), text(pid_file)]);
        }
        match verb {
            Verb::Create { console_socket, .. } => {
                args.extend(["--bundle".into(), text(bundle)]);
                if let Some(socket) = console_socket {
                    args.extend(["--console-socket".into(), text(socket)]);
                }
                args.push(id.into());
            }
            Verb::Restore {
                checkpoint,
                console_socket,
                ..
            } => {
                args.extend(["--bundle".into(), text(bundle), "--detach".into()]);
                // As the server has had it saved.
                args.extend(["--file-locks", "--tcp-established"].map(String::from));
                args.extend(["--image-path".into(), text(&checkpoint.images)]);
                args.extend(["--work-path".into(), text(&checkpoint.work)]);
                if let Some(socket) = console_socket {
                    args.extend(["--console-socket".into(), text(socket)]);
                }
                args.push(id.into());
            }
            Verb::Start => args.push(id.into()),
            Verb::Kill { signal, all } => {
                args.extend(all.then(|| "--all".into()));
                args.extend([id.into(), signal.to_string()]);
            }
            Verb::Delete => args.extend(["--force".into(), id.into()]),
            Verb::AskForCages => args.extend(["--cgroup", "exec", "--help"].map(String::from)),
            Verb::Exec {
                process,
                cgroup,
                console_socket,
                ..
            } => {
                args.extend(["--process".into(), text(process), "--detach".into()]);
                if let Some(cgroup) = cgroup {
                    args.extend(["--cgroup".into(), cgroup.clone()]);
                }
                if let Some(socket) = console_socket {
                    args.extend(["--console-socket".into(), text(socket)]);
                }
                args.push(id.into());
            }
        }
        args.into_iter()
            .map(|arg| CString::new(arg).context("an argument of the runtime holds a NUL byte"))
            .collect()
    }
}

impl Invocation {
    /// The pid the call has named so far.
    pub(crate) fn named_pid(&self) -> Option<i32> {
        read_pid(self.pid_file.as_deref()?).ok()
    }

    /// What the ended call comes to: the pid it has named, if it was to name one, or why it failed, in one line and in
    /// the runtime's own words where it left any. `last_words` is what it wrote to the container's stderr, for a call
    /// that had it. The call's files are gone afterwards.
    pub(crate) fn finish(self, ended: Ended, last_words: &str) -> Result<Option<i32>, String> {
        if ended.code == 0 {
            let pid = self.pid_file.as_deref().map(read_pid).transpose();
            return pid.map_err(|cause| format!("runtime {}: {cause:#}", self.verb));
        }
        let logged = fs::read(&self.log).ok().and_then(|log| last_error(&log));
        let text = logged
            .or_else(|| self.printed().filter(|text| !text.trim().is_empty()))
            .unwrap_or_else(|| last_words.to_owned());
        let text = one_line(&text);
        Err(match (text.is_empty(), ended.signal) {
            (false, _) => format!("runtime {}: {text}", self.verb),
            (true, 0) => format!("runtime {}: exit code {} and no error text", self.verb, ended.code),
            (true, signal) => format!("runtime {}: ended by signal {signal}", self.verb),
        })
    }

    fn printed(&self) -> Option<String> {
        let mut file = File::from(self.printed.as_ref()?.try_clone().ok()?);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.take(MAX_ERROR as u64).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        for file in [Some(&self.log), self.pid_file.as_ref()].into_iter().flatten() {
            match fs::remove_file(file) {
                // A runtime that failed early wrote neither.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    report!("unlink({}): {error}", file.display());
                }
                _ => {}
            }
        }
    }
}

/// The pid in a pid file.
fn read_pid(path: &Path) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("read({})", path.display()))?;
    let pid: i32 = text
        .trim()
        .parse()
        .with_context(|| format!("{}: {text:?}", path.display()))?;
    ensure!(pid > 1, "{}: {pid} is no pid of a container", path.display());
    Ok(pid)
}

/// The `msg` of the last line of level `error` or worse.
fn last_error(log: &[u8]) -> Option<String> {
    let severe = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).ok()?;
        let level = line.get("level")?.as_str()?;
        let message = line.get("msg")?.as_str()?;
        ["error", "fatal", "panic"].contains(&level).then(|| message.to_owned())
    };
    log.rsplit(|b| *b == b'\n').find_map(severe)
}

/// `text` without line breaks, and not longer than an error may be.
fn one_line(text: &str) -> String {
    let mut line = text.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ");
    if line.len() > MAX_ERROR {
        line.truncate(line.floor_char_boundary(MAX_ERROR));
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log() {
        let log = br#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"first","time":"t"}
not json
{"level":"error","msg":"second","time":"t"}
{"level":"info","msg":"bye","time":"t"}
"#;
        assert_eq!(last_error(log).as_deref(), Some("second"));
        assert_eq!(last_error(b"not json\n"), None);
        assert_eq!(last_error(b""), None);
    }

    #[test]
    fn errors_fit_one_line() {
        assert_eq!(one_line(" a \n  b\r\n"), "a; b");
        let long = one_line(&"\u{e4}".repeat(MAX_ERROR));
        assert!(long.len() <= MAX_ERROR + 4 && long.ends_with(" ..."));
    }
}
