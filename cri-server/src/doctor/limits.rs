//! What the kernel allows of at most: inotify, processes, open files.

use super::check::Check;
use super::sysctl::read;
use crate::config::Config;

/// A setting, the value below which pods fail at once and the one below which they fail on a full node.
struct Limit {
    name: &'static str,
    setting: &'static str,
    least: u64,
    enough: u64,
    meaning: &'static str,
}

const LIMITS: [Limit; 5] = [
    Limit {
        name: "inotify-instances",
        setting: "fs/inotify/max_user_instances",
        least: 64,
        enough: 512,
        meaning: "programs that watch files fail with \"too many open files\": the kubelet, and `kubectl logs -f`",
    },
    Limit {
        name: "inotify-watches",
        setting: "fs/inotify/max_user_watches",
        least: 8192,
        enough: 65_536,
        meaning: "programs that watch files fail with \"no space left on device\", the kubelet's too",
    },
    Limit {
        name: "pid-max",
        setting: "kernel/pid_max",
        least: 4096,
        enough: 32_768,
        meaning: "pods fail with \"cannot fork\" when all of them together have so many threads",
    },
    Limit {
        name: "file-max",
        setting: "fs/file-max",
        least: 65_536,
        enough: 262_144,
        meaning: "everything on the node fails with \"too many open files in system\"",
    },
    Limit {
        name: "network-namespaces",
        setting: "user/max_net_namespaces",
        least: 128,
        enough: 1024,
        meaning: "a pod needs one; the next is refused with ENOSPC",
    },
];

pub(super) fn look(_config: &Config) -> Vec<Check> {
    LIMITS.iter().map(|limit| judge(limit, read(limit.setting))).collect()
}

fn judge(limit: &Limit, value: Option<u64>) -> Check {
    let setting = limit.setting.replace('/', ".");
    let Some(value) = value else {
        return Check::skipped(limit.name, format!("{setting} cannot be read"));
    };
    let found = format!("{setting} is {value}");
    let fix = format!(
        "sysctl -w {setting}={}, and the same line in /etc/sysctl.d",
        limit.enough
    );
    match value {
        _ if value < limit.least => Check::problem(limit.name, found, limit.meaning, fix),
        _ if value < limit.enough => Check::warning(limit.name, found, limit.meaning, fix),
        _ => Check::ok(limit.name, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn limits() {
        for limit in &LIMITS {
            let table = [
                (None, Verdict::Skipped),
                (Some(limit.least - 1), Verdict::Problem),
                (Some(limit.enough - 1), Verdict::Warning),
                (Some(limit.enough), Verdict::Ok),
            ];
            for (value, expected) in table {
                assert_eq!(judge(limit, value).verdict, expected, "{} {value:?}", limit.name);
            }
        }
    }
}
