//! The call behind `corten-cri why` (`proto/exits/exits.proto`).

use std::sync::Arc;

use corten_proto::exits::exits_server::Exits;
use corten_proto::exits::{WhyRequest, WhyResponse};
use tonic::{Request, Response, Status};

use super::find::is_asked_for;
use super::{Subject, find};
use crate::container::Container;
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
}

/// The containers there are that can be meant. The others' configurations are not copied.
fn subjects(node: &Node, asked: &str) -> Vec<Subject> {
    let subject = |container: Arc<Container>| {
        let sandbox = node.sandbox_of(&container).ok();
        let pod = sandbox.as_ref().and_then(|it| it.metadata.config.metadata.as_ref());
        is_asked_for(asked, &container.metadata, pod).then(|| Subject {
            pod: pod.cloned(),
            status: container.status(),
            metadata: container.metadata.clone(),
        })
    };
    node.store.containers().into_iter().filter_map(subject).collect()
}

#[tonic::async_trait]
impl Exits for ExitsService {
    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        let asked = request.into_inner().container;
        let node = self.node.clone();
        let death = blocking(move || find(&node.paths, &asked, subjects(&node, &asked))).await;
        let death = death.map_err(|error| Status::not_found(format!("{error:#}")))?;
        let document = serde_json::to_string(&death);
        let document =
            document.map_err(|error| Status::internal(format!("encode the exit of {}: {error}", death.id)))?;
        Ok(Response::new(WhyResponse { document }))
    }
}
