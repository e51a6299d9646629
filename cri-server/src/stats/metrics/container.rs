//! A cgroup's metrics, a container's and a pod's alike, and what only containers have.

use corten_proto::cri;

use super::{Collector, or_zero, seconds, table};
use crate::container::{Container, Status};
use crate::stats::cgroups::Cgroups;
use crate::stats::parse::UNLIMITED;
use crate::stats::process::open_files;
use crate::stats::{Live, Round, cpu, hugetlb, io, memory, pids};

impl Round<'_> {
    /// A container's; none of one that does not run.
    pub(super) fn container_metrics(
        &mut self,
        container: &Container,
        pod: Option<&cri::PodSandboxMetadata>,
    ) -> Option<cri::ContainerMetrics> {
        let Status::Running { pid, started_at } = container.status() else {
            return None;
        };
        let live = Live::of(Some(pid), container.id().as_str())?;
        let config = &container.metadata.config;
        let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
        let image = config
            .image
            .as_ref()
            .map_or("", |image| match image.user_specified_image.as_str() {
                "" => &image.image,
                asked => asked,
            });
        let labels = [name, image, container.id().as_str()];
        let mut collector = Collector::new(live.cgroups.path(), labels, pod);
        let processes = live.cgroups.processes();
        cgroup(&mut collector, &live.cgroups, &processes);
        self.devices_of(&mut collector, &live.cgroups);
        self.writable_layer_of(&mut collector, container);
        times(&mut collector, started_at);
        let open = open_files(&processes);
        collector.add(&table::FILE_DESCRIPTORS, open.files);
        collector.add(&table::SOCKETS, open.sockets);
        collector.add_with(&table::ULIMITS_SOFT, &["max_open_files"], live.init.max_open_files());
        Some(cri::ContainerMetrics {
            container_id: container.id().to_string(),
            metrics: collector.metrics,
        })
    }

    /// Block devices; the one that the writable layer is on is always among them.
    pub(super) fn devices_of(&mut self, collector: &mut Collector, cgroups: &Cgroups) {
        let Some(mut devices) = io::devices(cgroups) else {
            return;
        };
        devices.entry(self.disk.device).or_default();
        for (numbers, io) in devices {
            let device = self.devices.name(numbers);
            let (major, minor) = (numbers.0.to_string(), numbers.1.to_string());
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
                collector.add_with(&table::BLKIO, &[device, &major, &minor, operation], Some(bytes));
            }
            collector.add_with(&table::FS_READ_BYTES, &[device], Some(io.read_bytes));
            collector.add_with(&table::FS_READS, &[device], Some(io.reads));
            collector.add_with(&table::FS_WRITTEN_BYTES, &[device], Some(io.written_bytes));
            collector.add_with(&table::FS_WRITES, &[device], Some(io.writes));
        }
    }

    fn writable_layer_of(&mut self, collector: &mut Collector, container: &Container) {
        let usage = self.snapshots.usage(&self.paths.container(container.id()));
        let device = [self.devices.name(self.disk.device)];
        collector.add_with(&table::FS_USAGE, &device, usage.map(|(usage, _)| usage.bytes));
        collector.add_with(&table::FS_LIMIT, &device, Some(self.disk.limit_bytes));
        collector.add_with(&table::FS_INODES_TOTAL, &device, Some(self.disk.inodes));
        collector.add_with(&table::FS_INODES_FREE, &device, Some(self.disk.free_inodes));
    }
}

/// What every cgroup has, but for block devices.
pub(super) fn cgroup(collector: &mut Collector, cgroups: &Cgroups, processes: &[i32]) {
    processor(collector, cgroups);
    memory_of(collector, cgroups);
    pressure(collector, cgroups);
    for pages in hugetlb::huge_pages(cgroups) {
        collector.add_with(&table::HUGETLB_USAGE, &[pages.page_size], Some(pages.usage));
        collector.add_with(&table::HUGETLB_MAX_USAGE, &[pages.page_size], pages.max_usage);
    }
    collector.add(&table::PROCESSES, u64::try_from(processes.len()).ok());
    collector.add(&table::THREADS, pids::threads(cgroups, processes));
    collector.add(&table::THREADS_MAX, or_zero(pids::max_threads(cgroups)));
}

