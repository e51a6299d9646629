//! What the services share: configuration, images, networks, and the sandboxes and containers with their records.
//!
//! Every status changes through [`Node::sandbox_changed`] or [`Node::container_changed`] and nowhere else: pure
//! transition, record, memory and event, in this order and one at a time per object. What comes and goes does so through
//! `Node::*_added` and `*_removed`. All of them end in [`Node::publish`], which tells whoever listens (`events`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use corten_proto::cri;
use corten_proto::id::{ContainerId, SandboxId};
use prost::Message;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::Span;

use crate::BLOCKING_THREADS;
use crate::config::{self, Config};
use crate::container::{self, Container};
use crate::error::Error;
use crate::events::{self, Event, Events, Kind, Pod};
use crate::health::Health;
use crate::image::snapshot::Snapshots;
use crate::image::{ImageStore, MAX_LAYERS};
use crate::limits;
use crate::network::{Builtin, Cni};
use crate::own_process;
use crate::paths::Paths;
use crate::record::{self, Record};
use crate::runtime_service::container_exec::OutputBudget;
use crate::sandbox::{self, Sandbox};
use crate::spec::{CgroupDriver, Host};
use crate::store::{Lookup, Store};
use crate::streaming::Tokens;
use crate::tasks::{Adoption, Tasks};
use crate::telemetry::metrics::{Counted, container_exited};
use crate::telemetry::names;

/// Most looks at host paths at once: a quarter of the threads there are for blocking work. Layers may take half of them,
/// and records are to be written even when both have all of theirs.
pub(crate) const MAX_LOOKS: usize = BLOCKING_THREADS / 4;
const _: () = assert!(
    MAX_LOOKS + MAX_LAYERS < BLOCKING_THREADS,
    "threads are left for everything else"
);

/// One server's everything.
pub struct Node {
    /// The configuration, which a reload replaces: see [`Node::config`].
    pub(crate) settings: config::Live,
    /// Who makes the cgroups, as it was decided at the start.
    pub(crate) cgroup_driver: CgroupDriver,
    /// Where everything lies on disk.
    pub paths: Paths,
    /// What the machine is like.
    pub host: Host,
    /// This boot.
    pub boot_id: String,
    /// The sandboxes and containers.
    pub store: Store,
    /// Who hears of what becomes of them.
    pub(crate) events: Events,
    /// Whether pods can be run now.
    pub(crate) health: Health,
    /// The images.
    pub images: Arc<ImageStore>,
    /// Containers' roots, and what they take.
    pub snapshots: Arc<Snapshots>,
    /// The network of pods by CNI plugins.
    pub cni: Cni,
    /// The network of pods without them.
    pub builtin: Arc<Builtin>,
    /// Held by UpdateRuntimeConfig while disk and memory change.
    pub(crate) runtime_config: tokio::sync::Mutex<()>,
    /// Execs, attaches and port-forwards that were asked for and have not begun.
    pub tokens: Tokens,
    /// RunPodSandbox calls in flight.
    pub sandbox_runs: Adoption<SandboxKey>,
    /// RestorePod calls in flight.
    pub(crate) pod_restores: Adoption<SandboxKey>,
    /// CreateContainer calls in flight.
    pub container_creates: Adoption<ContainerKey>,
    /// Threads that may look at host paths. One on a filesystem that does not answer keeps its thread for as long as that
    /// lasts; what they leave is for everything else the server does.
    pub looks: Arc<Semaphore>,
    /// What the outputs of all ExecSyncs may hold together.
    pub(crate) exec_outputs: OutputBudget,
    /// Work that calls have begun.
    pub work: Tasks,
    /// One task per shim.
    pub supervisors: Tasks,
}

/// What makes a sandbox the same: name, namespace, uid, attempt.
pub type SandboxKey = (String, String, String, u32);
/// What makes a container the same: sandbox, name, attempt.
pub type ContainerKey = (SandboxId, String, u32);

