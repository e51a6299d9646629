//! RunPodSandbox: the ordered list that makes a pod.
//!
//! A step that fails has the whole undone by the list that also serves a crash and RemovePodSandbox
//! (`sandbox_remove`): every undo step takes what is there and passes over what is not.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use corten_proto::cri::{
    NamespaceMode, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest, RunPodSandboxResponse,
};
use corten_proto::id::{ContainerId, SandboxId};
use corten_proto::shim::Create;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;
use tonic::Status as RpcStatus;
use tracing::Instrument as _;

use super::names::{check_labels, check_log_directory, check_name};
use crate::config::OWN_RUNTIME;
use crate::error::Error;
use crate::network::{Bandwidth, PodNetwork, dns, netns};
use crate::node::{Node, blocking, new_id, sandbox_key};
use crate::pod_userns::Holder;
use crate::record::{replace, write};
use crate::sandbox::{Metadata, Sandbox, Status};
use crate::shim::{ConnectError, Launch, Shim, launch};
use crate::spec::user_namespace::{self, IdMap};
use crate::spec::{self, CgroupDriver, Confinement, SandboxSpecInput, SpecError};
use crate::stage::{Patience, stage};
use crate::telemetry::names;

/// What mounts the pod's shared memory with: 64 MiB, as everywhere in the field.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

impl Node {
    /// RunPodSandbox. The same metadata again gives the same sandbox while it is ready.
    pub(super) async fn sandbox_run(
        self: &Arc<Self>,
        request: RunPodSandboxRequest,
        patience: &Patience,
    ) -> Result<RunPodSandboxResponse, RpcStatus> {
        let (id, _new) = self.sandbox_of_run(request, patience).await?;
        Ok(RunPodSandboxResponse {
            pod_sandbox_id: id.to_string(),
        })
    }

    /// The sandbox of this request, and whether it is this call that has made it.
    pub(super) async fn sandbox_of_run(
        self: &Arc<Self>,
        request: RunPodSandboxRequest,
        patience: &Patience,
    ) -> Result<(SandboxId, bool), RpcStatus> {
        let Some(config) = request.config else {
            return Err(Error::invalid("config", "", "must be there, with metadata").into());
        };
        // First, so that a refusal has them too.
        if let Some(pod) = &config.metadata {
            names::about_pod(pod);
        }
        let pod = check(&config)?.clone();
        let runtime = self.runtime_name(&request.runtime_handler);
        self.runtime(&runtime)?;
        self.check_user_namespace(&config, &runtime)?;
        let settings = self.config();
        let allowed = settings.annotations(&runtime).pod;
        spec::annotations::passed("annotations", &config.annotations, allowed).map_err(Error::from)?;
        let existing = || self.existing_sandbox(&pod);
        let handler = request.runtime_handler;
        let mut new = false;
        let run = || {
            new = true;
            let node = self.clone();
            async move { node.run(config, handler, runtime).await.map_err(RpcStatus::from) }
        };
        let id = self
            .sandbox_runs
            .join(&self.work, patience, sandbox_key(&pod), existing, run)
            .await?;
        Ok((id, new))
    }

    /// The name of the runtime that a request's handler stands for: the default where it names none.
    pub(super) fn runtime_name(&self, handler: &str) -> String {
        match handler {
            "" => self.config().default_runtime.clone(),
            name => name.to_owned(),
        }
    }

    /// A pod joins a user namespace that is there already, which other runtimes have not been tried with: Status says so too.
    fn check_user_namespace(&self, config: &PodSandboxConfig, runtime: &str) -> Result<(), Error> {
        if spec::user_namespace_of(config)?.is_none() || self.config().is_own_runtime(runtime) {
            return Ok(());
        }
        let rule = format!("pods with a user namespace of their own are for the runtime {OWN_RUNTIME:?} only");
        Err(SpecError::unimplemented("runtime_handler", runtime, rule).into())
    }

    fn existing_sandbox(&self, pod: &PodSandboxMetadata) -> Option<Result<SandboxId, RpcStatus>> {
        let sandbox = self.store.sandbox_of(pod)?;
        if let Status::Ready { .. } = sandbox.status() {
            return Some(Ok(sandbox.id().clone()));
        }
        let text = format!(
            "metadata {}/{} uid {} attempt {}: pod sandbox {} has it and is not ready: remove it first",
            pod.namespace,
            pod.name,
            pod.uid,
            pod.attempt,
            sandbox.id()
        );
        Some(Err(Error::Exists(text).into()))
    }

