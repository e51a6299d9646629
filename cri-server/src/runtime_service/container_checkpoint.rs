//! CheckpointContainer: a running container into an archive; it goes on running.
//!
//! ```text
//! check --> hold --> CRIU, changed files --> release --> documents --> archive --> rename to its place
//! ```
//! Everything is written to one directory beside the archive's place, which goes on every path. CheckpointPod takes the same
//! steps with several containers (`pod_checkpoint`).

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use corten_proto::cri::{CheckpointContainerRequest, CheckpointContainerResponse};
use corten_proto::id::ContainerId;
use tokio::sync::MutexGuard;
use tokio::task::JoinSet;

use super::container_hold::{Held, Scratch, end_dump};
use super::container_start::in_order;
use crate::checkpoint::archive;
use crate::checkpoint::capture::{About, Capture};
use crate::container::{Container, Hold, Status};
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::oci;
use crate::spec;
use crate::stage::{Patience, stage};

/// How long a checkpoint may take where the caller does not say: a little less than the kubelet waits.
pub(super) const DEFAULT_LIMIT: Duration = Duration::from_secs(110);
/// The field of the request that is most often wrong.
const LOCATION: &str = "location";

/// A container that is to be captured.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) container: Arc<Container>,
    pub(super) capture: Capture,
}

impl Node {
    /// CheckpointContainer.
    pub(super) async fn container_checkpoint(
        self: &Arc<Self>,
        request: &CheckpointContainerRequest,
        patience: &Patience,
    ) -> Result<CheckpointContainerResponse, Error> {
        let location = absolute_plain(LOCATION, &request.location)?;
        let limit = limit(request.timeout)?;
        let container = self.container(&request.container_id)?;
        let checked = location.clone();
        blocking(move || Ok(check_place(&checked))).await??;
        let _checkpoint = checkpoint_in_order(&container).await;
        let order = in_order(&container).await;
        self.check_capturable(&container).await?;
        let parent = location.parent().context("it was checked to have a directory")?;
        let path = parent.join(format!(".checkpoint-{}.partial", container.id()));
        let scratch = Scratch::begin(self, path, Vec::new(), std::iter::once(&container)).await?;
        let limit = limit.min(capture_limit(patience));
        let captured = self.checkpoint_to(&container, &scratch, order, &location, limit).await;
        blocking(move || {
            drop(scratch);
            Ok(())
        })
        .await?;
        captured.map(|()| CheckpointContainerResponse {})
    }

    async fn checkpoint_to(
        self: &Arc<Self>,
        container: &Arc<Container>,
        scratch: &Scratch,
        order: MutexGuard<'_, ()>,
        location: &Path,
        limit: Duration,
    ) -> Result<(), Error> {
        let directory = scratch.path.clone();
        let target = Target {
            container: container.clone(),
            capture: blocking(move || Capture::begin(&directory)).await?,
        };
        self.capture(std::slice::from_ref(&target), scratch, limit).await?;
        // What is written from here on is a copy.
        drop(order);
        let (content, partial) = (target.capture.content(), scratch.path.join("archive"));
        let location = location.to_owned();
        let _stage = stage(|| format!("write {}", location.display()));
        let to = location.clone();
        Ok(blocking(move || archive::write(&content, &partial, &to)).await?)
    }

    /// Whether the container's state, its runtime and this machine allow a checkpoint.
    pub(super) async fn check_capturable(&self, container: &Container) -> Result<(), Error> {
        let refused = |why: &str| Err(Error::State(format!("checkpoint {}: {why}", container.id())));
        if !matches!(container.status(), Status::Running { .. }) {
            let state = container.status().state().as_str_name();
            return refused(&format!("it is {state}, not CONTAINER_RUNNING"));
        }
        if *container.hold.borrow() != Hold::Free {
            return refused("an earlier checkpoint has not let it go on yet");
        }
        let sandbox = self.sandbox_of(container)?;
        self.check_criu(&sandbox.metadata.runtime).await?;
        if spec::user_namespace_of(&sandbox.metadata.config)?.is_some() {
            return refused("its pod has a user namespace, which cannot be saved");
        }
        Ok(())
    }

