//! CreateContainer: from a request to a container whose init waits for the start. One whose image is a checkpoint has none
//! before (`container_restore`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use corten_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, CreateContainerResponse, LinuxContainerUser,
    PodSandboxConfig,
};
use corten_proto::exit::ExitRecord;
use corten_proto::id::{ContainerId, Digest};
use corten_proto::log::parse_path;
use corten_proto::shim::Create;
use oci_spec::runtime::Spec;
use tonic::Status as RpcStatus;

use super::container_namespaces::Namespaces;
use super::container_restore::Origin;
use super::image_volumes::{VolumeImages, all_layers};
use super::names::{check_labels, check_name};
use crate::cdi;
use crate::config::Config;
use crate::container::{Container, Metadata, Status};
use crate::error::Error;
use crate::image::snapshot::{Changes, Snapshots};
use crate::image::{Image, LayerLease, snapshot};
use crate::image_service::image_pull::UNTRUSTED;
use crate::node::{Node, blocking, new_id};
use crate::paths::Paths;
use crate::record::{read_optional, write};
use crate::sandbox::Sandbox;
use crate::spec::{
    self, Confinement, ContainerSpecInput, Features, MadeDirectories, SourceRules, Sources, SpecError, User,
    stop_signal, user,
};
use crate::stage::{Patience, stage};
use crate::telemetry::names;
use crate::tree;

/// How long host paths and the image's user files may take to look up: less than the kubelet waits for the call.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// A checked request, with everything that was looked up for it.
struct Plan {
    id: ContainerId,
    config: ContainerConfig,
    sandbox: Arc<Sandbox>,
    namespaces: Arc<Namespaces>,
    image: Arc<Image>,
    /// The images of the mounts that are image volumes, by their place in the request.
    volumes: VolumeImages,
    lease: LayerLease,
    stop_signal: i32,
    /// The server's configuration when the creation began.
    settings: Arc<Config>,
    /// What the container goes on from; none for one that begins anew.
    origin: Option<Origin>,
}

/// What was looked up on the node and in the container's root.
struct Found {
    user: User,
    sources: Sources,
    /// For host paths that were missing.
    made: MadeDirectories,
    /// What the CDI devices make of the specification.
    edits: cdi::Edits,
    /// By the profiles that the container asks for.
    confinement: Confinement,
}

