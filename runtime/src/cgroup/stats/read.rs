//! Collecting: which file of which controller has which number. A file that is not there counts as zero: controllers, and
//! kernels, differ.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::{Blkio, Cpu, CpuUsage, Cpuset, Hugetlb, Memory, MemoryEntry, Pids, Psi, Stats, Throttling, parse};
use crate::cgroup::Cgroup;

/// The clock ticks in which v1 counts: USER_HZ, 100 on every machine with an ordinary ABI.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

impl Cgroup {
    /// The numbers of now.
    pub fn stats(&self) -> Result<Stats> {
        if self.is_v2() { self.stats_v2() } else { self.stats_v1() }
    }

    /// A control file, empty where there is none. Its controller is the first part of its name.
    pub(super) fn text(&self, file: &str) -> Result<String> {
        let controller = file.split_once('.').map_or(file, |(controller, _)| controller);
        let Some(directory) = self.controller(controller)? else {
            return Ok(String::new());
        };
        match directory.try_read(file) {
            // ENODEV: the cgroup has just been removed. EOPNOTSUPP: pressure is switched off.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(String::new()),
            text => text.with_context(|| format!("read {}/{file}", directory.path.display())),
        }
    }

    fn number(&self, file: &str) -> Result<u64> {
        Ok(self.text(file)?.trim().parse().unwrap_or(0))
    }

    /// A limit: the largest number for none, 0 for no such file.
    fn limit(&self, file: &str) -> Result<u64> {
        let text = self.text(file)?;
        Ok(if text.is_empty() { 0 } else { parse::number(&text) })
    }

    fn keyed(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        Ok(parse::keyed(&self.text(file)?))
    }

    fn psi(&self, file: &str) -> Result<Option<Psi>> {
        let text = self.text(file)?;
        Ok((!text.is_empty()).then(|| parse::pressure(&text)))
    }

    fn stats_v1(&self) -> Result<Stats> {
        Ok(Stats {
            cpu: self.cpu_v1()?,
            cpuset: self.cpuset_v1()?,
            memory: self.memory_v1()?,
            pids: self.pids()?,
            blkio: self.blkio_v1()?,
            hugetlb: self.hugetlb([".usage_in_bytes", ".max_usage_in_bytes", ".failcnt"])?,
            ..Stats::default()
        })
    }

    fn cpu_v1(&self) -> Result<Cpu> {
        let (ticks, throttling) = (self.keyed("cpuacct.stat")?, self.keyed("cpu.stat")?);
        let (percpu_kernel, percpu_user) = parse::usage_all(&self.text("cpuacct.usage_all")?);
        let percpu = self.text("cpuacct.usage_percpu")?;
        let usage = CpuUsage {
            total: self.number("cpuacct.usage")?,
            percpu: percpu.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect(),
            percpu_kernel,
            percpu_user,
            kernel: value(&ticks, "system") * NANOSECONDS_PER_TICK,
            user: value(&ticks, "user") * NANOSECONDS_PER_TICK,
        };
        let throttling = Throttling {
            periods: value(&throttling, "nr_periods"),
            throttled_periods: value(&throttling, "nr_throttled"),
            throttled_time: value(&throttling, "throttled_time"),
        };
        Ok(Cpu {
            usage,
            throttling,
            psi: None,
        })
    }

    fn cpuset_v1(&self) -> Result<Cpuset> {
        let level = self.text("cpuset.sched_relax_domain_level")?;
        Ok(Cpuset {
            cpus: parse::list(&self.text("cpuset.cpus")?),
            cpu_exclusive: self.number("cpuset.cpu_exclusive")?,
            mems: parse::list(&self.text("cpuset.mems")?),
            mem_hardwall: self.number("cpuset.mem_hardwall")?,
            mem_exclusive: self.number("cpuset.mem_exclusive")?,
            memory_migrate: self.number("cpuset.memory_migrate")?,
            memory_spread_page: self.number("cpuset.memory_spread_page")?,
            memory_spread_slab: self.number("cpuset.memory_spread_slab")?,
            memory_pressure: self.number("cpuset.memory_pressure")?,
            sched_load_balance: self.number("cpuset.sched_load_balance")?,
            sched_relax_domain_level: level.trim().parse().unwrap_or(0),
        })
    }

    fn memory_v1(&self) -> Result<Memory> {
        let entry = |kind: &str| -> Result<MemoryEntry> {
            Ok(MemoryEntry {
                limit: self.limit(&format!("memory.{kind}limit_in_bytes"))?,
                usage: self.number(&format!("memory.{kind}usage_in_bytes"))?,
                max: self.number(&format!("memory.{kind}max_usage_in_bytes"))?,
                failcnt: self.number(&format!("memory.{kind}failcnt"))?,
            })
        };
        let raw = self.keyed("memory.stat")?;
        Ok(Memory {
            cache: value(&raw, "cache"),
            usage: entry("")?,
            swap: entry("memsw.")?,
            kernel: entry("kmem.")?,
            kernel_tcp: entry("kmem.tcp.")?,
            raw,
            psi: None,
        })
    }

