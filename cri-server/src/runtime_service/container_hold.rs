//! Containers that are held still while they are saved, and the promise that they go on.
//!
//! ```text
//! mark on disk --> RUNTIME pause, each --> ... --> RUNTIME resume, each --> mark removed
//! ```
//! A container is resumed on every path: [`Held::release`] in the order of the call, `Drop` where the task ends early, and
//! [`Node::release_held`] when a server starts that finds the mark of one that was killed. The mark also names the directory
//! that was being written, which goes with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

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
    mark: PathBuf,
}

/// Containers that no process of runs, until they are released.
#[derive(Debug, Default)]
pub(super) struct Held {
    all: Vec<One>,
}

impl Held {
    /// Holds one more, while the checkpoint in `directory` is written.
    pub(super) async fn hold(&mut self, node: &Node, container: &Container, directory: &Path) -> Result<()> {
        let one = node.to_hold(container)?;
        let (path, mark) = (
            one.mark.clone(),
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
    pub(super) async fn release(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(one) = self.all.last() {
            let resumed = oci::resume(&one.runtime, &one.root, &one.id).await;
            let resumed = resumed.with_context(|| format!("let {} go on", one.id));
            // Only now: until here, an end of the task leaves it to Drop.
            let one = self.all.pop().context("it was there")?;
            let marked = match resumed.is_ok() {
                true => blocking(move || remove_file(&one.mark)).await,
                false => Ok(()),
            };
            result = result.and(resumed).and(marked);
        }
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
            if resumed && let Err(error) = remove_file(&one.mark) {
                tracing::warn!("{error:#}");
            }
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
            mark: self.paths.container_held(container.id()),
        })
    }

    /// Lets go on what a killed server held, and removes what it was writing. One that cannot be resumed has ended.
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
        if !container.has_exited() {
            oci::resume(&one.runtime, &one.root, &one.id).await?;
        }
        blocking(move || {
            tree::remove(&directory)?;
            remove_file(&one.mark)
        })
        .await
    }
}
