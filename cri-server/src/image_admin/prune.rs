//! Prune: removes images that no container uses, be it as its root or as a volume.

use std::collections::HashSet;

use corten_proto::images::{Done, PruneRequest, PruneResponse};
use tonic::Status;

use crate::image::{Image, Pins};
use crate::node::Node;

/// Removes what [`is_prunable`] says, one after the other. A container that is created meanwhile keeps its layers; one that is
/// created later asks for the image again.
pub(super) async fn prune(node: &Node, request: &PruneRequest) -> Result<PruneResponse, Status> {
    let used = used(node);
    let pins = Pins::new(&node.config().storage.pinned_images);
    let (before, _) = node.images.usage();
    let mut removed = Vec::new();
    for image in node.images.list() {
        let id = image.id.to_string();
        if !is_prunable(&image, &pins, request.all, used.contains(&id)) {
            continue;
        }
        if !request.dry_run {
            let done = node.images.remove(&id).await;
            done.map_err(|error| Status::internal(format!("remove image {id}: {error:#}")))?;
        }
        let names = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect();
        removed.push(Done { id, names });
    }
    let (after, _) = node.images.usage();
    Ok(PruneResponse {
        removed,
        freed: before.saturating_sub(after),
    })
}

/// The ids of the images that containers use.
fn used(node: &Node) -> HashSet<String> {
    let mut used = HashSet::new();
    for container in node.store.containers() {
        used.insert(container.metadata.image_id.clone());
        let volumes = container.metadata.config.mounts.iter();
        for spec in volumes.filter_map(|mount| mount.image.as_ref()) {
            // Written when the container was made: a digest, or the id itself.
            if let Ok(Some(image)) = node.images.find(&spec.image_ref) {
                used.insert(image.id.to_string());
            }
        }
    }
    used
}

/// An image without a tag is nobody's, as after its tag has moved; with `all`, everything that no container uses is. What is
/// pinned stays.
fn is_prunable(image: &Image, pins: &Pins, all: bool, used: bool) -> bool {
    !used && !pins.hold(image) && (all || image.repo_tags.is_empty())
}
