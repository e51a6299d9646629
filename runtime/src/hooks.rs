//! OCI hooks: programs of the host's administrator, run at fixed points of a container's life.
//!
//! A hook gets the container's state as JSON on standard input, exactly the arguments and the environment its entry
//! names (with no `env` an empty one: never ours, never the image's; CVE-2025-23266 was an LD_PRELOAD from an image that
//! reached a hook), no descriptor beyond standard error, no signal kept back, and a process group of its own. Its standard
//! output goes nowhere: ours may be the container's.
//!
//! A hook has failed if it cannot be started, does not exit with 0, exceeds its timeout, or is interrupted ([`crate::interrupt`]); then its whole
//! process group is killed. What it leaves running on purpose after a success is left alone, and cannot delay us: we wait
//! for the hook, not for the end of its output.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, State};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::interrupt::{self, Interrupt};

/// How much of a hook's standard error is kept, in bytes; it may write any amount.
const KEPT_OUTPUT: usize = 4096;

/// Runs the hooks one after the other in `cwd` (host hooks: the bundle, as runc; in the container: `/`). The first that
/// fails stops the row; where the others are to run all the same the caller gives them one by one. An interrupt ends the
/// hook that runs.
pub fn run(hooks: &[Hook], state: &State, cwd: &Path, interrupt: Option<&Interrupt>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).context("encode the state for hooks")?;
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, &state, cwd, interrupt).with_context(|| format!("hook {index} ({})", hook.path().display()))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &[u8], cwd: &Path, interrupt: Option<&Interrupt>) -> Result<()> {
    let timeout = hook.timeout().map(timeout).transpose()?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut running = Running::start(hook, state, cwd)?;
    let Some(status) = running.wait(deadline, interrupt)? else {
        bail!("did not end within {:?}{}", timeout.unwrap_or_default(), running.told());
    };
    ensure!(status.success(), "{status}{}", running.told());
    running.leave();
    Ok(())
}

/// A hook's `timeout`, in seconds; must be positive (config.md, hooks).
pub(crate) fn timeout(seconds: i64) -> Result<Duration> {
    let seconds = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| anyhow!("timeout: must be greater than zero"))
}

/// A hook's process and its group; dropping it kills them.
struct Running {
    child: Child,
    stderr: ChildStderr,
    kept: Vec<u8>,
    /// The hook has succeeded: whatever else is in its group may stay.
    left: bool,
}

impl Running {
    fn start(hook: &Hook, state: &[u8], cwd: &Path) -> Result<Running> {
        let mut command = Command::new(hook.path());
        if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
            command.arg0(name).args(arguments);
        }
        command
            .env_clear()
            .envs(hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')));
        command.current_dir(cwd).process_group(0);
        command
            .stdin(state_file(state)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        crate::sys::spawn::close_on_exec_from_3(&mut command);
        let mut child = command.spawn().context("start it")?;
        let stderr = child.stderr.take().expect("it was asked for");
        let running = Running {
            child,
            stderr,
            kept: Vec::new(),
            left: false,
        };
        let flags = fcntl_getfl(&running.stderr).context("fcntl(F_GETFL)")?;
        fcntl_setfl(&running.stderr, flags | OFlags::NONBLOCK).context("fcntl(F_SETFL, O_NONBLOCK)")?;
        Ok(running)
    }

    /// Waits for the hook's end, reading what it writes meanwhile; `None` when the deadline comes first.
    fn wait(&mut self, deadline: Option<Instant>, interrupt: Option<&Interrupt>) -> Result<Option<ExitStatus>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("pidfd_open({pid:?})"))?;
        let mut writing = true;
        loop {
            let stderr = writing.then(|| self.stderr.as_fd());
            if interrupt::wait([Some(process.as_fd()), stderr], interrupt, deadline)?.is_none() {
                return Ok(None);
            }
            // Before the status: what the hook has written is there by the time it has ended.
            writing = writing && self.drain()?;
            if let Some(status) = self.child.try_wait().context("wait for it")? {
                return Ok(Some(status));
            }
        }
    }

    /// Takes what there is to read, and keeps the beginning; whether more may come.
    fn drain(&mut self) -> Result<bool> {
        let mut buffer = [0; 1024];
        loop {
            match self.stderr.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    let room = KEPT_OUTPUT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..length.min(room)]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read its standard error"),
            }
        }
    }

    /// The first line of its standard error, for the end of an error message.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        match text.lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => format!(": {line}"),
            None => String::new(),
        }
    }

    fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let group = Pid::from_raw(self.child.id().cast_signed());
        match killpg(group, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => crate::log::warn(format_args!("killpg({group}, SIGKILL): {error}")),
        }
        crate::log::best_effort("wait for a hook that was killed", self.child.wait().map_err(Into::into));
    }
}

