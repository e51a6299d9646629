//! GetContainerEvents: the events of `events` as CRI has them.
//!
//! The messages are made when they are read. Those of a removed sandbox have no status of it.

use std::pin::Pin;

use corten_proto::cri::{ContainerEventResponse, ContainerEventType};
use tokio_stream::{Stream, StreamExt};
use tonic::Status as RpcStatus;

use super::{container_status, sandbox_status};
use crate::events::{End, Event, Kind, QUEUE};
use crate::node::Node;

/// The stream of a subscriber.
pub(super) type ContainerEvents = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, RpcStatus>> + Send>>;

impl Node {
    /// GetContainerEvents: what happens from here on.
    pub(super) fn container_events(&self) -> ContainerEvents {
        let events = self.events.subscribe();
        Box::pin(events.map(|event| event.map(|event| response(&event)).map_err(failure)))
    }
}

fn response(event: &Event) -> ContainerEventResponse {
    let kind = match event.kind {
        Kind::Created => ContainerEventType::ContainerCreatedEvent,
        Kind::Started => ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    let sandbox = event.pod.sandbox.as_ref();
    ContainerEventResponse {
        container_id: event.id.to_string(),
        container_event_type: kind.into(),
        created_at: event.pod.at,
        pod_sandbox_status: sandbox.map(|(sandbox, status)| sandbox_status::status(sandbox, *status)),
        containers_statuses: container_status::statuses(&event.pod),
    }
}

fn failure(end: End) -> RpcStatus {
    match end {
        End::Overflow => RpcStatus::resource_exhausted(format!(
            "GetContainerEvents: {QUEUE} events were not read in time; some are lost: list everything and subscribe again"
        )),
        End::Stopping => RpcStatus::unavailable("GetContainerEvents: the server is ending"),
    }
}
