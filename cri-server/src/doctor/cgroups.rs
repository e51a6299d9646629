//! Cgroups: which hierarchies there are, whether each controller can be used, and who manages them.

use std::fs;
use std::path::Path;

use corten_runtime::cgroup::{Layout, layout};
use rustix::fs::{Access, access};

use super::check::Check;
use crate::config::Config;
use crate::spec::CgroupDriver;

/// Controllers by their names in v1 and v2, and whether no container can do without them.
const CONTROLLERS: [(&str, &str, bool); 6] = [
    ("cpu", "cpu", true),
    ("memory", "memory", true),
    ("pids", "pids", false),
    ("cpuset", "cpuset", false),
    ("blkio", "io", false),
    ("hugetlb", "hugetlb", false),
];
/// In v1 only; v2 has a BPF program instead of the one and a file in every cgroup instead of the other.
const V1_CONTROLLERS: [(&str, bool); 2] = [("devices", true), ("freezer", false)];

/// A controller that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    controller: String,
    needed: bool,
    why: String,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let driver = judge_driver(
        config.cgroup_driver,
        Path::new("/run/systemd/system").is_dir(),
        Path::new("/run/dbus/system_bus_socket").exists() || Path::new("/run/systemd/private").exists(),
    );
    let layout = match layout() {
        Ok(layout) => layout,
        Err(error) => {
            let fix = "mount them: on v2 `mount -t cgroup2 cgroup2 /sys/fs/cgroup`";
            let meaning = "no container can be made";
            return vec![
                Check::problem("cgroup-mode", format!("{error:#}"), meaning, fix),
                driver,
            ];
        }
    };
    vec![judge_mode(layout), judge_controllers(&missing(layout)), driver]
}

fn judge_mode(layout: &Layout) -> Check {
    let name = "cgroup-mode";
    match layout {
        Layout::V2(_) => Check::ok(name, "v2"),
        Layout::V1(hierarchies) => Check::warning(
            name,
            format!("v1, {} hierarchies", hierarchies.len()),
            "it works; but no pressure and no memory.high, and kubelets since 1.35 refuse it unless failCgroupV1 is false",
            "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
        ),
    }
}

fn missing(layout: &Layout) -> Vec<Missing> {
    match layout {
        Layout::V2(hierarchy) => {
            let root = &hierarchy.mount_point;
            let list = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
            missing_v2(
                &list("cgroup.controllers"),
                &list("cgroup.subtree_control"),
                writable(root),
            )
        }
        Layout::V1(hierarchies) => {
            let state = |controller: &str| {
                let found = hierarchies
                    .iter()
                    .find(|it| it.name.split(',').any(|name| name == controller))
                    .ok_or("it has no hierarchy")?;
                // A hierarchy that another mount covers shows none of its files.
                match fs::exists(found.mount_point.join("cgroup.procs")) {
                    Ok(true) if writable(&found.mount_point) => Ok(()),
                    Ok(true) => Err("it cannot be written to"),
                    _ => Err("its directory shows no cgroup"),
                }
            };
            missing_v1(state)
        }
    }
}

fn writable(directory: &Path) -> bool {
    access(directory, Access::WRITE_OK).is_ok() && access(directory.join("cgroup.procs"), Access::WRITE_OK).is_ok()
}

fn missing_v1(state: impl Fn(&str) -> Result<(), &'static str>) -> Vec<Missing> {
    let common = CONTROLLERS.iter().map(|&(v1, _, needed)| (v1, needed));
    let wanted = common.chain(V1_CONTROLLERS);
    wanted
        .filter_map(|(controller, needed)| {
            let why = state(controller).err()?;
            Some(Missing {
                controller: controller.to_owned(),
                needed,
                why: why.to_owned(),
            })
        })
        .collect()
}

