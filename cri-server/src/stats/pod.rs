//! What a pod uses, as CRI has it: the pod's cgroup where it has one of its own, else its containers together.

use std::sync::Arc;

use corten_proto::cri;

use super::cgroups::Cgroups;
use super::container::Usage;
use super::network::{Interface, network};
use super::process::Process;
use super::{Live, Round, known};
use crate::container::Container;
use crate::sandbox::Sandbox;
use crate::store::now;

impl Round<'_> {
    /// What a sandbox and its `containers` use. Of one that is not ready: what there still is.
    pub(crate) fn pod(&self, sandbox: &Sandbox, containers: &[Arc<Container>]) -> cri::PodSandboxStats {
        let infra = Live::of(sandbox.pid(), sandbox.id().as_str());
        let each = containers.iter().map(|container| {
            let live = Live::of_container(container);
            let stats = self.container_as(container, live.as_ref());
            (stats, live.as_ref().map(Live::processes))
        });
        let (stats, processes): (Vec<_>, Vec<_>) = each.unzip();
        let own = infra.as_ref().and_then(|infra| pod_cgroups(sandbox, infra));
        let usage = match &own {
            Some(own) => Usage::of(own),
            None => sum(infra.as_ref().map(|infra| Usage::of(&infra.cgroups)), &stats),
        };
        let usage = usage.with_rate(&sandbox.rate, sandbox.metadata.created_at);
        let of_infra = infra.as_ref().map(Live::processes);
        let processes: Vec<u64> = processes.into_iter().chain([of_infra]).flatten().collect();
        let config = &sandbox.metadata.config;
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: sandbox.id().to_string(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: usage.cpu,
                memory: usage.memory,
                network: infra.as_ref().and_then(|infra| network_usage(sandbox, &infra.init)),
                process: (!processes.is_empty()).then(|| cri::ProcessUsage {
                    timestamp: now(),
                    process_count: Some(known(processes.iter().sum())),
                }),
                containers: stats,
                io: usage.io,
            }),
            windows: None,
        }
    }
}

/// The pod's own cgroups, if it has any.
pub(super) fn pod_cgroups(sandbox: &Sandbox, infra: &Live) -> Option<Cgroups> {
    let metadata = sandbox.metadata.config.metadata.as_ref()?;
    infra.cgroups.of_pod(&metadata.uid)
}

/// The pod's interfaces; none of a pod that has the node's.
fn network_usage(sandbox: &Sandbox, infra: &Process) -> Option<cri::NetworkUsage> {
    if sandbox.metadata.host_network() {
        return None;
    }
    let network = network(infra)?;
    Some(cri::NetworkUsage {
        timestamp: now(),
        default_interface: network.default.as_ref().map(interface_usage),
        interfaces: network.others.iter().map(interface_usage).collect(),
    })
}

fn interface_usage(interface: &Interface) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: Some(known(interface.received.bytes)),
        rx_errors: Some(known(interface.received.errors)),
        tx_bytes: Some(known(interface.sent.bytes)),
        tx_errors: Some(known(interface.sent.errors)),
    }
}

/// The infra container's and the containers' together. Pressure has no sum, nor has what is available.
fn sum(infra: Option<Usage>, containers: &[cri::ContainerStats]) -> Usage {
    let infra = infra.unwrap_or_default();
    let cpu = containers.iter().filter_map(|one| one.cpu.as_ref()).chain(&infra.cpu);
    let memory = containers
        .iter()
        .filter_map(|one| one.memory.as_ref())
        .chain(&infra.memory);
    Usage {
        cpu: sum_cpu(&cpu.collect::<Vec<_>>()),
        memory: sum_memory(&memory.collect::<Vec<_>>()),
        ..Usage::default()
    }
}

fn sum_cpu(all: &[&cri::CpuUsage]) -> Option<cri::CpuUsage> {
    Some(cri::CpuUsage {
        timestamp: all.iter().map(|one| one.timestamp).max()?,
        usage_core_nano_seconds: total(all.iter().map(|one| one.usage_core_nano_seconds)),
        ..Default::default()
    })
}

fn sum_memory(all: &[&cri::MemoryUsage]) -> Option<cri::MemoryUsage> {
    Some(cri::MemoryUsage {
        timestamp: all.iter().map(|one| one.timestamp).max()?,
        working_set_bytes: total(all.iter().map(|one| one.working_set_bytes)),
        usage_bytes: total(all.iter().map(|one| one.usage_bytes)),
        rss_bytes: total(all.iter().map(|one| one.rss_bytes)),
        page_faults: total(all.iter().map(|one| one.page_faults)),
        major_page_faults: total(all.iter().map(|one| one.major_page_faults)),
        ..Default::default()
    })
}

/// The sum of what is known; none if nothing is.
fn total(all: impl Iterator<Item = Option<cri::UInt64Value>>) -> Option<cri::UInt64Value> {
    all.flatten()
        .map(|one| one.value)
        .reduce(|sum, one| sum.saturating_add(one))
        .map(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_together() {
        let one = |cpu_ns, memory| Usage {
            cpu: Some(cri::CpuUsage {
                timestamp: 7,
                usage_core_nano_seconds: Some(known(cpu_ns)),
                psi: Some(cri::PsiStats::default()),
                ..Default::default()
            }),
            memory: Some(cri::MemoryUsage {
                timestamp: 8,
                usage_bytes: Some(known(memory)),
                available_bytes: Some(known(99)),
                ..Default::default()
            }),
            ..Usage::default()
        };
        let stats = |usage: Usage| cri::ContainerStats {
            cpu: usage.cpu,
            memory: usage.memory,
            ..Default::default()
        };
        let all = sum(
            Some(one(1, 10)),
            &[stats(one(2, 20)), cri::ContainerStats::default(), stats(one(4, 40))],
        );
        let (cpu, memory) = (all.cpu.unwrap(), all.memory.unwrap());
        assert_eq!(
            (cpu.timestamp, cpu.usage_core_nano_seconds, cpu.psi),
            (7, Some(known(7)), None)
        );
        assert_eq!(
            (memory.usage_bytes, memory.available_bytes, memory.rss_bytes),
            (Some(known(70)), None, None)
        );
        assert_eq!(sum(None, &[cri::ContainerStats::default()]), Usage::default());
    }
}
