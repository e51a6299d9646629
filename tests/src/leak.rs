//! The check that a test left nothing behind.
//!
//! A test names markers: strings that occur in everything it makes and in nothing else (its temporary directory, its
//! container ids, its cgroup). At its end nothing that carries one may exist:
//!
//! | where | what counts |
//! |---|---|
//! | `/proc/self/mountinfo` | any line with a marker |
//! | `/sys/fs/cgroup` | any directory with a marker in its path, v1 and v2 |
//! | `/run/netns` | any entry with a marker in its name |
//! | `/proc/thread-self/net/dev` | any network link with a marker in its name |
//! | `/proc/PID/cmdline` | any other process with a marker in its arguments, zombies aside |
//! | `/proc/self/task/TID/children` | any child the watching thread has now and had not before, zombies included |
//! | `/proc/self/fd` | any descriptor that refers to a path with a marker |
//!
//! Tests run as threads of one process, so a child is attributed by the thread that made it and a descriptor by its
//! path; an anonymous pipe left open cannot be attributed to a test and is not looked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long what is being torn down may still be seen.
const SETTLE: Duration = Duration::from_secs(2);

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// What a test watches from its first line to its last.
#[derive(Debug)]
pub struct Watch {
    markers: Mutex<Vec<String>>,
    thread: i32,
    children: BTreeSet<i32>,
}

impl Watch {
    /// Starts to watch for `markers`, and for children of the calling thread.
    ///
    /// # Panics
    /// On an empty marker, which everything contains.
    pub fn new<I, S>(markers: I) -> Watch
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let thread = nix::unistd::gettid().as_raw();
        let watch = Watch {
            markers: Mutex::default(),
            thread,
            children: children(thread),
        };
        markers.into_iter().for_each(|marker| watch.also(marker));
        watch
    }

    /// Watches for one more marker, such as an id that became known later.
    ///
    /// # Panics
    /// On an empty marker.
    pub fn also(&self, marker: impl Into<String>) {
        let marker = marker.into();
        assert!(!marker.is_empty(), "an empty marker is in everything");
        self.markers.lock().expect("no holder panics").push(marker);
    }

    /// Everything left at this moment, one line each.
    pub fn left(&self) -> Vec<String> {
        let markers = self.markers.lock().expect("no holder panics").clone();
        let marked = |text: &str| markers.iter().any(|marker| text.contains(marker.as_str()));
        let mut left = Vec::new();
        left.extend(
            mounts()
                .into_iter()
                .filter(|line| marked(line))
                .map(|l| format!("mount {l}")),
        );
        left.extend(
            cgroups()
                .into_iter()
                .filter(|path| marked(path))
                .map(|p| format!("cgroup {p}")),
        );
        left.extend(
            netns()
                .into_iter()
                .filter(|name| marked(name))
                .map(|n| format!("netns {n}")),
        );
        left.extend(
            links()
                .into_iter()
                .filter(|name| marked(name))
                .map(|n| format!("link {n}")),
        );
        left.extend(
            processes()
                .into_iter()
                .filter(|(_, line)| marked(line))
                .map(|(pid, line)| format!("process {pid} {line}")),
        );
        left.extend(
            descriptors()
                .into_iter()
                .filter(|path| marked(path))
                .map(|p| format!("descriptor of {p}")),
        );
        let new_children = children(self.thread)
            .into_iter()
            .filter(|pid| !self.children.contains(pid));
        left.extend(new_children.map(|pid| format!("child {pid} {}", describe(pid))));
        left
    }

    /// Waits until nothing is left.
    ///
    /// # Panics
    /// If anything is left after two seconds; the message lists it.
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n  {}", left.join("\n  "));
            std::thread::sleep(POLL);
        }
    }
}

/// Removes a cgroup that the test itself made or named, in every hierarchy, as a kubelet does with a pod's. One that is
/// not empty stays, for the check to find.
pub fn remove_cgroup(path: &str) {
    assert!(
        path.len() > 1 && path.starts_with('/'),
        "{path:?}: an absolute path below the root"
    );
    for hierarchy in cgroups().iter().filter(|found| found.ends_with(path)) {
        fs::remove_dir(hierarchy).ok();
    }
}

