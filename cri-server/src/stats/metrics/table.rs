//! Every metric there is: name, kind, labels, a sentence. Constant for the life of the process.
//!
//! Names, labels and kinds are those of cAdvisor, so that its dashboards and rules go on working. CRI's values are whole
//! numbers: seconds are rounded down.

use corten_proto::cri;
use corten_proto::cri::MetricType::{Counter, Gauge};

/// Labels that every metric has, in this order; a pod's own metrics leave `container`, `image` and `name` empty.
pub(super) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What a metric is.
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    pub(super) kind: cri::MetricType,
    /// Labels after [`LABELS`].
    pub(super) extra: &'static [&'static str],
    help: &'static str,
}

impl Descriptor {
    fn to_cri(&self) -> cri::MetricDescriptor {
        let keys = LABELS.iter().chain(self.extra);
        cri::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: keys.map(|&key| key.to_owned()).collect(),
        }
    }
}

/// ListMetricDescriptors.
pub(crate) fn descriptors() -> Vec<cri::MetricDescriptor> {
    ALL.iter().map(|descriptor| descriptor.to_cri()).collect()
}

/// Declares a constant for each metric, and `ALL` of them.
macro_rules! descriptors {
    ($($constant:ident $name:literal $kind:ident [$($extra:literal),*] $help:literal;)*) => {
        $(
            pub(super) const $constant: Descriptor = Descriptor {
                name: concat!("container_", $name),
                kind: $kind,
                extra: &[$($extra),*],
                help: $help,
            };
        )*
        /// All of them, sorted by name.
        pub(super) const ALL: &[Descriptor] = &[$($constant),*];
    };
}

