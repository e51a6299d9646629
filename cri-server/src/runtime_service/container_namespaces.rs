//! The namespaces that CreateContainer has joined, held by descriptors: a pid may be another process's by the time it is
//! used.
//!
//! ```text
//! config.json    /proc/SERVER/fd/N/ns/net    N: the infra container's directory in /proc
//!                /proc/SERVER/fd/M           M: the pid namespace that pid mode TARGET names
//! ```
//! The runtime opens these paths, as root may. They hold for as long as the server keeps the descriptors, which is until
//! the shim has answered or what it does has been undone. If the server is killed meanwhile, or the process behind one of
//! them ends, there is nothing to open and the creation fails.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use corten_proto::cri::{ContainerConfig, NamespaceMode, NamespaceOption};

use crate::container::Status;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::spec;
use crate::stats::Process;

/// What a container is to join.
pub(super) struct Namespaces {
    infra: Process,
    target: Option<File>,
    /// The user namespace whose ids the container's files have; none for the node's.
    pub(super) user: Option<Arc<File>>,
}

impl Namespaces {
    /// The infra container's directory in /proc, for the runtime.
    pub(super) fn infra(&self) -> PathBuf {
        for_runtime(&self.infra)
    }

    /// The pid namespace of another container that is to be shared, for the runtime.
    pub(super) fn target(&self) -> Option<PathBuf> {
        self.target.as_ref().map(for_runtime)
    }
}

impl Node {
    /// The namespaces of a sandbox whose infra container has this pid, and the one that the request names.
    pub(super) fn namespaces(
        &self,
        sandbox: &Sandbox,
        infra: i32,
        config: &ContainerConfig,
    ) -> Result<Namespaces, Error> {
        let infra = Process::of(infra, sandbox.id()).ok_or_else(|| {
            let text = format!(
                "create a container in pod sandbox {}: its infra container has ended",
                sandbox.id()
            );
            Error::State(text)
        })?;
        let user = match spec::user_namespace_of(&sandbox.metadata.config)? {
            Some(_map) => Some(Arc::new(
                infra.namespace("user").context("open the pod's user namespace")?,
            )),
            None => None,
        };
        Ok(Namespaces {
            infra,
            target: self.target(sandbox, config)?,
            user,
        })
    }

    /// The pid namespace that pid mode TARGET names.
    ///
    /// Nothing is left to check at the start: a namespace ends with its init, and the kernel ends with it everyone inside, this
    /// container's waiting init among them.
    fn target(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<File>, Error> {
        let options = namespace_options(config);
        if options.pid() != NamespaceMode::Target {
            return Ok(None);
        }
        let invalid = |rule| {
            const FIELD: &str = "linux.security_context.namespace_options.target_id";
            Error::invalid(FIELD, &options.target_id, rule)
        };
        let target = self.container(&options.target_id)?;
        if target.metadata.sandbox != *sandbox.id() {
            return Err(invalid("must be a container of the same pod"));
        }
        let not_running = || invalid("must be a running container");
        let Status::Running { pid, .. } = target.status() else {
            return Err(not_running());
        };
        // The status stays Running for a while after the end, until the last output has been read.
        let process = Process::of(pid, target.id()).ok_or_else(not_running)?;
        Ok(Some(
            process.namespace("pid").context("open the target's pid namespace")?,
        ))
    }
}

/// What another process opens a descriptor of this one by.
fn for_runtime(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd()))
}

fn namespace_options(config: &ContainerConfig) -> NamespaceOption {
    let linux = config.linux.as_ref();
    linux
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}
