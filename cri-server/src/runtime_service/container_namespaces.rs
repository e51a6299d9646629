//! The namespaces that CreateContainer looks up, held open by descriptors: a pid may be another process's by the time it is
//! used.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use corten_proto::cri::{ContainerConfig, NamespaceMode, NamespaceOption};

use crate::container::Status;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::spec;

impl Node {
    /// The pid namespace that pid mode TARGET names.
    ///
    /// Nothing is left to check at the start: a namespace ends with its init, and the kernel ends with it everyone inside, this
    /// container's waiting init among them.
    pub(super) fn target(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<File>, Error> {
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
        let pid = || match target.status() {
            Status::Running { pid, .. } => Ok(pid),
            _ => Err(invalid("must be a running container")),
        };
        let path = format!("/proc/{}/ns/pid", pid()?);
        let namespace = File::open(&path);
        // It runs still, so that what was opened is its own.
        pid()?;
        Ok(Some(namespace.with_context(|| format!("open {path}"))?))
    }
}

/// The user namespace of a sandbox with ids of its own, whose infra container has this pid.
pub(super) fn user_namespace(sandbox: &Sandbox, infra_pid: i32) -> Result<Option<Arc<File>>, Error> {
    if spec::user_namespace_of(&sandbox.metadata.config)?.is_none() {
        return Ok(None);
    }
    let path = format!("/proc/{infra_pid}/ns/user");
    let file = File::open(&path).with_context(|| format!("open {path}"))?;
    Ok(Some(Arc::new(file)))
}

fn namespace_options(config: &ContainerConfig) -> NamespaceOption {
    let linux = config.linux.as_ref();
    linux
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}