/// When it began, in nanoseconds since the epoch, and now.
pub(super) fn times(collector: &mut Collector, started_at: i64) {
    let now = collector.at;
    collector.add(&table::START_TIME, seconds(u64::try_from(started_at).ok()));
    collector.add(&table::LAST_SEEN, seconds(u64::try_from(now).ok()));
}

fn processor(collector: &mut Collector, cgroups: &Cgroups) {
    let usage = cpu::usage(cgroups);
    collector.add_with(&table::CPU_USAGE, &["total"], seconds(usage.usage_ns));
    collector.add(&table::CPU_USER, seconds(usage.user_ns));
    collector.add(&table::CPU_SYSTEM, seconds(usage.system_ns));
    let throttling = cpu::throttling(cgroups);
    collector.add(&table::CPU_PERIODS, throttling.periods);
    collector.add(&table::CPU_THROTTLED_PERIODS, throttling.throttled_periods);
    collector.add(&table::CPU_THROTTLED, seconds(throttling.throttled_ns));
    let limits = cpu::limits(cgroups);
    collector.add(&table::SPEC_CPU_SHARES, limits.shares);
    collector.add(&table::SPEC_CPU_PERIOD, limits.period_us);
    collector.add(
        &table::SPEC_CPU_QUOTA,
        limits.quota_us.filter(|&quota| quota != UNLIMITED),
    );
}

fn memory_of(collector: &mut Collector, cgroups: &Cgroups) {
    let usage = memory::memory(cgroups);
    collector.add(&table::MEMORY_USAGE, usage.usage);
    collector.add(&table::MEMORY_WORKING_SET, usage.working_set());
    collector.add(&table::MEMORY_CACHE, usage.cache);
    collector.add(&table::MEMORY_RSS, usage.rss);
    collector.add(&table::MEMORY_MAPPED_FILE, usage.mapped_file);
    collector.add(&table::MEMORY_SWAP, usage.swap);
    // What is below counts with both kernels, so that the two scopes of cAdvisor say the same.
    for scope in ["container", "hierarchy"] {
        collector.add_with(&table::MEMORY_FAILURES, &["pgfault", scope], usage.faults);
        collector.add_with(&table::MEMORY_FAILURES, &["pgmajfault", scope], usage.major_faults);
    }
    let details = memory::details(cgroups);
    collector.add(&table::MEMORY_KERNEL, details.kernel);
    collector.add(&table::MEMORY_MAX_USAGE, details.max_usage);
    collector.add(&table::MEMORY_FAILCNT, details.failures);
    collector.add(&table::OOM_EVENTS, details.oom_kills);
    collector.add(&table::SPEC_MEMORY_LIMIT, or_zero(usage.limit));
    collector.add(&table::SPEC_MEMORY_RESERVATION, or_zero(details.reservation));
    collector.add(&table::SPEC_MEMORY_SWAP_LIMIT, or_zero(details.swap_limit));
}

