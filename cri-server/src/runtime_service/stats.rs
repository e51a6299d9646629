//! ContainerStats, PodSandboxStats and their lists: read in one blocking task, without a lock, for as many as there are.
//!
//! Those that have ended are listed like the others, with what there is to say of them: a caller that has just seen one run
//! must not get an error for it. Only an unknown id is one.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use corten_proto::cri::{
    ContainerFilter, ContainerStats, ContainerStatsFilter, ContainerStatsRequest, PodSandboxFilter, PodSandboxStats,
    PodSandboxStatsFilter, PodSandboxStatsRequest,
};
use corten_proto::id::SandboxId;

use super::selector;
use crate::container::Container;
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::stats::Round;

impl Node {
    /// ContainerStats.
    pub(super) async fn container_stats(
        self: &Arc<Self>,
        request: &ContainerStatsRequest,
    ) -> Result<ContainerStats, Error> {
        let container = self.container(&request.container_id)?;
        Ok(self.measure(move |node| Round::new(node).container(&container)).await?)
    }

    /// ListContainerStats and StreamContainerStats, oldest first.
    pub(super) async fn container_stats_list(
        self: &Arc<Self>,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Error> {
        let filter = filter.unwrap_or_default();
        let filter = ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        };
        let mut containers = self.store.containers();
        containers.retain(|container| selector::container(&filter, container));
        let measured = self.measure(move |node| {
            let round = Round::new(node);
            containers.iter().map(|container| round.container(container)).collect()
        });
        Ok(measured.await?)
    }

    /// PodSandboxStats.
    pub(super) async fn sandbox_stats(
        self: &Arc<Self>,
        request: &PodSandboxStatsRequest,
    ) -> Result<PodSandboxStats, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers = self.store.containers_of(sandbox.id());
        Ok(self
            .measure(move |node| Round::new(node).pod(&sandbox, &containers))
            .await?)
    }

    /// ListPodSandboxStats and StreamPodSandboxStats, oldest first.
    pub(super) async fn sandbox_stats_list(
        self: &Arc<Self>,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Error> {
        let filter = filter.unwrap_or_default();
        let filter = PodSandboxFilter {
            id: filter.id,
            label_selector: filter.label_selector,
            state: None,
        };
        let mut sandboxes = self.store.sandboxes();
        sandboxes.retain(|sandbox| selector::sandbox(&filter, sandbox));
        let measured = self.measure(move |node| {
            let (round, containers) = (Round::new(node), node.containers_by_sandbox());
            let of = |id| containers.get(id).map_or(&[][..], Vec::as_slice);
            let pods = sandboxes.iter();
            pods.map(|sandbox| round.pod(sandbox, of(sandbox.id()))).collect()
        });
        Ok(measured.await?)
    }

    /// All containers by their sandbox, oldest first.
    pub(super) fn containers_by_sandbox(&self) -> HashMap<SandboxId, Vec<Arc<Container>>> {
        let mut all: HashMap<SandboxId, Vec<Arc<Container>>> = HashMap::new();
        for container in self.store.containers() {
            all.entry(container.metadata.sandbox.clone())
                .or_default()
                .push(container);
        }
        all
    }

    /// Reads what there is to read, where it may block.
    pub(super) async fn measure<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T> {
        let node = self.clone();
        blocking(move || Ok(read(&node))).await
    }
}
