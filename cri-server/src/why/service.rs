//! The call behind `corten-cri why` (`proto/exits/exits.proto`).

use std::sync::Arc;

use corten_proto::exits::exits_server::Exits;
use corten_proto::exits::{WhyRequest, WhyResponse};
use tonic::{Request, Response, Status};

use super::{Subject, find};
use crate::node::{Node, blocking};

/// The service.
pub(crate) struct ExitsService {
    node: Arc<Node>,
}

impl ExitsService {
    /// A service for the containers of one node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        ExitsService { node }
    }

    fn subjects(&self) -> Vec<Subject> {
        let containers = self.node.store.containers().into_iter();
        let subject = |container: Arc<crate::container::Container>| Subject {
            pod: self
                .node
                .sandbox_of(&container)
                .ok()
                .and_then(|sandbox| sandbox.metadata.config.metadata.clone()),
            status: container.status(),
            metadata: container.metadata.clone(),
        };
        containers.map(subject).collect()
    }
}

#[tonic::async_trait]
impl Exits for ExitsService {
    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        let asked = request.into_inner().container;
        let (paths, subjects) = (self.node.paths.clone(), self.subjects());
        let death = blocking(move || find(&paths, &asked, subjects)).await;
        let death = death.map_err(|error| Status::not_found(format!("{error:#}")))?;
        let document = serde_json::to_string(&death);
        let document =
            document.map_err(|error| Status::internal(format!("encode the exit of {}: {error}", death.id)))?;
        Ok(Response::new(WhyResponse { document }))
    }
}