    async fn run(
        self: Arc<Self>,
        config: PodSandboxConfig,
        runtime_handler: String,
        runtime: String,
    ) -> Result<SandboxId, Error> {
        let id = new_id()?;
        // Only to have a parent that the driver cannot take refused before anything is made.
        self.cgroups_path(&config, &id)?;
        let mut metadata = Metadata {
            created_at: self.store.next_created_at(),
            netns: None,
            network: None,
            id,
            config,
            runtime_handler,
            runtime,
        };
        let mut holder = None;
        let prepared = self.prepare(&mut metadata, &mut holder).await;
        let sandbox = Sandbox::new(metadata, Status::Starting, None);
        names::about_sandbox(&sandbox);
        let started = match prepared {
            Ok(()) => self.start_infra(&sandbox, &mut holder).await,
            Err(error) => Err(error),
        };
        end(holder).await;
        match started {
            Ok(()) => {
                self.sandbox_added(&sandbox);
                Ok(sandbox.id().clone())
            }
            Err(error) => {
                self.undo_run(sandbox).await;
                Err(error)
            }
        }
    }

    /// Everything that comes before the first process: directories, network, files, shared memory.
    /// `holder` is set to what holds the pod's user namespace until the first process has joined it.
    async fn prepare(&self, metadata: &mut Metadata, holder: &mut Option<Holder>) -> Result<(), Error> {
        let directory = self.paths.sandbox(&metadata.id);
        blocking(move || make_directory(&directory)).await?;
        if !metadata.host_network() {
            metadata.netns = Some(self.config().netns_dir.join(metadata.id.as_str()));
        }
        // The record comes first: what a crash leaves from here on is found by it and undone.
        let path = self.paths.sandbox_record(&metadata.id);
        self.write_record(path.clone(), metadata, &Status::Starting).await?;
        let map = spec::user_namespace_of(&metadata.config)?;
        *holder = self.hold_user_namespace(map, metadata).await?;
        if let Some(network) = pod_network(metadata) {
            self.make_netns(&metadata.id, holder.as_ref()).await?;
            let _stage = stage(|| "set up the pod's network".to_owned()).named("network");
            metadata.network = Some(self.attach(&network).await.map_err(network_failed)?);
            // Again, with what it takes to take the network down.
            self.write_record(path, metadata, &Status::Starting).await?;
        }
        let directory = self.paths.sandbox(&metadata.id);
        let (config, host_ipc) = (metadata.config.clone(), ipc_of_node(metadata));
        Ok(blocking(move || make_files(&directory, &config, host_ipc, map)).await?)
    }

    /// The user namespace of a pod with ids of its own, with the network namespace that it is to own.
    async fn hold_user_namespace(&self, map: Option<IdMap>, metadata: &Metadata) -> Result<Option<Holder>, Error> {
        let Some(map) = map else {
            return Ok(None);
        };
        user_namespace::check_node(&self.host)?;
        let (shim, network) = (self.config().shim(), !metadata.host_network());
        Ok(blocking(move || Holder::start(&shim, map, network).map(Some)).await?)
    }

    async fn make_netns(&self, id: &SandboxId, holder: Option<&Holder>) -> Result<()> {
        let (netns_dir, id) = (self.config().netns_dir.clone(), id.clone());
        let held = holder.map(|holder| holder.path("net"));
        blocking(move || match held {
            Some(held) => netns::adopt(&netns_dir, &id, &held),
            None => netns::create(&netns_dir, &id),
        })
        .await
        .map(drop)
    }

    /// Shim and infra container, then the record that says ready.
    async fn start_infra(self: &Arc<Self>, sandbox: &Arc<Sandbox>, holder: &mut Option<Holder>) -> Result<(), Error> {
        let shim = self.start_shim(sandbox).await?;
        sandbox.set_shim(Some(shim.clone()));
        let id = sandbox.id();
        let directory = self.paths.sandbox(id);
        let spec = self.infra_spec(&sandbox.metadata, holder.as_ref()).await?;
        let path = directory.join("config.json");
        blocking(move || write(&path, &spec)).await?;
        let create = Create {
            id: id.to_string(),
            bundle: directory.to_string_lossy().into_owned(),
            exit_record: self.paths.sandbox_exit(id).to_string_lossy().into_owned(),
            ..Default::default()
        };
        let _stage = stage(|| "the infra container".to_owned()).named("infra_container");
        let pid = shim.create(create).await.context("create the infra container")?;
        // From here the infra container holds the user namespace.
        end(holder.take()).await;
        shim.start(id).await.context("start the infra container")?;
        match self.sandbox_started(sandbox, pid).await? {
            Status::Ready { .. } => Ok(()),
            _ => Err(Error::Failed(anyhow::anyhow!("the infra container ended at once"))),
        }
    }

