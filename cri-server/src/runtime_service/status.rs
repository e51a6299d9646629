//! Version, Status and ReopenContainerLog.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use corten_proto::cri::{
    ReopenContainerLogResponse, RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures,
    RuntimeStatus, StatusRequest, StatusResponse, VersionResponse,
};
use serde_json::{Value, json};

use crate::container;
use crate::error::Error;
use crate::health::{Handler, Report, Verdict};
use crate::node::{Node, blocking};
use crate::recover::entries;
use crate::spec;

/// Version of the kubelet's side of the API; the kubelet compares it.
const KUBE_API_VERSION: &str = "0.1.0";
/// Scheme of the container ids in a pod's status; it must never change.
const RUNTIME_NAME: &str = "corten";

/// What this server has built, whatever the runtime.
const FEATURES: RuntimeFeatures = RuntimeFeatures {
    supplemental_groups_policy: true,
    user_namespaces_host_network: true,
    mount_options: true,
};

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBE_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

impl Node {
    /// Status: what can be run here now.
    pub(super) async fn node_status(self: &Arc<Self>, request: &StatusRequest) -> Result<StatusResponse, Error> {
        let report = self.health().await;
        let conditions = vec![
            condition("RuntimeReady", "RuntimeNotReady", &report.runtime),
            condition("NetworkReady", "NetworkPluginNotReady", &report.network),
        ];
        let info = match request.verbose {
            true => self.node_info(&report).await?,
            false => HashMap::new(),
        };
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: report.handlers.iter().map(handler).collect(),
            features: Some(FEATURES),
        })
    }

    /// What `crictl info` shows beyond the status. Each value is JSON, an object where it can be, since crictl takes the rest
    /// for plain text; `config` with its `stateDir` is what critest looks for. The configuration of registries is left out:
    /// there are credentials in it.
    async fn node_info(&self, report: &Report) -> Result<HashMap<String, String>> {
        let quarantine = self.paths.quarantine();
        let quarantined = blocking(move || file_names(&quarantine)).await;
        let pod_cidrs = self.cni.pod_cidrs();
        let handlers = report.handlers.iter().map(|handler| {
            let checkpoint = handler.features.checkpoint;
            let value = json!({ "path": handler.path, "problem": handler.problem, "checkpoint": checkpoint });
            (handler.name.clone(), value)
        });
        // Records that could not be read: their pods were ended, and are for a person to look at.
        let quarantine = match quarantined {
            Ok(records) => json!({ "records": records }),
            Err(error) => json!({ "problem": format!("{error:#}") }),
        };
        let checkpoint = match self.health.criu.known() {
            Some(Ok(())) => json!({ "criu": true, "problem": null }),
            Some(Err(problem)) => json!({ "criu": false, "problem": problem }),
            None => json!({ "criu": null, "problem": "criu check has not answered yet" }),
        };
        let values = [
            ("config", self.shown_config()),
            ("checkpoint", checkpoint),
            ("network", json!({ "podCIDRs": pod_cidrs })),
            (
                "lastCNILoadStatus",
                json!(report.network.problem.as_deref().unwrap_or("OK")),
            ),
            ("handlers", handlers.collect::<serde_json::Map<_, _>>().into()),
            ("quarantine", quarantine),
        ];
        Ok(values.map(|(key, value)| (key.to_owned(), value.to_string())).into())
    }

    fn shown_config(&self) -> Value {
        let config = self.config();
        let driver = match self.cgroup_driver {
            spec::CgroupDriver::Cgroupfs => "cgroupfs",
            spec::CgroupDriver::Systemd => "systemd",
        };
        json!({
            "rootDir": self.paths.root(),
            "stateDir": self.paths.state(),
            "imageRootDir": config.image_root(),
            "netnsDir": config.netns_dir,
            "cni": config.cni,
            "defaultRuntime": config.default_runtime,
            "cgroupDriver": driver,
            "cgroupParent": config.cgroup_parent,
            "bootId": self.boot_id,
        })
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

fn condition(kind: &str, reason: &str, verdict: &Verdict) -> RuntimeCondition {
    let problem = verdict.problem.clone();
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: problem.is_none(),
        reason: problem.as_ref().map(|_| reason.to_owned()).unwrap_or_default(),
        message: problem.unwrap_or_default(),
    }
}

fn handler(handler: &Handler) -> RuntimeHandler {
    RuntimeHandler {
        name: handler.name.clone(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.features.recursive_read_only,
            user_namespaces: handler.features.user_namespaces,
        }),
    }
}

/// The names in a directory, in order.
fn file_names(directory: &Path) -> Result<Vec<String>> {
    let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    let mut names: Vec<_> = entries(directory)?.into_iter().filter_map(name).collect();
    names.sort();
    Ok(names)
}
