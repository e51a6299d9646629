//! What an update makes of a container's resources, and what would take it back. Pure.

use std::collections::{BTreeMap, HashMap};

use corten_proto::cri::{HugepageLimit, LinuxContainerResources};
use oci_spec::runtime::LinuxResources;

use super::{Host, SpecError, resources};

/// The kernel's own values, which a cgroup has that nobody has given others.
const DEFAULT_SHARES: i64 = 1024;
const DEFAULT_PERIOD: i64 = 100_000;
const NO_LIMIT: i64 = -1;
const NO_PAGE_LIMIT: u64 = i64::MAX.cast_unsigned();

/// The resources after an update. 0 and the empty text are "not specified" (api.proto) and keep what was; of huge pages and
/// unified files each named one is replaced.
///
/// A limit of memory and swap together cannot be less than the one of memory: where the update names memory alone, it is
/// raised with it, which is a container that does not swap.
pub fn merged(before: &LinuxContainerResources, change: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let memory = number(change.memory_limit_in_bytes, before.memory_limit_in_bytes);
    let mut swap = number(change.memory_swap_limit_in_bytes, before.memory_swap_limit_in_bytes);
    let raised = memory == NO_LIMIT || (swap > 0 && swap < memory);
    if change.memory_swap_limit_in_bytes == 0 && change.memory_limit_in_bytes != 0 && swap != 0 && raised {
        swap = memory;
    }
    let mut unified = before.unified.clone();
    unified.extend(change.unified.clone());
    LinuxContainerResources {
        cpu_period: number(change.cpu_period, before.cpu_period),
        cpu_quota: number(change.cpu_quota, before.cpu_quota),
        cpu_shares: number(change.cpu_shares, before.cpu_shares),
        memory_limit_in_bytes: memory,
        oom_score_adj: number(change.oom_score_adj, before.oom_score_adj),
        cpuset_cpus: text(&change.cpuset_cpus, &before.cpuset_cpus),
        cpuset_mems: text(&change.cpuset_mems, &before.cpuset_mems),
        hugepage_limits: huge_pages(&before.hugepage_limits, &change.hugepage_limits),
        unified,
        memory_swap_limit_in_bytes: swap,
    }
}

/// One entry a page size, in the order they came.
fn huge_pages(before: &[HugepageLimit], change: &[HugepageLimit]) -> Vec<HugepageLimit> {
    let mut all = before.to_vec();
    for new in change {
        match all.iter_mut().find(|old| old.page_size == new.page_size) {
            Some(old) => *old = new.clone(),
            None => all.push(new.clone()),
        }
    }
    all
}

/// What takes the update from `before` to `after` back: `before`, and the kernel's own value of whatever only `after`
/// names. A cpuset has none that would be right everywhere, and of most files of `unified` it is not known: of these the
/// first setting stays.
pub fn undone(
    before: &LinuxContainerResources,
    after: &LinuxContainerResources,
    host: &Host,
) -> LinuxContainerResources {
    let number = |old: i64, new: i64, default: i64| if old == 0 && new != 0 { default } else { old };
    LinuxContainerResources {
        cpu_period: number(before.cpu_period, after.cpu_period, DEFAULT_PERIOD),
        cpu_quota: number(before.cpu_quota, after.cpu_quota, NO_LIMIT),
        cpu_shares: number(before.cpu_shares, after.cpu_shares, DEFAULT_SHARES),
        memory_limit_in_bytes: number(before.memory_limit_in_bytes, after.memory_limit_in_bytes, NO_LIMIT),
        memory_swap_limit_in_bytes: number(
            before.memory_swap_limit_in_bytes,
            after.memory_swap_limit_in_bytes,
            if before.memory_limit_in_bytes == 0 {
                NO_LIMIT
            } else {
                before.memory_limit_in_bytes
            },
        ),
        hugepage_limits: undone_pages(&before.hugepage_limits, &after.hugepage_limits, host),
        unified: undone_files(&before.unified, &after.unified),
        ..before.clone()
    }
}

/// What the node cannot limit has been given no limit either.
fn undone_pages(before: &[HugepageLimit], after: &[HugepageLimit], host: &Host) -> Vec<HugepageLimit> {
    let is_new = |size: &String| before.iter().all(|old| old.page_size != *size) && host.huge_page_sizes.contains(size);
    let sizes = after.iter().map(|new| &new.page_size).filter(|size| is_new(size));
    let unlimited = sizes.map(|size| HugepageLimit {
        page_size: size.clone(),
        limit: NO_PAGE_LIMIT,
    });
    before.iter().cloned().chain(unlimited).collect()
}

