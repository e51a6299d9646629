//! Where everything lies on disk.
//!
//! ```text
//! STATE (/run/corten)            gone after a reboot
//!   corten.sock  lock            the endpoint; held by the one server of this directory
//!   pause/                       root filesystem of every infra container, made by the shims
//!   runtime/                     --root of the default runtime (runtime-NAME for the others)
//!   sandboxes/ID/                infra bundle, shim.sock, shim.log, resolv.conf, hostname, shm, exit.json
//!   consoles/                    sockets for the terminals of execs, while they begin
//!   containers/ID/               a container's bundle: config.json, rootfs
//! ROOT (/var/lib/corten)         survives a reboot
//!   sandboxes/ID.json
//!   containers/ID/               record.json, exit.json, upper, work, volumes (`image::snapshot`); held.json while it is saved,
//!                                restore (`checkpoint`)
//!   exits/                       how the last removed containers ended (`why`)
//!   networks/ID.json             networks that are still to be taken down (`network::teardown`)
//!   pod-cidrs.json               what the kubelet said of the pods' addresses
//!   import/                      archives of images for the start (drop_in), unless configured elsewhere
//!   quarantine/                  records that could not be read
//! ```
//!
//! Names only: nothing here touches the disk. Images and layers have their own layout (`image`).

use std::path::{Path, PathBuf};

use corten_proto::id::{ContainerId, SandboxId};

/// The two directories of one server, and what is inside them.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// `root` survives a reboot, `state` does not; both absolute.
    pub fn new(root: &Path, state: &Path) -> Self {
        Paths {
            root: root.to_owned(),
            state: state.to_owned(),
        }
    }

    /// The directory that survives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that is gone after a reboot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `--root` of a runtime. Two runtimes never share one: they would trip over each other's state files.
    pub fn runtime_root(&self, handler: &str, default: &str) -> PathBuf {
        match handler == default {
            true => self.state.join("runtime"),
            false => self.state.join(format!("runtime-{handler}")),
        }
    }

    /// Root filesystem of the infra containers. Not in the state directory: Debian mounts /run without execution.
    pub fn pause_rootfs(&self) -> PathBuf {
        self.root.join("pause")
    }

    /// All sandboxes' state directories.
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// One sandbox's state directory, which is its infra container's bundle too.
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// Sockets at which runtimes hand over terminals of execs.
    pub fn consoles(&self) -> PathBuf {
        self.state.join("consoles")
    }

    /// Records of all sandboxes.
    pub fn sandbox_records(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// A sandbox's record.
    pub fn sandbox_record(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_records().join(format!("{id}.json"))
    }

    /// The infra container's exit record.
    pub fn sandbox_exit(&self, id: &SandboxId) -> PathBuf {
        self.sandbox(id).join("exit.json")
    }

    /// All containers' bundles.
    pub fn bundles(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// A container's bundle.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.bundles().join(id.as_str())
    }

    /// Directories of all containers that survive a reboot.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// A container's directory that survives a reboot: record, exit record, writable layer.
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// A container's image volumes.
    pub fn volumes(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("volumes")
    }

    /// A container's record.
    pub fn container_record(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("record.json")
    }

    /// A container's exit record.
    pub fn container_exit(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("exit.json")
    }

    /// What says that a container is held while it is saved.
    pub fn container_held(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("held.json")
    }

    /// How containers ended that were removed.
    pub fn exits(&self) -> PathBuf {
        self.root.join("exits")
    }

    /// Networks that are still to be taken down.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// The ranges of pod addresses that the kubelet has given.
    pub fn pod_cidrs(&self) -> PathBuf {
        self.root.join("pod-cidrs.json")
    }

    /// Where records go that cannot be read.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_do_not_share_a_root() {
        let paths = Paths::new(Path::new("/r"), Path::new("/s"));
        assert_eq!(paths.runtime_root("corten", "corten"), Path::new("/s/runtime"));
        assert_eq!(paths.runtime_root("runc", "corten"), Path::new("/s/runtime-runc"));
    }
}
