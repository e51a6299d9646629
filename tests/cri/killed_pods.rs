//! kill -9 of the server at random moments while eight clients run pods: after each restart every pod and container is in its
//! true state and nothing is doubled; logs are whole, and in the end nothing is left.
//!
//! A client does what a kubelet does when a call breaks off: it asks again for the same thing. `CORTEN_KILLS=200` kills
//! two hundred times; eight without it. What the kills hit is printed in the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, is_alive, parse_log};
use corten_tests::random::Random;
use tonic::{Code, Status};

const CLIENTS: usize = 8;
/// Lines that a container writes before it ends.
const LINES: usize = 100;
/// The longest time between a restart and the next kill.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long a restarted server's shims may take to end what was half done.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a client asks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all clients share.
struct Load<'n> {
    node: &'n Node,
    /// Held for reading in each call; for writing while the world is looked at.
    calls: RwLock<()>,
    over: AtomicBool,
    broken_calls: AtomicUsize,
    pods: AtomicUsize,
}

impl Load<'_> {
    /// Makes a call until it is answered: a broken connection is no answer.
    fn call<T>(&self, what: &str, call: impl Fn() -> Result<T, Status>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = {
                let _calling = self.calls.read().unwrap_or_else(PoisonError::into_inner);
                call()
            };
            match answer {
                Ok(answer) => return answer,
                Err(status) if is_broken(&status) => {}
                Err(status) => panic!("{what}: {status:?}"),
            }
            self.broken_calls.fetch_add(1, Ordering::Relaxed);
            assert!(Instant::now() < deadline, "{what}: the server does not come back");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pods one after the other, until it is over.
    fn client(&self, number: usize) {
        let mut round = 0;
        while !self.over.load(Ordering::Relaxed) {
            self.pod(number, round);
            round += 1;
            self.pods.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One pod from its run to its removal: a container that goes on, and one that writes and ends.
    fn pod(&self, client: usize, round: usize) {
        let cri = &self.node.cri;
        let config = self.node.pod_config(&format!("client-{client}-{round}"));
        let run = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let pod = self
            .call("RunPodSandbox", || cri.run_pod_sandbox(run.clone()))
            .pod_sandbox_id;
        let code = i32::try_from(round % 100 + 1).expect("small");
        let script = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done; exit {code}");
        let stays = self.start(&pod, &config, container("stays", &["sleep", "1000"]));
        let ends = self.start(&pod, &config, container("ends", &["sh", "-c", &script]));
        let ended = self.wait_exit(&ends);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (code, "Error"), "{ended:?}");
        let lines = parse_log(&fs::read(&ended.log_path).expect("a log"));
        let numbers: Vec<_> = lines
            .iter()
            .map(|line| String::from_utf8_lossy(&line.content).into_owned())
            .collect();
        assert!(
            numbers
                .iter()
                .eq((0..LINES).map(|it| it.to_string()).collect::<Vec<_>>().iter()),
            "{numbers:?}"
        );
        assert_eq!(self.status(&stays).state(), cri::ContainerState::ContainerRunning);
        let stop = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        };
        self.call("StopPodSandbox", || cri.stop_pod_sandbox(stop.clone()));
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod };
        self.call("RemovePodSandbox", || cri.remove_pod_sandbox(remove.clone()));
    }

    fn start(&self, pod: &str, sandbox: &cri::PodSandboxConfig, config: cri::ContainerConfig) -> String {
        let cri = &self.node.cri;
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let id = self
            .call("CreateContainer", || cri.create_container(create.clone()))
            .container_id;
        let request = cri::StartContainerRequest {
            container_id: id.clone(),
        };
        self.call("StartContainer", || match cri.start_container(request.clone()) {
            // The answer to the first attempt was lost.
            Err(status)
                if status.code() == Code::FailedPrecondition && status.message().contains("not CONTAINER_CREATED") =>
            {
                Ok(())
            }
            answer => answer.map(drop),
        });
        id
    }

    fn status(&self, id: &str) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.call("ContainerStatus", || self.node.cri.container_status(request.clone()));
        answer.status.expect("a status")
    }

    fn wait_exit(&self, id: &str) -> cri::ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id);
            if status.state() == cri::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether there was no server, or no longer one, to answer.
fn is_broken(status: &Status) -> bool {
    // The server's own errors never have a source: these are the client's.
    std::error::Error::source(status).is_some()
        || status.code() == Code::Cancelled
        || status.message().contains("h2 protocol error")
}

/// What the server says there is.
struct Listed {
    sandboxes: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
}

impl Listed {
    fn of(node: &Node) -> Listed {
        let sandboxes = node.cri.list_pod_sandbox(cri::ListPodSandboxRequest::default());
        let containers = node.cri.list_containers(cri::ListContainersRequest::default());
        Listed {
            sandboxes: sandboxes.expect("ListPodSandbox").items,
            containers: containers.expect("ListContainers").containers,
        }
    }

    fn ids(&self) -> BTreeSet<String> {
        let sandboxes = self.sandboxes.iter().map(|it| it.id.clone());
        sandboxes
            .chain(self.containers.iter().map(|it| it.id.clone()))
            .collect()
    }