fn undone_files(before: &HashMap<String, String>, after: &HashMap<String, String>) -> HashMap<String, String> {
    let new = after.keys().filter(|name| !before.contains_key(*name));
    let defaults = new.filter_map(|name| Some((name.clone(), default_of(name)?.to_owned())));
    before.clone().into_iter().chain(defaults).collect()
}

/// What a new cgroup of v2 has in a file (the kernel's cgroup-v2.rst); none where that is not one value for all.
fn default_of(file: &str) -> Option<&'static str> {
    let (controller, name) = file.split_once('.')?;
    match (controller, name) {
        ("cpu", "weight") => Some("100"),
        ("cpu", "idle" | "max.burst" | "uclamp.min") | ("memory", "min" | "low" | "oom.group") => Some("0"),
        ("memory", "high" | "max" | "swap.high" | "swap.max" | "zswap.max")
        | ("cpu", "max" | "uclamp.max")
        | ("pids", "max") => Some("max"),
        ("hugetlb", name) if name.ends_with(".max") => Some("max"),
        _ => None,
    }
}

/// The limit of memory that `after` brings down to, if it does: what is in use must fit it.
pub fn lowered_memory(before: &LinuxContainerResources, after: &LinuxContainerResources) -> Option<u64> {
    let limit = |value: i64| u64::try_from(value).ok().filter(|&value| value > 0);
    let new = limit(after.memory_limit_in_bytes)?;
    limit(before.memory_limit_in_bytes)
        .is_none_or(|old| new < old)
        .then_some(new)
}

/// The checked document for `RUNTIME update`: every limit that holds afterwards, for a runtime replaces what it had.
pub fn document(
    before: &LinuxContainerResources,
    after: &LinuxContainerResources,
    host: &Host,
) -> Result<LinuxResources, SpecError> {
    resources::check_limits(after)?;
    let mut document = resources::limits(after, host)?;
    if lowered_memory(before, after).is_some()
        && let Some(memory) = document.memory_mut()
    {
        // Between our own look and the write the container may have taken more.
        memory.set_check_before_update(Some(true));
    }
    Ok(document)
}