    async fn infra_spec(self: &Arc<Self>, metadata: &Metadata, holder: Option<&Holder>) -> Result<Spec, Error> {
        let (node, config) = (self.clone(), metadata.config.clone());
        let read = move || Ok(Confinement::of_sandbox(&config, &node.host, &node.config().security));
        // Two results: the inner one keeps the kind of the refusal.
        let confinement = blocking(read).await??;
        Ok(spec::sandbox(&SandboxSpecInput {
            id: &metadata.id,
            config: &metadata.config,
            rootfs: &self.paths.pause_rootfs(),
            netns: metadata.netns.as_deref(),
            user_namespace: holder.map(|holder| holder.path("user")).as_deref(),
            confinement: &confinement,
            cgroups_path: &self.cgroups_path(&metadata.config, &metadata.id)?,
            annotations: self.config().annotations(&metadata.runtime),
            host: &self.host,
        })?)
    }

    /// Starts the shim, connects to it and has it supervised.
    async fn start_shim(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Arc<Shim>, Error> {
        let (runtime, runtime_root) = self.runtime(&sandbox.metadata.runtime)?;
        let directory = self.paths.sandbox(sandbox.id());
        let mut child = launch(&Launch {
            program: &self.config().shim(),
            id: sandbox.id(),
            directory: &directory,
            runtime: &runtime,
            runtime_root: &runtime_root,
            pause_rootfs: &self.paths.pause_rootfs(),
            systemd_cgroup: self.cgroup_driver == CgroupDriver::Systemd,
        })?;
        let wait = async move {
            match child.wait().await {
                Ok(status) => tracing::debug!("shim: {status}"),
                Err(error) => tracing::warn!("wait for the shim: {error}"),
            }
        };
        self.supervisors.spawn(wait.instrument(names::of_sandbox(sandbox)));
        let _stage = stage(|| "the shim's start".to_owned()).named("shim_start");
        let shim = Shim::new(sandbox.id(), &directory);
        let incoming = match shim.connect().await {
            Ok((incoming, _nothing_yet)) => incoming,
            Err(ConnectError::Failed(error)) => return Err(error.into()),
            Err(ConnectError::Gone) => {
                let log = directory.join("shim.log");
                let log = fs::read_to_string(&log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it wrote nothing");
                return Err(Error::Failed(anyhow::anyhow!("the shim ended at once: {last}")));
            }
        };
        self.supervise(sandbox, shim.clone(), Some(incoming));
        Ok(shim)
    }

    /// Undoes a run that failed. What cannot be undone now is shown as a sandbox that is not ready, so that the kubelet
    /// has it removed later.
    async fn undo_run(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let _stage = stage(|| "undo what failed".to_owned()).named("undo");
        self.sandbox_changed(&sandbox, Status::stopping).await;
        if let Err(error) = self.discard_sandbox(&sandbox).await {
            tracing::warn!(sandbox = %sandbox.id(), "undo a failed RunPodSandbox: {error:#}");
            self.sandbox_added(&sandbox);
        }
    }

    /// Where a container of a pod has its cgroup.
    pub(super) fn cgroups_path(&self, config: &PodSandboxConfig, id: &ContainerId) -> Result<PathBuf, Error> {
        let asked = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let config = self.config();
        let parent = if asked.is_empty() { &config.cgroup_parent } else { asked };
        Ok(spec::cgroups_path(self.cgroup_driver, parent, id)?)
    }
}

/// Ends the holder of a user namespace, whose end is waited for.
async fn end(holder: Option<Holder>) {
    if holder.is_some() {
        let ended = blocking(move || {
            drop(holder);
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::warn!("end the holder of a user namespace: {error:#}");
        }
    }
}

/// Checks what can be checked by looking at the request alone; its metadata.
fn check(config: &PodSandboxConfig) -> Result<&PodSandboxMetadata, Error> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Error::invalid("metadata", "", "must be there and identify the pod"))?;
    let fields = [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
        ("metadata.uid", &metadata.uid),
    ];
    for (field, value) in fields {
        check_name(field, value)?;
    }
    check_labels(&config.labels, &config.annotations)?;
    check_log_directory(&config.log_directory)?;
    if let Err((annotation, value, rule)) = Bandwidth::of(&config.annotations) {
        return Err(Error::invalid(&format!("annotations[{annotation:?}]"), &value, &rule));
    }
    spec::check_sandbox(config)?;
    Ok(metadata)
}

/// A refusal stays what it is; of a failure it is said what has failed.
fn network_failed(error: Error) -> Error {
    match error {
        Error::Failed(error) => error.context("set up the pod's network").into(),
        refusal => refusal,
    }
}

/// The network that the pod asks for; none with the node's network.
pub(crate) fn pod_network(metadata: &Metadata) -> Option<PodNetwork> {
    let pod = metadata.config.metadata.clone().unwrap_or_default();
    Some(PodNetwork {
        id: metadata.id.clone(),
        netns: metadata.netns.clone()?,
        name: pod.name,
        namespace: pod.namespace,
        uid: pod.uid,
        hostname: metadata.config.hostname.clone(),
        port_mappings: metadata.config.port_mappings.clone(),
        // It was checked when the pod was asked for.
        bandwidth: Bandwidth::of(&metadata.config.annotations).unwrap_or_default(),
        dns: metadata.config.dns_config.clone(),
    })
}

fn ipc_of_node(metadata: &Metadata) -> bool {
    metadata.namespace_options().ipc() == NamespaceMode::Node
}

/// The pod's hostname; the node's where the pod has none of its own, as with the node's network.
pub(super) fn hostname(config: &PodSandboxConfig) -> String {
    match config.hostname.as_str() {
        "" => dns::node_hostname(),
        name => name.to_owned(),
    }
}

fn make_directory(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))
}

