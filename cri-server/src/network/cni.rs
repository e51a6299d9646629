//! Pod networks by CNI plugins (CNI specification 0.3.0 to 1.1.0).
//!
//! ```text
//! add      plugin 1 ADD ──result──> plugin 2 ADD (prevResult) ──result──> ... last result: the pod's addresses
//! remove   ... <── plugin 2 DEL <── plugin n DEL, each with the last result as prevResult
//! ready    STATUS of every plugin, and collect: GC with the attachments that count; both since 1.1.0 (`upkeep`)
//! ```
//!
//! An [`Attachment`] keeps the configuration that was used, what plugins were told by it, and the result, so that DEL
//! works when the configuration has changed or gone. An ADD that fails half-way runs DEL for every plugin that was begun.
//!
//! The configuration belongs to others: the directory is listed whenever it is needed, and read anew when a name, a
//! size or a time in it has changed. There is no watch that could miss a rename or lose its directory.
//!
//! Directories are read on threads for blocking work, one at a time: a disk that hangs costs one thread.
//!
//! A plugin leads a process group, which ends with the run that was given up. A server that is killed cannot do that:
//! its plugins go on, and would set up what nobody takes down. So a DEL without a recorded ADD first ends what is left
//! of the last server's run (`leftover`).
//!
//! Left out: CHECK, which nobody asks for; several networks at once; networks of Windows and per-runtime configurations.

mod capabilities;
mod conf;
mod leftover;
mod plugin;
mod upkeep;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use corten_proto::cri::{DnsConfig, PortMapping};
use corten_proto::id::SandboxId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::config::{self, IpPreference};
use crate::network::netns;
use crate::node::blocking;
use crate::stage::stage;
pub use capabilities::Bandwidth;
use capabilities::{Capabilities, Known};
use conf::Network;
use plugin::{Command, Invocation, Pod};
use upkeep::Upkeep;

/// The interface that plugins make in the pod.
const INTERFACE: &str = "eth0";

/// What plugins are told of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The sandbox.
    pub id: SandboxId,
    /// Its network namespace; DEL also works when it has gone.
    pub netns: PathBuf,
    /// Name of the pod.
    pub name: String,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
    /// Its hostname; empty where the pod asks for none.
    pub hostname: String,
    /// Ports of the node that lead to the pod; those with host port 0 map nothing.
    pub port_mappings: Vec<PortMapping>,
    /// How much it may send and receive.
    pub bandwidth: Bandwidth,
    /// Its resolver.
    pub dns: Option<DnsConfig>,
}

/// What ADD came to: part of the sandbox's record, and all that DEL needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The network configuration that was used.
    network: Value,
    /// What plugins were told that declared it.
    #[serde(default)]
    capabilities: Capabilities,
    /// The last plugin's result.
    result: Value,
}

impl Attachment {
    /// The last plugin's result, as it gave it.
    pub fn result(&self) -> &Value {
        &self.result
    }
}

/// The node's CNI configuration and plugins.
#[derive(Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
    ip_preference: IpPreference,
    /// What was read last, and from what. Held while the directory is read, by the thread that reads.
    loaded: Arc<Mutex<Option<Loaded>>>,
    /// The node's pod CIDRs, where the kubelet has told them.
    pod_cidrs: std::sync::Mutex<Vec<String>>,
    upkeep: Upkeep,
}

#[derive(Debug)]
struct Loaded {
    listing: Vec<Listed>,
    network: Result<Network, String>,
}

/// A configuration file as the directory shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    path: PathBuf,
    size: u64,
    modified: Option<SystemTime>,
}

impl Cni {
    /// Reads nothing yet.
    pub fn new(config: &config::Cni) -> Cni {
        Cni {
            conf_dir: config.conf_dir.clone(),
            bin_dirs: config.bin_dirs.clone(),
            timeout: Duration::from_secs(config.timeout_s),
            ip_preference: config.ip_preference,
            loaded: Arc::default(),
            pod_cidrs: std::sync::Mutex::default(),
            upkeep: Upkeep::default(),
        }
    }

    /// Takes the node's pod CIDRs, for address management that declares `ipRanges`.
    pub fn set_pod_cidrs(&self, cidrs: Vec<String>) {
        *self.pod_cidrs.lock().expect("no holder panics") = cidrs;
    }

    /// The node's pod CIDRs.
    pub fn pod_cidrs(&self) -> Vec<String> {
        self.pod_cidrs.lock().expect("no holder panics").clone()
    }

    /// Whether there is a configuration, be it right or wrong.
    pub async fn is_configured(&self) -> Result<bool> {
        let directory = self.conf_dir.clone();
        // As for `read`: a directory that does not answer keeps one thread.
        let turn = Arc::clone(&self.loaded).lock_owned().await;
        blocking(move || {
            let _turn = turn;
            has_candidate(&directory)
        })
        .await
    }