/// The limits of a specification, as JSON, with those of `resources` in the place of the ones they name.
pub fn patch_spec(spec: &mut serde_json::Value, resources: &LinuxResources, oom_score_adj: Option<i32>) {
    let named = serde_json::to_value(resources).expect("resources are JSON");
    let named: BTreeMap<String, serde_json::Value> = serde_json::from_value(named).expect("they are an object");
    for (name, mut value) in named.into_iter().filter(|(name, _)| name != "devices") {
        if let Some(fields) = value.as_object_mut() {
            // A wish about this one update, not a limit.
            fields.remove("checkBeforeUpdate");
        }
        spec["linux"]["resources"][name] = value;
    }
    if let Some(score) = oom_score_adj {
        spec["process"]["oomScoreAdj"] = score.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::host::tests::host;
    use super::*;

    fn memory(limit: i64, swap: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        }
    }

    fn pages(limits: &[(&str, u64)]) -> Vec<HugepageLimit> {
        let limit = |&(size, limit): &(&str, u64)| HugepageLimit {
            page_size: size.into(),
            limit,
        };
        limits.iter().map(limit).collect()
    }

    #[test]
    fn what_is_not_specified_stays() {
        let before = LinuxContainerResources {
            cpu_period: 1,
            cpu_quota: 2,
            cpu_shares: 3,
            oom_score_adj: 4,
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: pages(&[("2MB", 1), ("1GB", 2)]),
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..memory(5, 6)
        };
        assert_eq!(merged(&before, &LinuxContainerResources::default()), before);
        let change = LinuxContainerResources {
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: pages(&[("1GB", 0), ("64KB", 7)]),
            unified: [("memory.low".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let after = merged(&before, &change);
        let expected = LinuxContainerResources {
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: pages(&[("2MB", 1), ("1GB", 0), ("64KB", 7)]),
            unified: [("memory.high", "1"), ("memory.low", "2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..before
        };
        assert_eq!(after, expected);
        assert_eq!(merged(&after, &change), after, "the same again changes nothing");
    }

    #[test]
    fn swap_follows_memory() {
        for (before, change, after) in [
            ((0, 0), (100, 0), (100, 0)),
            ((100, 0), (200, 0), (200, 0)),
            ((100, 100), (200, 0), (200, 200)),
            ((100, 150), (120, 0), (120, 150)),
            ((100, 100), (50, 0), (50, 100)),
            ((100, 100), (200, 250), (200, 250)),
            ((100, 100), (0, 150), (100, 150)),
            ((100, 150), (-1, 0), (-1, -1)),
            ((100, -1), (200, 0), (200, -1)),
            // Named, and wrong: the check's to refuse.
            ((100, 100), (200, 150), (200, 150)),
        ] {
            let merged = merged(&memory(before.0, before.1), &memory(change.0, change.1));
            assert_eq!(merged, memory(after.0, after.1), "{before:?} {change:?}");
        }
        assert!(document(&memory(100, 100), &memory(200, 150), &host()).is_err());
    }

    #[test]
    fn what_takes_an_update_back() {
        let none = LinuxContainerResources::default();
        let after = LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 5,
            cpu_shares: 7,
            ..memory(100, 200)
        };
        let expected = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 1024,
            ..memory(-1, -1)
        };
        let host = host();
        let undone = |before: &_, after: &_| undone(before, after, &host);
        assert_eq!(undone(&none, &after), expected);
        assert_eq!(undone(&after, &merged(&after, &memory(300, 300))), after);
        assert_eq!(undone(&memory(100, 0), &memory(100, 200)), memory(100, 100));
        assert_eq!(undone(&none, &none), none);
    }

    #[test]
    fn what_takes_new_files_and_page_limits_back() {
        let files = |files: &[(&str, &str)]| {
            let owned = files.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            owned.collect::<HashMap<_, _>>()
        };
        let before = LinuxContainerResources {
            hugepage_limits: pages(&[("1GB", 5)]),
            unified: files(&[("memory.high", "7"), ("io.weight", "default 50")]),
            ..Default::default()
        };
        let change = LinuxContainerResources {
            hugepage_limits: pages(&[("1GB", 6), ("2MB", 0), ("64KB", 0)]),
            unified: files(&[
                ("memory.high", "8"),
                ("memory.max", "9"),
                ("memory.low", "1"),
                ("cpu.weight", "3"),
                ("cpu.max", "1000 100000"),
                ("pids.max", "4"),
                ("hugetlb.2MB.max", "0"),
                ("io.max", "8:0 rbps=1"),
            ]),
            ..Default::default()
        };
        let host = Host {
            huge_page_sizes: ["1GB", "2MB"].map(str::to_owned).into(),
            cgroup_v2: true,
            ..host()
        };
        let undone = undone(&before, &merged(&before, &change), &host);
        assert_eq!(undone.hugepage_limits, pages(&[("1GB", 5), ("2MB", NO_PAGE_LIMIT)]));
        let expected = files(&[
            ("memory.high", "7"),
            ("io.weight", "default 50"),
            ("memory.max", "max"),
            ("memory.low", "0"),
            ("cpu.weight", "100"),
            ("cpu.max", "max"),
            ("pids.max", "max"),
            ("hugetlb.2MB.max", "max"),
        ]);
        assert_eq!(undone.unified, expected);
        assert!(document(&before, &undone, &host).is_ok(), "the runtime gets it");
    }

    #[test]
    fn only_a_lower_limit_asks_for_a_check() {
        for (before, after, lowered) in [
            (0, 0, None),
            (0, 100, Some(100)),
            (-1, 100, Some(100)),
            (100, 99, Some(99)),
            (100, 100, None),
            (100, 101, None),
            (100, -1, None),
        ] {
            let (before, after) = (memory(before, 0), memory(after, 0));
            assert_eq!(lowered_memory(&before, &after), lowered);
            let document = document(&before, &after, &host()).unwrap();
            let check = document
                .memory()
                .as_ref()
                .and_then(|memory| memory.check_before_update());
            assert_eq!(check, lowered.map(|_| true));
        }
    }

    #[test]
    fn a_specification_keeps_what_no_update_names() {
        let mut spec = json!({
            "process": {"oomScoreAdj": 5},
            "linux": {"resources": {"devices": [1], "cpu": {"shares": 3}, "pids": {"limit": 1}}},
        });
        let after = document(&memory(0, 0), &memory(100, 0), &host()).unwrap();
        patch_spec(&mut spec, &after, None);
        let expected = json!({
            "process": {"oomScoreAdj": 5},
            "linux": {"resources": {
                "devices": [1], "cpu": {"shares": 3}, "pids": {"limit": 1}, "memory": {"limit": 100, "swap": 100},
            }},
        });
        assert_eq!(spec, expected);
        patch_spec(&mut spec, &LinuxResources::default(), Some(7));
        assert_eq!(spec["process"]["oomScoreAdj"], 7);
    }
}