    /// Whether containers of a runtime can be saved and restored here.
    pub(super) async fn check_criu(&self, runtime: &str) -> Result<(), Error> {
        if !self.snapshots.tells_changes() {
            let why = "checkpoints need overlayfs, and the roots of containers are copies here (storage.snapshotter)";
            return Err(Error::State(why.to_owned()));
        }
        if !self.runtime_features(runtime).await.checkpoint {
            let text = format!("the runtime {runtime:?} does not say that it can checkpoint (`features`)");
            return Err(Error::State(text));
        }
        let works = self.health.criu.works().await;
        works.map_err(|problem| Error::State(format!("CRIU does not work here: {problem}")))
    }

    /// Captures containers at one moment: all are held before any is saved. They run again when this returns, whatever it
    /// returns; `scratch` is what they are written in.
    pub(super) async fn capture(
        self: &Arc<Self>,
        targets: &[Target],
        scratch: &Scratch,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut held = Held::new(self);
        let saving = async {
            for target in targets {
                let _stage = stage(|| format!("hold {}", target.container.id()));
                held.hold(&target.container).await?;
            }
            for target in targets {
                let _stage = stage(|| format!("save {}", target.container.id()));
                self.save_container(target, limit).await?;
            }
            anyhow::Ok(())
        };
        let saved = tokio::select! {
            saved = tokio::time::timeout(limit, saving) => saved.map_or_else(
                |_elapsed| Err(not_done(limit)),
                |saved| saved.map_err(Error::from),
            ),
            id = unwanted(targets) => Err(Error::State(format!("checkpoint: {id} is being stopped"))),
        };
        let ended = match saved.is_ok() {
            true => Ok(()),
            false => abandon(targets, scratch).await,
        };
        let released = held.release().await;
        joined(joined(saved, ended), released)?;
        for target in targets {
            let (about, capture) = (self.about(&target.container)?, target.capture.clone());
            blocking(move || capture.documents(&about)).await?;
        }
        Ok(())
    }

    /// CRIU's images and the changed files of a container that is held.
    async fn save_container(&self, target: &Target, limit: Duration) -> Result<()> {
        let container = &target.container;
        let sandbox = self.sandbox_of(container)?;
        let (runtime, root) = self.runtime(&sandbox.metadata.runtime)?;
        let (images, work) = (target.capture.images(), target.capture.work());
        let settings = self.config();
        let criu = settings.criu.as_deref();
        // The caller waits for all containers together, and not as long: this ends what the caller has left behind.
        let limit = limit.saturating_mul(2);
        oci::checkpoint(&runtime, &root, container.id(), criu, [&images, &work], limit).await?;
        let (snapshots, directory) = (self.snapshots.clone(), self.paths.container(container.id()));
        let (capture, layers) = (target.capture.clone(), container.metadata.layers.clone());
        let busy = target.capture.busy().await;
        let saved = blocking(move || {
            let _busy = busy;
            capture.root(&snapshots, &directory, &layers)
        })
        .await;
        saved.with_context(|| format!("save the root of {}", container.id()))
    }

    fn about(&self, container: &Container) -> Result<About, Error> {
        let sandbox = self.sandbox_of(container)?;
        let spec = self.paths.bundle(container.id()).join("config.json");
        let network = sandbox.metadata.network.as_ref();
        let network = network.and_then(|attachment| attachment.cni_result().cloned());
        let runtime = &sandbox.metadata.runtime;
        Ok(About::new(container, &container.status(), runtime, spec, network))
    }
}

/// Waits until no other checkpoint of the container is written.
pub(super) async fn checkpoint_in_order(container: &Container) -> MutexGuard<'_, ()> {
    let _stage = stage(|| format!("wait for another checkpoint of {}", container.id())).named("wait_in_line");
    container.checkpoints.lock().await
}

