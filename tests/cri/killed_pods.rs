//! kill -9 of the server at random moments while eight clients run pods: after each restart every pod and container is in its
//! true state and nothing is doubled; logs are whole, and in the end nothing is left.
//!
//! By chance a pod has ids of its own, and its client executes commands with and without a terminal, attaches itself and
//! changes limits; the networks of some pods fail to be taken down, once or for seconds.
//!
//! A client does what a kubelet does when a call breaks off: it asks again for the same thing. `CORTEN_KILLS=200` kills
//! two hundred times; eight without it. What the kills hit is printed in the end.

mod present;
mod sessions;

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, parse_log};
use corten_tests::random::Random;
use serde_json::json;
use tonic::{Code, Status};

use crate::cni::{add_plugin, install, node_with};
use crate::user_namespace::{LENGTH, own};
use present::{Listed, contradictions, stuck_networks};
use sessions::Counts;

const CLIENTS: usize = 8;
/// Lines that a container writes before it ends.
const LINES: usize = 100;
/// The longest time between a restart and the next kill.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long a restarted server's shims may take to end what was half done.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a client asks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first of the node's ids that pods get for their own; each client has a range.
const FIRST_ID: u32 = 1 << 20;
/// How long networks that were left may take: the server looks at them 10 s after its start.
const TEARDOWN: Duration = Duration::from_secs(60);
/// What a plugin says that fails to take a network down.
const NOT_NOW: &str = "the network is busy";