    /// What is wrong with it by itself.
    fn wrong(&self, node: &Node) -> Vec<String> {
        let mut wrong = Vec::new();
        let keys = self.sandboxes.iter().map(|it| format!("{:?}", it.metadata));
        let own = |it: &cri::Container| format!("{} {:?}", it.pod_sandbox_id, it.metadata);
        let keys: Vec<_> = keys.chain(self.containers.iter().map(own)).collect();
        let distinct: BTreeSet<_> = keys.iter().collect();
        if distinct.len() < keys.len() {
            wrong.push(format!("doubled: {keys:?}"));
        }
        for it in &self.containers {
            if !self.sandboxes.iter().any(|sandbox| sandbox.id == it.pod_sandbox_id) {
                wrong.push(format!("container {} of no pod", it.id));
            }
            let runs = pid_of_container(node, &it.id).is_some_and(is_alive);
            let should = matches!(
                it.state(),
                cri::ContainerState::ContainerRunning | cri::ContainerState::ContainerCreated
            );
            // One that has ended meanwhile is told a moment later.
            if runs != should || it.state() == cri::ContainerState::ContainerUnknown {
                wrong.push(format!(
                    "container {} is {:?}, its process runs: {runs}",
                    it.id,
                    it.state()
                ));
            }
        }
        for it in &self.sandboxes {
            let runs = pid_of_sandbox(node, &it.id).is_some_and(is_alive);
            if runs != (it.state() == cri::PodSandboxState::SandboxReady) {
                wrong.push(format!("pod {} is {:?}, its process runs: {runs}", it.id, it.state()));
            }
        }
        wrong
    }
}

fn pid_of_container(node: &Node, id: &str) -> Option<i64> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    pid(&node.cri.container_status(request).ok()?.info)
}

fn pid_of_sandbox(node: &Node, id: &str) -> Option<i64> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    pid(&node.cri.pod_sandbox_status(request).ok()?.info)
}

fn pid(info: &std::collections::HashMap<String, String>) -> Option<i64> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    info["pid"].as_i64().filter(|&pid| pid > 0)
}

/// Names in a directory; none where there is none.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What the node has of pods and containers, by id, wherever it is.
fn present(node: &Node) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    let is_id = |name: &String| name.len() == 64;
    for directory in [
        "lib/containers",
        "run/sandboxes",
        "run/containers",
        "run/netns",
        "run/runtime",
    ] {
        let ids = names(&node.dir().join(directory)).into_iter().filter(is_id);
        found.push((directory.to_owned(), ids.collect()));
    }
    for hierarchy in ["pids", "memory", ""] {
        let directory = Path::new("/sys/fs/cgroup").join(hierarchy).join(node.marker());
        found.push((
            format!("cgroup {hierarchy}"),
            names(&directory).into_iter().filter(is_id).collect(),
        ));
    }
    // Sockets of execs that began, of which a new server has none; and networks that are still to be taken down.
    found.push(("run/consoles".to_owned(), names(&node.dir().join("run/consoles"))));
    let networks = names(&node.dir().join("lib/networks"));
    let networks = networks
        .iter()
        .map(|name| name.strip_suffix(".json").unwrap_or(name).to_owned());
    found.push(("lib/networks".to_owned(), networks.collect()));
    let leases = node.leases().into_iter().filter_map(|address| {
        let text = fs::read_to_string(node.dir().join("leases/ct").join(address)).ok()?;
        text.lines().next().map(str::to_owned)
    });
    found.push(("addresses".to_owned(), leases.collect()));
    found
}

/// What does not fit together, while no client calls.
fn contradictions(node: &Node) -> Vec<String> {
    let listed = Listed::of(node);
    let ids = listed.ids();
    let mut wrong = listed.wrong(node);
    for (place, found) in present(node) {
        let strangers: Vec<_> = found.difference(&ids).collect();
        if !strangers.is_empty() {
            wrong.push(format!("{place}: of nothing that is listed: {strangers:?}"));
        }
    }
    wrong
}

/// Kills the server, starts the next, and holds what that says against what there is.
fn kill_and_check(load: &Load<'_>, moment: Duration) {
    thread::sleep(moment);
    load.node.kill_server();
    // What a kill leaves of an exec with a terminal, which these clients have none of.
    drop(UnixListener::bind(load.node.dir().join("run/consoles/left")).expect("a socket"));
    // Calls that were under way have failed by now, or will.
    let _no_calls = load.calls.write().unwrap_or_else(PoisonError::into_inner);
    load.node.launch().expect("the next server");
    let deadline = Instant::now() + SETTLE;
    loop {
        let wrong = contradictions(load.node);
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "after a restart:\n{}", wrong.join("\n"));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_server_killed_among_pods_knows_all_of_them_and_leaves_none() {
    let kills = std::env::var("CORTEN_KILLS").map_or(8, |kills| kills.parse().expect("CORTEN_KILLS is a number"));
    let node = Node::start();
    node.pull(BUSYBOX);
    let (mut random, seed) = Random::of_now();
    println!("seed {seed}");
    let load = Load {
        node: &node,
        calls: RwLock::default(),
        over: AtomicBool::new(false),
        broken_calls: AtomicUsize::new(0),
        pods: AtomicUsize::new(0),
    };
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || load.client(number));
        }
        // The clients end whatever becomes of the kills.
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..kills {
                kill_and_check(&load, random.below(PAUSE));
            }
        }));
        load.over.store(true, Ordering::Relaxed);
        if let Err(panic) = killed {
            std::panic::resume_unwind(panic);
        }
    });
    let (broken, pods) = (load.broken_calls.into_inner(), load.pods.into_inner());
    println!("{kills} kills: {pods} pods, {broken} calls broke off");
    assert!(broken > 0, "the kills hit no call");
    let left = Listed::of(&node).ids();
    assert!(left.is_empty(), "{left:?}");
    node.assert_no_pods_left();
}