/// How long containers may be held for this caller: three quarters of the time that is left, the rest for the archives.
pub(super) fn capture_limit(patience: &Patience) -> Duration {
    let left = |limit: Duration| limit.saturating_sub(patience.began.elapsed());
    patience
        .limit()
        .map_or(Duration::MAX, |limit| left(limit).mul_f32(0.75))
}

fn not_done(limit: Duration) -> Error {
    let text = format!(
        "checkpoint: not done in {} s; the containers go on",
        limit.as_secs_f32()
    );
    Error::Deadline(text)
}

/// Waits until one of the containers is wanted for something else.
async fn unwanted(targets: &[Target]) -> ContainerId {
    let mut all = JoinSet::new();
    for target in targets {
        let container = target.container.clone();
        all.spawn(async move {
            container.hold_unwanted().await;
            container.id().clone()
        });
    }
    match all.join_next().await {
        Some(Ok(id)) => id,
        _ => std::future::pending().await,
    }
}

/// Ends the saving of containers that nobody waits for any more.
async fn abandon(targets: &[Target], scratch: &Scratch) -> Result<()> {
    for target in targets {
        target.capture.stop().await;
    }
    end_dump(&scratch.path).await
}

/// The first result; with the second failure, if there is one.
fn joined(first: Result<(), Error>, second: Result<()>) -> Result<(), Error> {
    match (first, second) {
        (first, Ok(())) => first,
        (Ok(()), Err(second)) => Err(second.into()),
        (Err(first), Err(second)) => Err(Error::Failed(anyhow!("{first}; {second:#}"))),
    }
}

/// The path of a file or directory in a request, as it stands there.
pub(super) fn absolute_plain(field: &str, text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    let plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    // components() passes over what file names cannot end in.
    let named = !text.ends_with('/') && !text.ends_with("/.") && path.file_name().is_some();
    if !path.is_absolute() || !path.components().all(plain) || !named || text.contains('\0') {
        let rule = "must be an absolute path to a name, without \"..\" and NUL bytes";
        return Err(Error::invalid(field, text, rule));
    }
    Ok(path.to_owned())
}

/// Whether an archive can be put there: what is at the path itself is replaced, never followed.
fn check_place(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    if !path.parent().is_some_and(Path::is_dir) {
        return Err(Error::invalid(LOCATION, shown, "its directory must exist"));
    }
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => {
            let rule = "must not be there, or be a regular file, which is replaced";
            Err(Error::invalid(LOCATION, shown, rule))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::invalid(
            LOCATION,
            shown,
            &format!("must be a path that can be looked at: {error}"),
        )),
        _ => Ok(()),
    }
}

/// How long it may take: seconds, 0 for the default.
fn limit(seconds: i64) -> Result<Duration, Error> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err(Error::invalid("timeout", seconds, "must not be negative")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn locations() {
        for good in ["/a", "/a/b.tar", "/a//b", "/a/..b"] {
            assert!(absolute_plain(LOCATION, good).is_ok(), "{good}");
        }
        for bad in ["", "a.tar", "./a", "/", "/a/", "/a/.", "/a/..", "/a/../b", "/a\0b"] {
            let error = absolute_plain(LOCATION, bad).expect_err(bad).to_string();
            assert!(error.starts_with("location "), "{error}");
        }
    }

    #[test]
    fn places() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let table = [
            ("new", true),
            ("file", true),
            ("directory", false),
            ("link", false),
            ("dangling", false),
            ("none/new", false),
            ("file/new", false),
        ];
        for (name, good) in table {
            assert_eq!(check_place(&at(name)).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(limit(0).ok(), Some(DEFAULT_LIMIT));
        assert_eq!(limit(7).ok(), Some(Duration::from_secs(7)));
        assert!(limit(-1).is_err());
    }
}