    /// Attaches the pod to the node's network.
    pub async fn add(&self, pod: &PodNetwork) -> Result<Attachment> {
        let _no_collection = self.upkeep.attaching(&pod.id).await;
        let attached = self.attach(pod).await;
        if attached.is_err() {
            self.upkeep.detached(&pod.id);
        }
        attached
    }

    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment> {
        let network = self.network().await?;
        let capabilities = self.capabilities(pod);
        let mut result = None;
        for (index, plugin) in network.plugins.iter().enumerate() {
            let stdin = plugin.stdin(&network, &capabilities, result.as_ref());
            match self
                .run(Command::Add, plugin, stdin, pod)
                .await
                .and_then(checked_result)
            {
                Ok(next) => result = Some(next),
                Err(error) => {
                    // DEL for this one too: it may have failed with half its work done.
                    let begun = &network.plugins[..=index];
                    if let Err(undo) = self.delete(&network, begun, pod, &capabilities, result.as_ref()).await {
                        tracing::warn!(sandbox = %pod.id, "undo a failed CNI ADD: {undo:#}");
                    }
                    return Err(error.context(format!("CNI network {}", network.name)));
                }
            }
        }
        let result = result.context("a CNI network has one plugin at least")?;
        let mut ips = addresses(&result)?;
        self.ip_preference.sort(&mut ips);
        Ok(Attachment {
            ips,
            network: network.source,
            capabilities,
            result,
        })
    }

    /// Detaches the pod; doing it again is fine.
    ///
    /// Without an attachment no ADD has succeeded, and a failed one was undone at once; what a killed server may have
    /// left is tried by the present configuration, if there is one, and a failure is logged only: a plugin that is
    /// missing must not make a sandbox unremovable that never had a network.
    pub async fn remove(&self, pod: &PodNetwork, attachment: Option<&Attachment>) -> Result<()> {
        let Some(attachment) = attachment else {
            let id = pod.id.clone();
            if let Err(error) = blocking(move || leftover::end(&id)).await {
                tracing::warn!(sandbox = %pod.id, "end what is left of a CNI plugin: {error:#}");
            }
            if let Ok(network) = self.network().await {
                let capabilities = self.capabilities(pod);
                let deleted = self.delete(&network, &network.plugins, pod, &capabilities, None).await;
                if let Err(error) = deleted {
                    tracing::warn!(sandbox = %pod.id, "CNI DEL without a recorded ADD: {error:#}");
                }
            }
            self.upkeep.detached(&pod.id);
            return Ok(());
        };
        let Attachment {
            network,
            capabilities,
            result,
            ..
        } = attachment;
        let network = conf::parse_list(network).context("the recorded CNI configuration")?;
        self.delete(&network, &network.plugins, pod, capabilities, Some(result))
            .await
            .with_context(|| format!("CNI network {}", network.name))?;
        self.upkeep.detached(&pod.id);
        Ok(())
    }

    /// What there is to tell of a pod.
    fn capabilities(&self, pod: &PodNetwork) -> Capabilities {
        let pod_cidrs = self.pod_cidrs();
        let known = Known {
            port_mappings: &pod.port_mappings,
            bandwidth: pod.bandwidth,
            dns: pod.dns.as_ref(),
            pod_cidrs: &pod_cidrs,
            name: &pod.name,
            hostname: &pod.hostname,
        };
        known.capabilities()
    }

    /// DEL, last plugin first. One that fails does not keep the others from their part; the first error is told.
    async fn delete(
        &self,
        network: &Network,
        plugins: &[conf::Plugin],
        pod: &PodNetwork,
        capabilities: &Capabilities,
        result: Option<&Value>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in plugins.iter().rev() {
            let stdin = plugin.stdin(network, capabilities, result);
            let deleted = self.run(Command::Del, plugin, stdin, pod).await.map(|_nothing| ());
            outcome = outcome.and(deleted);
        }
        outcome
    }

    async fn run(&self, command: Command, plugin: &conf::Plugin, stdin: Value, pod: &PodNetwork) -> Result<Value> {
        // An empty one tells DEL that the namespace has gone (CNI specification, DEL). The file may have outlived it: a
        // killed server had unmounted it, or not yet mounted.
        let gone = command == Command::Del && !netns::is_namespace(&pod.netns);
        let _stage = stage(|| format!("CNI plugin {} {}", plugin.kind, command.name())).named("cni_plugin");
        let invocation = Invocation {
            command,
            program: plugin::find(&self.bin_dirs, &plugin.kind)?,
            pod: Some(Pod {
                container_id: pod.id.as_str(),
                netns: if gone { Path::new("") } else { &pod.netns },
                interface: INTERFACE,
                args: kubernetes_args(pod),
            }),
            path: &self.bin_dirs,
            timeout: self.timeout,
        };
        invocation
            .run(&stdin)
            .await
            .with_context(|| format!("CNI plugin {} {} for sandbox {}", plugin.kind, command.name(), pod.id))
    }

    /// The network of the first valid configuration by name.
    async fn network(&self) -> Result<Network> {
        self.read(|network| Ok(network.clone())).await
    }

