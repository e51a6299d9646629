//! CheckpointPod: containers of one pod, saved at one moment.
//!
//! ```text
//! OUTPUT/NAME.tar          one archive a container, as CheckpointContainer writes it
//!        pod.containers    the containers' configurations, by name: what RestorePod holds its request against
//!        pod.options       version and names
//!        pod.dump          the sandbox's configuration; named last: with it the checkpoint is whole
//! ```
//! All containers are held before any is saved, and go on before the answer, whatever it is. What is not finished lies in one
//! directory in OUTPUT, and goes with every failure, as does what has got its name already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use corten_proto::cri::{CheckpointPodRequest, CheckpointPodResponse, ContainerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{MutexGuard, RwLockReadGuard};

use super::container_checkpoint::{DEFAULT_LIMIT, Target, absolute_plain, capture_limit, checkpoint_in_order};
use super::container_hold::Scratch;
use super::container_start::in_order;
use super::pod_restore::MAX_DOCUMENT;
use crate::checkpoint::capture::Capture;
use crate::checkpoint::{archive, documents};
use crate::container::Container;
use crate::error::Error;
use crate::node::{Node, blocking, remove_file};
use crate::recover::entries;
use crate::sandbox::Sandbox;
use crate::stage::{Patience, stage};
use crate::tree;

/// The sandbox's configuration.
pub(super) const POD: &str = "pod.dump";
/// [`Options`].
pub(super) const OPTIONS: &str = "pod.options";
/// [`Configs`].
pub(super) const CONFIGS: &str = "pod.containers";
/// The directory that claims another for a checkpoint, and holds what is not finished of it.
const CLAIM: &str = ".checkpoint.partial";
/// Version of the form.
pub(super) const VERSION: u32 = 1;

/// `pod.options`, with checkpointctl's names.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Options {
    pub(super) version: u32,
    /// Names of the containers.
    pub(super) containers: BTreeSet<String>,
    #[serde(default)]
    mount_label: String,
    #[serde(default)]
    process_label: String,
}

/// What keeps other calls from the pod and its containers.
type Orders<'a> = (RwLockReadGuard<'a, ()>, Vec<MutexGuard<'a, ()>>);

/// Containers' configurations as they were asked for, by name.
pub(super) type Configs = BTreeMap<String, ContainerConfig>;

impl Node {
    /// CheckpointPod.
    pub(super) async fn pod_checkpoint(
        self: &Arc<Self>,
        request: &CheckpointPodRequest,
        patience: &Patience,
    ) -> Result<CheckpointPodResponse, Error> {
        no_options(request.options.keys())?;
        let output = absolute_plain("output_path", &request.output_path)?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers = self.chosen(&sandbox, &request.container_ids)?;
        let looked = output.clone();
        blocking(move || Ok(check_output(&looked))).await??;
        let mut checkpoints = Vec::new();
        for container in containers.values() {
            checkpoints.push(checkpoint_in_order(container).await);
        }
        let (scratch, orders) = self.begin_pod(&sandbox, &containers, &output).await?;
        let limit = DEFAULT_LIMIT.min(capture_limit(patience));
        let saved = self
            .checkpoint_pod_to(&sandbox, &containers, &scratch, orders, limit)
            .await;
        let failed = saved.is_err();
        let names = final_names(&output, containers.keys());
        let cleaned = blocking(move || {
            let cleared = if failed { clear(&names) } else { Ok(()) };
            drop(scratch);
            cleared
        });
        let cleaned = cleaned.await;
        saved?;
        cleaned?;
        Ok(CheckpointPodResponse {})
    }

    /// Claims the directory, and has no other call change the pod or its containers.
    async fn begin_pod<'a>(
        self: &Arc<Self>,
        sandbox: &'a Sandbox,
        containers: &'a BTreeMap<String, Arc<Container>>,
        output: &Path,
    ) -> Result<(Scratch, Orders<'a>), Error> {
        // A container that is being made would not be held.
        let pod = sandbox.operations.read().await;
        let mut orders = Vec::new();
        for container in containers.values() {
            orders.push(in_order(container).await);
            self.check_capturable(container).await?;
        }
        let names = final_names(output, containers.keys());
        let scratch = Scratch::begin(self, output.join(CLAIM), names, containers.values()).await?;
        let (path, shown) = (scratch.path.clone(), output.display().to_string());
        let output = output.to_owned();
        match blocking(move || Ok(claim(&path).and_then(|()| check_claimed(&output)))).await? {
            Ok(()) => Ok((scratch, (pod, orders))),
            Err(Unclaimed::Taken) => {
                scratch.disown();
                let text = format!("checkpoint to {shown}: another checkpoint is being written there");
                Err(Error::State(text))
            }
            Err(Unclaimed::Failed(error)) => Err(error),
        }
    }

    /// The containers of the request, by name, which is also the order in which they are locked.
    fn chosen(&self, sandbox: &Sandbox, ids: &[String]) -> Result<BTreeMap<String, Arc<Container>>, Error> {
        const FIELD: &str = "container_ids";
        if ids.is_empty() {
            return Err(Error::invalid(FIELD, "", "must not be empty"));
        }
        let mut chosen = BTreeMap::new();
        for id in ids {
            let container = self.container(id)?;
            if container.metadata.sandbox != *sandbox.id() {
                return Err(Error::invalid(FIELD, id, "must be containers of the pod sandbox"));
            }
            let name = documents::container_name(&container);
            if !is_file_name(&name) {
                let text = format!("checkpoint {id}: its name {name:?} cannot be a file's");
                return Err(Error::State(text));
            }
            if chosen.insert(name, container).is_some() {
                return Err(Error::invalid(
                    FIELD,
                    id,
                    "must not name a container twice, nor two of one name",
                ));
            }
        }
        Ok(chosen)
    }

    async fn checkpoint_pod_to(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        containers: &BTreeMap<String, Arc<Container>>,
        scratch: &Scratch,
        orders: Orders<'_>,
        limit: Duration,
    ) -> Result<(), Error> {
        let (path, names) = (scratch.path.clone(), containers.keys().cloned().collect::<Vec<_>>());
        let captures = blocking(move || {
            names
                .iter()
                .map(|name| Capture::begin(&path.join(name)))
                .collect::<Result<Vec<_>>>()
        });
        let captures = captures.await?;
        let targets: Vec<_> = containers
            .values()
            .cloned()
            .zip(captures)
            .map(|(container, capture)| Target { container, capture })
            .collect();
        self.capture(&targets, scratch, limit).await?;
        // What is written from here on is a copy.
        drop(orders);
        let configs = |(name, container): (&String, &Arc<Container>)| (name.clone(), container.metadata.config.clone());
        let documents = Documents {
            pod: serde_json::to_vec_pretty(&sandbox.metadata.config).context("encode the sandbox")?,
            configs: containers.iter().map(configs).collect(),
        };
        let contents: Vec<_> = containers
            .keys()
            .cloned()
            .zip(targets.iter().map(|it| it.capture.content()))
            .collect();
        let scratch = scratch.path.clone();
        let output = scratch.parent().context("it is in a directory")?.to_owned();
        let _stage = stage(|| format!("write {}", output.display()));
        Ok(blocking(move || name_all(&contents, &documents, &scratch, &output)).await?)
    }
}

