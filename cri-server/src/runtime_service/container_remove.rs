//! RemoveContainer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use corten_proto::cri::RemoveContainerResponse;

use super::container_start::in_order;
use crate::container::Container;
use crate::error::Error;
use crate::node::Node;

impl Node {
    /// RemoveContainer, by force. Unknown ids are no error; a second call joins the first.
    pub(super) async fn container_remove(&self, id: &str) -> Result<RemoveContainerResponse, Error> {
        match self.container(id) {
            Err(Error::NotFound { .. }) => {}
            container => self.remove_container(&container?).await?,
        }
        Ok(RemoveContainerResponse {})
    }

    /// Ends a container and removes everything of it: the record last, so that what fails can be repeated.
    pub(super) async fn remove_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        let _order = in_order(container).await;
        if self.container(container.id().as_str()).is_err() {
            // The call that held the lock has removed it.
            return Ok(());
        }
        container.removing.store(true, Ordering::Relaxed);
        self.end_container(container, Duration::ZERO, "RemoveContainer").await?;
        // Before anything of it goes.
        self.keep_death(container).await;
        self.discard_files(container.id()).await?;
        self.container_removed(container);
        Ok(())
    }
}
