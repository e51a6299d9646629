//! The kernel: its version, its namespaces, the system calls that have no substitute, and seccomp.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::check::Check;
use super::sys;
use crate::config::Config;

/// The oldest kernel that has every call (the runtime has no second way).
const OLDEST: (u32, u32) = (5, 14);
/// Namespaces that every pod has, by their names in /proc/self/ns.
const NEEDED: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
/// Those that some pods ask for.
const ASKED_FOR: [&str; 2] = ["user", "time"];
/// What a filter of the default profile does.
const ACTIONS: [&str; 3] = ["kill_process", "errno", "allow"];

const UPDATE: &str = "use a newer kernel";

pub(super) fn look(_config: &Config) -> Vec<Check> {
    let release = read("/proc/sys/kernel/osrelease");
    let has_namespace = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    vec![
        judge_version(release.trim()),
        judge_namespaces(has_namespace),
        judge_calls(&missing_calls()),
        judge_seccomp(
            &read("/proc/sys/kernel/seccomp/actions_avail"),
            &read("/proc/self/status"),
        ),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn judge_version(release: &str) -> Check {
    let name = "kernel-version";
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok());
    let version = (numbers.next().unwrap_or(0u32), numbers.next().unwrap_or(0u32));
    if version < OLDEST {
        let meaning = format!(
            "Linux {}.{} is the oldest that containers can be made on",
            OLDEST.0, OLDEST.1
        );
        return Check::problem(name, format!("Linux {release}"), meaning, UPDATE);
    }
    if version < (5, 19) {
        let meaning =
            "pods cannot have user namespaces (hostUsers: false): overlayfs takes mapped layers since Linux 5.19";
        return Check::warning(name, format!("Linux {release}"), meaning, UPDATE);
    }
    Check::ok(name, format!("Linux {release}"))
}

fn judge_namespaces(has: impl Fn(&str) -> bool) -> Check {
    let name = "namespaces";
    let without = |names: &[&'static str]| names.iter().copied().filter(|name| !has(name)).collect::<Vec<_>>();
    let (needed, asked_for) = (without(&NEEDED), without(&ASKED_FOR));
    if !needed.is_empty() {
        let found = format!("the kernel has no {} namespaces", needed.join(", "));
        let fix = "use a kernel that is built with CONFIG_NAMESPACES and all options below it";
        return Check::problem(name, found, "no pod can be isolated", fix);
    }
    if !asked_for.is_empty() {
        let found = format!("the kernel has no {} namespaces", asked_for.join(", "));
        let fix = "use a kernel that is built with CONFIG_USER_NS and CONFIG_TIME_NS";
        return Check::warning(name, found, "pods that ask for them are refused", fix);
    }
    Check::ok(name, [&NEEDED[..], &ASKED_FOR[..]].concat().join(" "))
}

/// The calls that the kernel, or a filter this process is under, does not have.
fn missing_calls() -> Vec<&'static str> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map(drop);
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map(drop);
    let process = pidfd_open(getpid(), PidfdFlags::empty()).map(drop);
    let tried = [
        ("openat2", absent(root)),
        ("fsopen", absent(context)),
        ("pidfd_open", absent(process)),
        ("clone3", !sys::has_clone3()),
    ];
    tried
        .into_iter()
        .filter(|(_, absent)| *absent)
        .map(|(name, _)| name)
        .collect()
}

/// A filter that knows no such call says EPERM.
fn absent(outcome: Result<(), Errno>) -> bool {
    matches!(outcome, Err(Errno::NOSYS | Errno::PERM))
}

fn judge_calls(missing: &[&str]) -> Check {
    let name = "system-calls";
    if missing.is_empty() {
        return Check::ok(name, "openat2, fsopen, pidfd_open and clone3 are there");
    }
    let found = format!("{} cannot be called", missing.join(", "));
    let meaning = "containers are made with these; there is no other way";
    Check::problem(
        name,
        found,
        meaning,
        "use a newer kernel, or lift the seccomp filter that this node runs under",
    )
}

/// `actions` is the kernel's list, `status` of this process.
fn judge_seccomp(actions: &str, status: &str) -> Check {
    let name = "seccomp";
    let known: Vec<&str> = actions.split_whitespace().collect();
    let missing: Vec<&str> = ACTIONS.into_iter().filter(|action| !known.contains(action)).collect();
    if !missing.is_empty() {
        let found = format!("the kernel has no seccomp action {}", missing.join(", "));
        let meaning = "pods with a seccomp profile, RuntimeDefault too, cannot be run";
        return Check::problem(
            name,
            found,
            meaning,
            "use a kernel that is built with CONFIG_SECCOMP_FILTER",
        );
    }
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    if mode.is_some_and(|mode| mode.trim() == "2") {
        let meaning = "containers are under that filter too, whatever their profile says";
        let fix = "run the node without it, if something in its containers fails with EPERM or ENOSYS";
        return Check::warning(name, "this process is itself under a seccomp filter", meaning, fix);
    }
    Check::ok(name, known.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn versions() {
        let table = [
            ("4.19.0-amd64", Verdict::Problem),
            ("5.13.9", Verdict::Problem),
            ("5.14.0", Verdict::Warning),
            ("6.1.0-13-amd64", Verdict::Ok),
            ("", Verdict::Problem),
        ];
        for (release, expected) in table {
            assert_eq!(judge_version(release).verdict, expected, "{release}");
        }
    }

    #[test]
    fn namespaces_and_calls() {
        let table = [("", Verdict::Ok), ("time", Verdict::Warning), ("pid", Verdict::Problem)];
        for (absent, expected) in table {
            let check = judge_namespaces(|name| name != absent);
            assert_eq!(check.verdict, expected, "{absent}");
            assert!(check.found.contains(absent));
        }
        assert_eq!(judge_calls(&[]).verdict, Verdict::Ok);
        assert!(judge_calls(&["openat2"]).found.contains("openat2"));
    }

    #[test]
    fn filters() {
        let all = "kill_process kill_thread trap errno user_notif trace log allow";
        let table = [
            (all, "Seccomp:\t0\n", Verdict::Ok),
            (all, "Seccomp:\t2\n", Verdict::Warning),
            ("trap allow", "", Verdict::Problem),
            ("", "", Verdict::Problem),
        ];
        for (actions, status, expected) in table {
            assert_eq!(judge_seccomp(actions, status).verdict, expected, "{actions} {status}");
        }
    }
}