impl Node {
    /// A node with nothing in memory yet.
    pub fn new(settings: config::Live, images: Arc<ImageStore>, snapshots: Arc<Snapshots>) -> Result<Arc<Self>> {
        let config = settings.get();
        let host = Host::read().context("read what the machine is like")?;
        let paths = Paths::new(&config.root, &config.state);
        let cni = Cni::new(&config.cni);
        let builtin = Builtin::new(&config.network, &config.root);
        let cidrs = kept_cidrs(&paths);
        builtin.set_pod_cidrs(&cidrs);
        cni.set_pod_cidrs(cidrs);
        Ok(Arc::new(Node {
            paths,
            cgroup_driver: config.cgroup_driver.choose(runs_systemd(), host.cgroup_v2),
            host,
            boot_id: record::boot_id()?,
            store: Store::default(),
            events: Events::default(),
            health: Health::default(),
            images,
            snapshots,
            cni,
            builtin,
            runtime_config: tokio::sync::Mutex::default(),
            tokens: Tokens::default(),
            sandbox_runs: Adoption::default(),
            pod_restores: Adoption::default(),
            container_creates: Adoption::default(),
            looks: Arc::new(Semaphore::new(MAX_LOOKS)),
            exec_outputs: OutputBudget::default(),
            work: Tasks::default(),
            supervisors: Tasks::default(),
            settings,
        }))
    }

    /// The configuration as it is now. An operation asks once and keeps what it got: a reload under way is seen by the next.
    pub fn config(&self) -> Arc<Config> {
        self.settings.get()
    }

    /// Path of a runtime's binary and its `--root`, by its name in the configuration.
    pub(crate) fn runtime(&self, name: &str) -> Result<(PathBuf, PathBuf), Error> {
        let config = self.config();
        let path = config.runtime(name).ok_or_else(|| {
            let rule = "must be empty or the name of a configured runtime";
            Error::invalid("runtime_handler", name, rule)
        })?;
        Ok((path, self.paths.runtime_root(name, &config.default_runtime)))
    }

