//! Containers that go on from a checkpoint: what CreateContainer and StartContainer do differently for them.
//!
//! ```text
//! CreateContainer   image.image: an absolute path     containers/ID/restore <-- the archive, unpacked, checked
//!                                a checkpoint image   its layer, checked
//!                   the image that config.dump names --> root, with the changed files over it
//!                   the request --> specification; nothing runs, and the shim hears nothing
//! StartContainer    specification: the pod's namespaces as they are now; shim Restore --> RUNTIME restore --> CRIU
//! ```
//! Everything but memory and files is the request's (`checkpoint`). Without an init there is nothing between the two calls
//! that could end, so that a container waits for its start across restarts of server and shim's connection.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use corten_proto::cri::ContainerConfig;
use corten_proto::id::{ContainerId, Digest};
use corten_proto::shim::Restore;
use serde_json::{Value, json};

use super::container_namespaces::Namespaces;
use crate::checkpoint::source::{Checked, Source};
use crate::container::Container;
use crate::error::Error;
use crate::image::Image;
use crate::node::{Node, blocking};
use crate::record::write;
use crate::sandbox::Sandbox;
use crate::shim::{self, Shim};
use crate::stage::stage;
use crate::tree;

/// The field of a request that names the checkpoint.
const IMAGE: &str = "image.image";
/// The directory of an unpacked archive, in the container's.
const UNPACKED: &str = "restore";

/// A checkpoint that a container is to be made from.
pub(super) struct Origin {
    /// What counts of it.
    pub(super) checked: Checked,
    /// The image it came as, and its layer; none for an archive.
    pub(super) carrier: Option<(Arc<Image>, Digest)>,
    /// The image that the root is made of.
    pub(super) image: Arc<Image>,
}

impl Node {
    /// The checkpoint in `archive`, or else the one that the request names as its image; none if that is a container's image. An
    /// archive is unpacked into the directory of container `id`, which is made and is the caller's to remove after an error.
    pub(super) async fn origin(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        sandbox: &Sandbox,
        archive: Option<PathBuf>,
    ) -> Result<Option<Origin>, Error> {
        let name = config.image.as_ref().map_or("", |image| image.image.as_str());
        let of_pod = archive.is_some();
        let archive = archive.or_else(|| name.starts_with('/').then(|| PathBuf::from(name)));
        let (checked, carrier) = if let Some(archive) = archive {
            (self.unpack_checkpoint(id, &archive).await?, None)
        } else {
            let image = self.find_image(name)?;
            if !image.checkpoint {
                return Ok(None);
            }
            if !self.config().checkpoint.restore_from_images {
                let text = format!("restore {name}: checkpoint.restore_from_images of the configuration is false");
                return Err(Error::State(text));
            }
            let layer = sole_layer(name, &image)?;
            let files = self.images.layer_path(&layer);
            let checked = self.look_at_checkpoint(name, move || Source::open(&files)).await?;
            (checked, Some((image, layer)))
        };
        let image = self.base_image(name, &checked, carrier.is_some())?;
        // A pod's containers name the image they ran, not the archive.
        if of_pod && self.find_image(name)?.id != image.id {
            let rule = format!("must be the image of the checkpoint, {}", image.id);
            return Err(Error::invalid(IMAGE, name, &rule));
        }
        self.check_criu(&sandbox.metadata.runtime).await?;
        if crate::spec::user_namespace_of(&sandbox.metadata.config)?.is_some() {
            let text = format!("restore {name}: the pod has a user namespace, which cannot be restored into");
            return Err(Error::State(text));
        }
        Ok(Some(Origin {
            checked,
            carrier,
            image,
        }))
    }

    async fn unpack_checkpoint(&self, id: &ContainerId, archive: &Path) -> Result<Checked, Error> {
        let directory = self.paths.container(id);
        let made = directory.clone();
        blocking(move || {
            let made_now = DirBuilder::new().mode(0o700).create(&made);
            made_now.with_context(|| format!("make {}", made.display()))
        })
        .await?;
        let name = archive.display().to_string();
        let _stage = stage(|| format!("unpack the checkpoint {name}"));
        let archive = archive.to_owned();
        self.look_at_checkpoint(&name, move || Source::unpack(&archive, &directory.join(UNPACKED)))
            .await
    }

    /// What is wrong with a checkpoint is wrong with the request.
    async fn look_at_checkpoint(
        &self,
        name: &str,
        open: impl FnOnce() -> Result<Source> + Send + 'static,
    ) -> Result<Checked, Error> {
        let looked = blocking(move || open()?.check()).await;
        looked.map_err(|error| Error::invalid(IMAGE, name, &format!("must be a checkpoint: {error:#}")))
    }

    /// The image of the checkpointed container. It must be here: a name in an archive makes nobody pull, and changes no tag. An
    /// image's author does not know what a tag stands for on this node: there it is by digest alone.
    fn base_image(&self, name: &str, checked: &Checked, by_digest: bool) -> Result<Arc<Image>, Error> {
        let config = &checked.config;
        let wanted: Vec<_> = match by_digest {
            true => config.image_digests().collect(),
            false => config.image_names().collect(),
        };
        if wanted.is_empty() {
            let rule = "must be a checkpoint that names the image of its container by digest";
            return Err(Error::invalid(IMAGE, name, rule));
        }
        let mut found = wanted.iter().filter_map(|name| self.images.find(name).ok().flatten());
        match found.find(|image| !image.checkpoint) {
            Some(image) => Ok(image),
            None => Err(Error::NotFound {
                what: "image",
                id: format!("{}, which the checkpoint {name} is of", wanted.join(" or ")),
            }),
        }
    }

