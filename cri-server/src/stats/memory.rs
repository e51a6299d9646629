//! Memory and swap.
//!
//! v1 counts a cgroup alone and, in `total_` lines, with those below it; the latter are taken, as v2 counts no other way.

use corten_proto::cri;

use super::cgroups::Cgroups;
use super::parse::{self, UNLIMITED};

/// Memory in bytes; limits are [`UNLIMITED`] where there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// All that is charged, and how much may be.
    pub(super) usage: Option<u64>,
    pub(super) limit: Option<u64>,
    /// Of the usage: files not used lately, files, anonymous memory, mapped files.
    pub(super) inactive_file: Option<u64>,
    pub(super) cache: Option<u64>,
    pub(super) rss: Option<u64>,
    pub(super) mapped_file: Option<u64>,
    /// Page faults, all of them and those that waited for a disk.
    pub(super) faults: Option<u64>,
    pub(super) major_faults: Option<u64>,
    /// Swapped out, and how much may be.
    pub(super) swap: Option<u64>,
    pub(super) swap_limit: Option<u64>,
}

impl Memory {
    /// What cannot be reclaimed at once.
    pub(super) fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }

    /// What may still become working set; none without a limit.
    pub(super) fn available(&self) -> Option<u64> {
        let limit = self.limit.filter(|&limit| limit != UNLIMITED)?;
        Some(limit.saturating_sub(self.working_set()?))
    }

    /// What may still be swapped out; none without a limit.
    pub(super) fn swap_available(&self) -> Option<u64> {
        let limit = self.swap_limit.filter(|&limit| limit != UNLIMITED)?;
        Some(limit.saturating_sub(self.swap?))
    }
}

/// What only the metrics show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MemoryDetails {
    /// The kernel's own for this cgroup, in bytes.
    pub(super) kernel: Option<u64>,
    /// The most that was ever charged.
    pub(super) max_usage: Option<u64>,
    /// How often the limit was met.
    pub(super) failures: Option<u64>,
    /// Processes killed for want of memory.
    pub(super) oom_kills: Option<u64>,
    /// What is protected from reclaim.
    pub(super) reservation: Option<u64>,
    /// As the kernel has it: of memory and swap together on v1, of swap on v2.
    pub(super) swap_limit: Option<u64>,
}

/// Memory as it is now.
pub(super) fn memory(cgroups: &Cgroups) -> Memory {
    let number = |file| cgroups.text("memory", file).and_then(|text| parse::number(&text));
    let limit = |file| cgroups.text("memory", file).and_then(|text| parse::limit(&text));
    let stat = cgroups.text("memory", "memory.stat").unwrap_or_default();
    if cgroups.is_v2() {
        let value = |key| parse::keyed(&stat, key);
        return Memory {
            usage: number("memory.current"),
            limit: limit("memory.max"),
            inactive_file: value("inactive_file"),
            cache: value("file"),
            rss: value("anon"),
            mapped_file: value("file_mapped"),
            faults: value("pgfault"),
            major_faults: value("pgmajfault"),
            swap: number("memory.swap.current"),
            swap_limit: limit("memory.swap.max"),
        };
    }
    let value = |key| parse::keyed(&stat, &format!("total_{key}")).or_else(|| parse::keyed(&stat, key));
    let memory_limit = limit("memory.limit_in_bytes");
    Memory {
        usage: number("memory.usage_in_bytes"),
        limit: memory_limit,
        inactive_file: value("inactive_file"),
        cache: value("cache"),
        rss: value("rss"),
        mapped_file: value("mapped_file"),
        faults: value("pgfault"),
        major_faults: value("pgmajfault"),
        swap: value("swap"),
        swap_limit: swap_of(limit("memory.memsw.limit_in_bytes"), memory_limit),
    }
}

/// v1 limits memory and swap together.
fn swap_of(both: Option<u64>, memory: Option<u64>) -> Option<u64> {
    match (both?, memory?) {
        (UNLIMITED, _) => Some(UNLIMITED),
        (both, memory) => Some(both.saturating_sub(memory)),
    }
}

/// What only the metrics show.
pub(super) fn details(cgroups: &Cgroups) -> MemoryDetails {
    let text = |file| cgroups.text("memory", file);
    let number = |file| text(file).and_then(|text| parse::number(&text));
    let limit = |file| text(file).and_then(|text| parse::limit(&text));
    let value = |file, key| text(file).and_then(|text| parse::keyed(&text, key));
    if cgroups.is_v2() {
        let events = text("memory.events").unwrap_or_default();
        return MemoryDetails {
            // Linux 5.18.
            kernel: value("memory.stat", "kernel"),
            // Linux 5.19.
            max_usage: number("memory.peak"),
            failures: parse::keyed(&events, "max"),
            oom_kills: parse::keyed(&events, "oom_kill"),
            reservation: limit("memory.low"),
            swap_limit: limit("memory.swap.max"),
        };
    }
    MemoryDetails {
        kernel: number("memory.kmem.usage_in_bytes"),
        max_usage: number("memory.max_usage_in_bytes"),
        failures: number("memory.failcnt"),
        oom_kills: value("memory.oom_control", "oom_kill"),
        reservation: limit("memory.soft_limit_in_bytes"),
        swap_limit: limit("memory.memsw.limit_in_bytes"),
    }
}