descriptors! {
    BLKIO "blkio_device_usage_total" Counter ["device", "major", "minor", "operation"]
        "Bytes read from and written to a block device.";
    CPU_PERIODS "cpu_cfs_periods_total" Counter [] "Periods of the processor quota in which anything ran.";
    CPU_THROTTLED_PERIODS "cpu_cfs_throttled_periods_total" Counter [] "Periods in which the processor quota ran out.";
    CPU_THROTTLED "cpu_cfs_throttled_seconds_total" Counter [] "Time held back by the processor quota, in seconds.";
    CPU_SYSTEM "cpu_system_seconds_total" Counter [] "Processor time in the kernel, in seconds.";
    CPU_USAGE "cpu_usage_seconds_total" Counter ["cpu"] "Processor time, in seconds; of all processors: total.";
    CPU_USER "cpu_user_seconds_total" Counter [] "Processor time in programs, in seconds.";
    FILE_DESCRIPTORS "file_descriptors" Gauge [] "Files that the processes have open.";
    FS_INODES_FREE "fs_inodes_free" Gauge ["device"] "Free inodes of the filesystem of the writable layer.";
    FS_INODES_TOTAL "fs_inodes_total" Gauge ["device"] "Inodes of the filesystem of the writable layer.";
    FS_LIMIT "fs_limit_bytes" Gauge ["device"]
        "Bytes that the writable layer may take: its limit, else its filesystem's size.";
    FS_READ_BYTES "fs_reads_bytes_total" Counter ["device"] "Bytes read from a block device.";
    FS_READS "fs_reads_total" Counter ["device"] "Read operations of a block device.";
    FS_USAGE "fs_usage_bytes" Gauge ["device"] "Bytes that the writable layer takes.";
    FS_WRITTEN_BYTES "fs_writes_bytes_total" Counter ["device"] "Bytes written to a block device.";
    FS_WRITES "fs_writes_total" Counter ["device"] "Write operations of a block device.";
    HUGETLB_MAX_USAGE "hugetlb_max_usage_bytes" Gauge ["pagesize"] "The most huge pages ever in use, in bytes.";
    HUGETLB_USAGE "hugetlb_usage_bytes" Gauge ["pagesize"] "Huge pages in use, in bytes.";
    LAST_SEEN "last_seen" Gauge [] "When this was read, in seconds since the epoch.";
    MEMORY_CACHE "memory_cache" Gauge [] "Cached files, in bytes.";
    MEMORY_FAILCNT "memory_failcnt" Counter [] "How often usage met the memory limit.";
    MEMORY_FAILURES "memory_failures_total" Counter ["failure_type", "scope"]
        "Page faults (pgfault), and those that waited for a disk (pgmajfault).";
    MEMORY_KERNEL "memory_kernel_usage" Gauge [] "The kernel's own memory for it, in bytes.";
    MEMORY_MAPPED_FILE "memory_mapped_file" Gauge [] "Mapped files, in bytes.";
    MEMORY_MAX_USAGE "memory_max_usage_bytes" Gauge [] "The most memory ever charged, in bytes.";
    MEMORY_RSS "memory_rss" Gauge [] "Anonymous memory, in bytes.";
    MEMORY_SWAP "memory_swap" Gauge [] "Memory swapped out, in bytes.";
    MEMORY_USAGE "memory_usage_bytes" Gauge [] "All memory charged, in bytes.";
    MEMORY_WORKING_SET "memory_working_set_bytes" Gauge [] "Memory charged without files not used lately, in bytes.";
    NET_RX_BYTES "network_receive_bytes_total" Counter ["interface"] "Bytes received.";
    NET_RX_ERRORS "network_receive_errors_total" Counter ["interface"] "Errors in receiving.";
    NET_RX_DROPPED "network_receive_packets_dropped_total" Counter ["interface"] "Received packets that were dropped.";
    NET_RX_PACKETS "network_receive_packets_total" Counter ["interface"] "Packets received.";
    NET_TX_BYTES "network_transmit_bytes_total" Counter ["interface"] "Bytes sent.";
    NET_TX_ERRORS "network_transmit_errors_total" Counter ["interface"] "Errors in sending.";
    NET_TX_DROPPED "network_transmit_packets_dropped_total" Counter ["interface"] "Packets dropped instead of sent.";
    NET_TX_PACKETS "network_transmit_packets_total" Counter ["interface"] "Packets sent.";
    OOM_EVENTS "oom_events_total" Counter [] "Processes killed for want of memory.";
    PRESSURE_CPU_FULL "pressure_cpu_stalled_seconds_total" Counter []
        "Time in which all waited for a processor, in seconds.";
    PRESSURE_CPU_SOME "pressure_cpu_waiting_seconds_total" Counter []
        "Time in which one waited for a processor, in seconds.";
    PRESSURE_IO_FULL "pressure_io_stalled_seconds_total" Counter [] "Time in which all waited for a disk, in seconds.";
    PRESSURE_IO_SOME "pressure_io_waiting_seconds_total" Counter [] "Time in which one waited for a disk, in seconds.";
    PRESSURE_MEMORY_FULL "pressure_memory_stalled_seconds_total" Counter []
        "Time in which all waited for memory, in seconds.";
    PRESSURE_MEMORY_SOME "pressure_memory_waiting_seconds_total" Counter []
        "Time in which one waited for memory, in seconds.";
    PROCESSES "processes" Gauge [] "Processes.";
    SOCKETS "sockets" Gauge [] "Sockets that the processes have open.";
    SPEC_CPU_PERIOD "spec_cpu_period" Gauge [] "Period of the processor quota, in microseconds.";
    SPEC_CPU_QUOTA "spec_cpu_quota" Gauge [] "Processor quota, in microseconds a period; none without one.";
    SPEC_CPU_SHARES "spec_cpu_shares" Gauge [] "Share of the processors under contention; 1024 is the default.";
    SPEC_MEMORY_LIMIT "spec_memory_limit_bytes" Gauge [] "Memory limit in bytes; 0 without one.";
    SPEC_MEMORY_RESERVATION "spec_memory_reservation_limit_bytes" Gauge []
        "Memory kept from reclaim, in bytes; 0 without.";
    SPEC_MEMORY_SWAP_LIMIT "spec_memory_swap_limit_bytes" Gauge []
        "Swap limit in bytes, on cgroup v1 that of memory and swap together; 0 without one.";
    START_TIME "start_time_seconds" Gauge [] "When it was started, in seconds since the epoch.";
    THREADS "threads" Gauge [] "Threads.";
    THREADS_MAX "threads_max" Gauge [] "Threads there may be; 0 without a limit.";
    ULIMITS_SOFT "ulimits_soft" Gauge ["ulimit"] "Soft limits of the first process.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        let names: Vec<&str> = ALL.iter().map(|descriptor| descriptor.name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        assert_eq!(names.len(), 56, "what kubelet shows of cAdvisor");
        for descriptor in descriptors() {
            assert!(
                !descriptor.help.is_empty() && descriptor.label_keys.len() >= LABELS.len(),
                "{descriptor:?}"
            );
        }
    }

    #[test]
    fn totals_are_counters() {
        for descriptor in ALL {
            let counts = descriptor.name.ends_with("_total") || descriptor.name == MEMORY_FAILCNT.name;
            let counts = counts && descriptor.name != FS_INODES_TOTAL.name;
            assert_eq!(descriptor.kind == Counter, counts, "{}", descriptor.name);
        }
    }
}