    /// Looks at the network, on a thread that may block. It comes from memory while the directory stays as it was.
    async fn read<T: Send + 'static>(&self, look: impl FnOnce(&Network) -> Result<T> + Send + 'static) -> Result<T> {
        let directory = self.conf_dir.clone();
        // Taken before the thread, and kept by it when the caller has gone: the others wait without a thread each.
        let mut loaded = Arc::clone(&self.loaded).lock_owned().await;
        blocking(move || {
            let listing = list(&directory).map_err(anyhow::Error::msg)?;
            if loaded.as_ref().is_none_or(|it| it.listing != listing) {
                let network = read_first(&directory, &listing);
                *loaded = Some(Loaded { listing, network });
            }
            let current = loaded.as_ref().expect("it was filled just now");
            match &current.network {
                Ok(network) => look(network),
                Err(problem) => bail!("{problem}"),
            }
        })
        .await
    }
}

/// The configuration files of the directory by name.
fn list(directory: &Path) -> Result<Vec<Listed>, String> {
    let failed = |error: std::io::Error| format!("no CNI configuration: read {}: {error}", directory.display());
    let mut listing = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Links are followed: configurations are often links into another tree.
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            listing.extend(conf::others_plugins(&path).into_iter().filter_map(listed));
        } else if is_candidate(&path) {
            listing.extend(listed(path));
        }
    }
    listing.sort();
    Ok(listing)
}

fn listed(path: PathBuf) -> Option<Listed> {
    let meta = std::fs::metadata(&path).ok()?;
    Some(Listed {
        path,
        size: meta.len(),
        modified: meta.modified().ok(),
    })
}

/// Whether a file of the directory is a network's; none is where there is no directory.
fn has_candidate(directory: &Path) -> Result<bool> {
    let failed = || format!("read {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries.with_context(failed)?,
    };
    for entry in entries {
        let path = entry.with_context(failed)?.path();
        if is_candidate(&path) && !path.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file is a network's, by its name.
fn is_candidate(path: &Path) -> bool {
    path.extension()
        .is_some_and(|it| it == "conflist" || it == "conf" || it == "json")
}

fn read_first(directory: &Path, listing: &[Listed]) -> Result<Network, String> {
    let mut problems = Vec::new();
    // Those further down are plugins of the lists up here.
    let own = |it: &&Listed| it.path.parent() == Some(directory);
    for Listed { path, .. } in listing.iter().filter(own) {
        match conf::read(path) {
            Ok(network) => return Ok(network),
            Err(error) => problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    if problems.is_empty() {
        return Err(format!("no CNI configuration in {}", directory.display()));
    }
    Err(format!("no valid CNI configuration: {}", problems.join("; ")))
}

/// A configuration file, and the plugins of its network or what is wrong with it.
pub(crate) type Found = (PathBuf, Result<Vec<String>, String>);

/// Every configuration file of the directory by name; none where there is no directory. Blocks.
pub(crate) fn inspect(directory: &Path) -> Result<Vec<Found>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let listing = list(directory).map_err(anyhow::Error::msg)?;
    let files = listing
        .into_iter()
        .map(|it| it.path)
        .filter(|path| path.parent() == Some(directory));
    let found = files.map(|path| {
        let kinds = conf::read(&path)
            .map(|network| network.programs())
            .map_err(|error| format!("{error:#}"));
        (path, kinds)
    });
    Ok(found.collect())
}

/// CNI_ARGS as every Kubernetes runtime gives them. The list is joined by `;`: a name with one would add a key.
fn kubernetes_args(pod: &PodNetwork) -> String {
    let safe = |value: &str| value.replace([';', '=', '\0', '\n'], "_");
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        safe(&pod.namespace),
        safe(&pod.name),
        pod.id,
        safe(&pod.uid),
    )
}

/// The result of an ADD, which the next plugin and DEL rely on.
fn checked_result(result: Value) -> Result<Value> {
    if result.is_object() {
        return Ok(result);
    }
    bail!("the plugin's result is not a JSON object");
}

/// The addresses of a result, in its order: the first is the pod's primary one. Those of interfaces that are the
/// node's own, which have no sandbox, are left out.
fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let interfaces = result["interfaces"].as_array();
    let is_pods = |ip: &Value| {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        match (index, interfaces) {
            (Some(index), Some(interfaces)) => interfaces
                .get(index)
                .is_none_or(|it| it["sandbox"].as_str().is_some_and(|path| !path.is_empty())),
            _ => true,
        }
    };
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses = ips
        .iter()
        .filter(|ip| is_pods(ip))
        .map(|ip| {
            let address = ip["address"].as_str().unwrap_or_default();
            let bare = address.split_once('/').map_or(address, |(bare, _prefix)| bare);
            bare.parse()
                .with_context(|| format!("CNI result: ips address {address:?}"))
        })
        .collect::<Result<Vec<IpAddr>>>()?;
    if addresses.is_empty() {
        bail!("the CNI result holds no address of the pod");
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests;