fn pressure(collector: &mut Collector, cgroups: &Cgroups) {
    let table = [
        (
            cpu::pressure(cgroups),
            &table::PRESSURE_CPU_SOME,
            &table::PRESSURE_CPU_FULL,
        ),
        (
            memory::pressure(cgroups),
            &table::PRESSURE_MEMORY_SOME,
            &table::PRESSURE_MEMORY_FULL,
        ),
        (
            io::pressure(cgroups),
            &table::PRESSURE_IO_SOME,
            &table::PRESSURE_IO_FULL,
        ),
    ];
    for (psi, some, full) in table {
        let psi = psi.unwrap_or_default();
        collector.add(some, seconds(psi.some.map(|some| some.total)));
        collector.add(full, seconds(psi.full.map(|full| full.total)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::stats::cgroups::tests::{v1, v2};

    /// The names of all that a cgroup has, without `container_`.
    fn names(cgroups: &Cgroups) -> BTreeSet<&'static str> {
        let mut collector = Collector::new(Path::new("/c"), [""; 3], None);
        cgroup(&mut collector, cgroups, &[]);
        let all = collector.metrics.iter().map(|metric| metric.name.as_str());
        let known = |name: &str| table::ALL.iter().find(|descriptor| descriptor.name == name);
        all.map(|name| {
            known(name)
                .expect("one of the table")
                .name
                .strip_prefix("container_")
                .unwrap()
        })
        .collect()
    }

    /// What every kernel of the last years says of a cgroup.
    const ALWAYS: [&str; 26] = [
        "cpu_cfs_periods_total",
        "cpu_cfs_throttled_periods_total",
        "cpu_cfs_throttled_seconds_total",
        "cpu_system_seconds_total",
        "cpu_usage_seconds_total",
        "cpu_user_seconds_total",
        "memory_cache",
        "memory_failcnt",
        "memory_failures_total",
        "memory_kernel_usage",
        "memory_mapped_file",
        "memory_max_usage_bytes",
        "memory_rss",
        "memory_swap",
        "memory_usage_bytes",
        "memory_working_set_bytes",
        "oom_events_total",
        "processes",
        "spec_cpu_period",
        "spec_cpu_quota",
        "spec_cpu_shares",
        "spec_memory_limit_bytes",
        "spec_memory_reservation_limit_bytes",
        "spec_memory_swap_limit_bytes",
        "threads",
        "threads_max",
    ];

    const PRESSURE: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=2000000\n";

    #[test]
    fn on_v2() {
        let (_dir, cgroups) = v2(&[
            (
                "cpu.stat",
                "usage_usec 1\nuser_usec 1\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "100\n"),
            ("cpu.pressure", PRESSURE),
            (
                "memory.stat",
                "anon 1\nfile 1\nkernel 1\nfile_mapped 1\ninactive_file 1\npgfault 1\npgmajfault 1\n",
            ),
            ("memory.current", "1\n"),
            ("memory.max", "max\n"),
            ("memory.low", "0\n"),
            ("memory.peak", "1\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "max\n"),
            ("memory.events", "max 0\noom_kill 0\n"),
            ("memory.pressure", PRESSURE),
            ("io.pressure", PRESSURE),
            ("pids.current", "1\n"),
            ("pids.max", "max\n"),
        ]);
        let mut expected = BTreeSet::from(ALWAYS);
        expected.extend(table::ALL.iter().filter_map(|it| {
            let name = it.name.strip_prefix("container_")?;
            name.starts_with("pressure_").then_some(name)
        }));
        assert_eq!(names(&cgroups), expected);
    }

    #[test]
    fn on_v1() {
        let stat = "cache 1\nrss 1\nmapped_file 1\nswap 0\npgfault 1\npgmajfault 1\ninactive_file 1\n";
        let (_dir, cgroups) = v1(&[
            ("cpuacct/cpuacct.usage", "1\n"),
            ("cpuacct/cpuacct.stat", "user 1\nsystem 0\n"),
            ("cpu/cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n"),
            ("cpu/cpu.shares", "1024\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_quota_us", "50000\n"),
            ("memory/memory.stat", stat),
            ("memory/memory.usage_in_bytes", "1\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.max_usage_in_bytes", "1\n"),
            ("memory/memory.kmem.usage_in_bytes", "1\n"),
            ("memory/memory.failcnt", "0\n"),
            (
                "memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
            ),
            ("pids/pids.current", "1\n"),
            ("pids/pids.max", "max\n"),
        ]);
        assert_eq!(names(&cgroups), BTreeSet::from(ALWAYS));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_numbers() {
        let (dir, cgroups) = v2(&[]);
        drop(dir);
        assert_eq!(names(&cgroups), BTreeSet::from(["processes"]));
    }
}