    /// Has the shim restore a container that awaits it; its init's pid, and when it went on.
    pub(super) async fn restore(
        &self,
        container: &Container,
        sandbox: &Arc<Sandbox>,
        shim: &Shim,
    ) -> Result<Result<(i32, i64), shim::Error>, Error> {
        let id = container.id();
        let metadata = &container.metadata;
        let images = metadata.checkpoint.as_ref();
        let images = images.with_context(|| format!("{id} awaits a restore and names no checkpoint"))?;
        let infra = sandbox
            .pid()
            .ok_or_else(|| Error::State(format!("restore {id}: pod sandbox {} is not ready", sandbox.id())))?;
        // Until the shim has answered: the runtime opens them by our descriptors.
        let namespaces = self.namespaces(sandbox, infra, &metadata.config)?;
        self.rejoin(id, &namespaces).await?;
        // What a restore has made whose answer nobody was there to hear; a shim that knows of none says so.
        self.delete(sandbox, id).await?;
        let work = self.paths.container(id).join("criu");
        let made = work.clone();
        blocking(move || {
            let made_now = DirBuilder::new().recursive(true).mode(0o700).create(&made);
            made_now.with_context(|| format!("make {}", made.display()))
        })
        .await?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let restore = Restore {
            create: Some(self.shim_create(id, sandbox, &metadata.config)),
            images: text(images),
            work: text(&work),
            criu: self.config().criu.as_deref().map(text).unwrap_or_default(),
        };
        let restored = shim.restore(restore).await;
        match &restored {
            Ok(_) => self.discard_origin(id).await,
            // It may be under way still, and the namespaces are ours no longer than this.
            Err(error) if error.is_unanswered() => self.delete(sandbox, id).await?,
            Err(_) => {}
        }
        Ok(restored)
    }

    /// Removes an unpacked archive: what was in it is memory now. A failure leaves it for the container's removal.
    async fn discard_origin(&self, id: &ContainerId) {
        let unpacked = self.paths.container(id).join(UNPACKED);
        if let Err(error) = blocking(move || tree::remove(&unpacked)).await {
            tracing::warn!(container = %id, "after a restore: {error:#}");
        }
    }

    /// Puts the namespaces of the pod, as they can be opened now, into the container's specification.
    async fn rejoin(&self, id: &ContainerId, namespaces: &Namespaces) -> Result<()> {
        let path = self.paths.bundle(id).join("config.json");
        let (infra, target) = (namespaces.infra(), namespaces.target());
        let rejoining = move || {
            let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let mut spec = serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
            rejoin(&mut spec, &infra, target.as_deref());
            write(&path, &spec)
        };
        blocking(rejoining).await
    }
}

/// The one layer of a checkpoint image.
fn sole_layer(name: &str, image: &Image) -> Result<Digest, Error> {
    match image.layers.as_slice() {
        [layer] => Ok(layer.clone()),
        layers => {
            let rule = format!("must be a checkpoint image of one layer, and has {}", layers.len());
            Err(Error::invalid(IMAGE, name, &rule))
        }
    }
}

/// Replaces the paths of joined namespaces: those of the infra container, and the pid namespace that pid mode TARGET names.
fn rejoin(spec: &mut Value, infra: &Path, target: Option<&Path>) {
    let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() else {
        return;
    };
    for namespace in namespaces {
        let Some(path) = namespace["path"].as_str() else {
            continue;
        };
        // As `container_namespaces` writes them.
        let path = match Path::new(path).parent().and_then(Path::file_name) {
            Some(parent) if parent == "ns" => infra.join("ns").join(Path::new(path).file_name().unwrap_or_default()),
            _ => match target {
                Some(target) => target.to_owned(),
                None => continue,
            },
        };
        namespace["path"] = json!(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_joined_anew() {
        let mut spec = json!({ "linux": { "namespaces": [
            { "type": "network", "path": "/proc/1/fd/7/ns/net" },
            { "type": "ipc", "path": "/proc/1/fd/7/ns/ipc" },
            { "type": "pid", "path": "/proc/1/fd/8" },
            { "type": "mount" },
        ] } });
        rejoin(&mut spec, Path::new("/proc/2/fd/3"), Some(Path::new("/proc/2/fd/4")));
        let expected = json!([
            { "type": "network", "path": "/proc/2/fd/3/ns/net" },
            { "type": "ipc", "path": "/proc/2/fd/3/ns/ipc" },
            { "type": "pid", "path": "/proc/2/fd/4" },
            { "type": "mount" },
        ]);
        assert_eq!(spec["linux"]["namespaces"], expected);
        let mut none = json!({});
        rejoin(&mut none, Path::new("/proc/2/fd/3"), None);
        assert_eq!(none["linux"]["namespaces"], Value::Null);
    }
}
