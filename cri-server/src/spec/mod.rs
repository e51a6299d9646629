//! CRI configuration to OCI spec.
//!
//! ```text
//! RunPodSandbox    check_sandbox ───────────────────────────────────────> sandbox()   ──> config.json of the infra container
//! CreateContainer  check_container ──> user::resolve ──> Sources::read ─> container() ──> config.json of the container
//!                  (pure; before any   (image's passwd,  (host paths,     (pure)
//!                   side effect)        group files)      devices)
//! ```
//!
//! [`check_sandbox`] and [`check_container`] refuse everything that can be refused by looking at the request alone;
//! callers run them before they touch the node. What is not built is an error of kind
//! [`Unimplemented`](Kind::Unimplemented) naming field and value, never left out silently.
//!
//! | module | makes |
//! |---|---|
//! | `process` | args, env, cwd |
//! | `annotations` | ours, and those that the runtime's configuration lets through |
//! | `capabilities` `security` | capability sets; privileged, masked paths, SELinux |
//! | `profile` `seccomp` `confinement` | profiles as asked for; filters and their data; what comes of them on this node |
//! | `namespaces` `user_namespace` | which namespaces are new, joined or the node's; the pod's ids |
//! | `mounts` | the mount list and its order |
//! | `devices` | device nodes and the device cgroup's rules |
//! | `resources` `update` | cgroup limits, oom_score_adj; what an update makes of them |
//! | `cgroup_path` | where the cgroup is, for both cgroup drivers |
//! | `host` `host_paths` | what the node looks like; with `user` and `confinement` the only modules here that read it |
//! | `user` | uid, gid and groups out of the image's files |
//! | `stop_signal` | CRI's and the image's signal names to numbers |

pub(crate) mod annotations;
mod capabilities;
mod cgroup_path;
mod confinement;
mod container;
mod devices;
mod error;
mod host;
mod host_paths;
mod mountinfo;
mod mounts;
mod namespaces;
mod process;
mod profile;
mod resources;
mod sandbox;
mod seccomp;
mod security;
pub mod stop_signal;
mod sysctl;
#[cfg(test)]
mod tests;
pub mod update;
pub mod user;
pub mod user_namespace;

use std::path::{Path, PathBuf};

use corten_proto::cri::{ContainerConfig, PodSandboxConfig};
use corten_proto::id::{ContainerId, SandboxId};
use oci_spec::image::ImageConfiguration;

pub use annotations::Allowed;
pub(crate) use capabilities::from_status as capabilities_in;
pub use cgroup_path::{CgroupDriver, cgroups_path};
pub use confinement::Confinement;
pub use container::{check_container, container};
pub(crate) use error::shown;
pub use error::{Kind, SpecError};
pub(crate) use host::kernel_at_least;
pub use host::{CapabilityName, Features, Host, HostDevice, SourceRules, Sources};
pub use host_paths::{MadeDirectories, MissingHostPath, MountSource};
pub use namespaces::user_namespace as user_namespace_of;
pub use resources::updated_oom_score_adj;
pub use sandbox::{check_sandbox, sandbox};
pub use user::User;

use crate::config::Security;

/// OCI runtime-spec version written into every config.json: what runc 1.1 still takes.
const OCI_VERSION: &str = "1.0.2";

/// Everything the infra container's spec is made of.
#[derive(Clone, Copy, Debug)]
pub struct SandboxSpecInput<'a> {
    /// The sandbox, and its infra container.
    pub id: &'a SandboxId,
    /// The request.
    pub config: &'a PodSandboxConfig,
    /// Absolute path of the read-only root that holds `/pause`.
    pub rootfs: &'a Path,
    /// Network namespace to join; required unless the sandbox's network is the node's.
    pub netns: Option<&'a Path>,
    /// User namespace to join; required where the sandbox has its own.
    pub user_namespace: Option<&'a Path>,
    /// What the pause program is confined by.
    pub confinement: &'a Confinement,
    /// See [`cgroups_path`].
    pub cgroups_path: &'a Path,
    /// Which annotations the runtime gets.
    pub annotations: Allowed<'a>,
    /// The node.
    pub host: &'a Host,
}

/// Everything a container's spec is made of.
#[derive(Clone, Copy, Debug)]
pub struct ContainerSpecInput<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// Its sandbox.
    pub sandbox_id: &'a SandboxId,
    /// The configuration the sandbox was run with (not the copy in the CreateContainer request).
    pub sandbox_config: &'a PodSandboxConfig,
    /// The request.
    pub config: &'a ContainerConfig,
    /// The image's own configuration.
    pub image_config: &'a ImageConfiguration,
    /// The name the image was asked for by, for the annotation.
    pub image_name: &'a str,
    /// Absolute path of the container's root filesystem.
    pub rootfs: &'a Path,
    /// Directory holding the sandbox's `resolv.conf`, `hostname` and `shm`.
    pub sandbox_dir: &'a Path,
    /// What `$HOSTNAME` says: the pod's hostname, or the node's where the pod has the node's network.
    pub hostname: &'a str,
    /// Directory in /proc of the sandbox's infra container, whose namespaces are joined, as the runtime can open it.
    pub infra: &'a Path,
    /// Pid namespace of the container that `namespace_options.target_id` names; required for pid mode TARGET.
    pub target_pid_namespace: Option<&'a Path>,
    /// The resolved user.
    pub user: &'a User,
    /// See [`cgroups_path`].
    pub cgroups_path: &'a Path,
    /// The node's side of the request's mounts and devices.
    pub sources: &'a Sources,
    /// What its process is confined by.
    pub confinement: &'a Confinement,
    /// What it gets where the request says nothing.
    pub security: &'a Security,
    /// What the runtime can do that is to make the container.
    pub features: Features,
    /// Which annotations it gets.
    pub annotations: Allowed<'a>,
    /// The node.
    pub host: &'a Host,
}

/// Lexically cleaned absolute path: no `.`, no `..`, no doubled slashes; `..` never leaves the root.
///
/// For paths inside a container only, where the runtime resolves links again; never to judge a path of the node.
fn clean(path: &str) -> PathBuf {
    use std::path::Component;
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// `path`, cleaned, if it is absolute and holds no NUL.
fn absolute(field: &str, path: &str) -> Result<PathBuf, SpecError> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(clean(path));
    }
    Err(SpecError::invalid(field, path, "must be an absolute path without NUL"))
}
