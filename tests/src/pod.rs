//! Pods and containers of a [`Node`], as a test handles them.
//!
//! Requests carry what a kubelet sends for a small pod. A call that fails fails the test, with the server's status;
//! tests of errors use [`Node::cri`] itself.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use serde_json::Value;

use crate::node::{BUSYBOX, Node};

/// Longest a container may take to end once it is expected to.
const EXIT: Duration = Duration::from_secs(15);

/// Between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(10);

/// A sandbox that RunPodSandbox has made.
#[derive(Clone)]
pub struct Pod<'n> {
    node: &'n Node,
    /// Its id.
    pub id: String,
    /// What it was made of.
    pub config: cri::PodSandboxConfig,
}

/// A container that CreateContainer has made.
#[derive(Clone)]
pub struct Container<'n> {
    node: &'n Node,
    /// Its id.
    pub id: String,
    /// What it was made of.
    pub config: cri::ContainerConfig,
    /// Its log file.
    pub log: PathBuf,
}

/// One line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, as the log says it.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line goes on in the next one of this stream.
    pub partial: bool,
    /// The content, without a line break.
    pub content: Vec<u8>,
}

impl Node {
    /// What a kubelet would send for a pod of this name; the UID is new.
    pub fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let uid = format!("uid-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        cri::PodSandboxConfig {
            log_directory: self
                .dir()
                .join("logs")
                .join(format!("{name}_{uid}"))
                .display()
                .to_string(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            labels: map(&[("app", name)]),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(pod_namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod of this name, with busybox pulled.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Pod<'_> {
        self.pull(BUSYBOX);
        self.run_pod(self.pod_config(name))
    }

    /// Runs the pod that `config` describes.
    #[track_caller]
    pub fn run_pod(&self, config: cri::PodSandboxConfig) -> Pod<'_> {
        self.run_pod_by(config, "")
    }

    /// The same by a runtime handler.
    #[track_caller]
    pub fn run_pod_by(&self, config: cri::PodSandboxConfig, handler: &str) -> Pod<'_> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let reply = self.cri.run_pod_sandbox(request).expect("RunPodSandbox");
        Pod {
            node: self,
            id: reply.pod_sandbox_id,
            config,
        }
    }

    /// Pulls an image; its id.
    #[track_caller]
    pub fn pull(&self, reference: &str) -> String {
        let request = cri::PullImageRequest {
            image: Some(image(reference)),
            ..Default::default()
        };
        self.cri.pull_image(request).expect("PullImage").image_ref
    }
}

impl<'n> Pod<'n> {
    /// Creates a container.
    #[track_caller]
    pub fn create(&self, config: cri::ContainerConfig) -> Container<'n> {
        let reply = self
            .node
            .cri
            .create_container(self.create_request(&config))
            .expect("CreateContainer");
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        Container {
            node: self.node,
            id: reply.container_id,
            config,
            log,
        }
    }

    /// The request by which [`Pod::create`] creates a container.
    pub fn create_request(&self, config: &cri::ContainerConfig) -> cri::CreateContainerRequest {
        cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        }
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn start(&self, config: cri::ContainerConfig) -> Container<'n> {
        let container = self.create(config);
        container.start();
        container
    }

    /// Creates and starts a container of busybox that runs a shell script.
    #[track_caller]
    pub fn sh(&self, name: &str, script: &str) -> Container<'n> {
        self.start(container(name, &["sh", "-c", script]))
    }

    /// PodSandboxStatus.
    #[track_caller]
    pub fn status(&self) -> cri::PodSandboxStatus {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let reply = self.node.cri.pod_sandbox_status(request).expect("PodSandboxStatus");
        reply.status.expect("a status")
    }

    /// The `info` document of the verbose status.
    #[track_caller]
    pub fn info(&self) -> Value {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
        };
        let reply = self.node.cri.pod_sandbox_status(request).expect("PodSandboxStatus");
        info(&reply.info)
    }

    /// The pod's primary address.
    #[track_caller]
    pub fn ip(&self) -> String {
        self.status().network.expect("a network status").ip
    }

    /// StopPodSandbox.
    #[track_caller]
    pub fn stop(&self) {
        let pod_sandbox_id = self.id.clone();
        self.node
            .cri
            .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id })
            .expect("StopPodSandbox");
    }

    /// RemovePodSandbox.
    #[track_caller]
    pub fn remove(&self) {
        let pod_sandbox_id = self.id.clone();
        self.node
            .cri
            .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })
            .expect("RemovePodSandbox");
    }
}