/// What is said of the pod beside its containers' archives.
struct Documents {
    pod: Vec<u8>,
    configs: Configs,
}

/// Writes everything to its place.
fn name_all(contents: &[(String, PathBuf)], documents: &Documents, scratch: &Path, output: &Path) -> Result<()> {
    let partial = scratch.join(".partial");
    for (name, content) in contents {
        archive::write(content, &partial, &output.join(archive_name(name)))?;
        // As large as memory, and there twice from here on.
        tree::remove(content)?;
    }
    let options = Options {
        version: VERSION,
        containers: documents.configs.keys().cloned().collect(),
        ..Options::default()
    };
    let put = |name: &str, text: &[u8]| crate::record::replace(&output.join(name), text, 0o600);
    let configs = serde_json::to_vec_pretty(&documents.configs)?;
    ensure!(
        configs.len() as u64 <= MAX_DOCUMENT,
        "{CONFIGS}: {} bytes, and a restore reads at most {MAX_DOCUMENT}",
        configs.len()
    );
    put(CONFIGS, &configs)?;
    put(OPTIONS, &serde_json::to_vec_pretty(&options)?)?;
    // The name that says that all are there, after a power cut too.
    let partial = scratch.join(".partial");
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(&documents.pod)?;
    file.sync_all().with_context(|| format!("fsync {POD}"))?;
    fs::rename(&partial, output.join(POD)).with_context(|| format!("rename to {POD}"))?;
    let directory = File::open(output).and_then(|directory| directory.sync_all());
    directory.with_context(|| format!("fsync {}", output.display()))
}

/// What a checkpoint of these containers is, in the order in which it gets its names.
fn final_names<'a>(output: &Path, containers: impl Iterator<Item = &'a String>) -> Vec<PathBuf> {
    let archives = containers.map(|name| archive_name(name));
    let documents = [CONFIGS, OPTIONS, POD].map(str::to_owned);
    archives.chain(documents).map(|name| output.join(name)).collect()
}

/// The archive of a container of this name.
pub(super) fn archive_name(name: &str) -> String {
    format!("{name}.tar")
}

/// Whether a container's name can be part of a file's.
pub(super) fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// No option is known.
pub(super) fn no_options<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    match keys.next() {
        None => Ok(()),
        Some(key) => Err(Error::invalid(
            &format!("options[{key:?}]"),
            "",
            "there is no such option",
        )),
    }
}

/// Whether a checkpoint can be put into a directory.
fn check_output(path: &Path) -> Result<(), Error> {
    let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let is_empty = is_directory && entries(path).is_ok_and(|entries| entries.is_empty());
    match is_empty {
        true => Ok(()),
        false => Err(not_empty(path)),
    }
}

fn not_empty(path: &Path) -> Error {
    let rule = "must be a directory that is there and empty";
    Error::invalid("output_path", path.display(), rule)
}

/// Why a directory cannot be had.
enum Unclaimed {
    /// Another call has it.
    Taken,
    Failed(Error),
}

/// Makes the directory that says that a checkpoint is written here.
fn claim(path: &Path) -> Result<(), Unclaimed> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Unclaimed::Taken),
        made => made
            .with_context(|| format!("create {}", path.display()))
            .map_err(|error| Unclaimed::Failed(error.into())),
    }
}

/// Whether a directory has nothing in it but the claim.
fn check_claimed(output: &Path) -> Result<(), Unclaimed> {
    let others = entries(output).map(|entries| entries.iter().any(|path| !path.ends_with(CLAIM)));
    match others {
        Ok(false) => Ok(()),
        _ => Err(Unclaimed::Failed(not_empty(output))),
    }
}

/// Removes what a checkpoint that failed has named.
fn clear(names: &[PathBuf]) -> Result<()> {
    names.iter().try_for_each(|path| remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        for good in ["a", "app-1", "a.b_c"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", &"x".repeat(201)] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }

    #[test]
    fn outputs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("full/x")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("empty"), at("link")).unwrap();
        for (name, good) in [
            ("empty", true),
            ("full", false),
            ("file", false),
            ("link", false),
            ("none", false),
        ] {
            assert_eq!(check_output(&at(name)).is_ok(), good, "{name}");
        }
    }
}
