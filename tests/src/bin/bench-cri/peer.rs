//! A CRI server, the pods that it is asked for, and its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use corten_proto::cri;
use corten_tests::cri::Cri;

/// How long a container may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that is measured.
pub(crate) struct Peer {
    /// Its column.
    pub(crate) name: String,
    pub(crate) cri: Cri,
    /// The server's process.
    pub(crate) pid: u32,
    /// The file name of its shims' executable.
    shim: String,
    image: String,
    parent: String,
    /// Everything of this benchmark lies in it, so that its path is in the arguments of the shims.
    dir: PathBuf,
    count: AtomicU64,
}

/// A pod and what it was made of.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: cri::PodSandboxConfig,
}

impl Peer {
    /// A server by `NAME=SOCKET=PID=SHIM`.
    pub(crate) fn new(text: &str, dir: &Path, image: &str, parent: &str) -> Result<Peer> {
        let fields: Vec<&str> = text.split('=').collect();
        let [name, socket, pid, shim] = fields[..] else {
            anyhow::bail!("{text:?}: must be NAME=SOCKET=PID=SHIM");
        };
        Ok(Peer {
            name: name.to_owned(),
            cri: Cri::new(Path::new(socket))?,
            pid: pid.parse().with_context(|| format!("{text:?}: PID"))?,
            shim: shim.to_owned(),
            image: image.to_owned(),
            parent: parent.to_owned(),
            dir: dir.to_owned(),
            count: AtomicU64::new(0),
        })
    }

    pub(crate) fn pull(&self) -> Result<()> {
        let request = cri::PullImageRequest {
            image: Some(self.image()),
            ..Default::default()
        };
        self.cri
            .pull_image(request)
            .with_context(|| format!("{}: pull", self.name))?;
        Ok(())
    }

    fn image(&self) -> cri::ImageSpec {
        cri::ImageSpec {
            image: self.image.clone(),
            ..Default::default()
        }
    }

    /// What a kubelet would send for the next pod.
    pub(crate) fn pod_config(&self) -> cri::PodSandboxConfig {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.name);
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                name: name.clone(),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.dir.join("logs").join(&name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.parent.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) fn container_config(&self, command: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "main".to_owned(),
                attempt: 0,
            }),
            image: Some(self.image()),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: "main.log".to_owned(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) fn run(&self) -> Result<Pod> {
        let config = self.pod_config();
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let reply = self
            .cri
            .run_pod_sandbox(request)
            .with_context(|| format!("{}: RunPodSandbox", self.name))?;
        Ok(Pod {
            id: reply.pod_sandbox_id,
            config,
        })
    }

    pub(crate) fn create(&self, pod: &Pod, config: cri::ContainerConfig) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let reply = self
            .cri
            .create_container(request)
            .with_context(|| format!("{}: CreateContainer", self.name))?;
        Ok(reply.container_id)
    }

    pub(crate) fn start(&self, container: &str) -> Result<()> {
        let container_id = container.to_owned();
        let started = self.cri.start_container(cri::StartContainerRequest { container_id });
        started.with_context(|| format!("{}: StartContainer", self.name))?;
        Ok(())
    }

    pub(crate) fn exec(&self, container: &str, command: &[&str]) -> Result<()> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10,
        };
        let reply = self
            .cri
            .exec_sync(request)
            .with_context(|| format!("{}: ExecSync", self.name))?;
        ensure!(
            reply.exit_code == 0,
            "{}: {command:?} exits with {}",
            self.name,
            reply.exit_code
        );
        Ok(())
    }

    pub(crate) fn stop(&self, container: &str) -> Result<()> {
        let request = cri::StopContainerRequest {
            container_id: container.to_owned(),
            timeout: 0,
        };
        self.cri
            .stop_container(request)
            .with_context(|| format!("{}: StopContainer", self.name))?;
        Ok(())
    }

    pub(crate) fn remove(&self, container: &str) -> Result<()> {
        let container_id = container.to_owned();
        let removed = self.cri.remove_container(cri::RemoveContainerRequest { container_id });
        removed.with_context(|| format!("{}: RemoveContainer", self.name))?;
        Ok(())
    }

    pub(crate) fn stop_pod(&self, pod: &Pod) -> Result<()> {
        let pod_sandbox_id = pod.id.clone();
        let stopped = self.cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id });
        stopped.with_context(|| format!("{}: StopPodSandbox", self.name))?;
        Ok(())
    }

    pub(crate) fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let pod_sandbox_id = pod.id.clone();
        let removed = self
            .cri
            .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id });
        removed.with_context(|| format!("{}: RemovePodSandbox", self.name))?;
        Ok(())
    }

    /// A container that has ended.
    pub(crate) fn wait_exit(&self, container: &str) -> Result<cri::ContainerStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = cri::ContainerStatusRequest {
                container_id: container.to_owned(),
                verbose: false,
            };
            let status = self.cri.container_status(request)?.status.context("no status")?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{}: a container does not end", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The processes of its shims.
    pub(crate) fn shims(&self) -> Vec<u32> {
        let own = self.dir.display().to_string();
        let is_shim = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&arguments);
            let program = text.split('\0').next().unwrap_or_default();
            Path::new(program)
                .file_name()
                .is_some_and(|name| name == self.shim.as_str())
                && text.contains(&own)
        };
        processes().into_iter().filter(is_shim).collect()
    }
}

impl Peer {
    /// Entries of a directory of the benchmark; none where there is none.
    pub(crate) fn entries_below(&self, name: &str) -> Result<i64> {
        let count = fs::read_dir(self.dir.join(name)).map_or(0, Iterator::count);
        Ok(i64::try_from(count)?)
    }

    /// Cgroups beneath the pods' parent, in all hierarchies.
    pub(crate) fn cgroups(&self) -> Result<i64> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").context("list the cgroup hierarchies")?;
        let parent = self.parent.trim_start_matches('/');
        let below = hierarchies
            .flatten()
            .map(|hierarchy| directories_below(&hierarchy.path().join(parent)));
        // On a machine with cgroup v2 alone the only hierarchy is the root.
        Ok(below.sum::<i64>() + directories_below(&Path::new("/sys/fs/cgroup").join(parent)))
    }

    /// Files and directories that the server and the plugins keep, layers aside.
    pub(crate) fn files(&self) -> Result<i64> {
        let names = [
            "lib/sandboxes",
            "lib/containers",
            "lib/networks",
            "lib/quarantine",
            "run/sandboxes",
            "run/containers",
        ];
        let names = names.into_iter().chain(["run/runtime", "leases", "logs"]);
        Ok(names.map(|name| files_below(&self.dir.join(name))).sum())
    }
}

fn directories_below(directory: &Path) -> i64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| 1 + directories_below(&entry.path())).sum()
}

fn files_below(directory: &Path) -> i64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => 1 + files_below(&entry.path()),
        _ => 1,
    };
    entries.map(count).sum()
}

/// Every process there is.
pub(crate) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Network and IPC of the pod, processes of the container.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    }
}
