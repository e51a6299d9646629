//! One task per shim: hears of exits, reconnects, and settles the sandbox's affairs when the shim has gone.
//!
//! The task runs from the shim's start, or the server's, until the shim has ended. It never calls the shim itself, since
//! it is the one that reads the answers; it only applies transitions, so that no answer waits for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_proto::exit::ExitRecord;
use corten_proto::id::ContainerId;
use corten_proto::shim::{Connected, ContainerExited, ContainerStarted};
use tracing::Instrument as _;

use crate::container::Container;
use crate::node::{Node, blocking};
use crate::oci;
use crate::record::read_optional;
use crate::sandbox::{Sandbox, Status};
use crate::shim::{ConnectError, Event, Incoming, Shim};
use crate::store::now;
use crate::telemetry::names;

/// Pause between attempts to reach a shim that is there but does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// Pause after the first failure in a row: a shim that is ending, or has dropped this client, resets a connection too.
const FIRST_RETRY: Duration = Duration::from_millis(5);

impl Node {
    /// Starts the task for a shim that is connected.
    pub(crate) fn supervise(self: &Arc<Self>, sandbox: &Arc<Sandbox>, shim: Arc<Shim>, incoming: Option<Incoming>) {
        let (node, sandbox) = (self.clone(), sandbox.clone());
        let span = names::of_sandbox(&sandbox);
        let work = async move { node.follow(&sandbox, &shim, incoming).await };
        self.supervisors.spawn(work.instrument(span));
    }

    async fn follow(self: &Arc<Self>, sandbox: &Arc<Sandbox>, shim: &Arc<Shim>, mut incoming: Option<Incoming>) {
        let mut pause = FIRST_RETRY;
        loop {
            if let Some(incoming) = incoming.take() {
                while let Some(event) = shim.next_event(&incoming).await {
                    match event {
                        Event::Started(started) => self.started(sandbox, &started).await,
                        Event::Exited(exited) => self.exited(sandbox, &exited).await,
                    }
                }
            }
            let began = Instant::now();
            match shim.connect().await {
                Ok((connection, connected)) => {
                    self.reconcile(sandbox, &connected).await;
                    incoming = Some(connection);
                    pause = FIRST_RETRY;
                }
                Err(ConnectError::Gone) => return self.shim_gone(sandbox).await,
                Err(ConnectError::Failed(error)) => {
                    if pause > FIRST_RETRY || began.elapsed() > RETRY {
                        tracing::warn!(sandbox = %sandbox.id(), "{error:#}");
                        self.silent(sandbox).await;
                    }
                    tokio::time::sleep(pause).await;
                    pause = RETRY;
                }
            }
        }
    }

    /// A start, which the caller who asked for it may not have lived to hear of.
    async fn started(&self, sandbox: &Sandbox, event: &ContainerStarted) {
        for container in self.store.containers_of(sandbox.id()) {
            if container.id().as_str() == event.id {
                let (pid, at) = (event.pid, event.started_at);
                self.container_changed(&container, |status| match pid {
                    0 => status.started(at),
                    pid => status.restored(pid, at),
                })
                .await;
            }
        }
    }

    async fn exited(&self, sandbox: &Sandbox, event: &ContainerExited) {
        let Some(exit) = &event.exit else { return };
        let log = || tracing::info!(container = event.id, code = exit.code, oom = exit.oom_killed, "exited");
        if event.id == sandbox.id().as_str() {
            log();
            self.sandbox_changed(sandbox, Status::infra_exited).await;
            return;
        }
        for container in self.store.containers_of(sandbox.id()) {
            if container.id().as_str() == event.id {
                let message = self.message_of(container.id(), exit).await;
                let span = names::of_container(&container, sandbox);
                span.in_scope(log);
                self.container_changed(&container, |status| status.exited(exit).explained(message))
                    .instrument(span)
                    .await;
            }
        }
    }

    /// Applies what the shim holds. A container that it does not hold has been deleted: its exit record tells.
    pub(crate) async fn reconcile(&self, sandbox: &Sandbox, connected: &Connected) {
        let held = |id: &str| connected.containers.iter().find(|container| container.id == id);
        let infra = held(sandbox.id().as_str());
        if infra.is_none_or(|infra| infra.exit.is_some()) {
            self.sandbox_changed(sandbox, Status::infra_exited).await;
        }
        for container in self.store.containers_of(sandbox.id()) {
            match held(container.id().as_str()) {
                Some(held) => {
                    let message = match &held.exit {
                        Some(exit) if !container.has_exited() => self.message_of(container.id(), exit).await,
                        _ => String::new(),
                    };
                    self.container_changed(&container, |status| status.connected(held).explained(message))
                        .await;
                }
                None if container.awaits_restore() => {}
                None => self.settle(&container, "its shim does not know it").await,
            }
        }
    }

    /// A shim that is there but does not answer: nothing is known of its containers.
    pub(crate) async fn silent(&self, sandbox: &Sandbox) {
        for container in self.store.containers_of(sandbox.id()) {
            self.container_changed(&container, |status| status.silent()).await;
        }
    }

    /// The shim has ended. Whatever of the pod still runs has nobody to own it and is ended too.
    pub(crate) async fn shim_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        sandbox.set_shim(None);
        for container in self.store.containers_of(sandbox.id()) {
            self.settle(&container, "its shim has ended").await;
        }
        // An ordered end: the calls that stop or undo a sandbox see to the rest themselves.
        if matches!(sandbox.status(), Status::Stopping | Status::Stopped) {
            return;
        }
        tracing::warn!(sandbox = %sandbox.id(), "the shim has ended; ending the pod");
        self.sandbox_changed(sandbox, Status::infra_exited).await;
        // As a task: it waits for processes to die, and a server that starts has other pods to see to.
        let (node, sandbox) = (self.clone(), sandbox.clone());
        let span = names::of_sandbox(&sandbox);
        let work = async move {
            if let Err(error) = node.delete_orphans(&sandbox).await {
                tracing::error!(sandbox = %sandbox.id(), "after the shim's end: {error:#}");
            }
        };
        self.work.spawn(work.instrument(span));
    }

    /// Ends a container whose end was not told, as its exit record has it.
    pub(crate) async fn settle(&self, container: &Arc<Container>, cause: &str) {
        if container.has_exited() {
            return;
        }
        let path = self.paths.container_exit(container.id());
        let record = blocking(move || read_optional::<ExitRecord>(&path)).await;
        let message = match &record {
            Ok(Some(record)) => self.message_of(container.id(), &record.exit()).await,
            _ => String::new(),
        };
        self.container_changed(container, |status| match record {
            Ok(Some(record)) => status.recorded(&record).explained(message),
            Ok(None) => status.lost(cause, now()),
            Err(error) => status.lost(&format!("{cause}; {error:#}"), now()),
        })
        .await;
    }

    /// Has the runtime delete the infra container and all others of a sandbox that has no shim. Each is tried; the
    /// first failure is returned.
    pub(crate) async fn delete_orphans(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let containers = self.store.containers_of(sandbox.id());
        let ids = containers.iter().map(|container| container.id());
        let mut result = Ok(());
        for id in ids.chain([sandbox.id()]) {
            result = result.and(self.delete_orphan(sandbox, id).await);
        }
        result
    }

    /// Has the runtime itself delete a container whose shim does not answer: nothing of it runs afterwards.
    pub(crate) async fn delete_orphan(&self, sandbox: &Sandbox, id: &ContainerId) -> anyhow::Result<()> {
        let (runtime, root) = self.runtime(&sandbox.metadata.runtime)?;
        oci::delete(&runtime, &root, id).await
    }
}
