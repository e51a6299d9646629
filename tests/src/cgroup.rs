//! Where cgroups are on this machine, so that one test reads what the kernel has on v1 and on v2 alike.
//!
//! A machine has its controllers either in v1 hierarchies below `/sys/fs/cgroup`, or in the one v2 tree that is mounted
//! there. The empty v2 tree of a hybrid machine is not looked at.

use std::fs;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";

/// Whether every controller is in the one tree of v2.
#[must_use]
pub fn unified() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The directory of the cgroup at `path` that has the files of `controller`; on v2 it is the same for all of them.
#[must_use]
pub fn directory(controller: &str, path: &str) -> PathBuf {
    let hierarchy = if unified() { "" } else { controller };
    Path::new(MOUNT).join(hierarchy).join(path.trim_start_matches('/'))
}

/// The path of `controller`'s cgroup in the lines of `/proc/PID/cgroup`.
pub fn membership<'a>(lines: impl IntoIterator<Item = &'a str>, controller: &str) -> Option<&'a str> {
    // cgroups(7): NUMBER:CONTROLLER,CONTROLLER:PATH; v2 has the number 0 and no controllers.
    let names = if unified() { "" } else { controller };
    lines.into_iter().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == names).then_some(path)
    })
}

/// The processes of that cgroup, without those below it.
///
/// # Panics
/// Where the cgroup is gone.
#[must_use]
pub fn processes(directory: &Path) -> Vec<i32> {
    let file = directory.join("cgroup.procs");
    fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The processes of that cgroup and of those below it, which commands have their own of.
///
/// # Panics
/// Where the cgroup is gone.
#[must_use]
pub fn all_processes(directory: &Path) -> Vec<i32> {
    let mut found = processes(directory);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for below in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        // One that goes meanwhile had none.
        let procs = fs::read_to_string(below.path().join("cgroup.procs")).unwrap_or_default();
        found.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}
