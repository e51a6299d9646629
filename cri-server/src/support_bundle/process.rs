//! The processes of Corten as the kernel sees them: what each thread of the server waits for, and where in the kernel. Their
//! environments are left out.

use std::path::Path;

use super::entry::{Entry, MAX_FILES};
use crate::config::Config;
use crate::doctor::leftovers::shims;
use crate::doctor::server::server_pid;
use crate::paths::Paths;
use crate::recover::entries;

/// Files of /proc/PID; `fd` is a directory.
const FILES: [&str; 7] = [
    "cgroup",
    "io",
    "limits",
    "oom_score_adj",
    "smaps_rollup",
    "stat",
    "status",
];
/// Files of a thread.
const THREAD_FILES: [&str; 5] = ["comm", "stack", "status", "syscall", "wchan"];

pub(super) fn collect(config: &Config) -> Vec<Entry> {
    let mut all = Vec::new();
    if let Some(pid) = server_pid(config) {
        all.extend(process("server", pid));
        all.push(Entry::text("process/server/fds.txt", &descriptors(pid)));
    }
    let shims = shims(&Paths::new(&config.root, &config.state));
    for (pid, _) in shims.into_iter().take(MAX_FILES) {
        all.extend(process(&format!("shim-{pid}"), pid));
    }
    all
}

fn process(name: &str, pid: i32) -> Vec<Entry> {
    let directory = format!("/proc/{pid}");
    let files = FILES.iter().map(|file| {
        let path = Path::new(&directory).join(file);
        Entry::file(format!("process/{name}/{file}"), &path)
    });
    let mut all: Vec<Entry> = files.collect();
    let threads = entries(&Path::new(&directory).join("task")).unwrap_or_default();
    let mut text = String::new();
    for thread in threads.into_iter().take(MAX_FILES) {
        text += &format!("== {}\n", thread.display());
        for file in THREAD_FILES {
            let content = std::fs::read_to_string(thread.join(file));
            let content = content.unwrap_or_else(|error| error.to_string());
            text += &format!("-- {file}\n{}\n", content.trim_end());
        }
    }
    all.push(Entry::text(format!("process/{name}/threads.txt"), &text));
    all
}

/// What the descriptors of a process refer to.
fn descriptors(pid: i32) -> String {
    let paths = entries(Path::new(&format!("/proc/{pid}/fd"))).unwrap_or_default();
    let line = |path: &std::path::PathBuf| {
        let target = std::fs::read_link(path).ok()?;
        Some(format!("{} -> {}\n", path.display(), target.display()))
    };
    paths.iter().filter_map(line).collect()
}
