//! Containers that are held still while they are saved, and the promise that they go on.
//!
//! ```text
//! mark on disk --> RUNTIME pause, each --> ... --> RUNTIME resume, each --> archive --> directory and marks removed
//! ```
//! A container goes on, on every path: by [`Held::release`] in the order of the call; where that fails or the call ends early,
//! by a task that tries until it does ([`Node::go_on_at_last`]); and by [`Node::release_held`] when a server ends, and when
//! one starts that finds the marks of one that was killed. Before a resume nothing of the dump is alive (`checkpoint::dumping`),
//! and after it the runtime is asked: what it has said to a resume does not count.
//!
//! The mark names what was being written, so that it goes with the mark ([`Scratch`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::checkpoint::dumping;
use crate::container::{Container, Hold};
use crate::node::{Node, blocking, remove_file};
use crate::oci;
use crate::record::{read_optional, write};
use crate::tree;

/// How long a container that could not be let go on waits for the next try: at first, and at most.
const RETRIES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What is on disk while a container is held, and what was held is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Mark {
    /// What is being written meanwhile.
    directory: PathBuf,
    /// What has got its name already goes too, unless the last of it is there.
    #[serde(default)]
    names: Vec<PathBuf>,
}

impl Mark {
    /// Removes what was written and is not whole.
    fn clear(&self) -> Result<()> {
        tree::remove(&self.directory)?;
        match self.names.last().is_some_and(|last| last.exists()) {
            true => Ok(()),
            false => self.names.iter().try_for_each(|name| remove_file(name)),
        }
    }
}

/// The directory of a checkpoint that is not finished. Dropping it removes it, and the marks of the containers that are not
/// held any more.
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    marks: Vec<(Arc<Container>, PathBuf)>,
}

impl Scratch {
    /// Marks these containers as saved to `path`, which is not made yet, and then to `names`, of which the last says that all
    /// are there. Their checkpoints must be in order.
    pub(super) async fn begin<'a>(
        node: &Node,
        path: PathBuf,
        names: Vec<PathBuf>,
        containers: impl Iterator<Item = &'a Arc<Container>>,
    ) -> Result<Scratch> {
        let mark = |container: &Arc<Container>| (container.clone(), node.paths.container_held(container.id()));
        let mut scratch = Scratch {
            marks: containers.map(mark).collect(),
            path: PathBuf::new(),
        };
        let marks: Vec<_> = scratch.marks.iter().map(|(_, mark)| mark.clone()).collect();
        let mark = Mark {
            directory: path.clone(),
            names,
        };
        blocking(move || marks.iter().try_for_each(|path| write(path, &mark))).await?;
        scratch.path = path;
        Ok(scratch)
    }

    /// Leaves the directory to whom it belongs.
    pub(super) fn disown(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let owned = !self.path.as_os_str().is_empty();
        let removed = if owned { tree::remove(&self.path) } else { Ok(()) };
        let free = |container: &Container| *container.hold.borrow() == Hold::Free;
        let mut marks = self.marks.iter().filter(|(container, _)| free(container));
        let removed = removed.and_then(|()| marks.try_for_each(|(_, mark)| remove_file(mark)));
        if let Err(error) = removed {
            tracing::warn!("remove what a checkpoint has left: {error:#}");
        }
    }
}

/// A container that is held.
struct HeldContainer {
    container: Arc<Container>,
    runtime: PathBuf,
    root: PathBuf,
}

impl HeldContainer {
    fn new(node: &Node, container: &Arc<Container>) -> Result<HeldContainer> {
        let sandbox = node.sandbox_of(container)?;
        let (runtime, root) = node.runtime(&sandbox.metadata.runtime)?;
        Ok(HeldContainer {
            container: container.clone(),
            runtime,
            root,
        })
    }