impl Node {
    /// CreateContainer. The same metadata again gives the same container while it has not been started.
    pub(super) async fn container_create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
        patience: &Patience,
    ) -> Result<CreateContainerResponse, RpcStatus> {
        let Some(config) = request.config else {
            return Err(Error::invalid("config", "", "must be there, with metadata").into());
        };
        let metadata = self.check_alone(&config)?.clone();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let image = config.image.as_ref().map_or("", |image| image.image.as_str());
        names::about_new_container(&metadata.name, image);
        // Against what the sandbox was run with, not the copy that came with this request.
        self.check_container(&config, &sandbox.metadata.config, &sandbox.metadata.runtime)?;
        let key = (sandbox.id().clone(), metadata.name.clone(), metadata.attempt);
        let existing = || self.existing_container(&sandbox, &metadata);
        let create = || {
            let (node, sandbox) = (self.clone(), sandbox.clone());
            async move { node.create(sandbox, config, None).await.map_err(RpcStatus::from) }
        };
        let creates = &self.container_creates;
        let id = creates.join(&self.work, patience, key, existing, create).await?;
        Ok(CreateContainerResponse {
            container_id: id.to_string(),
        })
    }

    /// Checks what can be checked by looking at a configuration, its pod's and the pod's runtime alone.
    pub(super) fn check_container(
        &self,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
        runtime: &str,
    ) -> Result<(), Error> {
        self.check_alone(config)?;
        spec::check_container(config, sandbox)?;
        cdi::check(config)?;
        let settings = self.config();
        let allowed = settings.annotations(runtime).container;
        spec::annotations::passed("annotations", &config.annotations, allowed)?;
        Ok(())
    }

    /// The part of it for which there need be no pod.
    fn check_alone<'a>(&self, config: &'a ContainerConfig) -> Result<&'a ContainerMetadata, Error> {
        let metadata = check(config)?;
        let handler = config.image.as_ref().map(|image| &image.runtime_handler);
        if let Some(handler) = handler.filter(|handler| !handler.is_empty())
            && self.config().runtime(handler).is_none()
        {
            let rule = "must be empty or the name of a configured runtime";
            return Err(Error::invalid("image.runtime_handler", handler, rule));
        }
        Ok(metadata)
    }

    fn existing_container(
        &self,
        sandbox: &Sandbox,
        metadata: &ContainerMetadata,
    ) -> Option<Result<ContainerId, RpcStatus>> {
        let container = self.store.container_of(sandbox.id(), metadata)?;
        if let Status::Created { .. } = container.status() {
            return Some(Ok(container.id().clone()));
        }
        let text = format!(
            "metadata name {:?} attempt {}: container {} of pod sandbox {} has it and was started",
            metadata.name,
            metadata.attempt,
            container.id(),
            sandbox.id()
        );
        Some(Err(Error::Exists(text).into()))
    }

    /// Makes a container; from the checkpoint in `archive`, if there is one, or the one that the request names as its image.
    pub(super) async fn create(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
        archive: Option<PathBuf>,
    ) -> Result<ContainerId, Error> {
        // At once: a stop under way would be waited for below.
        self.ready(&sandbox)?;
        let id = new_id()?;
        names::about_container_id(id.as_str());
        // An archive is as large as memory, and a stop of the pod need not wait for it.
        let origin = self.origin(&id, &config, &sandbox, archive).await;
        // StopPodSandbox waits for this, then stops what was made.
        let operations = sandbox.clone();
        let _open = operations.operations.read().await;
        let plan = match origin.and_then(|origin| self.plan(&id, sandbox, config, origin)) {
            Ok(plan) => plan,
            Err(error) => {
                self.discard_unpacked(&id).await;
                return Err(error);
            }
        };
        // For longer than the plan: where the shim has not answered, the runtime may be opening them still.
        let _namespaces = plan.namespaces.clone();
        let result = self.build_checked(plan).await;
        if result.is_err() {
            self.discard_container(&operations, &id).await;
        }
        result.map(|()| id)
    }

    /// Host pid of the infra container, if the sandbox takes containers.
    fn ready(&self, sandbox: &Sandbox) -> Result<i32, Error> {
        sandbox.pid().ok_or_else(|| {
            let state = sandbox.status().state().as_str_name();
            let text = format!("create a container in pod sandbox {}: it is {state}", sandbox.id());
            Error::State(text)
        })
    }

    /// Looks everything up that the request needs; nothing is made yet but the claim on the image's layers.
    fn plan(
        &self,
        id: &ContainerId,
        sandbox: Arc<Sandbox>,
        mut config: ContainerConfig,
        origin: Option<Origin>,
    ) -> Result<Plan, Error> {
        let pid = self.ready(&sandbox)?;
        let name = config.image.as_ref().map_or("", |image| image.image.as_str());
        let image = match &origin {
            Some(origin) => origin.image.clone(),
            None => self.find_image(name)?,
        };
        let volumes = self.find_volumes(&mut config)?;
        let image_signal = image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.stop_signal().as_deref());
        let mut layers = all_layers(&image, &volumes);
        layers.extend(carried_layer(origin.as_ref()));
        Ok(Plan {
            id: id.clone(),
            namespaces: Arc::new(self.namespaces(&sandbox, pid, &config)?),
            lease: self.images.lease(&layers)?,
            stop_signal: stop_signal::effective(config.stop_signal, image_signal)?,
            image,
            volumes,
            config,
            sandbox,
            settings: self.config(),
            origin,
        })
    }

    /// Makes the container, if the policy lets its images be used.
    async fn build_checked(self: &Arc<Self>, plan: Plan) -> Result<(), Error> {
        self.check_policy(&plan).await?;
        self.build_container(plan).await
    }

    /// Whether the policy, as it is now, lets the image and those of its volumes be used by the names that the pod has for
    /// them.
    async fn check_policy(&self, plan: &Plan) -> Result<(), Error> {
        let carrier = plan.origin.as_ref().map(|origin| origin.carrier.as_ref());
        if carrier.is_some() {
            // By whichever name it is here: the one in the checkpoint is anybody's.
            let judged = self.images.may_run(&plan.image, "").await;
            judged.map_err(|error| Error::State(format!("{UNTRUSTED}image {}: {error}", plan.image.id)))?;
        }
        // The name in the request is that of what is pulled: the checkpoint where it is an image, and nothing for an archive.
        let named = carrier.map_or(Some(&plan.image), |carrier| carrier.map(|(image, _layer)| image));
        let own = plan.config.image.as_ref().zip(named);
        let volumes = plan
            .volumes
            .iter()
            .filter_map(|(&index, image)| Some((plan.config.mounts[index].image.as_ref()?, image)));
        for (spec, image) in own.into_iter().chain(volumes) {
            let names = [&spec.user_specified_image, &spec.image];
            let asked = names.into_iter().find(|name| !name.is_empty());
            let judged = self.images.may_run(image, asked.map_or("", String::as_str)).await;
            judged.map_err(|error| Error::State(format!("{UNTRUSTED}image {}: {error}", image.id)))?;
        }
        Ok(())
    }

    /// The image, which must be here: pulling is the kubelet's decision.
    pub(super) fn find_image(&self, name: &str) -> Result<Arc<Image>, Error> {
        match self.images.find(name) {
            Ok(Some(image)) => Ok(image),
            Ok(None) => Err(Error::NotFound {
                what: "image",
                id: name.to_owned(),
            }),
            Err(error) => Err(Error::invalid("image.image", name, &error.to_string())),
        }
    }

    /// Makes the container: every step's leftovers are undone by [`Node::discard_container`].
    async fn build_container(self: &Arc<Self>, mut plan: Plan) -> Result<(), Error> {
        let (paths, snapshots) = (self.paths.clone(), self.snapshots.clone());
        let (image, id) = (plan.image.clone(), plan.id.clone());
        let mapped = plan.namespaces.user.clone();
        let changes = plan
            .origin
            .as_mut()
            .map(|origin| std::mem::take(&mut origin.checked.changes));
        {
            let _stage = stage(|| "the root filesystem".to_owned()).named("root_filesystem");
            let made = move || make_directories(&paths, &snapshots, &image, &id, mapped.as_deref(), changes.as_ref());
            blocking(made).await?;
        }
        let mapped = plan.namespaces.user.clone();
        let volumes = self.make_volumes(&plan.id, &plan.config, &plan.volumes, mapped).await?;
        let Found {
            user,
            sources,
            made,
            edits,
            confinement,
        } = self.look_inside(&plan, volumes).await?;
        let features = self.runtime_features(&plan.sandbox.metadata.runtime).await;
        let mut spec = self.container_spec(&plan, &user, &sources, &confinement, features)?;
        edits.apply(&mut spec);
        let path = self.paths.bundle(&plan.id).join("config.json");
        blocking(move || write(&path, &spec)).await?;
        let pid = match plan.origin {
            // Nothing of it is to run before its start.
            Some(_) => 0,
            None => self.create_init(&plan).await?,
        };
        let sandbox = plan.sandbox.clone();
        let (metadata, lease) = self.metadata(plan, &user);
        let status = Status::Created { pid };
        self.write_record(self.paths.container_record(&metadata.id), &metadata, &status)
            .await?;
        made.keep();
        let container = Container::new(metadata, status, Some(lease));
        self.container_added(&container);
        self.catch_up(&container).await;
        if sandbox.shim().is_none() {
            // Its end was told when this container was not yet there to hear of it.
            self.settle(&container, "its shim has ended").await;
        }
        Ok(())
    }

    /// Has the shim make the container, whose init waits for the start; its pid.
    async fn create_init(&self, plan: &Plan) -> Result<i32, Error> {
        let create = self.shim_create(&plan.id, &plan.sandbox, &plan.config);
        let shim = plan
            .sandbox
            .shim()
            .ok_or_else(|| Error::State(format!("the shim of pod sandbox {} has ended", plan.sandbox.id())))?;
        let created = shim.create(create).await;
        Ok(created.with_context(|| format!("create {}", plan.id))?)
    }

    /// What must be looked up in the container's own root and on the node: its user, host paths and profiles.
    ///
    /// A host path may lie on a filesystem that does not answer. The thread that waits for it cannot be freed: a pod can
    /// hold one, and all pods together some, however often the kubelet repeats the call. The caller is told which paths
    /// were asked for before its own patience ends.
    async fn look_inside(self: &Arc<Self>, plan: &Plan, volumes: BTreeMap<usize, PathBuf>) -> Result<Found, Error> {
        let rootfs = self.paths.bundle(&plan.id).join("rootfs");
        let (config, image) = (plan.config.clone(), plan.image.clone());
        let (of_pod, of_node) = (plan.sandbox.look.clone(), self.looks.clone());
        let (node, settings) = (self.clone(), plan.settings.clone());
        let look = move || {
            let rules = SourceRules {
                missing_host_path: settings.missing_host_path,
                device_ownership: settings.device_ownership_from_security_context,
            };
            let linux = config.linux.as_ref();
            let security = linux.and_then(|linux| linux.security_context.as_ref());
            let image = image.config.config().as_ref();
            let image_user = image.and_then(|config| config.user().as_deref());
            let mut user = user::resolve(&rootfs, security, image_user)?;
            let edits = cdi::resolve(&config, &settings.cdi_spec_dirs)?;
            edits.add_groups(&mut user);
            let (sources, made) = Sources::read(&config, &volumes, rules)?;
            let confinement = Confinement::of_container(&config, &node.host, &settings.security)?;
            Ok::<_, SpecError>(Found {
                user,
                sources,
                made,
                edits,
                confinement,
            })
        };
        let paths: Vec<_> = plan.config.mounts.iter().map(|mount| &mount.host_path).collect();
        let what = format!("look up the host paths {paths:?}");
        let _stage = stage(|| what.clone()).named("host_paths");
        // Two results: the inner one keeps the kind of the refusal, which decides the code.
        let looking = async {
            let permits = (of_pod.acquire_owned().await, of_node.acquire_owned().await);
            blocking(move || {
                let found = look();
                // Given back by the thread, whoever still waits for it.
                drop(permits);
                Ok(found)
            })
            .await
        };
        let Ok(found) = tokio::time::timeout(LOOK_LIMIT, looking).await else {
            let limit = LOOK_LIMIT.as_secs();
            return Err(Error::Deadline(format!("{what}: no answer in {limit} s")));
        };
        Ok(found??)
    }

    fn container_spec(
        &self,
        plan: &Plan,
        user: &User,
        sources: &Sources,
        confinement: &Confinement,
        features: Features,
    ) -> Result<Spec, Error> {
        let bundle = self.paths.bundle(&plan.id);
        let sandbox = &plan.sandbox.metadata;
        let image = plan.config.image.clone().unwrap_or_default();
        let asked = [&image.user_specified_image, &image.image];
        let hostname = super::sandbox_run::hostname(&sandbox.config);
        Ok(spec::container(&ContainerSpecInput {
            id: &plan.id,
            sandbox_id: &sandbox.id,
            sandbox_config: &sandbox.config,
            config: &plan.config,
            image_config: &plan.image.config,
            image_name: asked
                .into_iter()
                .find(|name| !name.is_empty())
                .map_or("", String::as_str),
            rootfs: &bundle.join("rootfs"),
            sandbox_dir: &self.paths.sandbox(&sandbox.id),
            hostname: &hostname,
            infra: &plan.namespaces.infra(),
            target_pid_namespace: plan.namespaces.target().as_deref(),
            user,
            cgroups_path: &self.cgroups_path(&sandbox.config, &plan.id)?,
            sources,
            confinement,
            security: &plan.settings.security,
            features,
            annotations: self.config().annotations(&sandbox.runtime),
            host: &self.host,
        })?)
    }

    /// What a shim needs to know of a container.
    pub(super) fn shim_create(&self, id: &ContainerId, sandbox: &Sandbox, config: &ContainerConfig) -> Create {
        let log_directory = sandbox.metadata.config.log_directory.clone();
        let logs = !log_directory.is_empty();
        let settings = self.config();
        Create {
            id: id.to_string(),
            bundle: self.paths.bundle(id).to_string_lossy().into_owned(),
            terminal: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            max_log_line: settings.container_log_max_line_bytes,
            log_path: if logs { config.log_path.clone() } else { String::new() },
            log_directory,
            exit_record: self.paths.container_exit(id).to_string_lossy().into_owned(),
            log_limit: settings.container_log_limit_bytes.unwrap_or(0),
        }
    }

    fn metadata(&self, plan: Plan, user: &User) -> (Metadata, LayerLease) {
        let image_id = plan.image.id.to_string();
        let directory = &plan.sandbox.metadata.config.log_directory;
        let log_path = match directory.is_empty() || plan.config.log_path.is_empty() {
            true => String::new(),
            false => Path::new(directory)
                .join(&plan.config.log_path)
                .to_string_lossy()
                .into_owned(),
        };
        let mut layers = all_layers(&plan.image, &plan.volumes);
        layers.extend(carried_layer(plan.origin.as_ref()));
        let metadata = Metadata {
            id: plan.id,
            sandbox: plan.sandbox.id().clone(),
            created_at: self.store.next_created_at(),
            image_ref: plan.image.repo_digests.first().unwrap_or(&image_id).clone(),
            image_id,
            layers,
            user: LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.additional_gids.iter().map(|&gid| gid.into()).collect(),
            },
            log_path,
            stop_signal: plan.stop_signal,
            checkpoint: plan.origin.map(|origin| origin.checked.images),
            config: plan.config,
        };
        (metadata, plan.lease)
    }

    /// An init that ended before the container was in the store: its event found nobody, its exit record is there.
    async fn catch_up(&self, container: &Arc<Container>) {
        let path = self.paths.container_exit(container.id());
        match blocking(move || read_optional::<ExitRecord>(&path)).await {
            Ok(Some(record)) => {
                let message = self.message_of(container.id(), &record.exit()).await;
                self.container_changed(container, |status| status.recorded(&record).explained(message))
                    .await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(container = %container.id(), "{error:#}"),
        }
    }

    /// Undoes a creation that failed, at whatever step.
    async fn discard_container(&self, sandbox: &Sandbox, id: &ContainerId) {
        // If the shim is still at it and does not answer, the removal of the pod finds what comes of it.
        if let Err(error) = self.delete(sandbox, id).await {
            tracing::warn!("undo a failed creation: {error:#}");
        }
        if let Err(error) = self.discard_files(id).await {
            tracing::warn!("undo a failed creation: {error:#}");
        }
    }

    /// Removes the checkpoint of a container of which there is nothing else, if there is one.
    async fn discard_unpacked(&self, id: &ContainerId) {
        if self.paths.container(id).exists()
            && let Err(error) = self.discard_files(id).await
        {
            tracing::warn!("undo a failed creation: {error:#}");
        }
    }

    /// Removes a container's mounts and directories, whichever of them are there.
    pub(crate) async fn discard_files(&self, id: &ContainerId) -> Result<()> {
        let (bundle, directory) = (self.paths.bundle(id), self.paths.container(id));
        let volumes = self.paths.volumes(id);
        let snapshots = self.snapshots.clone();
        blocking(move || {
            snapshot::unmount(&bundle.join("rootfs"))?;
            snapshot::unmount_volumes(&volumes)?;
            tree::remove(&bundle)?;
            snapshots.remove(&directory)
        })
        .await
    }
}

