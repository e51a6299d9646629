//! Commands that run to their end within a time, with files as their output.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

/// Longer than anything a test does on a loaded machine; a runtime that hangs fails the test after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// The exit code; 128 + n after signal n, as shells count.
    pub code: i32,
    /// What it, or the container it ran, wrote to stdout.
    pub stdout: String,
    /// The same for stderr.
    pub stderr: String,
}

impl Output {
    /// This output, of a command that exited with 0.
    ///
    /// # Panics
    /// Where it did not.
    #[must_use]
    #[track_caller]
    pub fn success(self) -> Output {
        assert_eq!(self.code, 0, "failed: {self:?}");
        self
    }

    /// The error of a command that failed the way runc's command line asks: exit code 1, or 255 for `exec` (runc's),
    /// and one line of error on stderr. Lines runc marks as warnings do not count.
    ///
    /// # Panics
    /// Where it succeeded or said nothing or too much.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(self.code == 1 || self.code == 255, "not a failure: {self:?}");
        let mut errors = self.stderr.lines().filter(|line| !line.contains("level=warning"));
        let error = errors.next().unwrap_or_else(|| panic!("no error: {self:?}"));
        assert_eq!(errors.next(), None, "one line of error: {self:?}");
        error.to_owned()
    }
}

/// A command that has been started, with files as its stdout and stderr.
pub struct Running {
    pub(super) child: Child,
    stdout: File,
    pub(super) stderr: File,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Running {
        let stdout = tempfile::tempfile().expect("make a file for stdout");
        let stderr = tempfile::tempfile().expect("make a file for stderr");
        let child = command
            .stdout(stdout.try_clone().expect("duplicate a descriptor"))
            .stderr(stderr.try_clone().expect("duplicate a descriptor"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running { child, stdout, stderr }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is an i32"))
    }

    /// What has been written to stdout so far.
    ///
    /// # Panics
    /// Where the file cannot be read.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// Whether it has come to its end.
    ///
    /// # Panics
    /// Where it is no child.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_some()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// Where it does not end; it is killed then.
    pub fn wait(mut self) -> Output {
        let end = wait_until(|| self.child.try_wait().expect("wait for a child"));
        let Some(status) = end else {
            panic!("still running after {PATIENCE:?}; stderr: {}", contents(&self.stderr));
        };
        let code = status
            .code()
            .or(status.signal().map(|signal| 128 + signal))
            .expect("it exited or was killed");
        Output {
            code,
            stdout: contents(&self.stdout),
            stderr: contents(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both succeed where it has ended and been reaped.
        self.child.kill().expect("kill a child");
        self.child.wait().expect("reap a child");
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    Running::start(command).wait()
}

pub(super) fn contents(file: &File) -> String {
    // Opened anew: the offset of `file` is the writer's.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let bytes = fs::read(path).expect("read a file of ours");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Polls until `look` answers, for as long as anything in these tests may take.
pub fn wait_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}
