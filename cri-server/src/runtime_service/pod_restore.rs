//! RestorePod: a new pod whose containers go on from a checkpoint of another.
//!
//! ```text
//! check --> RunPodSandbox --> CreateContainer, each from its archive --> all are CREATED; StartContainer lets them go on
//! ```
//! The request is the measure. What it says of image, command, arguments, working directory, environment and user must be what
//! the checkpoint was made of, since what runs is decided by memory; everything else is applied. A failure removes everything.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use corten_proto::cri::{
    ContainerConfig, PodSandboxConfig, PodSandboxMetadata, RestorePodRequest, RestorePodResponse, RestoredContainer,
    RunPodSandboxRequest,
};
use corten_proto::id::SandboxId;
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use tonic::Status as RpcStatus;

use super::container_checkpoint::absolute_plain;
use super::pod_checkpoint::{CONFIGS, Configs, OPTIONS, Options, POD, VERSION, archive_name, is_file_name, no_options};
use crate::checkpoint::source;
use crate::error::Error;
use crate::node::{Node, blocking, sandbox_key};
use crate::sandbox;
use crate::stage::Patience;

/// The longest document that is read, and so is written, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 16 << 20;
/// The fields of the request.
const PATH: &str = "checkpoint_path";
const CONTAINERS: &str = "container_configs";

impl Node {
    /// RestorePod.
    pub(super) async fn pod_restore(
        self: &Arc<Self>,
        request: RestorePodRequest,
        patience: &Patience,
    ) -> Result<RestorePodResponse, RpcStatus> {
        let checked = self.check_pod_restore(&request).await?;
        let names: Vec<_> = request
            .container_configs
            .iter()
            .map(|config| name_of(config).to_owned())
            .collect();
        let pod = request.config.as_ref().and_then(|config| config.metadata.clone());
        let pod = pod.unwrap_or_default();
        let existing = || self.restored_pod(&pod, &names);
        let restore = || {
            let node = self.clone();
            async move { node.restore_pod(request, &checked).await.map_err(RpcStatus::from) }
        };
        let restores = &self.pod_restores;
        let id = restores
            .join(&self.work, patience, sandbox_key(&pod), existing, restore)
            .await?;
        let restored = self.restored_containers(&id, &names).map_err(|name| {
            let text = format!("RestorePod: container {name:?} of pod sandbox {id} has gone meanwhile");
            RpcStatus::from(Error::State(text))
        })?;
        Ok(RestorePodResponse {
            pod_sandbox_id: id.to_string(),
            restored_containers: restored,
        })
    }

    /// Everything that can be said of a request before anything is made; the directory of the checkpoint.
    async fn check_pod_restore(&self, request: &RestorePodRequest) -> Result<PathBuf, Error> {
        no_options(request.options.keys())?;
        let path = absolute_plain(PATH, &request.checkpoint_path)?;
        let Some(config) = &request.config else {
            return Err(Error::invalid("config", "", "must be there, with metadata"));
        };
        let (from, shown) = (path.clone(), &request.checkpoint_path);
        let read = blocking(move || read_configs(&from)).await;
        let saved =
            read.map_err(|error| Error::invalid(PATH, shown, &format!("must be a pod's checkpoint: {error:#}")))?;
        check_names(&saved, &request.container_configs)?;
        let runtime = self.runtime_name(&request.runtime_handler);
        self.runtime(&runtime)?;
        for container in &request.container_configs {
            self.check_container(container, config, &runtime)?;
            same_as_saved(&saved[name_of(container)], container)?;
        }
        self.check_criu(&runtime).await?;
        Ok(path)
    }

