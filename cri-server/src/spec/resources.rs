//! Limits: the cgroup's, and oom_score_adj. Pure.
//!
//! In the CRI 0 and "" mean "not specified", never zero (api.proto, LinuxContainerResources).

use corten_proto::cri::{ContainerConfig, LinuxContainerResources};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Host, SpecError};

const RESOURCES: &str = "linux.resources";
/// Asked for by the kubelet and both peers for an infra container: the last to be killed before the kubelet.
const INFRA_OOM_SCORE_ADJ: i32 = -998;

/// Refuses limits that break a rule.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    of_config(config).map_or(Ok(()), check_limits)
}

/// The same, of the resources alone.
pub(super) fn check_limits(resources: &LinuxContainerResources) -> Result<(), SpecError> {
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
    let ram = limit("memory_limit_in_bytes", resources.memory_limit_in_bytes)?;
    let both = limit("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes)?;
    match (ram, both) {
        (Some(ram), Some(both)) if both >= 0 && (ram > both || ram < 0) => {
            let field = format!("{RESOURCES}.memory_swap_limit_in_bytes");
            let rule = format!("is memory and swap together: must not be less than memory_limit_in_bytes, {ram}");
            Err(SpecError::invalid(field, both, rule))
        }
        _ => Ok(()),
    }
}

/// The cgroup's limits, without the devices.
pub(super) fn of(config: &ContainerConfig, host: &Host) -> Result<LinuxResources, SpecError> {
    of_config(config).map_or_else(|| Ok(LinuxResources::default()), |resources| limits(resources, host))
}

/// The same, of the resources alone.
pub(super) fn limits(resources: &LinuxContainerResources, host: &Host) -> Result<LinuxResources, SpecError> {
    let mut result = LinuxResources::default();
    result.set_cpu(cpu(resources)?);
    result.set_memory(memory(resources, host)?);
    let pages = huge_pages(resources, host)?;
    result.set_hugepage_limits((!pages.is_empty()).then_some(pages));
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
    Ok(clamped(asked, host))
}

/// The same after an update; none where nobody has asked for any.
pub fn updated_oom_score_adj(resources: &LinuxContainerResources, host: &Host) -> Result<Option<i32>, SpecError> {
    let asked = oom_score(resources)?;
    Ok((asked != 0).then(|| clamped(asked, host)))
}

fn clamped(asked: i32, host: &Host) -> i32 {
    asked.max(host.oom_score_adj_floor)
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

/// Each page size once, in the runtime-spec's form, which the kubelet uses too.
fn check_hugepages(resources: &LinuxContainerResources) -> Result<(), SpecError> {
    let limits = &resources.hugepage_limits;
    for (index, limit) in limits.iter().enumerate() {
        let size = &limit.page_size;
        let field = |name: &str| format!("{RESOURCES}.hugepage_limits[{index}].{name}");
        if !is_page_size(size) {
            return Err(SpecError::invalid(
                field("page_size"),
                size,
                "must be a number and KB, MB or GB, as 2MB",
            ));
        }
        if limits[..index].iter().any(|other| other.page_size == *size) {
            return Err(SpecError::invalid(field("page_size"), size, "must not be named twice"));
        }
        if i64::try_from(limit.limit).is_err() {
            return Err(SpecError::invalid(
                field("limit"),
                limit.limit,
                "must be less than 2^63",
            ));
        }
    }
    Ok(())
}

fn is_page_size(text: &str) -> bool {
    let units = ["KB", "MB", "GB"];
    let number = units.iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| number.parse::<u32>().is_ok_and(|n| n > 0) && !number.starts_with(['0', '+']))
}

/// The kubelet sends a limit of 0 for every page size of the node with every container, whether or not the node can
/// limit them. What it cannot limit passes with 0, which grants nothing, and is refused with more.
fn huge_pages(resources: &LinuxContainerResources, host: &Host) -> Result<Vec<LinuxHugepageLimit>, SpecError> {
    let mut limits = Vec::new();
    for limit in &resources.hugepage_limits {
        let can = host.huge_page_sizes.contains(&limit.page_size);
        if !can && limit.limit > 0 {
            let field = format!("{RESOURCES}.hugepage_limits[{:?}]", limit.page_size);
            let rule = "the node has no such pages, or its kernel no hugetlb controller to limit them";
            return Err(SpecError::invalid(field, limit.limit, rule));
        }
        if can {
            let mut own = LinuxHugepageLimit::default();
            own.set_page_size(limit.page_size.clone());
            own.set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            limits.push(own);
        }
    }
    Ok(limits)
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
    fn huge_pages_of_the_node_alone_have_limits() {
        let limit = |page_size: &str, limit| HugepageLimit {
            page_size: page_size.into(),
            limit,
        };
        let resources = |limits: &[HugepageLimit]| LinuxContainerResources {
            hugepage_limits: limits.to_vec(),
            ..Default::default()
        };
        let with = Host {
            huge_page_sizes: ["2MB".to_owned()].into(),
            ..host()
        };
        let asked = resources(&[limit("2MB", 1 << 21), limit("1GB", 0)]);
        let limits = limits(&asked, &with).unwrap();
        let pages = limits.hugepage_limits().as_ref().unwrap();
        assert_eq!(
            (pages.len(), pages[0].page_size().as_str(), pages[0].limit()),
            (1, "2MB", 1 << 21)
        );
        assert!(super::limits(&asked, &host()).is_err());
        let zero = super::limits(&resources(&[limit("2MB", 0)]), &host()).unwrap();
        assert_eq!(zero.hugepage_limits(), &None);
        for (size, good) in [
            ("64KB", true),
            ("1GB", true),
            ("2M", false),
            ("MB", false),
            ("02MB", false),
            ("+2MB", false),
        ] {
            assert_eq!(is_page_size(size), good, "{size}");
        }
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
        let huge = |size: &str| HugepageLimit {
            page_size: size.into(),
            limit: 1 << 21,
        };
        let with = |change: &dyn Fn(&mut LinuxContainerResources)| {
            let mut resources = LinuxContainerResources::default();
            change(&mut resources);
            config(resources)
        };
        for (sent, field) in [
            (with(&|it| it.oom_score_adj = 1001), "oom_score_adj"),
            (with(&|it| it.cpu_shares = -1), "cpu_shares"),
            (with(&|it| it.cpu_quota = -2), "cpu_quota"),
            (with(&|it| it.cpuset_cpus = "0;1".into()), "cpuset_cpus"),
            (
                with(&|it| it.hugepage_limits = vec![huge("2MB"), huge("2MB")]),
                "hugepage_limits[1].page_size",
            ),
            (
                with(&|it| it.hugepage_limits = vec![huge("2 MB")]),
                "hugepage_limits[0].page_size",
            ),
            (
                with(&|it| (it.memory_limit_in_bytes, it.memory_swap_limit_in_bytes) = (2, 1)),
                "memory_swap_limit_in_bytes",
            ),
            (
                with(&|it| it.unified = [("../x.y".to_owned(), "1".to_owned())].into()),
                "unified[\"../x.y\"]",
            ),
        ] {
            let error = check(&sent).unwrap_err();
            assert_eq!(
                (error.field, error.kind),
                (format!("{RESOURCES}.{field}"), Kind::Invalid)
            );
        }
    }

    #[test]
    fn files_of_v2_need_v2() {
        let sent = config(LinuxContainerResources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        assert!(check(&sent).is_ok() && of(&sent, &host()).is_err());
        let v2 = Host {
            cgroup_v2: true,
            ..host()
        };
        assert!(of(&sent, &v2).unwrap().unified().is_some());
    }
}