/// Fails DEL by the pod's id: of a quarter of all the first time, of an eighth for four seconds.
const BUSY: &str = r#"#!/bin/sh
fail() { echo '{"code":11,"msg":"the network is busy"}'; exit 1; }
case $CNI_COMMAND in
ADD) sed 's/.*"prevResult":\({.*}\),"type".*/\1/' ;;
DEL)
    now=$(date +%s)
    first=${0%/*}/../del-$CNI_CONTAINERID
    old=$(cat "$first" 2>/dev/null) || echo "$now" > "$first"
    case $CNI_CONTAINERID in
    [0-3]*) [ "$old" ] || fail ;;
    [45]*) [ $((now - ${old:-$now})) -ge 4 ] || fail ;;
    esac ;;
esac
"#;

/// What all clients share.
struct Load<'n> {
    node: &'n Node,
    /// Held for reading in each call; for writing while the world is looked at.
    calls: RwLock<()>,
    over: AtomicBool,
    /// The server's deaths so far, each counted when it begins and when it is over.
    kills: AtomicUsize,
    broken_calls: AtomicUsize,
    busy_networks: AtomicUsize,
    pods: AtomicUsize,
    sessions: Counts,
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
                Err(status) if is_broken(&status) => self.broken_calls.fetch_add(1, Ordering::Relaxed),
                Err(status) if status.message().contains(NOT_NOW) => self.busy_networks.fetch_add(1, Ordering::Relaxed),
                Err(status) => panic!("{what}: {status:?}"),
            };
            assert!(Instant::now() < deadline, "{what}: the server does not come back");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pods one after the other, until it is over.
    fn client(&self, number: usize, mut random: Random) {
        let mut round = 0;
        while !self.over.load(Ordering::Relaxed) {
            self.pod(number, round, &mut random);
            round += 1;
            self.pods.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One pod from its run to its removal: a container that goes on, and one that writes and ends.
    fn pod(&self, client: usize, round: usize, random: &mut Random) {
        let cri = &self.node.cri;
        let mut config = self.node.pod_config(&format!("client-{client}-{round}"));
        if random.between(0, 3) == 0 {
            let first = FIRST_ID + u32::try_from(client).expect("small") * LENGTH;
            namespaces(&mut config).userns_options = Some(own(first));
        }
        let pod = self.run(&config);
        let talker = sessions::talker(random);
        let terminal = talker.tty;
        let stays = self.start(&pod, &config, talker);
        let code = i32::try_from(round % 100 + 1).expect("small");
        let ends = self.start(&pod, &config, writer(code));
        for _ in 0..2 {
            self.session(&stays, terminal, random);
        }
        self.assert_written(&ends, code);
        assert_eq!(self.status(&stays).state(), cri::ContainerState::ContainerRunning);
        let stop = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        };
        self.call("StopPodSandbox", || cri.stop_pod_sandbox(stop.clone()));
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod };
        self.call("RemovePodSandbox", || cri.remove_pod_sandbox(remove.clone()));
    }

    fn run(&self, config: &cri::PodSandboxConfig) -> String {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let run = || self.node.cri.run_pod_sandbox(request.clone());
        let answer = self.call("RunPodSandbox", || match run() {
            // The last server had half made it, and this one could not remove that at once: its network is busy.
            Err(status) if status.code() == Code::AlreadyExists => self.remove_half_made(config).and_then(|()| run()),
            answer => answer,
        });
        answer.pod_sandbox_id
    }

    /// Removes the pod that has the name of `config` and is not ready, as a kubelet does.
    fn remove_half_made(&self, config: &cri::PodSandboxConfig) -> Result<(), Status> {
        let cri = &self.node.cri;
        let listed = cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items;
        let is_it =
            |it: &cri::PodSandbox| it.metadata == config.metadata && it.state() != cri::PodSandboxState::SandboxReady;
        for id in listed.into_iter().filter(is_it).map(|it| it.id) {
            let pod_sandbox_id = id.clone();
            cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id })?;
            cri.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id })?;
        }
        Ok(())
    }

    /// Waits for the end of a [`writer`], whose log has every line once.
    fn assert_written(&self, id: &str, code: i32) {
        let ended = self.wait_exit(id);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (code, "Error"), "{ended:?}");
        let lines = parse_log(&fs::read(&ended.log_path).expect("a log"));
        let numbers = lines
            .iter()
            .map(|line| String::from_utf8_lossy(&line.content).into_owned());
        let numbers: Vec<_> = numbers.collect();
        assert!(
            (0..LINES).map(|it| it.to_string()).eq(numbers.iter().cloned()),
            "{numbers:?}"
        );
    }

    fn start(&self, pod: &str, sandbox: &cri::PodSandboxConfig, mut config: cri::ContainerConfig) -> String {
        let cri = &self.node.cri;
        let own_ids = namespaces(&mut sandbox.clone()).userns_options.clone();
        let linux = config.linux.as_mut().expect("a container of Linux");
        let context = linux.security_context.as_mut().expect("a security context");
        context.namespace_options.as_mut().expect("namespaces").userns_options = own_ids;
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

/// A container that writes and ends.
fn writer(code: i32) -> cri::ContainerConfig {
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done; exit {code}");
    container("ends", &["sh", "-c", &script])
}

fn namespaces(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let linux = config.linux.as_mut().expect("a pod of Linux");
    let context = linux.security_context.as_mut().expect("a security context");
    context.namespace_options.as_mut().expect("namespaces")
}

/// Whether there was no server, or no longer one, to answer.
fn is_broken(status: &Status) -> bool {
    // The server's own errors never have a source: these are the client's.
    std::error::Error::source(status).is_some()
        || status.code() == Code::Cancelled
        || status.message().contains("h2 protocol error")
}

/// Kills the server, starts the next, and holds what that says against what there is.
fn kill_and_check(load: &Load<'_>, moment: Duration) {
    thread::sleep(moment);
    load.kills.fetch_add(1, Ordering::SeqCst);
    load.node.kill_server();
    load.kills.fetch_add(1, Ordering::SeqCst);
    // What a kill leaves of an exec whose terminal is on its way, which few of these clients' are.
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
    let node = node_with(1);
    install(&node, "busy", BUSY);
    add_plugin(&node, json!({ "type": "busy" }));
    node.pull(BUSYBOX);
    let (mut random, seed) = Random::of_now();
    println!("seed {seed}");
    let load = Load {
        node: &node,
        calls: RwLock::default(),
        over: AtomicBool::new(false),
        kills: AtomicUsize::new(0),
        broken_calls: AtomicUsize::new(0),
        busy_networks: AtomicUsize::new(0),
        pods: AtomicUsize::new(0),
        sessions: Counts::default(),
    };
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (load, own) = (&load, Random::new(random.next()));
            scope.spawn(move || load.client(number, own));
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
    let (busy, stuck) = (load.busy_networks.into_inner(), stuck_networks(&node).len());
    println!(
        "{kills} kills: {pods} pods, {broken} calls broke off, {}",
        load.sessions
    );
    println!("{busy} times a network was busy, {stuck} were left");
    assert!(broken > 0, "the kills hit no call");
    let left = Listed::of(&node).ids();
    assert!(left.is_empty(), "{left:?}");
    let deadline = Instant::now() + TEARDOWN;
    while !stuck_networks(&node).is_empty() {
        assert!(
            Instant::now() < deadline,
            "networks are left: {:?}",
            stuck_networks(&node)
        );
        thread::sleep(Duration::from_millis(100));
    }
    node.assert_no_pods_left();
}
