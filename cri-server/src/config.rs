//! The server's configuration: TOML, every key with a default.
//!
//! ```text
//! defaults  <  /etc/corten/config.toml  <  /etc/corten/conf.d/*.toml, by name  <  command line
//! ```
//!
//! Tables merge key by key, anything else is replaced. An unknown key, a wrong type and a broken rule are errors that
//! name file, line, key and value; a server with such a file does not start. `corten-cri config default` prints
//! [`DEFAULT_TEXT`], which a test holds against [`Config::default`].
//!
//! The files are read again at SIGHUP (`reload`). What that changes in the running server, and what waits for its next start,
//! is said key by key in `keys`; whatever is done reads the configuration once, at its beginning ([`Live`]). Files of other
//! programs are read when they are needed: CNI configurations (`network`), hosts.toml files and the node's credentials
//! (`image::registry`), CDI specifications (`cdi`).
//!
//! | module | owns |
//! |---|---|
//! | `document` | one file, where in it things stand, and what is wrong with it |
//! | `load` | all files, merged, and who has set what |
//! | `rules` | what values must be, beyond their types |
//! | `keys` | every key: what a reload does with it, how it may be shown |
//! | `live` | the configuration of a running server |
//! | `show` | the whole of it for a person or a program |

mod checkpoint;
mod document;
pub(crate) mod keys;
mod live;
mod load;
mod network;
mod rules;
mod show;
mod streaming;
mod telemetry;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoint;
pub(crate) use document::Source;
pub use document::{Problem, Problems};
pub use live::Live;
pub(crate) use live::{Difference, Plan};
pub use load::{Files, Loaded, Origin, Origins};
pub use network::Network;
pub use show::Setting;
pub use streaming::Streaming;
pub use telemetry::{Collector, Metrics, MetricsAddress, OtlpProtocol, Tracing};

use crate::image::registry::{PullConfig, RegistryConfig, RegistryConfigs};
use crate::image::snapshot::Snapshotter;
use crate::spec::{self, Allowed, MissingHostPath};

/// The file that is read unless another is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/corten/config.toml";

/// The default configuration with its explanations.
pub const DEFAULT_TEXT: &str = include_str!("config/default.toml");

/// The name of the runtime handler that needs no entry: `corten`, beside this executable.
pub const OWN_RUNTIME: &str = "corten";

/// All there is to configure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What survives a reboot: images, layers, records.
    pub root: PathBuf,
    /// What does not: sockets, bundles, the runtime's state.
    pub state: PathBuf,
    /// The unix socket of the CRI services.
    pub listen: PathBuf,
    /// Threads that serve requests.
    pub worker_threads: usize,
    /// Archives in this directory are imported at the start; absent: `import` in `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_dir: Option<PathBuf>,
    /// Which images may be used; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_policy: Option<PathBuf>,
    /// The shim; absent: `corten-shim` beside this executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shim: Option<PathBuf>,
    /// The runtime of sandboxes that name no handler.
    pub default_runtime: String,
    /// Parent of the cgroups of sandboxes that name none.
    pub cgroup_parent: String,
    /// Who makes the cgroups; the kubelet asks for it and must agree.
    pub cgroup_driver: CgroupDriver,
    /// What becomes of host paths of mounts that do not exist.
    pub missing_host_path: MissingHostPath,
    /// Devices belong to the container's user and group where its security context names them.
    pub device_ownership_from_security_context: bool,
    /// Directories of CDI specifications; a later one counts before an earlier one.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// CRIU's executable; absent: looked for in the usual directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu: Option<PathBuf>,
    /// What containers may be restored from.
    pub checkpoint: Checkpoint,
    /// Where the pods' network namespaces are bound.
    pub netns_dir: PathBuf,
    /// Longest piece of a line in a container's log, in bytes; longer lines are cut.
    pub container_log_max_line_bytes: u32,
    /// Most bytes of a container's log file; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_log_limit_bytes: Option<u64>,
    /// The server's own log, on stderr.
    pub log: Log,
    /// Metrics of the server itself.
    pub metrics: Metrics,
    /// Traces of the calls.
    pub tracing: Tracing,
    /// What a request gets that leaves its security out.
    pub security: Security,
    /// Pod networks, where there are no CNI plugins.
    pub network: Network,
    /// Pod networks, by CNI plugins.
    pub cni: Cni,
    /// The server behind the URLs of Exec, Attach and PortForward.
    pub streaming: Streaming,
    /// OCI runtimes by handler name.
    pub runtimes: BTreeMap<String, Runtime>,
    /// How images are pulled.
    pub pull: PullConfig,
    /// Where images and containers' files lie, and how containers get their roots.
    pub storage: Storage,
    /// How registries are reached, by the host in image names.
    pub registries: BTreeMap<String, RegistryConfig>,
}