    /// The sandbox of this id or unique prefix.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        let sandbox = found(self.store.sandbox(id), "pod sandbox", "pod_sandbox_id", id)?;
        names::asked_for_sandbox(&sandbox);
        Ok(sandbox)
    }

    /// The container of this id or unique prefix.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let container = found(self.store.container(id), "container", "container_id", id)?;
        names::asked_for_container(&container, || {
            found(self.store.sandbox(container.metadata.sandbox.as_str()), "", "", "").ok()
        });
        Ok(container)
    }

    /// The sandbox a container belongs to.
    pub(crate) fn sandbox_of(&self, container: &Container) -> Result<Arc<Sandbox>, Error> {
        self.sandbox(container.metadata.sandbox.as_str())
    }

    /// Applies a transition to a sandbox's status; the status after it.
    pub(crate) async fn sandbox_changed(
        &self,
        sandbox: &Sandbox,
        transition: impl FnOnce(sandbox::Status) -> sandbox::Status,
    ) -> sandbox::Status {
        let _order = sandbox.record.lock().await;
        let before = sandbox.status();
        let after = transition(before);
        if after != before {
            let path = self.paths.sandbox_record(sandbox.id());
            let record = Record::new(&self.boot_id, &sandbox.metadata, after, sandbox.updated());
            self.save(path, &record).await;
            let kind = || events::of_sandbox(before, after);
            self.publish(sandbox.id(), sandbox.id(), kind, || {
                sandbox.status.send_replace(after);
                true
            });
        }
        after
    }

    /// The infra container runs: makes the sandbox ready, on disk first. A record that stayed at `Starting` would have
    /// the next start of the server undo the pod, so that here a failing write is a failing call.
    pub(crate) async fn sandbox_started(&self, sandbox: &Sandbox, pid: i32) -> Result<sandbox::Status> {
        let _order = sandbox.record.lock().await;
        let after = sandbox.status().started(pid);
        let path = self.paths.sandbox_record(sandbox.id());
        self.write_record(path, &sandbox.metadata, &after).await?;
        sandbox.status.send_replace(after);
        Ok(after)
    }

    /// Applies a transition to a container's status; the status after it.
    pub(crate) async fn container_changed(
        &self,
        container: &Container,
        transition: impl FnOnce(container::Status) -> container::Status,
    ) -> container::Status {
        let _order = container.record.lock().await;
        let before = container.status();
        let after = transition(before.clone());
        if after != before {
            let path = self.paths.container_record(container.id());
            let record = Record::new(&self.boot_id, &container.metadata, &after, container.updated());
            self.save(path, &record).await;
            if let container::Status::Exited(exited) = &after
                && !matches!(before, container::Status::Exited(_))
            {
                container_exited(exited.reason.as_str());
            }
            let kind = || events::of_container(&before, &after);
            self.publish(&container.metadata.sandbox, container.id(), kind, || {
                container.status.send_replace(after.clone());
                true
            });
        }
        after
    }

    /// Makes a sandbox visible: one that is ready, or one that could not be undone.
    pub(crate) fn sandbox_added(&self, sandbox: &Arc<Sandbox>) {
        let kinds = || {
            let outcome = match sandbox.status() {
                sandbox::Status::Ready { .. } => Kind::Started,
                _ => Kind::Stopped,
            };
            [Kind::Created, outcome]
        };
        self.publish(sandbox.id(), sandbox.id(), kinds, || {
            self.store.add_sandbox(sandbox.clone());
            true
        });
    }

    /// Makes a container visible.
    pub(crate) fn container_added(&self, container: &Arc<Container>) {
        self.publish(
            &container.metadata.sandbox,
            container.id(),
            || [Kind::Created],
            || {
                self.store.add_container(container.clone());
                true
            },
        );
    }

    /// Forgets a sandbox of which nothing is left.
    pub(crate) fn sandbox_removed(&self, sandbox: &Sandbox) {
        let id = sandbox.id();
        self.publish(id, id, || [Kind::Deleted], || self.store.remove_sandbox(id));
        forgotten(&sandbox.metadata.config);
    }

    /// Forgets a container of which nothing is left.
    pub(crate) fn container_removed(&self, container: &Container) {
        let id = container.id();
        self.publish(
            &container.metadata.sandbox,
            id,
            || [Kind::Deleted],
            || self.store.remove_container(id),
        );
        forgotten(&container.metadata.config);
    }

    /// Makes a change visible, if there is one, and tells whoever listens. What happens to a sandbox that is not visible,
    /// because it is still being made or undone, is told to nobody. So `kinds` are asked for once the change is made: what
    /// has come before it, nobody has heard of, and what comes later waits for the lock.
    fn publish<K: IntoIterator<Item = Kind>>(
        &self,
        pod: &SandboxId,
        id: &ContainerId,
        kinds: impl FnOnce() -> K,
        change: impl FnOnce() -> bool,
    ) {
        let mut feed = self.events.lock();
        if !change() || !feed.is_heard() {
            return;
        }
        for kind in kinds() {
            let (at, id) = (feed.event_time(), id.clone());
            let pod = self.pod_at(at, pod);
            if pod.sandbox.is_some() || kind == Kind::Deleted {
                feed.send(Event { kind, id, pod });
            }
        }
    }

    /// A pod as it is now, all at once.
    pub(crate) fn pod(&self, id: &SandboxId) -> Pod {
        let mut feed = self.events.lock();
        let at = feed.snapshot_time();
        self.pod_at(at, id)
    }

    /// Only with the lock of `events` held is this of one moment.
    fn pod_at(&self, at: i64, id: &SandboxId) -> Pod {
        let sandbox = self.sandbox(id.as_str()).ok();
        let containers = self.store.containers_of(id).into_iter();
        Pod {
            at,
            sandbox: sandbox.map(|sandbox| (sandbox.clone(), sandbox.status())),
            containers: containers
                .map(|container| (container.clone(), container.status()))
                .collect(),
        }
    }

    /// Writes a record of a change that has happened: memory follows whether or not the disk could. What the disk
    /// then lacks, a restart learns from the shim or the exit record.
    async fn save(&self, path: PathBuf, record: &impl Serialize) {
        if let Err(error) = write(path, record).await {
            tracing::error!(error = format!("{error:#}"), "a record is out of date");
        }
    }

    /// Gives a container new resources, on disk first: where that fails the old ones stay.
    pub(crate) async fn container_updated(
        &self,
        container: &Container,
        resources: cri::LinuxContainerResources,
    ) -> Result<()> {
        let _order = container.record.lock().await;
        let path = self.paths.container_record(container.id());
        let record = Record::new(&self.boot_id, &container.metadata, container.status(), Some(&resources));
        write(path, &record).await?;
        container.set_resources(Some(resources));
        Ok(())
    }

    /// Gives a sandbox new resources, on disk first: where that fails the old ones stay.
    pub(crate) async fn sandbox_updated(
        &self,
        sandbox: &Sandbox,
        transition: impl FnOnce(sandbox::Resources) -> sandbox::Resources,
    ) -> Result<()> {
        let _order = sandbox.record.lock().await;
        let resources = transition(sandbox.resources());
        let path = self.paths.sandbox_record(sandbox.id());
        let record = Record::new(&self.boot_id, &sandbox.metadata, sandbox.status(), Some(&resources));
        write(path, &record).await?;
        sandbox.set_resources(Some(resources));
        Ok(())
    }

    /// Writes the first records of an object, whose resources nobody has changed yet.
    pub(crate) async fn write_record(
        &self,
        path: PathBuf,
        metadata: &impl Serialize,
        status: &impl Serialize,
    ) -> Result<()> {
        write(path, &Record::new(&self.boot_id, metadata, status, None::<()>)).await
    }
}