/// What of v2 cannot be used: `there` and `passed_on` are the root's cgroup.controllers and cgroup.subtree_control.
fn missing_v2(there: &str, passed_on: &str, writable: bool) -> Vec<Missing> {
    let holds = |list: &str, name: &str| list.split_whitespace().any(|it| it == name);
    CONTROLLERS
        .iter()
        .filter_map(|&(_, controller, needed)| {
            let why = match (holds(there, controller), holds(passed_on, controller)) {
                (false, _) => "the hierarchy does not have it",
                (true, false) if !writable => "it is not delegated to this node",
                // The runtime passes it on when it makes a cgroup.
                (true, _) => return None,
            };
            Some(Missing {
                controller: controller.to_owned(),
                needed,
                why: why.to_owned(),
            })
        })
        .collect()
}

fn judge_controllers(missing: &[Missing]) -> Check {
    let name = "cgroup-controllers";
    if missing.is_empty() {
        return Check::ok(name, "all that containers use are there");
    }
    let list: Vec<String> = missing
        .iter()
        .map(|it| format!("{}: {}", it.controller, it.why))
        .collect();
    let found = list.join("; ");
    let fix = "enable them (cgroup_enable=NAME on the kernel's command line), or delegate them to the node's cgroup";
    if missing.iter().any(|it| it.needed) {
        return Check::problem(
            name,
            found,
            "no container can be made without cpu, memory and device rules",
            fix,
        );
    }
    Check::warning(name, found, "limits of these are refused, or not kept", fix)
}

/// `booted`: systemd is the machine's init; `bus`: it can be spoken to.
fn judge_driver(driver: CgroupDriver, booted: bool, bus: bool) -> Check {
    let name = "cgroup-driver";
    match (driver, booted) {
        (CgroupDriver::Cgroupfs, false) => Check::ok(name, "cgroupfs, and systemd does not run"),
        (CgroupDriver::Cgroupfs, true) => Check::warning(
            name,
            "cgroupfs, and systemd runs here",
            "two manage one tree: a `systemctl daemon-reload` can change containers' cgroups",
            "cgroup_driver = \"systemd\" here, and cgroupDriver: systemd for the kubelet; drain the node before",
        ),
        (CgroupDriver::Systemd, true) if bus => Check::ok(name, "systemd, which runs here"),
        (CgroupDriver::Systemd, _) => Check::problem(
            name,
            if booted {
                "systemd, whose bus is not there"
            } else {
                "systemd, which does not run here"
            },
            "no container can be made: nobody makes its scope",
            "cgroup_driver = \"cgroupfs\" here and for the kubelet, or boot with systemd and start dbus",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn drivers() {
        let table = [
            (CgroupDriver::Cgroupfs, false, false, Verdict::Ok),
            (CgroupDriver::Cgroupfs, true, true, Verdict::Warning),
            (CgroupDriver::Systemd, true, true, Verdict::Ok),
            (CgroupDriver::Systemd, true, false, Verdict::Problem),
            (CgroupDriver::Systemd, false, true, Verdict::Problem),
        ];
        for (driver, booted, bus, expected) in table {
            assert_eq!(
                judge_driver(driver, booted, bus).verdict,
                expected,
                "{driver:?} {booted} {bus}"
            );
        }
    }

    #[test]
    fn controllers() {
        let all = "cpuset cpu io memory hugetlb pids rdma";
        let names = |missing: &[Missing]| missing.iter().map(|it| it.controller.clone()).collect::<Vec<_>>();
        assert!(missing_v2(all, "", true).is_empty(), "the runtime passes them on");
        assert!(missing_v2(all, all, false).is_empty());
        assert_eq!(
            names(&missing_v2(all, "cpu memory pids", false)),
            ["cpuset", "io", "hugetlb"]
        );
        assert_eq!(
            names(&missing_v2("cpu", "cpu", true)),
            ["memory", "pids", "cpuset", "io", "hugetlb"]
        );
        let without = |name: &'static str| missing_v1(move |it| if it == name { Err("gone") } else { Ok(()) });
        let table = [
            ("none", Verdict::Ok),
            ("pids", Verdict::Warning),
            ("memory", Verdict::Problem),
            ("devices", Verdict::Problem),
        ];
        for (name, expected) in table {
            assert_eq!(judge_controllers(&without(name)).verdict, expected, "{name}");
        }
    }
}
