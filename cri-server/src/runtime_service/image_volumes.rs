//! Image volumes: mounts of a container whose source is an image, read-only, or a path inside one.
//!
//! The kubelet has pulled them before. Their layers are leased with those of the container's own image, and what is mounted
//! goes with the container. Every failure begins with `ImageVolumeMountFailed`, which the kubelet looks for.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use corten_proto::cri::ContainerConfig;
use corten_proto::id::{ContainerId, Digest};

use crate::error::Error;
use crate::image::Image;
use crate::image::snapshot::Volume;
use crate::node::{Node, blocking};

/// Images by the place of their mount in the request.
pub(super) type VolumeImages = BTreeMap<usize, Arc<Image>>;

impl Node {
    /// The images of the request's image volumes. Their digests are written into the request, for the status to show.
    pub(super) fn find_volumes(&self, config: &mut ContainerConfig) -> Result<VolumeImages, Error> {
        let mut images = VolumeImages::new();
        for (index, mount) in config.mounts.iter_mut().enumerate() {
            let Some(spec) = &mut mount.image else { continue };
            let image = self.find_image(&spec.image).map_err(|error| failed(index, error))?;
            let reference = image.repo_digests.first().cloned();
            spec.image_ref = reference.unwrap_or_else(|| image.id.to_string());
            images.insert(index, image);
        }
        Ok(images)
    }

    /// Mounts the image volumes of container `id`, with the ids of its user namespace; what to bind for each.
    pub(super) async fn make_volumes(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        images: &VolumeImages,
        user_namespace: Option<Arc<File>>,
    ) -> Result<BTreeMap<usize, PathBuf>, Error> {
        if images.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (snapshots, directory) = (self.snapshots.clone(), self.paths.volumes(id));
        let wanted: Vec<(usize, Arc<Image>, String)> = images
            .iter()
            .map(|(&index, image)| (index, image.clone(), config.mounts[index].image_sub_path.clone()))
            .collect();
        let made = blocking(move || {
            std::fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
            let views = wanted.into_iter().map(|(index, image, sub_path)| {
                let volume = Volume {
                    layers: &image.layers,
                    dir: &directory.join(index.to_string()),
                    sub_path: &sub_path,
                    user_namespace: user_namespace.as_deref().map(File::as_fd),
                };
                let view = snapshots.view(&volume);
                view.map(|path| (index, path))
                    .map_err(|error| failed(index, format!("{error:#}")))
            });
            Ok(views.collect())
        });
        made.await.context("ImageVolumeMountFailed")?
    }
}

/// The layers of a container's image and of its volumes, bottom first each.
pub(super) fn all_layers(image: &Image, volumes: &VolumeImages) -> Vec<Digest> {
    let volumes = volumes.values().flat_map(|image| &image.layers);
    image.layers.iter().chain(volumes).cloned().collect()
}

fn failed(index: usize, cause: impl std::fmt::Display) -> Error {
    anyhow!("ImageVolumeMountFailed: mounts[{index}].image: {cause}").into()
}