/// Whether systemd is this machine's pid 1, by what sd_booted(3) looks at.
fn runs_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What UpdateRuntimeConfig has kept; nothing where it cannot be read, until the kubelet says it again.
fn kept_cidrs(paths: &Paths) -> Vec<String> {
    record::read_optional(&paths.pod_cidrs()).map_or_else(
        |error| {
            tracing::warn!("{error:#}");
            Vec::new()
        },
        Option::unwrap_or_default,
    )
}

async fn write(path: PathBuf, record: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(record).with_context(|| format!("encode {}", path.display()))?;
    blocking(move || record::write(&path, &value)).await
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (span, counted) = (Span::current(), Counted::new(|metrics| &metrics.blocking));
    let work = move || {
        let _counted = counted;
        span.in_scope(work)
    };
    tokio::task::spawn_blocking(work)
        .await
        .context("blocking work ended without a result")?
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn found<T>(lookup: Lookup<T>, what: &'static str, field: &str, id: &str) -> Result<T, Error> {
    match lookup {
        Lookup::Found(object) => Ok(object),
        Lookup::Missing => Err(Error::NotFound {
            what,
            id: id.to_owned(),
        }),
        Lookup::Ambiguous => Err(Error::invalid(field, id, "is the beginning of more than one id")),
    }
}

/// A sandbox's key, from its metadata.
pub(crate) fn sandbox_key(metadata: &cri::PodSandboxMetadata) -> SandboxKey {
    let cri::PodSandboxMetadata {
        name,
        namespace,
        uid,
        attempt,
    } = metadata.clone();
    (name, namespace, uid, attempt)
}

/// A new id for a sandbox or container.
pub(crate) fn new_id() -> Result<ContainerId> {
    ContainerId::random().context("read random bytes for an id")
}

/// A request that was kept is let go: a large one leaves holes.
fn forgotten(request: &impl Message) {
    if request.encoded_len() > limits::FREE {
        own_process::return_memory_soon();
    }
}