    fn blkio_v1(&self) -> Result<Blkio> {
        // BFQ counts what goes through it; the throttle's files count everything where no disk has BFQ.
        let read = |name: &str| -> Result<Vec<_>> {
            let of_bfq = parse::blkio(&self.text(&format!("blkio.bfq.{name}_recursive"))?);
            if !of_bfq.is_empty() {
                return Ok(of_bfq);
            }
            Ok(parse::blkio(&self.text(&format!("blkio.throttle.{name}_recursive"))?))
        };
        Ok(Blkio {
            io_service_bytes_recursive: read("io_service_bytes")?,
            io_serviced_recursive: read("io_serviced")?,
            psi: None,
        })
    }

    fn stats_v2(&self) -> Result<Stats> {
        let (bytes, operations) = parse::io_stat(&self.text("io.stat")?);
        Ok(Stats {
            cpu: self.cpu_v2()?,
            cpuset: Cpuset {
                cpus: parse::list(&self.text("cpuset.cpus.effective")?),
                mems: parse::list(&self.text("cpuset.mems.effective")?),
                ..Cpuset::default()
            },
            memory: self.memory_v2()?,
            pids: self.pids()?,
            blkio: Blkio {
                io_service_bytes_recursive: bytes,
                io_serviced_recursive: operations,
                psi: self.psi("io.pressure")?,
            },
            hugetlb: self.hugetlb([".current", "", ""])?,
            ..Stats::default()
        })
    }

    fn cpu_v2(&self) -> Result<Cpu> {
        // Microseconds.
        let stat = self.keyed("cpu.stat")?;
        Ok(Cpu {
            usage: CpuUsage {
                total: value(&stat, "usage_usec") * 1000,
                kernel: value(&stat, "system_usec") * 1000,
                user: value(&stat, "user_usec") * 1000,
                ..CpuUsage::default()
            },
            throttling: Throttling {
                periods: value(&stat, "nr_periods"),
                throttled_periods: value(&stat, "nr_throttled"),
                throttled_time: value(&stat, "throttled_usec") * 1000,
            },
            psi: self.psi("cpu.pressure")?,
        })
    }

    fn memory_v2(&self) -> Result<Memory> {
        let raw = self.keyed("memory.stat")?;
        let events = self.keyed("memory.events")?;
        let usage = MemoryEntry {
            limit: self.limit("memory.max")?,
            usage: self.number("memory.current")?,
            max: self.number("memory.peak")?,
            failcnt: value(&events, "max"),
        };
        let swap = MemoryEntry {
            limit: self.limit("memory.swap.max")?.saturating_add(usage.limit),
            usage: self.number("memory.swap.current")? + usage.usage,
            ..MemoryEntry::default()
        };
        Ok(Memory {
            cache: value(&raw, "file"),
            usage,
            swap,
            // There is no limit of their own for these.
            kernel: MemoryEntry {
                usage: value(&raw, "kernel"),
                limit: u64::MAX,
                ..MemoryEntry::default()
            },
            kernel_tcp: MemoryEntry {
                usage: value(&raw, "sock"),
                limit: u64::MAX,
                ..MemoryEntry::default()
            },
            raw,
            psi: self.psi("memory.pressure")?,
        })
    }

    fn pids(&self) -> Result<Pids> {
        let limit = self.limit("pids.max")?;
        Ok(Pids {
            current: self.number("pids.current")?,
            limit: if limit == u64::MAX { 0 } else { limit },
        })
    }

    /// Of every page size there is; `files` are the ends of the names for usage, its maximum, and failures.
    fn hugetlb(&self, files: [&str; 3]) -> Result<BTreeMap<String, Hugetlb>> {
        let Some(directory) = self.controller("hugetlb")? else {
            return Ok(BTreeMap::new());
        };
        let [usage, max, failcnt] = files;
        let mut all = BTreeMap::new();
        for name in directory.files()? {
            let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(usage));
            let Some(size) = size.filter(|size| !size.contains('.')) else {
                continue;
            };
            let read = |end: &str| match end {
                "" => Ok(0),
                end => self.number(&format!("hugetlb.{size}{end}")),
            };
            let entry = Hugetlb {
                usage: read(usage)?,
                max: read(max)?,
                failcnt: match failcnt {
                    "" => value(&self.keyed(&format!("hugetlb.{size}.events"))?, "max"),
                    end => read(end)?,
                },
            };
            all.insert(size.to_owned(), entry);
        }
        Ok(all)
    }
}

fn value(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}
