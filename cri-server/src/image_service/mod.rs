//! The CRI's ImageService: each call a few lines around the image store.
//!
//! Pulls run as long as their caller waits; the kubelet sets no deadline and cancels instead. Everything but PullImage and
//! RemoveImage answers from memory.
//!
//! RemoveImage takes an image of all its names, pinned or in use as it may be: the kubelet asks for neither, and whoever else
//! does means it. What a running container needs of it stays until the container goes (`image`).
//!
//! Left out: images of one runtime handler only (every handler has the same images).

mod image_fs_info;
pub(crate) mod image_pull;
pub(crate) mod image_status;

use std::sync::Arc;

use corten_proto::cri;
use tonic::{Request, Response, Status};

use self::image_fs_info::Mountpoints;
use crate::batches::{Batches, batches};
use crate::error::{Error, cut};
use crate::image::snapshot::Snapshots;
use crate::image::{Image, ImageStore, Pins, ReferenceError};
use crate::node::{Node, blocking};
use crate::spec::shown;
use crate::telemetry::names;

/// The service.
pub struct ImageService {
    images: Arc<ImageStore>,
    snapshots: Arc<Snapshots>,
    pins: Pins,
    mountpoints: Arc<Mountpoints>,
    /// The runtime handlers that an image may be asked for. They all have the same images.
    handlers: Vec<String>,
}

impl ImageService {
    /// A service for the images of one node.
    #[must_use]
    pub fn new(node: &Node) -> Self {
        ImageService {
            images: node.images.clone(),
            snapshots: node.snapshots.clone(),
            pins: Pins::new(&node.config.storage.pinned_images),
            mountpoints: Arc::new(Mountpoints::of(&node.images, &node.snapshots)),
            handlers: node.config.handlers().into_iter().map(str::to_owned).collect(),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Arc<Image>>, Status> {
        self.images.find(name).map_err(|error| invalid(name, &error))
    }

    /// The images a filter lets through: all, or the one that is named.
    fn filtered(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, Status> {
        let name = filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image)
            .unwrap_or_default();
        let images = match name.as_str() {
            "" => self.images.list(),
            name => self.find(name)?.into_iter().collect(),
        };
        Ok(images
            .iter()
            .map(|image| image_status::to_cri(image, &self.pins))
            .collect())
    }
}

#[tonic::async_trait]
impl cri::image_service_server::ImageService for ImageService {
    type StreamImagesStream = Batches<cri::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = self.filtered(request.into_inner().filter)?;
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.filtered(request.into_inner().filter)?;
        let messages = batches(images, |images| cri::StreamImagesResponse { images });
        Ok(Response::new(messages))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let image = self.find(&name)?;
        image_status::response(&self.images, &name, image.as_deref(), &self.pins, request.verbose).map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let handler = request
            .image
            .as_ref()
            .map_or("", |image| image.runtime_handler.as_str());
        if !handler.is_empty() && !self.handlers.iter().any(|known| known == handler) {
            let rule = "must be empty or the name of a configured runtime";
            return Err(Error::invalid("image.runtime_handler", handler, rule).into());
        }
        let name = named(request.image)?;
        if let Some(pod) = request
            .sandbox_config
            .as_ref()
            .and_then(|config| config.metadata.as_ref())
        {
            names::about_pod(pod);
        }
        names::about_image(&name);
        let pulled = image_pull::pull(&self.images, &name, request.auth.as_ref()).await?;
        Ok(Response::new(cri::PullImageResponse { image_ref: pulled.id }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?;
        self.find(&name)?;
        let removed = self.images.remove(&name).await;
        removed.map_err(|error| Status::internal(cut(format!("remove image {name:?}: {error:#}"))))?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let (images, snapshots, at) = (self.images.clone(), self.snapshots.clone(), self.mountpoints.clone());
        let info = blocking(move || Ok(image_fs_info::response(&images, &snapshots, &at))).await;
        info.map(Response::new)
            .map_err(|error| Status::internal(format!("{error:#}")))
    }
}

/// The name in an image spec, which every call must have.
fn named(spec: Option<cri::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Err(Status::invalid_argument("image.image: must not be empty"));
    }
    Ok(name)
}

fn invalid(name: &str, error: &ReferenceError) -> Status {
    Status::invalid_argument(cut(format!("image.image {:?}: {error}", shown(name))))
}