/// Pressure; v1 has none.
pub(super) fn pressure(cgroups: &Cgroups) -> Option<cri::PsiStats> {
    parse::pressure(&cgroups.text("memory", "memory.pressure").filter(|_| cgroups.is_v2())?)
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{v1, v2};
    use super::*;

    const STAT_V2: &str = "\
anon 4096
file 8192
kernel 512
file_mapped 2048
inactive_file 1024
pgfault 30
pgmajfault 3
";

    #[test]
    fn on_v2() {
        let (_dir, cgroups) = v2(&[
            ("memory.stat", STAT_V2),
            ("memory.current", "16384\n"),
            ("memory.max", "65536\n"),
            ("memory.low", "0\n"),
            ("memory.peak", "20000\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "300\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n",
            ),
            ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\n"),
        ]);
        let found = memory(&cgroups);
        let expected = Memory {
            usage: Some(16384),
            limit: Some(65536),
            inactive_file: Some(1024),
            cache: Some(8192),
            rss: Some(4096),
            mapped_file: Some(2048),
            faults: Some(30),
            major_faults: Some(3),
            swap: Some(100),
            swap_limit: Some(300),
        };
        assert_eq!(found, expected);
        let derived = [found.working_set(), found.available(), found.swap_available()];
        assert_eq!(derived, [Some(15360), Some(65536 - 15360), Some(200)]);
        let expected = MemoryDetails {
            kernel: Some(512),
            max_usage: Some(20000),
            failures: Some(4),
            oom_kills: Some(2),
            reservation: Some(0),
            swap_limit: Some(300),
        };
        assert_eq!(details(&cgroups), expected);
        assert_eq!(pressure(&cgroups).unwrap().some.unwrap().total, 2000);
    }

    #[test]
    fn on_v1() {
        let stat = "cache 1\nrss 1\ninactive_file 1\nswap 1\nmapped_file 5\n\
            hierarchical_memory_limit 9223372036854771712\n\
            total_cache 8192\ntotal_rss 4096\ntotal_inactive_file 1024\ntotal_swap 0\ntotal_pgfault 30\ntotal_pgmajfault 3\n";
        let (_dir, cgroups) = v1(&[
            ("memory/memory.stat", stat),
            ("memory/memory.usage_in_bytes", "16384\n"),
            ("memory/memory.limit_in_bytes", "65536\n"),
            ("memory/memory.memsw.limit_in_bytes", "98304\n"),
            ("memory/memory.max_usage_in_bytes", "20000\n"),
            ("memory/memory.kmem.usage_in_bytes", "512\n"),
            ("memory/memory.failcnt", "4\n"),
            ("memory/memory.soft_limit_in_bytes", "9223372036854771712\n"),
            (
                "memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
        ]);
        let found = memory(&cgroups);
        assert_eq!(
            (found.cache, found.rss, found.mapped_file),
            (Some(8192), Some(4096), Some(5))
        );
        let derived = [found.working_set(), found.available(), found.swap_available()];
        assert_eq!(derived, [Some(15360), Some(65536 - 15360), Some(32768)]);
        let expected = MemoryDetails {
            kernel: Some(512),
            max_usage: Some(20000),
            failures: Some(4),
            oom_kills: Some(2),
            reservation: Some(UNLIMITED),
            swap_limit: Some(98304),
        };
        assert_eq!(details(&cgroups), expected);
        assert_eq!(pressure(&cgroups), None);
    }

    #[test]
    fn what_is_derived() {
        let memory = |usage, inactive_file, limit| Memory {
            usage: Some(usage),
            inactive_file,
            limit,
            ..Memory::default()
        };
        let table = [
            // More inactive than used: the two are not read at once.
            (memory(5, Some(9), Some(100)), Some(0), Some(100)),
            (memory(50, Some(9), Some(UNLIMITED)), Some(41), None),
            (memory(50, Some(9), Some(20)), Some(41), Some(0)),
            (memory(50, None, Some(100)), None, None),
        ];
        for (memory, working_set, available) in table {
            assert_eq!(
                (memory.working_set(), memory.available()),
                (working_set, available),
                "{memory:?}"
            );
        }
        for (both, limit, expected) in [
            (Some(30), Some(20), Some(10)),
            (Some(UNLIMITED), Some(20), Some(UNLIMITED)),
            (Some(30), Some(UNLIMITED), Some(0)),
            (None, Some(20), None),
        ] {
            assert_eq!(swap_of(both, limit), expected, "{both:?} {limit:?}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone() {
        let (dir, cgroups) = v2(&[]);
        drop(dir);
        assert_eq!(memory(&cgroups), Memory::default());
        assert_eq!(details(&cgroups), MemoryDetails::default());
    }
}
