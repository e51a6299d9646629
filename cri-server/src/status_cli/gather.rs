//! Where everything that is shown comes from.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use corten_proto::cri::{
    self, ContainerState, ContainerStatusRequest, ImageFsInfoRequest, ListContainersRequest, ListImagesRequest,
    ListPodSandboxRequest, PodSandboxState, StatusRequest, StatusResponse, VersionRequest,
};
use serde_json::Value;

use super::{Condition, Containers, Disk, Failure, Handler, Images, Memory, Overview, Pods};
use crate::client::Client;
use crate::config::Config;
use crate::doctor::leftovers::shims;
use crate::doctor::memory::field;
use crate::doctor::server::server_pid;
use crate::paths::Paths;

/// How long the server may take for everything.
const LIMIT: Duration = Duration::from_secs(20);
/// Failures that are shown, and containers that have ended which are asked about for them.
const FAILURES: usize = 5;
const ASKED: usize = 50;
/// Parts of a second in /proc/PID/stat: USER_HZ, the same on every architecture that this runs on.
const TICKS: u64 = 100;

/// Asks the server of this configuration, and the kernel. Blocks.
///
/// # Errors
/// If the server does not answer.
pub(crate) fn gather(config: &Config) -> Result<Overview> {
    let mut overview = Client::block_on(&config.listen, LIMIT, ask)?;
    overview.endpoint = config.listen.display().to_string();
    overview.pid = server_pid(config);
    overview.uptime_s = overview
        .pid
        .and_then(|pid| uptime(&read(format!("/proc/{pid}/stat")), &read("/proc/uptime")));
    overview.memory = memory(overview.pid, &Paths::new(&config.root, &config.state));
    let root = ("root", config.root.as_path());
    let images = config
        .storage
        .image_root
        .as_deref()
        .map(|path| ("storage.image_root", path));
    let disks = [Some(root), Some(("state", &config.state)), images];
    overview.disks = disks
        .into_iter()
        .flatten()
        .filter_map(|(key, path)| disk(key, path))
        .collect();
    Ok(overview)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

async fn ask(mut client: Client) -> Result<Overview> {
    let version = client.runtime.version(VersionRequest::default()).await?.into_inner();
    let status = client
        .runtime
        .status(StatusRequest { verbose: true })
        .await?
        .into_inner();
    let pods = client
        .runtime
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?
        .into_inner()
        .items;
    let containers = client.runtime.list_containers(ListContainersRequest::default()).await?;
    let containers = containers.into_inner().containers;
    let images = client
        .images
        .list_images(ListImagesRequest::default())
        .await?
        .into_inner()
        .images;
    let used = client.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    let failures = failures(&mut client, &containers, &pods).await?;
    let bytes = |all: &[cri::FilesystemUsage]| {
        all.iter()
            .filter_map(|it| Some(it.used_bytes.as_ref()?.value))
            .sum::<u64>()
    };
    Ok(Overview {
        version: version.runtime_version,
        conditions: conditions(&status),
        handlers: handlers(&status)?,
        pods: count_pods(&pods),
        containers: count_containers(&containers),
        images: Images {
            count: images.len(),
            bytes: bytes(&used.image_filesystems),
            written_bytes: bytes(&used.container_filesystems),
        },
        quarantined: info(&status, "quarantine")?["records"].as_array().map_or(0, Vec::len),
        failures,
        ..Overview::default()
    })
}

fn conditions(status: &StatusResponse) -> Vec<Condition> {
    let conditions = status.status.iter().flat_map(|status| &status.conditions);
    conditions
        .map(|condition| Condition {
            name: condition.r#type.clone(),
            good: condition.status,
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
        .collect()
}

/// A document of the verbose status; null where there is none of this name.
fn info(status: &StatusResponse, key: &str) -> Result<Value> {
    let text = status.info.get(key).map_or("null", String::as_str);
    serde_json::from_str(text).with_context(|| format!("decode info {key:?}"))
}

fn handlers(status: &StatusResponse) -> Result<Vec<Handler>> {
    let details = info(status, "handlers")?;
    let handlers = status.runtime_handlers.iter().map(|handler| {
        let features = handler.features.unwrap_or_default();
        let detail = |key: &str| details[&handler.name][key].as_str().map(str::to_owned);
        Handler {
            name: handler.name.clone(),
            path: detail("path").unwrap_or_default(),
            user_namespaces: features.user_namespaces,
            recursive_read_only: features.recursive_read_only_mounts,
            problem: detail("problem"),
        }
    });
    Ok(handlers.collect())
}

fn count_pods(pods: &[cri::PodSandbox]) -> Pods {
    let ready = pods
        .iter()
        .filter(|pod| pod.state() == PodSandboxState::SandboxReady)
        .count();
    Pods {
        ready,
        not_ready: pods.len() - ready,
    }
}

fn count_containers(containers: &[cri::Container]) -> Containers {
    let mut counts = Containers::default();
    for container in containers {
        *match container.state() {
            ContainerState::ContainerCreated => &mut counts.created,
            ContainerState::ContainerRunning => &mut counts.running,
            ContainerState::ContainerExited => &mut counts.exited,
            ContainerState::ContainerUnknown => &mut counts.unknown,
        } += 1;
    }
    counts
}

/// The last containers that ended with another code than 0, of those that are still there.
async fn failures(
    client: &mut Client,
    containers: &[cri::Container],
    pods: &[cri::PodSandbox],
) -> Result<Vec<Failure>> {
    let name = |pod: &cri::PodSandbox| {
        let metadata = pod.metadata.clone().unwrap_or_default();
        (pod.id.clone(), format!("{}/{}", metadata.namespace, metadata.name))
    };
    let names: HashMap<String, String> = pods.iter().map(name).collect();
    let exited = containers
        .iter()
        .filter(|it| it.state() == ContainerState::ContainerExited);
    let mut found = Vec::new();
    // They are listed oldest first.
    for container in exited.rev().take(ASKED) {
        let container_id = container.id.clone();
        let request = ContainerStatusRequest {
            container_id,
            verbose: false,
        };
        // Removed meanwhile.
        let Ok(answer) = client.runtime.container_status(request).await else {
            continue;
        };
        let Some(status) = answer.into_inner().status.filter(|status| status.exit_code != 0) else {
            continue;
        };
        let pod = names.get(&container.pod_sandbox_id).cloned().unwrap_or_default();
        found.push((status.finished_at, failure(status, pod)));
    }
    found.sort_by_key(|(finished, _)| std::cmp::Reverse(*finished));
    found.truncate(FAILURES);
    Ok(found.into_iter().map(|(_, failure)| failure).collect())
}

fn failure(status: cri::ContainerStatus, pod: String) -> Failure {
    let finished = u64::try_from(status.finished_at).unwrap_or_default();
    let finished = SystemTime::UNIX_EPOCH + Duration::from_nanos(finished);
    Failure {
        pod,
        container: status.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        id: status.id,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        finished: humantime::format_rfc3339_seconds(finished).to_string(),
    }
}

/// How long a process has run: `stat` is /proc/PID/stat, `uptime` /proc/uptime. None for what is no such text.
fn uptime(stat: &str, uptime: &str) -> Option<u64> {
    // Its name may hold spaces and brackets; the fields behind it do not. The start is the 22nd field (proc(5)).
    let (_, fields) = stat.rsplit_once(')')?;
    let started: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let (seconds, _) = uptime.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    seconds.checked_sub(started / TICKS)
}

fn memory(server: Option<i32>, paths: &Paths) -> Memory {
    let shims = shims(paths);
    let pss = |pid: i32| field(&read(format!("/proc/{pid}/smaps_rollup")), "Pss");
    Memory {
        server_rss: server.and_then(|pid| field(&read(format!("/proc/{pid}/status")), "VmRSS")),
        shims_pss: shims.iter().filter_map(|(pid, _)| pss(*pid)).sum::<u64>(),
        shims: shims.len(),
        node_available: field(&read("/proc/meminfo"), "MemAvailable"),
    }
}

fn disk(key: &'static str, path: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Disk {
        key,
        path: path.display().to_string(),
        bytes: found.f_blocks * found.f_frsize,
        bytes_free: found.f_bavail * found.f_frsize,
        inodes: found.f_files,
        inodes_free: found.f_favail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_process_has_run() {
        let fields = (3..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("7 (a) b) {fields} {} 23", TICKS * 40);
        assert_eq!(uptime(&stat, "100.25 7.00"), Some(60));
        assert_eq!(uptime(&stat, ""), None);
        assert_eq!(uptime("", "100.25"), None);
    }

    #[test]
    fn states_are_counted() {
        let container = |state: ContainerState| cri::Container {
            state: state.into(),
            ..Default::default()
        };
        use ContainerState::{ContainerExited, ContainerRunning};
        let counts = count_containers(&[
            container(ContainerRunning),
            container(ContainerExited),
            container(ContainerRunning),
        ]);
        assert_eq!((counts.running, counts.exited, counts.created), (2, 1, 0));
    }
}