/// Kills every process that carries `marker` in its arguments or its cgroup: what a failed test leaves.
pub(crate) fn kill_marked(marker: &str) {
    let in_cgroup = |pid: i32| {
        lines(&format!("/proc/{pid}/cgroup"))
            .iter()
            .any(|line| line.contains(marker))
    };
    let marked = processes()
        .into_iter()
        .filter(|(pid, line)| line.contains(marker) || in_cgroup(*pid));
    for (pid, _) in marked {
        // One that is gone already is what we want.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

/// Removes every cgroup that carries `marker`, the deepest first: what a failed test leaves.
pub(crate) fn remove_marked_cgroups(marker: &str) {
    let mut marked: Vec<String> = cgroups().into_iter().filter(|path| path.contains(marker)).collect();
    marked.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for path in marked {
        fs::remove_dir(path).ok();
    }
}

/// Unmounts every mount that carries `marker`, the latest first: what a failed test leaves.
pub(crate) fn unmount_marked(marker: &str) {
    for line in mounts().iter().rev().filter(|line| line.contains(marker)) {
        // proc_pid_mountinfo(5): the fifth field is the mount point.
        let Some(point) = line.split(' ').nth(4) else {
            continue;
        };
        umount2(point, MntFlags::MNT_DETACH).ok();
    }
}

/// Lines of a file of /proc; none where it is gone.
fn lines(path: &str) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

fn mounts() -> Vec<String> {
    lines("/proc/thread-self/mountinfo")
}

/// Every cgroup directory of every hierarchy.
pub(crate) fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        // DirEntry's type does not follow links: /sys/fs/cgroup holds aliases such as cpu -> cpu,cpuacct.
        let children = entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        pending.extend(children.map(|entry| entry.path()));
        found.push(dir.display().to_string());
    }
    found
}

fn netns() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Names of the network links in the calling thread's namespace.
pub(crate) fn links() -> Vec<String> {
    lines("/proc/thread-self/net/dev")
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// Every process but this one, with its arguments. The command line of a zombie is empty: it matches nothing.
fn processes() -> Vec<(i32, String)> {
    let own = nix::unistd::getpid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .map(|pid| (pid, command_line(pid)))
        .collect()
}

/// The arguments of a process. In the middle of execve it has its new memory and no arguments in it yet; whoever has
/// spawned it is told of the execve just then. So one that has memory is asked again before it passes for one without.
fn command_line(pid: i32) -> String {
    let deadline = Instant::now() + POLL;
    loop {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !bytes.is_empty() || !has_memory(pid) || Instant::now() > deadline {
            return String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned();
        }
        std::thread::yield_now();
    }
}

/// Zombies and the kernel's own threads have none.
fn has_memory(pid: i32) -> bool {
    lines(&format!("/proc/{pid}/status"))
        .iter()
        .any(|line| line.starts_with("VmSize:"))
}

/// What the open descriptors of this process refer to, `/dev/null` and files that were unlinked included.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

/// Children that this thread made and nobody has reaped.
fn children(thread: i32) -> BTreeSet<i32> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// State and name of a process, for the message.
fn describe(pid: i32) -> String {
    let status = lines(&format!("/proc/{pid}/status"));
    let field = |name: &str| {
        status
            .iter()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or("?")
            .trim()
    };
    format!("{} ({})", field("Name:"), field("State:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_left_until_it_is_reaped() {
        let watch = Watch::new(["corten-leak-test-child"]);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let left = watch.left();
        assert!(left.iter().any(|line| line.starts_with("child")), "{left:?}");
        child.kill().unwrap();
        assert!(
            watch.left().iter().any(|line| line.starts_with("child")),
            "a zombie is left too"
        );
        child.wait().unwrap();
        watch.assert_clean();
    }

    #[test]
    fn a_process_and_a_descriptor_are_told_by_the_marker() {
        let dir = tempfile::Builder::new()
            .prefix("corten-leak-test-fd")
            .tempdir()
            .unwrap();
        let watch = Watch::new([dir.path().display().to_string()]);
        let path = dir.path().join("file");
        let file = fs::File::create(&path).unwrap();
        let left = watch.left();
        assert_eq!(left.len(), 1, "{left:?}");
        drop(file);
        let mut child = Command::new("tail").arg("-f").arg(&path).spawn().unwrap();
        let left = watch.left();
        assert!(left.iter().any(|line| line.starts_with("process")), "{left:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        watch.assert_clean();
    }

    #[test]
    fn a_process_has_its_arguments_from_its_spawn_on() {
        for _ in 0..300 {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            let seen = command_line(child.id().cast_signed());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(seen, "sleep 60");
        }
    }

    #[test]
    fn another_threads_child_is_not_ours() {
        let watch = Watch::new(["corten-leak-test-thread"]);
        let other = std::thread::spawn(|| Command::new("sleep").arg("60").spawn().unwrap());
        let mut child = other.join().unwrap();
        assert_eq!(watch.left(), Vec::<String>::new());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    #[should_panic(expected = "an empty marker")]
    fn an_empty_marker_is_refused() {
        Watch::new([""]);
    }
}
