//! A pod's metrics.

use std::sync::Arc;

use corten_proto::cri;

use super::container::{cgroup, times};
use super::{Collector, table};
use crate::container::Container;
use crate::sandbox::Sandbox;
use crate::stats::network::{Interface, network};
use crate::stats::pod::pod_cgroups;
use crate::stats::{Live, Round};

impl Round<'_> {
    /// A sandbox's and its `containers`'; none of one that is not ready.
    pub(crate) fn pod_metrics(
        &mut self,
        sandbox: &Sandbox,
        containers: &[Arc<Container>],
    ) -> Option<cri::PodSandboxMetrics> {
        let infra = Live::of(sandbox.pid(), sandbox.id().as_str())?;
        let pod = sandbox.metadata.config.metadata.as_ref();
        let own = pod_cgroups(sandbox, &infra);
        let named = own.as_ref().unwrap_or(&infra.cgroups);
        let mut collector = Collector::new(named.path(), [""; 3], pod);
        if let Some(own) = &own {
            cgroup(&mut collector, own, &own.processes());
            self.devices_of(&mut collector, own);
        }
        times(&mut collector, sandbox.metadata.created_at);
        if !sandbox.metadata.host_network()
            && let Some(network) = network(&infra.init)
        {
            let all = network.default.iter().chain(&network.others);
            all.for_each(|interface| interface_metrics(&mut collector, interface));
        }
        let containers = containers.iter();
        Some(cri::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id().to_string(),
            metrics: collector.metrics,
            container_metrics: containers
                .filter_map(|container| self.container_metrics(container, pod))
                .collect(),
        })
    }
}

fn interface_metrics(collector: &mut Collector, interface: &Interface) {
    let (received, sent) = (interface.received, interface.sent);
    let table = [
        (&table::NET_RX_BYTES, received.bytes),
        (&table::NET_RX_PACKETS, received.packets),
        (&table::NET_RX_ERRORS, received.errors),
        (&table::NET_RX_DROPPED, received.dropped),
        (&table::NET_TX_BYTES, sent.bytes),
        (&table::NET_TX_PACKETS, sent.packets),
        (&table::NET_TX_ERRORS, sent.errors),
        (&table::NET_TX_DROPPED, sent.dropped),
    ];
    for (descriptor, value) in table {
        collector.add_with(descriptor, &[&interface.name], Some(value));
    }
}
