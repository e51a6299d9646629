//! UpdateContainerResources: a container's limits, changed as a whole or not at all.
//!
//! ```text
//!   merge with what holds ─> check ─> cgroup (RUNTIME update) ─> oom_score_adj ─> config.json ─> record ─> memory
//!                            `─ refused: nothing was touched     `──────── a failure undoes what stands before it
//! ```
//! The record comes last, so that a server that is killed on the way has at worst a cgroup that is ahead of it; the kubelet
//! sees the old limits in the status and asks again.

use std::path::PathBuf;

use anyhow::Context;
use corten_proto::cri::{LinuxContainerResources, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use oci_spec::runtime::LinuxResources;

use super::container_cgroup::ContainerCgroup;
use crate::container::Container;
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::oci;
use crate::record::{read_optional, write};
use crate::spec::{self, update};
use crate::stage::stage;

/// A checked update.
struct Update {
    before: LinuxContainerResources,
    after: LinuxContainerResources,
    /// For the runtime.
    document: LinuxResources,
    /// For the processes, where it changes.
    oom_score_adj: Option<i32>,
}

impl Node {
    /// UpdateContainerResources.
    pub(super) async fn container_update(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Error> {
        let container = self.container(&request.container_id)?;
        let waiting = stage(|| format!("wait for other calls of container {}", container.id())).named("wait_in_line");
        let _order = container.operations.lock().await;
        drop(waiting);
        // It may have been removed by whoever had the lock.
        self.container(container.id().as_str())?;
        let Some(pid) = container.status().pid() else {
            let state = container.status().state().as_str_name();
            let text = format!("update the resources of {}: it is {state}", container.id());
            return Err(Error::State(text));
        };
        // Annotations are hints, and nothing here takes one.
        if let Some(change) = request.linux {
            let update = self.plan_update(&container, &change)?;
            let cgroup = ContainerCgroup::of(pid, container.id())?;
            check_usage(&update, &cgroup)?;
            self.apply(&container, &update, &cgroup).await?;
        }
        Ok(UpdateContainerResourcesResponse {})
    }

    fn plan_update(&self, container: &Container, change: &LinuxContainerResources) -> Result<Update, Error> {
        let before = container.resources().unwrap_or_default();
        let after = update::merged(&before, change);
        let document = update::document(&before, &after, &self.host)?;
        let oom_score_adj = match after.oom_score_adj == before.oom_score_adj {
            true => None,
            false => spec::updated_oom_score_adj(&after, &self.host)?,
        };
        Ok(Update {
            before,
            after,
            document,
            oom_score_adj,
        })
    }

    /// Every step that fails undoes those before it.
    async fn apply(&self, container: &Container, update: &Update, cgroup: &ContainerCgroup) -> Result<(), Error> {
        let context = || format!("update the resources of {}", container.id());
        let changed = async {
            self.set_limits(container, &update.document).await?;
            let Some(score) = update.oom_score_adj else {
                return self.record_update(container, update).await;
            };
            let cgroup = cgroup.clone();
            let scores = blocking(move || cgroup.adjust_oom_score(score)).await?;
            let recorded = self.record_update(container, update).await;
            if recorded.is_ok() {
                scores.keep();
            } else {
                let give_back = move || {
                    drop(scores);
                    Ok(())
                };
                blocking(give_back).await?;
            }
            recorded
        };
        let Err(error) = changed.await else {
            return Ok(());
        };
        let undo = update::document(
            &update.after,
            &update::undone(&update.before, &update.after, &self.host),
            &self.host,
        )?;
        if let Err(second) = self.set_limits(container, &undo).await {
            tracing::warn!(container = %container.id(), "take a failed update back: {second:#}");
        }
        Err(error.context(context()).into())
    }

    /// Specification, record and memory: all of them, or none.
    async fn record_update(&self, container: &Container, update: &Update) -> anyhow::Result<()> {
        let config = self.replace_limits_of_spec(container, update).await?;
        let recorded = self.container_updated(container, update.after.clone()).await;
        if recorded.is_err()
            && let Err(second) = blocking(move || config.restore()).await
        {
            tracing::warn!(container = %container.id(), "{second:#}");
        }
        recorded
    }

    async fn set_limits(&self, container: &Container, document: &LinuxResources) -> anyhow::Result<()> {
        if *document == LinuxResources::default() {
            return Ok(());
        }
        let sandbox = self.sandbox_of(container).map_err(|error| anyhow::anyhow!("{error}"))?;
        let (runtime, root) = self
            .runtime(&sandbox.metadata.runtime)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        oci::update(&runtime, &root, container.id(), document).await
    }

    /// The bundle's specification, which the runtime has read at the creation and which the verbose status shows.
    async fn replace_limits_of_spec(&self, container: &Container, update: &Update) -> anyhow::Result<ReplacedSpec> {
        let path = self.paths.bundle(container.id()).join("config.json");
        let (document, score) = (update.document.clone(), update.oom_score_adj);
        blocking(move || {
            let before: serde_json::Value =
                read_optional(&path)?.with_context(|| format!("{}: there is none", path.display()))?;
            let mut after = before.clone();
            update::patch_spec(&mut after, &document, score);
            write(&path, &after)?;
            Ok(ReplacedSpec { path, before })
        })
        .await
    }
}

/// A specification that was replaced.
struct ReplacedSpec {
    path: PathBuf,
    before: serde_json::Value,
}

impl ReplacedSpec {
    fn restore(self) -> anyhow::Result<()> {
        write(&self.path, &self.before).context("take a failed update back")
    }
}

/// A limit below what is in use is refused: on v2 the kernel would kill for it.
fn check_usage(update: &Update, cgroup: &ContainerCgroup) -> Result<(), Error> {
    let Some(limit) = update::lowered_memory(&update.before, &update.after) else {
        return Ok(());
    };
    let usage = cgroup.memory_usage()?;
    if usage <= limit {
        return Ok(());
    }
    let text = format!("linux.memory_limit_in_bytes {limit}: the container has {usage} bytes in use");
    Err(Error::State(text))
}
