//! The probes: each does a little of what running a pod does. Each has a deadline, and names what failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, access};

use crate::node::{Node, blocking};
use crate::oci;

/// How long a probe may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Where the kernel shows the cgroup hierarchies.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The hierarchies of cgroup v1 that no container can do without.
const V1_CONTROLLERS: [&str; 2] = ["cpu", "memory"];

impl Node {
    /// The default runtime runs, the shim can be executed, directories and cgroups can be written to.
    pub(super) async fn probe_runtime(&self) -> Result<(), String> {
        let probe = async {
            let (runtime, _root) = self.runtime(&self.config.default_runtime)?;
            oci::probe(&runtime).await?;
            self.look_around().await
        };
        probe.await.map_err(|error: anyhow::Error| format!("{error:#}"))
    }

    async fn look_around(&self) -> Result<()> {
        let Ok(permit) = self.health.look.clone().try_acquire_owned() else {
            bail!("the last look at root, state, shim and cgroups has not come back");
        };
        let shim = self.config.shim();
        let mut writable = vec![self.paths.root().to_owned(), self.paths.state().to_owned()];
        writable.extend(cgroups(self.host.cgroup_v2));
        let look = blocking(move || {
            // Given back by the thread, whoever still waits for it.
            let _permit = permit;
            access(&shim, Access::EXEC_OK).with_context(|| format!("execute {}", shim.display()))?;
            let write =
                |path: &PathBuf| access(path, Access::WRITE_OK).with_context(|| format!("write to {}", path.display()));
            writable.iter().try_for_each(write)
        });
        let Ok(outcome) = tokio::time::timeout(LIMIT, look).await else {
            bail!(
                "look at root, state, shim and cgroups: no answer in {} s",
                LIMIT.as_secs()
            );
        };
        outcome
    }

    /// The built-in network can be made; or there is a network configuration, its plugins are there, and those that know
    /// STATUS are ready.
    pub(super) async fn probe_network(&self) -> Result<(), String> {
        match tokio::time::timeout(LIMIT, self.network_ready()).await {
            Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
            Err(_elapsed) => Err(format!(
                "look at {} and the network: no answer in {} s",
                self.config.cni.conf_dir.display(),
                LIMIT.as_secs()
            )),
        }
    }
}

/// The roots of the hierarchies in use.
fn cgroups(v2: bool) -> Vec<PathBuf> {
    let root = Path::new(CGROUP_ROOT);
    match v2 {
        true => vec![root.to_owned()],
        false => V1_CONTROLLERS.map(|controller| root.join(controller)).into(),
    }
}
