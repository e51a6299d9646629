//! Version, Status, RuntimeConfig and ReopenContainerLog.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use corten_proto::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, ReopenContainerLogResponse, RuntimeCondition, RuntimeConfigResponse,
    RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest, StatusResponse,
    VersionResponse,
};

use crate::container;
use crate::error::Error;
use crate::node::{Node, blocking};
use crate::oci;
use crate::spec;

/// Version of the kubelet's side of the API; the kubelet compares it.
const KUBE_API_VERSION: &str = "0.1.0";
/// Scheme of the container ids in a pod's status; it must never change.
const RUNTIME_NAME: &str = "corten";

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBE_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

pub(super) fn runtime_config(driver: spec::CgroupDriver) -> RuntimeConfigResponse {
    let driver = match driver {
        spec::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        spec::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    }
}

impl Node {
    /// Status: what can be run here now.
    pub(super) async fn node_status(&self, request: &StatusRequest) -> Result<StatusResponse, Error> {
        let runtime = self.runtime_ready().await;
        let network = self.cni.ready().await;
        let conditions = vec![
            condition("RuntimeReady", "RuntimeNotReady", runtime),
            condition("NetworkReady", "NetworkPluginNotReady", network),
        ];
        // The default runtime has the empty name too: it is what a pod without a RuntimeClass asks for.
        let names = std::iter::once("").chain(self.config.handlers());
        let mut handlers = Vec::new();
        for name in names {
            let runtime = if name.is_empty() {
                &self.config.default_runtime
            } else {
                name
            };
            let can = self.handler(runtime).await;
            handlers.push(RuntimeHandler {
                name: name.to_owned(),
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: self.host.recursive_read_only && can.recursive_read_only,
                    // Of pods, with their idmapped mounts: not built.
                    user_namespaces: false,
                }),
            });
        }
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: if request.verbose {
                self.node_info()?
            } else {
                HashMap::new()
            },
            runtime_handlers: handlers,
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        })
    }

    /// The runtime and the shim can be executed, and both directories can be written to.
    async fn runtime_ready(&self) -> Result<()> {
        let (runtime, _) = self
            .runtime(&self.config.default_runtime)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        oci::probe(&runtime).await?;
        let shim = self.config.shim();
        let (root, state) = (self.paths.root().to_owned(), self.paths.state().to_owned());
        blocking(move || {
            use rustix::fs::{Access, access};
            access(&shim, Access::EXEC_OK).with_context(|| format!("execute {}", shim.display()))?;
            let writable =
                |path: &Path| access(path, Access::WRITE_OK).with_context(|| format!("write to {}", path.display()));
            writable(&root)?;
            writable(&state)
        })
        .await
    }

    /// What `crictl info` shows beyond the status; `stateDir` is what critest looks for.
    fn node_info(&self) -> Result<HashMap<String, String>> {
        let config = serde_json::json!({
            "rootDir": self.paths.root(),
            "stateDir": self.paths.state(),
            "defaultRuntime": self.config.default_runtime,
            "cgroupDriver": self.config.cgroup_driver,
            "cgroupParent": self.config.cgroup_parent,
            "bootId": self.boot_id,
        });
        let text = serde_json::to_string(&config).context("encode the configuration")?;
        Ok(HashMap::from([("config".to_owned(), text)]))
    }

    /// ReopenContainerLog: after the kubelet has renamed the log.
    pub(super) async fn log_reopen(&self, id: &str) -> Result<ReopenContainerLogResponse, Error> {
        let container = self.container(id)?;
        if !matches!(container.status(), container::Status::Running { .. }) {
            let state = container.status().state().as_str_name();
            return Err(Error::State(format!(
                "reopen the log of {}: it is {state}",
                container.id()
            )));
        }
        self.shim_of(&container)?.reopen_log(container.id()).await?;
        Ok(ReopenContainerLogResponse {})
    }
}

fn condition(kind: &str, reason: &str, ready: Result<()>) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: ready.is_ok(),
        reason: if ready.is_ok() {
            String::new()
        } else {
            reason.to_owned()
        },
        message: ready.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    }
}
