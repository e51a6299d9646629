//! StopContainer: the signal, the grace period, and what follows it.

use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{Container, container};

/// Answers TERM and USR1, each with an exit code of its own.
const POLITE: &str = "trap 'echo got TERM; exit 3' TERM; trap 'echo got USR1; exit 4' USR1; \
    echo ready; while :; do usleep 20000; done";

/// Ignores what can be ignored.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do usleep 20000; done";

/// Stops the container; its status, and how long the call took.
fn timed_stop(container: &Container<'_>, grace: i64) -> (cri::ContainerStatus, Duration) {
    let began = Instant::now();
    container.stop(grace);
    let took = began.elapsed();
    let status = container.status();
    assert_eq!(
        status.state(),
        cri::ContainerState::ContainerExited,
        "when StopContainer answers, it has ended"
    );
    (status, took)
}

#[test]
fn a_container_that_ends_in_time_has_its_own_exit_code() {
    let node = Node::start();
    let pod = node.pod("polite");
    let container = pod.sh("main", POLITE);
    container.wait_output("ready");
    let (status, took) = timed_stop(&container, 20);
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(
        took < Duration::from_secs(10),
        "does not wait for the grace period to pass: {took:?}"
    );
    assert!(container.output("stdout").contains("got TERM"));
    container.stop(20);
    assert_eq!(container.status(), status, "a second stop changes nothing");
}

#[test]
fn a_container_that_does_not_is_killed_after_the_grace_period() {
    let node = Node::start();
    let pod = node.pod("stubborn");
    let container = pod.sh("main", STUBBORN);
    container.wait_output("ready");
    let (status, took) = timed_stop(&container, 1);
    assert_eq!(status.exit_code, 137);
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(8),
        "{took:?}"
    );
}

#[test]
fn no_grace_period_kills_at_once() {
    let node = Node::start();
    let pod = node.pod("at-once");
    let container = pod.sh("main", POLITE);
    container.wait_output("ready");
    let (status, took) = timed_stop(&container, 0);
    assert_eq!(status.exit_code, 137);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn the_configured_signal_is_sent_and_told() {
    let node = Node::start();
    let pod = node.pod("signal");
    let mut config = container("main", &["sh", "-c", POLITE]);
    config.set_stop_signal(cri::Signal::Sigusr1);
    let container = pod.start(config);
    container.wait_output("ready");
    let (status, _) = timed_stop(&container, 20);
    assert_eq!((status.exit_code, status.stop_signal()), (4, cri::Signal::Sigusr1));
}

#[test]
fn the_images_signal_is_sent_where_none_is_configured() {
    let node = Node::start();
    let mut built = corten_tests::image::busybox(std::path::Path::new("/bin/busybox")).unwrap();
    built.config["StopSignal"] = "USR1".into();
    built.save(&node.dir().join("images"), &["usr1:1"]).unwrap();
    let pod = node.pod("image-signal");
    node.pull("127.0.0.1:5000/usr1:1");
    let mut config = container("main", &["sh", "-c", POLITE]);
    config.image = Some(corten_tests::pod::image("127.0.0.1:5000/usr1:1"));
    let container = pod.start(config);
    container.wait_output("ready");
    let (status, _) = timed_stop(&container, 20);
    assert_eq!((status.exit_code, status.stop_signal()), (4, cri::Signal::Sigusr1));
}

#[test]
fn stopping_what_never_started() {
    let node = Node::start();
    let pod = node.pod("unstarted");
    let container = pod.create(container("main", &["sleep", "1000"]));
    container.stop(1);
    let status = container.status();
    assert_eq!(status.started_at, 0, "it never did");
    container.remove();
}

#[test]
fn everything_the_container_started_ends_with_it() {
    let node = Node::start();
    let pod = node.pod("children");
    let container = pod.sh("main", "sleep 1000 & setsid sleep 1000 & echo ready; wait");
    container.wait_output("ready");
    timed_stop(&container, 0);
    let left: Vec<String> = node
        .pods_left()
        .into_iter()
        .filter(|line| line.contains(&container.id))
        .collect();
    let cgroups: Vec<&String> = left.iter().filter(|line| line.starts_with("cgroup")).collect();
    assert!(cgroups.is_empty(), "{cgroups:?}");
}

#[test]
fn containers_of_a_pod_are_stopped_in_parallel() {
    let node = Node::start();
    let pod = node.pod("together");
    let containers: Vec<_> = (0..4).map(|i| pod.sh(&format!("c{i}"), STUBBORN)).collect();
    for container in &containers {
        container.wait_output("ready");
    }
    let began = Instant::now();
    pod.stop();
    let took = began.elapsed();
    for container in &containers {
        assert_eq!(container.status().state(), cri::ContainerState::ContainerExited);
    }
    assert!(took < Duration::from_secs(25), "{took:?}");
}
