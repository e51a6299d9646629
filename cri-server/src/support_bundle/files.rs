//! Files of the machine: the configuration, records, and what the kernel shows.

use std::path::{Path, PathBuf};

use super::entry::{Entry, MAX_FILES, within_part};
use crate::config::Config;
use crate::paths::Paths;
use crate::recover::entries;

/// What of /proc is kept.
const PROC: [&str; 15] = [
    "cgroups",
    "cmdline",
    "filesystems",
    "loadavg",
    "meminfo",
    "modules",
    "net/dev",
    "net/if_inet6",
    "net/ipv6_route",
    "net/route",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "self/mountinfo",
    "version",
];
/// Settings that matter for pods, below /proc/sys.
const SETTINGS: [&str; 12] = [
    "fs/file-max",
    "fs/file-nr",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/pid_max",
    "kernel/random/boot_id",
    "kernel/threads-max",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "user/max_user_namespaces",
];

/// How the names of CNI's configurations end.
const CNI_FILES: [&str; 3] = ["conf", "conflist", "json"];

/// The effective configuration, and CNI's files.
pub(super) fn config(config: &Config) -> Vec<Entry> {
    let mut all = vec![Entry::json("config/effective.json", config)];
    let files = entries(&config.cni.conf_dir).unwrap_or_default();
    // A network's agent keeps other files beside its configuration, keys among them.
    let (networks, others): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|path| {
        path.is_file()
            && path
                .extension()
                .is_some_and(|it| CNI_FILES.iter().any(|name| it == *name))
    });
    all.extend(networks.iter().take(MAX_FILES).map(|path| document("config/cni", path)));
    let others: String = others.iter().map(|path| format!("{}\n", last(path))).collect();
    all.push(Entry::text("config/cni-others.txt", &others));
    all.push(Entry::file("config/resolv.conf", Path::new("/etc/resolv.conf")));
    all
}

/// Records, exit records, what the shims have logged, and what is in quarantine.
pub(super) fn records(config: &Config) -> Vec<Entry> {
    let paths = Paths::new(&config.root, &config.state);
    let list = |directory: PathBuf| entries(&directory).unwrap_or_default().into_iter().take(MAX_FILES);
    let below = |parent: &'static str, directory: PathBuf, names: [&'static str; 2]| {
        let files = names.map(|name| directory.join(name));
        let existing = files.into_iter().filter(|path| path.exists());
        existing.map(move |path| record(&format!("records/{parent}/{}", last(&directory)), &path))
    };
    let sandboxes = list(paths.sandbox_records()).map(|path| record("records/sandboxes", &path));
    let containers =
        list(paths.containers()).flat_map(|directory| below("containers", directory, ["record.json", "exit.json"]));
    let shims = list(paths.sandboxes()).flat_map(|directory| below("shims", directory, ["shim.log", "exit.json"]));
    let networks = list(paths.networks()).map(|path| record("records/networks", &path));
    let quarantined: String = list(paths.quarantine())
        .map(|path| format!("{}\n", last(&path)))
        .collect();
    let quarantine = std::iter::once(Entry::text("records/quarantine.txt", &quarantined));
    let all = quarantine
        .chain(sandboxes)
        .chain(containers)
        .chain(shims)
        .chain(networks);
    within_part("records", all)
}

/// What the kernel shows of itself.
pub(super) fn kernel(config: &Config) -> Vec<Entry> {
    let mut all: Vec<Entry> = PROC
        .iter()
        .map(|file| Entry::file(format!("kernel/proc/{file}"), &Path::new("/proc").join(file)))
        .collect();
    let setting = |name: &&str| {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(name));
        let value = value.unwrap_or_else(|error| error.to_string());
        format!("{} = {}\n", name.replace('/', "."), value.trim())
    };
    let settings: String = SETTINGS.iter().map(setting).collect();
    all.push(Entry::text("kernel/sysctl.txt", &settings));
    all.push(Entry::text("kernel/cgroups.txt", &cgroups(&config.cgroup_parent)));
    all
}

/// The cgroups below the configured parent, and what runs in each.
fn cgroups(parent: &str) -> String {
    let Ok(layout) = corten_runtime::cgroup::layout() else {
        return "no cgroups are mounted\n".to_owned();
    };
    let mut text = String::new();
    for hierarchy in layout.hierarchies() {
        let mut pending = vec![hierarchy.mount_point.join(parent.trim_start_matches('/'))];
        let mut left = MAX_FILES;
        while let Some(directory) = pending.pop()
            && left > 0
        {
            left -= 1;
            let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            text += &format!("{}: {}\n", directory.display(), processes.trim().replace('\n', " "));
            let below = entries(&directory).unwrap_or_default();
            pending.extend(below.into_iter().filter(|path| path.is_dir()));
        }
    }
    text
}

/// A log is text, and everything else a document.
fn record(directory: &str, path: &Path) -> Entry {
    match path.extension().is_some_and(|it| it == "log") {
        true => Entry::file(format!("{directory}/{}", last(path)), path),
        false => document(directory, path),
    }
}

fn document(directory: &str, path: &Path) -> Entry {
    Entry::document(format!("{directory}/{}", last(path)), path)
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
