//! Limits: the cgroup's, and oom_score_adj. Pure.
//!
//! In the CRI 0 and "" mean "not specified", never zero (api.proto, LinuxContainerResources).

use std::path::{Component, Path, PathBuf};

use corten_proto::cri::{ContainerConfig, LinuxContainerResources};
use corten_proto::id::ContainerId;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Host, SpecError};

const RESOURCES: &str = "linux.resources";
/// Asked for by the kubelet and both peers for an infra container: the last to be killed before the kubelet.
const INFRA_OOM_SCORE_ADJ: i32 = -998;

/// The cgroup of a container: its id, right below the pod's, as the kubelet expects to find and to remove it.
///
/// `parent` is the sandbox's `cgroup_parent`, or the configured default; relative ones count from the root.
pub fn cgroups_path(parent: &str, id: &ContainerId) -> Result<PathBuf, SpecError> {
    check_parent(parent)?;
    Ok(Path::new("/").join(parent).join(id.as_str()))
}

/// Refuses a parent that is not the path of a cgroup.
pub(super) fn check_parent(parent: &str) -> Result<(), SpecError> {
    let bad = |component| !matches!(component, Component::Normal(_) | Component::RootDir);
    if parent.contains('\0') || Path::new(parent).components().any(bad) {
        let rule = "must be a cgroup's path without . and ..";
        return Err(SpecError::invalid("linux.cgroup_parent", parent, rule));
    }
    if parent.ends_with(".slice") && !parent.contains('/') {
        let rule = "slices of the systemd cgroup driver are not supported yet; the driver is cgroupfs";
        return Err(SpecError::unimplemented("linux.cgroup_parent", parent, rule));
    }
    Ok(())
}

/// Refuses limits that break a rule or need what is not built.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    let Some(resources) = of_config(config) else {
        return Ok(());
    };
    oom_score(resources)?;
    cpu(resources)?;
    check_hugepages(resources)?;
    if let Some((name, value)) = resources
        .unified
        .iter()
        .find(|(name, value)| !name.contains('.') || name.contains(['/', '\0']) || value.contains('\0'))
    {
        let rule = "must name a file of the cgroup, as memory.high does";
        return Err(SpecError::invalid(
            format!("{RESOURCES}.unified[{name:?}]"),
            value,
            rule,
        ));
    }
    limit("memory_limit_in_bytes", resources.memory_limit_in_bytes)?;
    limit("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes).map(|_| ())
}

/// The cgroup's limits, without the devices.
pub(super) fn of(config: &ContainerConfig, host: &Host) -> Result<LinuxResources, SpecError> {
    let mut result = LinuxResources::default();
    let Some(resources) = of_config(config) else {
        return Ok(result);
    };
    result.set_cpu(cpu(resources)?);
    result.set_memory(memory(resources, host)?);
    if !resources.unified.is_empty() {
        if !host.cgroup_v2 {
            let names: Vec<_> = resources.unified.keys().map(String::as_str).collect();
            let rule = "needs the unified cgroup hierarchy, and this node runs on v1";
            let field = format!("{RESOURCES}.unified");
            return Err(SpecError::invalid(field, names.join(" "), rule));
        }
        result.set_unified(Some(resources.unified.clone()));
    }
    Ok(result)
}

/// The container's oom_score_adj, which is always set: what it would inherit is the shim's, -999 where that is allowed.
///
/// It goes no lower than the server may go: without CAP_SYS_RESOURCE the kernel refuses to lower it below the own, and
/// every pod of the kubelet wants -997 or -998.
pub(super) fn oom_score_adj(config: &ContainerConfig, host: &Host) -> Result<i32, SpecError> {
    let asked = of_config(config).map_or(Ok(0), oom_score)?;
    Ok(asked.max(host.oom_score_adj_floor))
}

/// The infra container's.
pub(super) fn infra_oom_score_adj(host: &Host) -> i32 {
    INFRA_OOM_SCORE_ADJ.max(host.oom_score_adj_floor)
}

fn of_config(config: &ContainerConfig) -> Option<&LinuxContainerResources> {
    config.linux.as_ref()?.resources.as_ref()
}