impl Container<'_> {
    /// StartContainer.
    #[track_caller]
    pub fn start(&self) {
        let container_id = self.id.clone();
        self.node
            .cri
            .start_container(cri::StartContainerRequest { container_id })
            .expect("StartContainer");
    }

    /// ContainerStatus.
    #[track_caller]
    pub fn status(&self) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let reply = self.node.cri.container_status(request).expect("ContainerStatus");
        reply.status.expect("a status")
    }

    /// The `info` document of the verbose status.
    #[track_caller]
    pub fn info(&self) -> Value {
        let request = cri::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: true,
        };
        let reply = self.node.cri.container_status(request).expect("ContainerStatus");
        info(&reply.info)
    }

    /// Host pid of its init.
    #[track_caller]
    pub fn pid(&self) -> i64 {
        self.info()["pid"].as_i64().expect("info has a pid")
    }

    /// Its status once it has ended.
    #[track_caller]
    pub fn wait_exit(&self) -> cri::ContainerStatus {
        let deadline = Instant::now() + EXIT;
        loop {
            let status = self.status();
            if status.state() == cri::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{} still {:?}", self.id, status.state());
            thread::sleep(POLL);
        }
    }

    /// ExecSync without a timeout.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> cri::ExecSyncResponse {
        self.node
            .cri
            .exec_sync(self.exec_request(command, 0))
            .expect("ExecSync")
    }

    /// The request by which [`Container::exec`] runs a command; `timeout` in seconds, 0 for none.
    pub fn exec_request(&self, command: &[&str], timeout: i64) -> cri::ExecSyncRequest {
        cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        }
    }

    /// What a shell script, run by ExecSync, writes to standard output.
    #[track_caller]
    pub fn exec_sh(&self, script: &str) -> String {
        let reply = self.exec(&["sh", "-c", script]);
        let stderr = String::from_utf8_lossy(&reply.stderr);
        assert_eq!(reply.exit_code, 0, "{script}: {stderr}");
        String::from_utf8_lossy(&reply.stdout).into_owned()
    }

    /// StopContainer with a grace period in seconds.
    #[track_caller]
    pub fn stop(&self, timeout: i64) {
        let container_id = self.id.clone();
        self.node
            .cri
            .stop_container(cri::StopContainerRequest { container_id, timeout })
            .expect("StopContainer");
    }

    /// RemoveContainer.
    #[track_caller]
    pub fn remove(&self) {
        let container_id = self.id.clone();
        self.node
            .cri
            .remove_container(cri::RemoveContainerRequest { container_id })
            .expect("RemoveContainer");
    }

    /// ReopenContainerLog.
    #[track_caller]
    pub fn reopen_log(&self) {
        let container_id = self.id.clone();
        let request = cri::ReopenContainerLogRequest { container_id };
        self.node.cri.reopen_container_log(request).expect("ReopenContainerLog");
    }

    /// Its log, line by line.
    #[track_caller]
    pub fn log_lines(&self) -> Vec<LogLine> {
        let bytes = fs::read(&self.log).unwrap_or_else(|e| panic!("{}: {e}", self.log.display()));
        parse_log(&bytes)
    }

    /// What it has written to `stream`, partial lines joined.
    #[track_caller]
    pub fn output(&self, stream: &str) -> String {
        let mut text = Vec::new();
        for line in self.log_lines().iter().filter(|line| line.stream == stream) {
            text.extend(&line.content);
            if !line.partial {
                text.push(b'\n');
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until its standard output holds `text`.
    #[track_caller]
    pub fn wait_output(&self, text: &str) {
        self.wait_logged("stdout", text);
    }

    /// Waits until what it has written to `stream` holds `text`.
    #[track_caller]
    pub fn wait_logged(&self, stream: &str, text: &str) {
        let deadline = Instant::now() + EXIT;
        while !self.output(stream).contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.output(stream));
            thread::sleep(POLL);
        }
    }
}

/// Whether a process runs; a zombie, which only its parent can remove, does not.
pub fn is_alive(pid: i64) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .unwrap_or_default()
        .trim();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

/// A container of busybox with this command; its log is `NAME/0.log`.
pub fn container(name: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(image(BUSYBOX)),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: None,
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(pod_namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The image of this name, by the name the user wrote.
pub fn image(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.to_owned(),
        user_specified_image: reference.to_owned(),
        ..Default::default()
    }
}

/// Labels or annotations.
pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Network and IPC of the pod, processes of the container: what kubelet asks for unless told otherwise.
fn pod_namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// The lines of a log in the CRI's format: `TIME STREAM TAG CONTENT`.
///
/// # Panics
/// On a line that is not of this form, or a last one without its end.
#[track_caller]
pub fn parse_log(bytes: &[u8]) -> Vec<LogLine> {
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        assert!(bytes.is_empty(), "the last line has no end");
        return Vec::new();
    };
    lines.split(|&byte| byte == b'\n').map(parse_log_line).collect()
}

#[track_caller]
fn parse_log_line(line: &[u8]) -> LogLine {
    let shown = String::from_utf8_lossy(line).into_owned();
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let mut field = || fields.next().unwrap_or_else(|| panic!("not a log line: {shown:?}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (time, stream) = (text(field()), text(field()));
    let partial = match field() {
        b"F" => false,
        b"P" => true,
        _ => panic!("neither F nor P: {shown:?}"),
    };
    assert!(stream == "stdout" || stream == "stderr", "no such stream: {shown:?}");
    LogLine {
        time,
        stream,
        partial,
        content: field().to_vec(),
    }
}

/// The `info` entry of a verbose answer: a JSON document in a string.
#[track_caller]
fn info(info: &HashMap<String, String>) -> Value {
    let text = info.get("info").expect("a verbose answer has info");
    serde_json::from_str(text).expect("info is JSON")
}
