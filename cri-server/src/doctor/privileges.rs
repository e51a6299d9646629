//! What the server may do, and the security modules of the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::check::Check;
use super::server::server_pid;
use crate::apparmor;
use crate::config::Config;
use crate::spec::capabilities_in;

/// Capabilities without which no pod can be made.
const NEEDED: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
];

pub(super) fn look(config: &Config) -> Vec<Check> {
    // The server's own where it runs: a unit may have taken some away.
    let (whose, process) = match server_pid(config) {
        Some(pid) => ("the server", pid.to_string()),
        None => ("this process", "self".to_owned()),
    };
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let enabled = fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    let loaded = apparmor::is_loaded(apparmor::DEFAULT).unwrap_or(false);
    let usable = apparmor::is_enabled();
    vec![
        judge_capabilities(whose, &capabilities_in(&status, "CapEff")),
        judge_apparmor(enabled, usable, loaded, server_pid(config).is_some()),
        judge_selinux(Path::new("/sys/fs/selinux/enforce").exists()),
    ]
}

fn judge_capabilities(whose: &str, held: &BTreeSet<&'static str>) -> Check {
    let name = "capabilities";
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !held.contains(name)).collect();
    if !missing.is_empty() {
        let found = format!("{whose} lacks {}", missing.join(", "));
        let fix = "run corten-cri as root with all capabilities (no CapabilityBoundingSet in its unit)";
        return Check::problem(name, found, "pods cannot be made", fix);
    }
    if !held.contains("CAP_SYS_RESOURCE") {
        return Check::warning(
            name,
            format!("{whose} lacks CAP_SYS_RESOURCE"),
            "oom_score_adj below its own is raised to that, and rlimits above its own are refused: the kernel may kill \
             guaranteed pods and shims as early as others",
            "run corten-cri with it, or pass over this where the machine does not give it",
        );
    }
    Check::ok(name, format!("{whose} has {}", held.len()))
}

/// `usable`: the kernel shows its profiles and there is a parser.
fn judge_apparmor(enabled: bool, usable: bool, loaded: bool, serving: bool) -> Check {
    let name = "apparmor";
    match (enabled, usable, loaded) {
        (false, ..) => Check::ok(name, "not enabled"),
        (true, false, _) => Check::warning(
            name,
            "enabled, but its profiles cannot be read or there is no apparmor_parser",
            "containers run without a profile, and those that name one are refused",
            "install the package apparmor and mount securityfs on /sys/kernel/security",
        ),
        (true, true, true) => Check::ok(name, format!("enabled, {} is loaded", apparmor::DEFAULT)),
        (true, true, false) if serving => Check::problem(
            name,
            format!("{} is not loaded", apparmor::DEFAULT),
            "containers that do not name another profile cannot be created, unless it can be loaded then",
            "look for AppArmor in the server's log; a restart loads it",
        ),
        (true, true, false) => Check::ok(name, "enabled; the server loads its profile at its start"),
    }
}

fn judge_selinux(enabled: bool) -> Check {
    let name = "selinux";
    match enabled {
        false => Check::ok(name, "not enabled"),
        true => Check::warning(
            name,
            "enabled",
            "containers that ask for a label are refused, and all others run with the server's",
            "send no seLinuxOptions; where pods are denied what they need, SELINUX=permissive in /etc/selinux/config",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn capabilities() {
        let all: BTreeSet<_> = NEEDED.into_iter().chain(["CAP_SYS_RESOURCE"]).collect();
        let without = |name: &str| all.iter().copied().filter(|it| *it != name).collect();
        let table = [
            ("", Verdict::Ok),
            ("CAP_SYS_RESOURCE", Verdict::Warning),
            ("CAP_SYS_ADMIN", Verdict::Problem),
        ];
        for (missing, expected) in table {
            let check = judge_capabilities("the server", &without(missing));
            assert_eq!(check.verdict, expected, "{missing}");
            assert!(check.found.contains(missing));
        }
    }

    #[test]
    fn security_modules() {
        let table = [
            (false, false, false, true, Verdict::Ok),
            (true, false, false, true, Verdict::Warning),
            (true, true, true, true, Verdict::Ok),
            (true, true, false, true, Verdict::Problem),
            (true, true, false, false, Verdict::Ok),
        ];
        for (enabled, usable, loaded, serving, expected) in table {
            let check = judge_apparmor(enabled, usable, loaded, serving);
            assert_eq!(check.verdict, expected, "{enabled} {usable} {loaded} {serving}");
        }
        assert_eq!(judge_selinux(true).verdict, Verdict::Warning);
        assert_eq!(judge_selinux(false).verdict, Verdict::Ok);
    }
}