    /// Makes the pod and its containers, or nothing.
    async fn restore_pod(self: Arc<Self>, request: RestorePodRequest, path: &Path) -> Result<SandboxId, Error> {
        let run = RunPodSandboxRequest {
            config: request.config,
            runtime_handler: request.runtime_handler,
        };
        let ran = self.sandbox_of_run(run, &Patience::from("RestorePod")).await;
        let (id, new) = ran.map_err(|status| Error::Status(Box::new(status)))?;
        if !new {
            // Its containers are another call's, and so is its end.
            let text = format!("pod sandbox {id} is what a RunPodSandbox has made of this metadata meanwhile");
            return Err(Error::Exists(text));
        }
        match self
            .restore_containers(id.as_str(), path, request.container_configs)
            .await
        {
            Ok(()) => Ok(id),
            Err(error) => {
                if let Err(second) = self.sandbox_remove(id.as_str()).await {
                    tracing::warn!(sandbox = %id, "undo a failed RestorePod: {second}");
                }
                Err(error)
            }
        }
    }

    /// The pod of this identity, if there is one: what an earlier call for the same has made, while nothing of it was
    /// started; any other is not what was asked for.
    fn restored_pod(&self, pod: &PodSandboxMetadata, names: &[String]) -> Option<Result<SandboxId, RpcStatus>> {
        let sandbox = self.store.sandbox_of(pod)?;
        let ready = matches!(sandbox.status(), sandbox::Status::Ready { .. });
        let containers = self.store.containers_of(sandbox.id());
        let waiting = containers.len() == names.len() && containers.iter().all(|it| it.awaits_restore());
        if ready && waiting && self.restored_containers(sandbox.id(), names).is_ok() {
            return Some(Ok(sandbox.id().clone()));
        }
        let text = format!(
            "metadata {}/{} uid {} attempt {}: pod sandbox {} has it",
            pod.namespace,
            pod.name,
            pod.uid,
            pod.attempt,
            sandbox.id()
        );
        Some(Err(Error::Exists(text).into()))
    }

    async fn restore_containers(
        self: &Arc<Self>,
        id: &str,
        path: &Path,
        configs: Vec<ContainerConfig>,
    ) -> Result<(), Error> {
        let sandbox = self.sandbox(id)?;
        for config in configs {
            let archive = path.join(archive_name(name_of(&config)));
            let node = self.clone();
            node.create(sandbox.clone(), config, Some(archive)).await?;
        }
        Ok(())
    }

    /// The restored containers of these names; the first name of which there is none.
    fn restored_containers(&self, id: &SandboxId, names: &[String]) -> Result<Vec<RestoredContainer>, String> {
        let all = self.store.containers_of(id);
        let restored = |name: &String| {
            let mut all = all.iter();
            let found = all.find(|it| it.metadata.checkpoint.is_some() && name_of(&it.metadata.config) == name);
            found.ok_or_else(|| name.clone()).map(|container| RestoredContainer {
                name: name.clone(),
                container_id: container.id().to_string(),
            })
        };
        names.iter().map(restored).collect()
    }
}

fn name_of(config: &ContainerConfig) -> &str {
    config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

/// The configurations of a checkpoint, if it is whole.
fn read_configs(path: &Path) -> Result<Configs> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).context("open the directory")?;
    let options: Options = document(&directory, OPTIONS)?;
    let version = options.version;
    ensure!(version == VERSION, "{OPTIONS}: version {version}: must be {VERSION}");
    let _sandbox: PodSandboxConfig = document(&directory, POD)?;
    let configs: Configs = document(&directory, CONFIGS)?;
    let names: BTreeSet<_> = configs.keys().cloned().collect();
    ensure!(
        names == options.containers,
        "{OPTIONS} and {CONFIGS} name different containers"
    );
    for name in &names {
        ensure!(is_file_name(name), "{CONFIGS}: {name:?} cannot be a container's name");
    }
    Ok(configs)
}

/// A JSON document of an open directory, which must be a file.
fn document<T: DeserializeOwned>(directory: &std::os::fd::OwnedFd, name: &str) -> Result<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).with_context(|| format!("open {name}"))?;
    let file = File::from(file);
    ensure!(file.metadata()?.is_file(), "{name}: must be a regular file");
    source::decode(file, name, MAX_DOCUMENT)
}