/// The server's own log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// What a request gets that leaves its security out. The kubelet's never do; other clients' may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// A container that lists neither masked nor read-only paths gets those of procMount Default.
    pub mask_paths_by_default: bool,
    /// The seccomp profile of containers and sandboxes that name none.
    pub unset_seccomp_profile: UnsetSeccompProfile,
}

/// Profiles that need no name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnsetSeccompProfile {
    /// None at all, as the CRI has it.
    #[default]
    Unconfined,
    /// The one of ours.
    RuntimeDefault,
}

/// Levels, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the levels of `tracing`")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Who makes the cgroups of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it runs and the cgroups are those of v2 alone, else the runtime: see [`CgroupDriver::choose`].
    Auto,
    /// The runtime.
    Cgroupfs,
    /// systemd.
    Systemd,
}

impl CgroupDriver {
    /// Who it is on a machine on which systemd runs, or does not, with cgroup v2 or v1. On v1 both can write to the
    /// hierarchies, and a kubelet of the time of v1 expects cgroupfs.
    pub(crate) fn choose(self, systemd: bool, cgroup_v2: bool) -> spec::CgroupDriver {
        match self {
            CgroupDriver::Systemd => spec::CgroupDriver::Systemd,
            CgroupDriver::Auto if systemd && cgroup_v2 => spec::CgroupDriver::Systemd,
            CgroupDriver::Auto | CgroupDriver::Cgroupfs => spec::CgroupDriver::Cgroupfs,
        }
    }
}

/// Forms of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Pod networks, by CNI plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cni {
    /// Directory of the network configurations; the first valid one by name is used.
    pub conf_dir: PathBuf,
    /// Directories of the plugins, searched in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Longest time one plugin may take, in seconds.
    pub timeout_s: u64,
    /// Which address of a pod with several is the primary one.
    pub ip_preference: IpPreference,
    /// How long a pod's stop fails with its plugins, in seconds, before they are left to the background.
    pub stop_patience_s: u64,
}

/// Which address of a pod comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpPreference {
    /// The first of the plugins' result.
    #[default]
    Cni,
    /// The first of version 4.
    Ipv4,
    /// The first of version 6.
    Ipv6,
}

impl IpPreference {
    /// Puts the preferred version first; the order within a version stays.
    pub fn sort(self, ips: &mut [IpAddr]) {
        match self {
            IpPreference::Cni => {}
            IpPreference::Ipv4 => ips.sort_by_key(IpAddr::is_ipv6),
            IpPreference::Ipv6 => ips.sort_by_key(IpAddr::is_ipv4),
        }
    }
}

/// Where images and containers' files lie, and how containers get their roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Where images and layers are; absent: in the server's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_root: Option<PathBuf>,
    /// How a container gets its root filesystem.
    pub snapshotter: Snapshotter,
    /// Names of images, with `*` and `?`, that the kubelet's garbage collection must leave alone.
    pub pinned_images: Vec<String>,
    /// The most that one container may write into its root, in bytes; absent: as much as there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writable_layer_limit_bytes: Option<u64>,
    /// The most files of every type that it may have there; absent: as many as there can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writable_layer_limit_inodes: Option<u64>,
}

/// An OCI runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The executable; it takes runc's command line.
    pub path: PathBuf,
    /// The annotations of pods that it gets, in the specifications of all their containers.
    #[serde(default)]
    pub pod_annotations: Vec<String>,
    /// The annotations of containers that it gets.
    #[serde(default)]
    pub container_annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root: "/var/lib/corten".into(),
            state: "/run/corten".into(),
            listen: "/run/corten/corten.sock".into(),
            worker_threads: 2,
            import_dir: None,
            image_policy: None,
            shim: None,
            default_runtime: OWN_RUNTIME.into(),
            cgroup_parent: "/corten".into(),
            cgroup_driver: CgroupDriver::Auto,
            missing_host_path: MissingHostPath::Create,
            device_ownership_from_security_context: false,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            criu: None,
            checkpoint: Checkpoint::default(),
            netns_dir: "/run/netns".into(),
            container_log_max_line_bytes: 16 * 1024,
            container_log_limit_bytes: None,
            log: Log::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            security: Security::default(),
            network: Network::default(),
            cni: Cni::default(),
            streaming: Streaming::default(),
            runtimes: BTreeMap::new(),
            pull: PullConfig::default(),
            storage: Storage::default(),
            registries: BTreeMap::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: LogLevel::Info,
            format: LogFormat::Text,
        }
    }
}

impl Cni {
    /// Longest time one plugin may take.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }
}

impl Default for Cni {
    fn default() -> Self {
        Cni {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_s: 60,
            ip_preference: IpPreference::default(),
            stop_patience_s: 120,
        }
    }
}

impl Config {
    /// The directory whose archives are imported at the start.
    pub fn import_dir(&self) -> PathBuf {
        self.import_dir.clone().unwrap_or_else(|| self.root.join("import"))
    }