/// The directories of a container, with its root filesystem mounted.
fn make_directories(
    paths: &Paths,
    snapshots: &Snapshots,
    image: &Image,
    id: &ContainerId,
    user_namespace: Option<&File>,
    changes: Option<&Changes>,
) -> Result<()> {
    let (directory, bundle) = (paths.container(id), paths.bundle(id));
    for path in [&directory, &bundle, &bundle.join("rootfs")] {
        // With a checkpoint the first is there: the archive is in it.
        if path == &directory && changes.is_some() && directory.is_dir() {
            continue;
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make {}", path.display()))?;
    }
    let root = snapshot::Root {
        layers: &image.layers,
        dir: &directory,
        target: &bundle.join("rootfs"),
        user_namespace: user_namespace.map(File::as_fd),
    };
    snapshots
        .mount_changed(&root, changes)
        .with_context(|| format!("make the root filesystem of {id}"))
}

/// The layer that a checkpoint came as.
fn carried_layer(origin: Option<&Origin>) -> Option<Digest> {
    let (_image, layer) = origin?.carrier.as_ref()?;
    Some(layer.clone())
}

/// Checks what is this call's own; its metadata. The rest is the spec's (`spec::check_container`).
fn check(config: &ContainerConfig) -> Result<&ContainerMetadata, Error> {
    let Some(metadata) = config.metadata.as_ref() else {
        return Err(Error::invalid("metadata.name", "", "must not be empty"));
    };
    check_name("metadata.name", &metadata.name)?;
    check_labels(&config.labels, &config.annotations)?;
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(Error::invalid("image.image", "", "must name an image"));
    }
    match parse_path(&config.log_path) {
        Ok(_) => Ok(metadata),
        Err(rule) => Err(Error::invalid("log_path", &config.log_path, rule)),
    }
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::ImageSpec;

    use super::*;

    fn config(log_path: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "c".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: "busybox".to_owned(),
                ..Default::default()
            }),
            log_path: log_path.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn log_paths() {
        for good in ["", "a.log", "c/0.log", "./c/0.log", "..c/0.log"] {
            assert!(check(&config(good)).is_ok(), "{good}");
        }
        for bad in ["/var/log/x", "../x", "c/../../x", "..", ".", "c/0.log/"] {
            let error = check(&config(bad)).expect_err(bad).to_string();
            assert!(error.contains("log_path") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn what_must_be_there() {
        let mut nameless = config("");
        nameless.metadata = Some(ContainerMetadata::default());
        let mut imageless = config("");
        imageless.image = None;
        let table = [(nameless, "metadata.name"), (imageless, "image.image")];
        for (config, field) in table {
            let error = check(&config).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