/// The files that the pod's containers share, and its shared memory. In a pod with ids of its own they are its root's.
fn make_files(directory: &Path, config: &PodSandboxConfig, host_ipc: bool, map: Option<IdMap>) -> Result<()> {
    let host = read_if_there(Path::new(dns::HOST_RESOLV_CONF))?;
    let resolv_conf = dns::resolv_conf(config.dns_config.as_ref(), &host)?;
    let hostname = dns::hostname_file(&hostname(config));
    for (name, content) in [
        ("resolv.conf", resolv_conf.as_bytes()),
        ("hostname", hostname.as_bytes()),
    ] {
        let path = directory.join(name);
        replace(&path, content, 0o644)?;
        if let Some(map) = map {
            chown(&path, Some(map.uid), Some(map.gid)).with_context(|| format!("chown {}", path.display()))?;
        }
    }
    if host_ipc {
        return Ok(());
    }
    let shm = directory.join("shm");
    make_directory(&shm)?;
    let options = match map {
        Some(map) => format!("{SHM_OPTIONS},uid={},gid={}", map.uid, map.gid),
        None => SHM_OPTIONS.to_owned(),
    };
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str()))
        .with_context(|| format!("mount a tmpfs on {}", shm.display()))
}

/// The text of a file; empty where there is none, as on a node without a resolver.
fn read_if_there(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_there() {
        let good = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "p".to_owned(),
                namespace: "n".to_owned(),
                uid: "u".to_owned(),
                attempt: 0,
            }),
            ..Default::default()
        };
        assert!(check(&good).is_ok());
        let without = |change: fn(&mut PodSandboxMetadata)| {
            let mut config = good.clone();
            change(config.metadata.as_mut().expect("it has one"));
            config
        };
        let table = [
            (PodSandboxConfig::default(), "metadata"),
            (without(|metadata| metadata.name.clear()), "metadata.name"),
            (without(|metadata| metadata.namespace.clear()), "metadata.namespace"),
            (without(|metadata| metadata.uid.clear()), "metadata.uid"),
            (
                PodSandboxConfig {
                    log_directory: "logs".to_owned(),
                    ..good.clone()
                },
                "log_directory",
            ),
        ];
        for (config, field) in table {
            let error = check(&config).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