    /// The shim's executable.
    pub fn shim(&self) -> PathBuf {
        self.shim.clone().unwrap_or_else(|| beside_self("corten-shim"))
    }

    /// The directory of images and layers.
    pub fn image_root(&self) -> &Path {
        self.storage.image_root.as_deref().unwrap_or(&self.root)
    }

    /// The executable of a runtime handler, the default one's for the empty name; none for unknown handlers.
    pub fn runtime(&self, handler: &str) -> Option<PathBuf> {
        let name = if handler.is_empty() {
            &self.default_runtime
        } else {
            handler
        };
        match self.runtimes.get(name) {
            Some(runtime) => Some(runtime.path.clone()),
            None => (name == OWN_RUNTIME).then(|| beside_self(OWN_RUNTIME)),
        }
    }

    /// Which annotations of requests a runtime gets, by its name.
    pub fn annotations(&self, name: &str) -> Allowed<'_> {
        self.runtimes
            .get(name)
            .map_or_else(Allowed::default, |runtime| Allowed {
                pod: &runtime.pod_annotations,
                container: &runtime.container_annotations,
            })
    }

    /// Whether a runtime handler's executable is that of [`OWN_RUNTIME`].
    pub fn is_own_runtime(&self, handler: &str) -> bool {
        self.runtime(handler) == self.runtime(OWN_RUNTIME)
    }

    /// All that is configured about registries.
    pub fn registries(&self) -> RegistryConfigs {
        RegistryConfigs {
            by_name: self.registries.clone(),
            pull: self.pull.clone(),
        }
    }

    /// The names of all runtime handlers, in order, [`OWN_RUNTIME`] included.
    pub fn handlers(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.runtimes.keys().map(String::as_str).collect();
        if let Err(place) = names.binary_search(&OWN_RUNTIME) {
            names.insert(place, OWN_RUNTIME);
        }
        names
    }
}

/// An executable installed with this one.
fn beside_self(name: &str) -> PathBuf {
    // Without /proc there is no server at all; the bare name gives the clearer error, from whoever executes it.
    std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(|directory| directory.join(name)))
        .unwrap_or_else(|| PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_default_is_the_default() {
        let printed: Config = toml::from_str(DEFAULT_TEXT).unwrap();
        assert_eq!(printed, Config::default());
        assert!(rules::broken(&printed).is_empty());
    }

    #[test]
    fn the_printed_default_names_every_key() {
        let printed: toml::Table = toml::from_str(DEFAULT_TEXT).unwrap();
        let own = toml::Table::try_from(Config::default()).unwrap();
        for (key, value) in &own {
            assert!(printed.contains_key(key), "{key}");
            for inner in value.as_table().into_iter().flat_map(|table| table.keys()) {
                assert!(printed[key].get(inner).is_some(), "{key}.{inner}");
            }
        }
        // Optional keys have no value to print: they stand there as comments.
        for optional in [
            "# import_dir =",
            "# image_policy =",
            "# criu =",
            "# shim =",
            "# listen = \"127",
            "# otlp_endpoint =",
            "# tls_cert =",
            "# tls_key =",
            "# client_ca =",
            "# [runtimes.",
            "# path =",
            "# pod_annotations =",
            "# container_annotations =",
            "# [registries.",
            "# plain_http =",
            "# image_root =",
            "# writable_layer_limit_bytes =",
            "# writable_layer_limit_inodes =",
            "# container_log_limit_bytes =",
        ] {
            assert!(DEFAULT_TEXT.contains(optional), "{optional}");
        }
    }

    #[test]
    fn who_makes_the_cgroups() {
        use spec::CgroupDriver::{Cgroupfs, Systemd};
        for (asked, systemd, v2, expected) in [
            (CgroupDriver::Auto, true, true, Systemd),
            (CgroupDriver::Auto, true, false, Cgroupfs),
            (CgroupDriver::Auto, false, true, Cgroupfs),
            (CgroupDriver::Cgroupfs, true, true, Cgroupfs),
            (CgroupDriver::Systemd, false, false, Systemd),
        ] {
            assert_eq!(asked.choose(systemd, v2), expected, "{asked:?} {systemd} {v2}");
        }
    }

    #[test]
    fn handlers() {
        let mut config = Config::default();
        assert!(config.runtime("").unwrap().ends_with("corten"));
        assert_eq!(config.runtime(""), config.runtime("corten"));
        assert_eq!(config.runtime("runc"), None);
        for name in ["runc", "a"] {
            config.runtimes.insert(
                name.into(),
                Runtime {
                    path: "/usr/sbin/runc".into(),
                    ..Runtime::default()
                },
            );
        }
        config.default_runtime = "runc".into();
        assert_eq!(config.runtime(""), Some("/usr/sbin/runc".into()));
        assert_eq!(config.handlers(), ["a", "corten", "runc"]);
    }
}