/// The request names every container of the checkpoint, once.
fn check_names(saved: &Configs, asked: &[ContainerConfig]) -> Result<(), Error> {
    let names: Vec<_> = asked.iter().map(name_of).collect();
    let set: BTreeSet<_> = names.iter().copied().collect();
    let expected: BTreeSet<_> = saved.keys().map(String::as_str).collect();
    if set == expected && names.len() == set.len() {
        return Ok(());
    }
    let expected = expected.into_iter().collect::<Vec<_>>().join(", ");
    let rule = format!("must name each container of the checkpoint once: {expected}");
    Err(Error::invalid(CONTAINERS, names.join(", "), &rule))
}

/// What memory decides must be what the request says. The image is compared by its content where the container is made.
fn same_as_saved(saved: &ContainerConfig, asked: &ContainerConfig) -> Result<(), Error> {
    let name = name_of(asked);
    let user = |config: &ContainerConfig| {
        let security = config.linux.as_ref()?.security_context.clone()?;
        let groups = (security.supplemental_groups, security.supplemental_groups_policy);
        Some((
            security.run_as_user,
            security.run_as_group,
            security.run_as_username,
            groups,
        ))
    };
    let envs = |config: &ContainerConfig| -> Vec<_> {
        let envs = config.envs.iter();
        envs.map(|env| (env.key.clone(), env.value.clone())).collect()
    };
    let same = [
        ("command", saved.command == asked.command),
        ("args", saved.args == asked.args),
        ("working_dir", saved.working_dir == asked.working_dir),
        ("envs", envs(saved) == envs(asked)),
        ("tty", saved.tty == asked.tty),
        ("linux.security_context", user(saved) == user(asked)),
    ];
    match same.into_iter().find(|(_field, same)| !same) {
        None => Ok(()),
        Some((field, _)) => {
            let rule = "must be what the checkpoint was made with (user and groups of linux.security_context)";
            Err(Error::invalid(&format!("{CONTAINERS}[{name}].{field}"), "", rule))
        }
    }
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{
        ContainerMetadata, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    };

    use super::*;

    fn config(name: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn every_container_once() {
        let saved: Configs = ["a", "b"].map(|name| (name.to_owned(), config(name))).into();
        assert!(check_names(&saved, &[config("b"), config("a")]).is_ok());
        let table: [&[&str]; 4] = [&["a"], &["a", "b", "c"], &["a", "a", "b"], &[]];
        for names in table {
            let asked: Vec<_> = names.iter().map(|name| config(name)).collect();
            assert!(check_names(&saved, &asked).is_err(), "{names:?}");
        }
    }

    type Change = fn(&mut ContainerConfig);

    #[test]
    fn what_memory_decides_is_asserted_and_the_rest_applied() {
        let env = |value: &str| KeyValue {
            key: "K".to_owned(),
            value: value.into(),
        };
        let security = |uid| LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_user: Some(Int64Value { value: uid }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let saved = ContainerConfig {
            command: vec!["sh".to_owned()],
            envs: vec![env("1")],
            linux: Some(security(7)),
            ..config("a")
        };
        let with = |change: Change| {
            let mut asked = saved.clone();
            change(&mut asked);
            same_as_saved(&saved, &asked)
        };
        let applied: [Change; 3] = [
            |_| {},
            |asked| asked.log_path = "other.log".to_owned(),
            |asked| asked.labels = [("k".to_owned(), "v".to_owned())].into(),
        ];
        for change in applied {
            assert!(with(change).is_ok());
        }
        let asserted: [(&str, Change); 6] = [
            ("command", |asked| asked.command.clear()),
            ("args", |asked| asked.args.push("x".to_owned())),
            ("working_dir", |asked| asked.working_dir = "/x".to_owned()),
            ("envs", |asked| asked.envs.clear()),
            ("tty", |asked| asked.tty = true),
            ("linux.security_context", |asked| asked.linux = None),
        ];
        for (field, change) in asserted {
            let error = with(change).expect_err(field).to_string();
            assert!(error.contains(&format!("container_configs[a].{field}")), "{error}");
        }
    }
}