fn oom_score(resources: &LinuxContainerResources) -> Result<i32, SpecError> {
    let value = resources.oom_score_adj;
    i32::try_from(value)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| SpecError::invalid(format!("{RESOURCES}.oom_score_adj"), value, "must be -1000 to 1000"))
}

fn cpu(resources: &LinuxContainerResources) -> Result<Option<LinuxCpu>, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_period(positive("cpu_period", resources.cpu_period)?);
    cpu.set_shares(positive("cpu_shares", resources.cpu_shares)?);
    cpu.set_quota(limit("cpu_quota", resources.cpu_quota)?);
    cpu.set_cpus(list("cpuset_cpus", &resources.cpuset_cpus)?);
    cpu.set_mems(list("cpuset_mems", &resources.cpuset_mems)?);
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

/// A memory limit without a swap limit is one for both together: a container does not swap unless it is asked to.
fn memory(resources: &LinuxContainerResources, host: &Host) -> Result<Option<LinuxMemory>, SpecError> {
    let ram = limit("memory_limit_in_bytes", resources.memory_limit_in_bytes)?;
    let asked = limit("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes)?;
    let both = match asked {
        None => ram,
        // What the kubelet sends to keep a container from swapping; a kernel that cannot limit swap is left as it is.
        Some(both) if !host.swap_limit && Some(both) != ram => {
            let rule = "the kernel does not account swap (swapaccount=1)";
            let field = format!("{RESOURCES}.memory_swap_limit_in_bytes");
            return Err(SpecError::invalid(field, both, rule));
        }
        both => both,
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(ram);
    memory.set_swap(both.filter(|_| host.swap_limit));
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

/// The kubelet sends a limit of 0 for every page size with every container. hugetlb limits are not built; 0 passes
/// without being enforced, as it does with containerd's default configuration, and anything else is refused.
fn check_hugepages(resources: &LinuxContainerResources) -> Result<(), SpecError> {
    let Some(limit) = resources.hugepage_limits.iter().find(|it| it.limit > 0) else {
        return Ok(());
    };
    let field = format!("{RESOURCES}.hugepage_limits[{:?}]", limit.page_size);
    let rule = "huge page limits are not supported yet";
    Err(SpecError::unimplemented(field, limit.limit, rule))
}

/// 0: not specified.
fn positive(name: &str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_negative) => Err(SpecError::invalid(
            format!("{RESOURCES}.{name}"),
            value,
            "must not be negative",
        )),
    }
}

/// 0: not specified; -1: unlimited.
fn limit(name: &str, value: i64) -> Result<Option<i64>, SpecError> {
    match value {
        0 => Ok(None),
        -1.. => Ok(Some(value)),
        _ => {
            let rule = "must be positive, or -1 for no limit";
            Err(SpecError::invalid(format!("{RESOURCES}.{name}"), value, rule))
        }
    }
}

/// A cpuset list, `0-3,7` (cpuset(7)); the kernel judges the numbers.
fn list(name: &str, value: &str) -> Result<Option<String>, SpecError> {
    if value.bytes().all(|b| b.is_ascii_digit() || b"-,".contains(&b)) {
        return Ok((!value.is_empty()).then(|| value.to_owned()));
    }
    let rule = "must be numbers and ranges, as 0-3,7";
    Err(SpecError::invalid(format!("{RESOURCES}.{name}"), value, rule))
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{HugepageLimit, LinuxContainerConfig};

    use super::super::Kind;
    use super::super::host::tests::host;
    use super::*;

    fn config(resources: LinuxContainerResources) -> ContainerConfig {
        ContainerConfig {
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn cgroup_paths() {
        let id: ContainerId = "abc".parse().unwrap();
        for (parent, expected) in [
            ("/corten", Some("/corten/abc")),
            ("kubepods/pod1", Some("/kubepods/pod1/abc")),
            ("", Some("/abc")),
            ("/a/../b", None),
            ("..", None),
            ("./a", None),
            ("test.slice", None),
            ("/a\0", None),
        ] {
            let path = cgroups_path(parent, &id).ok();
            assert_eq!(path.as_deref(), expected.map(Path::new), "{parent}");
        }
    }

    #[test]
    fn nothing_asked_is_nothing_set() {
        let resources = of(&config(LinuxContainerResources::default()), &host()).unwrap();
        assert_eq!((resources.cpu(), resources.memory()), (&None, &None));
        assert_eq!(oom_score_adj(&ContainerConfig::default(), &host()), Ok(0));
    }

    #[test]
    fn what_a_kubelet_sends() {
        let page = |page_size: &str| HugepageLimit {
            page_size: page_size.into(),
            limit: 0,
        };
        let sent = config(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 51,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            oom_score_adj: -997,
            hugepage_limits: vec![page("2MB"), page("1GB")],
            ..Default::default()
        });
        check(&sent).unwrap();
        let resources = of(&sent, &host()).unwrap();
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.period(), cpu.quota(), cpu.shares()),
            (Some(100_000), Some(50_000), Some(51))
        );
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(64 << 20)));
        assert_eq!(oom_score_adj(&sent, &host()), Ok(0), "the floor of the node");
        let free = Host {
            oom_score_adj_floor: -1000,
            ..host()
        };
        assert_eq!(oom_score_adj(&sent, &free), Ok(-997));
        assert_eq!((infra_oom_score_adj(&free), infra_oom_score_adj(&host())), (-998, 0));
    }

    #[test]
    fn memory_and_swap() {
        let no_swap_limit = Host {
            swap_limit: false,
            ..host()
        };
        for (ram, swap, host, expected) in [
            (100, 0, host(), Ok((Some(100), Some(100)))),
            (100, 200, host(), Ok((Some(100), Some(200)))),
            (100, -1, host(), Ok((Some(100), Some(-1)))),
            (100, 0, no_swap_limit.clone(), Ok((Some(100), None))),
            (100, 100, no_swap_limit.clone(), Ok((Some(100), None))),
            (100, 200, no_swap_limit, Err(())),
            (-2, 0, super::super::host::tests::host(), Err(())),
        ] {
            let resources = LinuxContainerResources {
                memory_limit_in_bytes: ram,
                memory_swap_limit_in_bytes: swap,
                ..Default::default()
            };
            let got = memory(&resources, &host)
                .map(|it| it.map_or((None, None), |it| (it.limit(), it.swap())))
                .map_err(|_refused| ());
            assert_eq!(got, expected, "{ram} {swap}");
        }
    }

    #[test]
    fn refusals() {
        let none = LinuxContainerResources::default();
        let huge = vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 1 << 21,
        }];
        let unified = |name: &str| [(name.to_owned(), "1".to_owned())].into();
        for (resources, kind) in [
            (
                LinuxContainerResources {
                    oom_score_adj: 1001,
                    ..none.clone()
                },
                Kind::Invalid,
            ),
            (
                LinuxContainerResources {
                    cpu_shares: -1,
                    ..none.clone()
                },
                Kind::Invalid,
            ),
            (
                LinuxContainerResources {
                    cpu_quota: -2,
                    ..none.clone()
                },
                Kind::Invalid,
            ),
            (
                LinuxContainerResources {
                    cpuset_cpus: "0;1".into(),
                    ..none.clone()
                },
                Kind::Invalid,
            ),
            (
                LinuxContainerResources {
                    hugepage_limits: huge,
                    ..none.clone()
                },
                Kind::Unimplemented,
            ),
            (
                LinuxContainerResources {
                    unified: unified("../x.y"),
                    ..none.clone()
                },
                Kind::Invalid,
            ),
        ] {
            assert_eq!(check(&config(resources)).unwrap_err().kind, kind);
        }
        let v1 = LinuxContainerResources {
            unified: unified("memory.high"),
            ..none
        };
        assert!(check(&config(v1.clone())).is_ok() && of(&config(v1.clone()), &host()).is_err());
        let v2 = Host {
            cgroup_v2: true,
            ..host()
        };
        assert!(of(&config(v1), &v2).unwrap().unified().is_some());
    }
}
