//! Containers that are held still while they are saved, and the promise that they go on.
//!
//! ```text
//! mark on disk --> RUNTIME pause, each --> ... --> RUNTIME resume, each --> archive --> directory and marks removed
//! ```
//! A container is resumed on every path: [`Held::release`] in the order of the call, `Drop` where the task ends early, and
//! [`Node::release_held`] when a server starts that finds the mark of one that was killed. The mark names the directory that
//! was being written, so that it goes with the mark ([`Scratch`]).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::node::{Node, blocking, remove_file};
use crate::oci;
use crate::record::{read_optional, write};
use crate::tree;

/// What is on disk while a container is held.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// What is being written meanwhile.
    directory: PathBuf,
}

/// A container that is held.
#[derive(Debug)]
struct One {
    id: ContainerId,
    runtime: PathBuf,
    root: PathBuf,
}

/// The directory of a checkpoint that is not finished, with a name of its own. Dropping it removes it, and then the marks of
/// containers that go on.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    marks: Vec<PathBuf>,
    /// None of them is held any more; true before any is.
    released: AtomicBool,
}

impl Scratch {
    /// In `directory`, which is there, for a checkpoint of these containers; `id` tells it from others. It is not made yet.
    pub(super) fn within<'a>(
        node: &Node,
        directory: &Path,
        id: &str,
        containers: impl Iterator<Item = &'a Arc<Container>>,
    ) -> Scratch {
        let mark = |container: &Arc<Container>| node.paths.container_held(container.id());
        Scratch {
            path: directory.join(format!(".checkpoint-{id}.partial")),
            marks: containers.map(mark).collect(),
            released: AtomicBool::new(true),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = tree::remove(&self.path);
        let released = self.released.load(Ordering::Relaxed);
        let marks = self.marks.iter().filter(|_| released);
        let removed = removed.and_then(|()| marks.into_iter().try_for_each(|mark| remove_file(mark)));
        if let Err(error) = removed {
            tracing::warn!("remove what a checkpoint has left: {error:#}");
        }
    }
}

/// Containers that no process of runs, until they are released.
#[derive(Debug, Default)]
pub(super) struct Held {
    all: Vec<One>,
}

impl Held {
    /// Holds one more, while the checkpoint in `scratch` is written.
    pub(super) async fn hold(&mut self, node: &Node, container: &Container, scratch: &Scratch) -> Result<()> {
        let one = node.to_hold(container)?;
        let directory = &scratch.path;
        scratch.released.store(false, Ordering::Relaxed);
        let (path, mark) = (
            node.paths.container_held(container.id()),
            Mark {
                directory: directory.to_owned(),
            },
        );
        blocking(move || write(&path, &mark)).await?;
        let (id, runtime, root) = (one.id.clone(), one.runtime.clone(), one.root.clone());
        // Before the call: one that fails may have held some of its processes.
        self.all.push(one);
        let paused = oci::pause(&runtime, &root, &id).await;
        paused.with_context(|| format!("hold {id}"))
    }

    /// Lets all of them go on. Each is tried; the first failure is returned.
    pub(super) async fn release(mut self, scratch: &Scratch) -> Result<()> {
        let mut result = Ok(());
        while let Some(one) = self.all.last() {
            let resumed = oci::resume(&one.runtime, &one.root, &one.id).await;
            result = result.and(resumed.with_context(|| format!("let {} go on", one.id)));
            // Only now: until here, an end of the task leaves it to Drop.
            self.all.pop();
        }
        scratch.released.store(result.is_ok(), Ordering::Relaxed);
        result
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for one in self.all.drain(..) {
            let mut command = Command::new(&one.runtime);
            command.env_clear().env("PATH", oci::PATH).stdin(Stdio::null());
            command.arg("--root").arg(&one.root).args(["resume", one.id.as_str()]);
            let resumed = command.output().is_ok_and(|output| output.status.success());
            tracing::warn!(container = %one.id, resumed, "a checkpoint ended early");
        }
    }
}

impl Node {
    fn to_hold(&self, container: &Container) -> Result<One> {
        let sandbox = self.sandbox_of(container)?;
        let (runtime, root) = self.runtime(&sandbox.metadata.runtime)?;
        Ok(One {
            id: container.id().clone(),
            runtime,
            root,
        })
    }

    /// Lets go on what a killed server held, and removes what it was writing.
    pub(crate) async fn release_held(self: &Arc<Self>) {
        for container in self.store.containers() {
            let path = self.paths.container_held(container.id());
            let mark = blocking(move || read_optional::<Mark>(&path)).await;
            let released = match mark {
                Ok(None) => continue,
                Ok(Some(mark)) => self.release_one(&container, mark.directory).await,
                Err(error) => Err(error),
            };
            match released {
                Ok(()) => tracing::info!(container = %container.id(), "goes on: a checkpoint was not finished"),
                Err(error) => tracing::warn!(container = %container.id(), "after a checkpoint: {error:#}"),
            }
        }
    }

    async fn release_one(&self, container: &Container, directory: PathBuf) -> Result<()> {
        let one = self.to_hold(container)?;
        // A failure where it was not held any more: the server was killed later.
        if let Err(error) = oci::resume(&one.runtime, &one.root, &one.id).await {
            tracing::info!(container = %one.id, "{error:#}");
        }
        let mark = self.paths.container_held(container.id());
        blocking(move || {
            tree::remove(&directory)?;
            remove_file(&mark)
        })
        .await
    }
}
