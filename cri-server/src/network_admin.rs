//! The service behind `corten-cri network`: the built-in network as records and kernel have it (`proto/networks/networks.proto`).

use std::sync::Arc;

use corten_proto::networks::networks_server::Networks;
use corten_proto::networks::{RemoveRequest, Removed, RepairRequest, Repaired, ShowRequest, Shown};
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::node::{Node, blocking};

/// The service.
pub(crate) struct NetworkAdmin {
    node: Arc<Node>,
}

impl NetworkAdmin {
    /// A service for the network of one node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        NetworkAdmin { node }
    }
}

#[tonic::async_trait]
impl Networks for NetworkAdmin {
    async fn show(&self, _request: Request<ShowRequest>) -> Result<Response<Shown>, Status> {
        let builtin = self.node.builtin.clone();
        let shown = blocking(move || builtin.show()).await.map_err(Error::from)?;
        let unused_because = match self.node.builtin_in_use().await {
            Ok(Some(_)) => String::new(),
            Ok(None) if !self.node.config.network.builtin => "[network] builtin is false".to_owned(),
            Ok(None) => {
                let directory = self.node.config.cni.conf_dir.display();
                format!("there is a CNI configuration in {directory}")
            }
            Err(error) => format!("{error:#}"),
        };
        Ok(Response::new(Shown {
            unused_because,
            ..shown
        }))
    }

    async fn repair(&self, _request: Request<RepairRequest>) -> Result<Response<Repaired>, Status> {
        let builtin = self.node.builtin.clone();
        let repaired = blocking(move || builtin.repair()).await.map_err(Error::from)?;
        Ok(Response::new(repaired))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<Removed>, Status> {
        let (builtin, force) = (self.node.builtin.clone(), request.into_inner().force);
        // Two results: the inner one is about pods that use it.
        let removed = blocking(move || Ok(builtin.remove_all(force))).await;
        removed.map_err(Error::from)??;
        Ok(Response::new(Removed {}))
    }
}