/// The state as a file to be standard input: a hook that does not read it cannot block us, as a full pipe would.
fn state_file(state: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create("oci-state", MemfdFlags::CLOEXEC).context("memfd_create(\"oci-state\")")?);
    file.write_all(state).context("write the state for a hook")?;
    file.rewind().context("rewind the state for a hook")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use serde_json::json;

    use super::*;

    /// Shell as a hook, in `/`, with the state of a container called `c1`.
    fn shell(script: &str, extra: &serde_json::Value) -> Result<()> {
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        hook.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let hook: Hook = serde_json::from_value(hook).unwrap();
        let mut state = State::default();
        state.set_id("c1".to_owned());
        run(&[hook], &state, Path::new("/"), None)
    }

    #[test]
    fn what_a_hook_gets() {
        // Without close-on-exec, as from a careless caller.
        let inherited = rustix::io::dup(std::io::stdin()).unwrap();
        for (what, script) in [
            ("the state", "grep -q '\"id\":\"c1\"'"),
            (
                "its environment and no other",
                "test \"$A\" = b=c && test -z \"$HOME$CARGO\"",
            ),
            ("the working directory", "test \"$(pwd)\" = /"),
            (
                "its own process group",
                "test \"$(cut -d' ' -f5 /proc/self/stat)\" = $$",
            ),
            (
                "three descriptors",
                &format!("test ! -e /proc/$$/fd/{}", inherited.as_raw_fd()),
            ),
            ("no obligation to read", "exec <&-; exit 0"),
            ("room for any output", "head -c 300000 /dev/zero >&2"),
        ] {
            let result = shell(script, &json!({"env": ["A=b=c", "PATH=/usr/bin:/bin"], "timeout": 10}));
            assert!(result.is_ok(), "{what}: {result:?}");
        }
        assert!(shell("test -z \"$HOME\"", &json!({})).is_ok());
    }

    #[test]
    fn how_a_hook_fails() {
        for (script, extra, words) in [
            (
                "echo; echo first >&2; echo second >&2; exit 3",
                json!({}),
                "exit status: 3: first",
            ),
            ("kill -9 $$", json!({}), "signal: 9"),
            (
                "echo late >&2; sleep 60",
                json!({"timeout": 1}),
                "did not end within 1s: late",
            ),
            ("", json!({"path": "/no/such/hook"}), "No such file"),
            ("", json!({"timeout": 0}), "greater than zero"),
        ] {
            let error = format!("{:#}", shell(script, &extra).unwrap_err());
            assert!(error.contains("hook 0") && error.contains(words), "{script}: {error}");
        }
    }

    #[test]
    fn a_background_process_does_not_delay_and_a_timeout_takes_it_along() {
        let before = Instant::now();
        shell("sleep 4 & exit 0", &json!({})).unwrap();
        assert!(before.elapsed() < Duration::from_secs(3));

        let file = std::env::temp_dir().join(format!("corten-hook-{}", std::process::id()));
        let script = format!("(sleep 2; echo alive > {}) & sleep 60", file.display());
        shell(&script, &json!({"timeout": 1, "env": ["PATH=/usr/bin:/bin"]})).unwrap_err();
        std::thread::sleep(Duration::from_secs(2));
        assert!(!file.exists());
    }
}