    /// Lets it go on; an error unless it does, or has ended.
    async fn go_on(&self) -> Result<()> {
        let id = self.container.id();
        let resumed = oci::resume(&self.runtime, &self.root, id).await;
        let paused = oci::is_paused(&self.runtime, &self.root, id).await;
        let went_on = match (resumed, paused) {
            (_, Ok(false)) => Ok(()),
            _ if self.has_ended() => Ok(()),
            (Err(error), _) => Err(error),
            (Ok(()), Ok(true)) => Err(anyhow!("it is still paused")),
            (Ok(()), Err(error)) => Err(error),
        };
        went_on.with_context(|| format!("let {id} go on"))?;
        self.container.hold.send_replace(Hold::Free);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.container.has_exited() || self.container.removing.load(Ordering::Relaxed)
    }
}

/// Containers that no process of runs, until they are released.
pub(super) struct Held {
    node: Arc<Node>,
    all: Vec<HeldContainer>,
}

impl Held {
    /// None yet.
    pub(super) fn new(node: &Arc<Node>) -> Held {
        Held {
            node: node.clone(),
            all: Vec::new(),
        }
    }

    /// Holds one more, which is marked.
    pub(super) async fn hold(&mut self, container: &Arc<Container>) -> Result<()> {
        let held = HeldContainer::new(&self.node, container)?;
        container.hold.send_replace(Hold::Held);
        let (runtime, root) = (held.runtime.clone(), held.root.clone());
        // Before the call: one that fails may have held some of its processes.
        self.all.push(held);
        let paused = oci::pause(&runtime, &root, container.id()).await;
        paused.with_context(|| format!("hold {}", container.id()))
    }

    /// Lets all of them go on. Each is tried; those that fail are tried again, and all failures are told.
    pub(super) async fn release(mut self) -> Result<()> {
        let mut failures = Vec::new();
        // One after the other comes off the list once it goes on: what is left, Drop sees to.
        for index in (0..self.all.len()).rev() {
            match self.all[index].go_on().await {
                Ok(()) => drop(self.all.remove(index)),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(anyhow!("{}; trying on", failures.join("; "))),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for held in self.all.drain(..) {
            let node = self.node.clone();
            tracing::warn!(container = %held.container.id(), "a checkpoint ended without letting it go on");
            self.node
                .supervisors
                .spawn(async move { node.go_on_at_last(held).await });
        }
    }
}

impl Node {
    /// Tries until the container goes on or has ended, then removes what the mark names, and the mark.
    async fn go_on_at_last(&self, held: HeldContainer) {
        let mut pause = RETRIES.0;
        while let Err(error) = self.finish_hold(&held).await {
            tracing::warn!(container = %held.container.id(), "{error:#}; trying on");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRIES.1);
        }
        tracing::info!(container = %held.container.id(), "goes on: a checkpoint was not finished");
    }

    /// Ends the dump of a container that is marked, lets it go on, and removes what it was saved to.
    async fn finish_hold(&self, held: &HeldContainer) -> Result<()> {
        let path = self.paths.container_held(held.container.id());
        let reading = path.clone();
        let mark = blocking(move || read_optional::<Mark>(&reading)).await?;
        if let Some(mark) = mark.clone() {
            end_dump(&mark.directory).await?;
        }
        held.go_on().await?;
        blocking(move || {
            mark.map_or(Ok(()), |mark| mark.clear())?;
            remove_file(&path)
        })
        .await
    }

    /// Lets go on what a killed server held, and removes what it was writing. What fails is tried again by tasks.
    pub(crate) async fn release_held(self: &Arc<Self>) {
        for container in self.store.containers() {
            if self.paths.container_held(container.id()).exists()
                && let Err(error) = self.release_marked(&container).await
            {
                tracing::warn!(container = %container.id(), "after a checkpoint: {error:#}");
            }
        }
    }

    async fn release_marked(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let mut held = Held::new(self);
        held.all.push(HeldContainer::new(self, container)?);
        container.hold.send_replace(Hold::Held);
        for one in &held.all {
            self.finish_hold(one).await?;
        }
        held.all.clear();
        tracing::info!(container = %container.id(), "goes on: a checkpoint was not finished");
        Ok(())
    }
}

/// Ends what still writes a checkpoint to a directory.
pub(super) async fn end_dump(directory: &Path) -> Result<()> {
    let directory = directory.to_owned();
    blocking(move || dumping::end(&directory)).await
}
