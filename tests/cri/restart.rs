//! The server dies and comes back: pods do not notice, and what happened meanwhile is told as it was.

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, container, is_alive, parse_log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

/// Writes a counter, a line every 10 ms.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done";

/// Ends with code 7 once a file appears in its root.
const ON_DEMAND: &str = "while [ ! -e /go ]; do usleep 10000; done; exit 7";

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

/// The numbers that [`COUNTER`], which has ended, has logged.
fn numbers(container: &Container<'_>) -> Vec<u64> {
    let lines = parse_log(&fs::read(&container.log).unwrap());
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.content).parse().unwrap())
        .collect()
}

#[test]
fn a_killed_server_costs_a_running_pod_nothing() {
    let node = Node::start();
    let pod = node.pod("survivor");
    let counter = pod.sh("counter", COUNTER);
    let on_demand = pod.sh("on-demand", ON_DEMAND);
    let (pid, before) = (counter.pid(), counter.status());
    let go = format!("/proc/{}/root/go", on_demand.pid());
    thread::sleep(Duration::from_millis(500));

    node.kill_server();
    let down = now();
    thread::sleep(Duration::from_millis(500));
    fs::write(&go, "").unwrap();
    thread::sleep(Duration::from_millis(500));
    let up = now();
    node.launch().unwrap();

    assert_eq!(counter.status(), before, "nothing about the running one has changed");
    assert_eq!(before.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(counter.pid(), pid);
    assert!(is_alive(pid));
    let ended = on_demand.wait_exit();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(
        down < ended.finished_at && ended.finished_at < up,
        "when it ended, not when the server learned of it"
    );
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxReady);

    thread::sleep(Duration::from_millis(300));
    counter.stop(0);
    let numbers = numbers(&counter);
    assert!(numbers.len() > 100, "it went on meanwhile: {}", numbers.len());
    assert!(
        numbers.iter().copied().eq(0..numbers.len() as u64),
        "none missing, none twice: {numbers:?}"
    );
}

#[test]
fn pods_are_known_and_work_after_an_orderly_restart() {
    let node = Node::start();
    let pod = node.pod("known");
    let running = pod.sh("running", COUNTER);
    let created = pod.create(container("created", &["echo", "later"]));
    let before = pod.status();
    node.stop_server();
    node.launch().unwrap();
    assert_eq!(pod.status(), before, "its address included");
    assert_eq!(running.exec_sh("echo again"), "again\n");
    created.start();
    assert_eq!(created.wait_exit().exit_code, 0);
    assert_eq!(created.output("stdout"), "later\n");
    let rotated = running.log.with_extension("log.1");
    fs::rename(&running.log, &rotated).unwrap();
    running.reopen_log();
    assert!(running.log.exists());
    running.stop(0);
    running.remove();
    assert_eq!(
        node.run_pod(pod.config.clone()).id,
        pod.id,
        "the metadata is taken still"
    );
    pod.stop();
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn an_exit_is_told_the_same_after_a_restart() {
    let node = Node::start();
    let pod = node.pod("stable");
    let container = pod.sh("main", "exit 5");
    let before = container.wait_exit();
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(container.status(), before);
}

#[test]
fn a_stopped_pod_stays_stopped() {
    let node = Node::start();
    let pod = node.pod("stopped");
    let container = pod.sh("main", "sleep 1000");
    pod.stop();
    let (sandbox, status) = (pod.status(), container.status());
    node.kill_server();
    node.launch().unwrap();
    assert_eq!((pod.status(), container.status()), (sandbox, status));
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_killed_shim_is_noticed_and_its_pod_can_be_removed() {
    let node = Node::start();
    let pod = node.pod("shimless");
    let container = pod.sh("main", "sleep 1000");
    let other = node.pod("bystander");
    let init = container.pid();
    kill(shim_of(&pod.id), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while pod.status().state() == cri::PodSandboxState::SandboxReady {
        assert!(Instant::now() < deadline, "the pod still counts as ready");
        thread::sleep(Duration::from_millis(20));
    }
    let status = container.wait_exit();
    assert_ne!(status.exit_code, 0, "nobody knows how it ended: {status:?}");
    while is_alive(init) {
        assert!(Instant::now() < deadline, "nothing may run unsupervised");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(other.status().state(), cri::PodSandboxState::SandboxReady);
    pod.stop();
    pod.remove();
    other.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_shim_that_died_while_the_server_was_away_is_noticed() {
    let node = Node::start();
    let pod = node.pod("both");
    let container = pod.sh("main", "sleep 1000");
    node.kill_server();
    kill(shim_of(&pod.id), Signal::SIGKILL).unwrap();
    node.launch().unwrap();
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(container.wait_exit().reason, "Unknown");
    pod.stop();
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn a_bad_record_is_put_aside_alone() {
    let node = Node::start();
    let (good, bad) = (node.pod("good"), node.pod("bad"));
    node.stop_server();
    fs::write(node.dir().join(format!("lib/sandboxes/{}.json", bad.id)), "{ not json").unwrap();
    node.launch().unwrap();
    assert_eq!(good.status().state(), cri::PodSandboxState::SandboxReady);
    let pod_sandbox_id = bad.id.clone();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id,
        verbose: false,
    };
    assert_eq!(node.cri.pod_sandbox_status(request).unwrap_err().code(), Code::NotFound);
    let aside = fs::read_dir(node.dir().join("lib/quarantine")).unwrap().flatten();
    let aside: Vec<String> = aside
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(aside.iter().any(|name| name.contains(&bad.id)), "{aside:?}");
}

#[test]
fn output_goes_on_while_nobody_listens() {
    let node = Node::start();
    let pod = node.pod("chatty");
    // More than any pipe holds: a reader that stalls would stop it.
    let container = pod.sh("main", "sleep 1; yes 0123456789 | head -n 50000; echo end");
    node.kill_server();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(&container.log).unwrap();
        if text.ends_with(" stdout F end\n") {
            assert_eq!(text.lines().count(), 50_001);
            break;
        }
        assert!(Instant::now() < deadline, "{} lines", text.lines().count());
        thread::sleep(Duration::from_millis(50));
    }
    node.launch().unwrap();
    assert_eq!(container.wait_exit().exit_code, 0);
}

/// Host pid of the shim of a sandbox.
pub(crate) fn shim_of(sandbox: &str) -> Pid {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let is_shim = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let program = command.split('\0').next().unwrap_or_default();
        program.ends_with("corten-shim") && command.contains(sandbox)
    };
    Pid::from_raw(pids.find(is_shim).expect("a shim of this sandbox"))
}
