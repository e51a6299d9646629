//! What a container uses, as CRI has it.

use std::time::UNIX_EPOCH;

use corten_proto::cri;

use super::cgroups::Cgroups;
use super::memory::Memory;
use super::{Live, Rate, Round, age, cpu, io, known, memory};
use crate::container::{Container, Status};
use crate::store::now;

/// What cgroups have used.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu: Option<cri::CpuUsage>,
    pub(super) memory: Option<cri::MemoryUsage>,
    pub(super) swap: Option<cri::SwapUsage>,
    pub(super) io: Option<cri::IoUsage>,
}

impl Usage {
    /// As it is now; the processor time without its rate.
    pub(super) fn of(cgroups: &Cgroups) -> Usage {
        let memory = memory::memory(cgroups);
        Usage {
            cpu: cpu_usage(cgroups),
            swap: swap_usage(&memory),
            memory: memory_usage(&memory, memory::pressure(cgroups)),
            io: io::pressure(cgroups).map(|psi| cri::IoUsage {
                timestamp: now(),
                psi: Some(psi),
            }),
        }
    }

    /// With the rate; `since` is when the counter began, in nanoseconds since the epoch.
    pub(super) fn with_rate(mut self, rate: &Rate, since: i64) -> Usage {
        if let Some(cpu) = &mut self.cpu
            && let Some(usage_ns) = &cpu.usage_core_nano_seconds
        {
            cpu.usage_nano_cores = Some(known(rate.nano_cores(usage_ns.value, age(since))));
        }
        self
    }
}

impl Round<'_> {
    /// What a container uses: of one that has ended the writable layer alone.
    pub(crate) fn container(&self, container: &Container) -> cri::ContainerStats {
        self.container_as(container, Live::of_container(container).as_ref())
    }

    /// The same, where the caller has looked whether it is there.
    pub(super) fn container_as(&self, container: &Container, live: Option<&Live>) -> cri::ContainerStats {
        let usage = live.map(|live| {
            let since = match container.status() {
                Status::Running { started_at, .. } => started_at,
                _ => container.metadata.created_at,
            };
            Usage::of(&live.cgroups).with_rate(&container.rate, since)
        });
        let usage = usage.unwrap_or_default();
        let config = &container.metadata.config;
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: container.id().to_string(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: usage.cpu,
            memory: usage.memory,
            writable_layer: self.writable_layer(container),
            swap: usage.swap,
            io: usage.io,
        }
    }

    /// What it has written; none where that is not known (yet).
    fn writable_layer(&self, container: &Container) -> Option<cri::FilesystemUsage> {
        let (usage, found_at) = self.snapshots.usage(&self.paths.container(container.id()))?;
        let since_epoch = found_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(cri::FilesystemUsage {
            timestamp: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: self.disk.mountpoint.display().to_string(),
            }),
            used_bytes: Some(known(usage.bytes)),
            inodes_used: Some(known(usage.inodes)),
        })
    }
}

fn cpu_usage(cgroups: &Cgroups) -> Option<cri::CpuUsage> {
    Some(cri::CpuUsage {
        usage_core_nano_seconds: Some(known(cpu::usage_ns(cgroups)?)),
        usage_nano_cores: None,
        psi: cpu::pressure(cgroups),
        timestamp: now(),
    })
}

fn memory_usage(memory: &Memory, psi: Option<cri::PsiStats>) -> Option<cri::MemoryUsage> {
    Some(cri::MemoryUsage {
        timestamp: now(),
        usage_bytes: Some(known(memory.usage?)),
        working_set_bytes: memory.working_set().map(known),
        available_bytes: memory.available().map(known),
        rss_bytes: memory.rss.map(known),
        page_faults: memory.faults.map(known),
        major_page_faults: memory.major_faults.map(known),
        psi,
    })
}

fn swap_usage(memory: &Memory) -> Option<cri::SwapUsage> {
    Some(cri::SwapUsage {
        timestamp: now(),
        swap_usage_bytes: Some(known(memory.swap?)),
        swap_available_bytes: memory.swap_available().map(known),
    })
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::v2;
    use super::*;

    const PRESSURE: &str =
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";

    #[test]
    fn pressure_is_with_what_it_is_of() {
        let (_dir, cgroups) = v2(&[
            ("cpu.stat", "usage_usec 5\n"),
            ("cpu.pressure", PRESSURE),
            ("memory.current", "9\n"),
            ("memory.pressure", PRESSURE),
            ("io.pressure", PRESSURE),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "max\n"),
        ]);
        let usage = Usage::of(&cgroups);
        let some = |psi: Option<cri::PsiStats>| psi.and_then(|psi| psi.some).map(|some| some.total);
        let (cpu, memory, io) = (usage.cpu.unwrap(), usage.memory.unwrap(), usage.io.unwrap());
        assert_eq!([some(cpu.psi), some(memory.psi), some(io.psi)], [Some(2000); 3]);
        assert_eq!(cpu.usage_core_nano_seconds, Some(known(5000)));
        let swap = usage.swap.unwrap();
        assert_eq!(
            (swap.swap_usage_bytes, swap.swap_available_bytes),
            (Some(known(0)), None)
        );
        assert_eq!(memory.working_set_bytes, None, "without memory.stat it is not known");
        assert!(
            [cpu.timestamp, memory.timestamp, io.timestamp, swap.timestamp]
                .iter()
                .all(|&at| at > 0)
        );
    }

    #[test]
    fn nothing_is_said_of_a_cgroup_that_is_gone() {
        let (dir, cgroups) = v2(&[]);
        drop(dir);
        assert_eq!(Usage::of(&cgroups).with_rate(&Rate::default(), 0), Usage::default());
    }
}
