//! GetContainerEvents: every transition once, in order, when it can be asked for; and readers that do not read.

use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use corten_proto::cri::{self, ContainerEventResponse, ContainerEventType};
use corten_tests::cri::{Cri, Listener};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, map};
use nix::sys::signal::{Signal, kill};
use tonic::{Code, Status};

use crate::lost::wait_for;
use crate::restart::shim_of;

/// Longest an event may take once it has happened.
const SOON: Duration = Duration::from_secs(20);
/// So many containers come and go that their events are more than a subscriber's queue of 1024 and all buffers on the way
/// to it hold. What is in a buffer is counted in bytes: [`LARGE`] of them in each event.
const MANY: usize = 700;
const LARGE: usize = 16 << 10;

type Events = Listener<ContainerEventResponse>;

#[track_caller]
fn next(events: &mut Events) -> ContainerEventResponse {
    events.next(SOON).expect("an event").expect("no end")
}

/// The next event must be this one; all of it.
#[track_caller]
fn expect(events: &mut Events, kind: ContainerEventType, id: &str) -> ContainerEventResponse {
    let event = next(events);
    assert_eq!(
        (event.container_event_type(), event.container_id.as_str()),
        (kind, id),
        "{event:?}"
    );
    event
}

/// What the stream ends with after the events that are still in it; how many those were.
#[track_caller]
fn end_of(events: &mut Events) -> (usize, Status) {
    let mut count = 0;
    loop {
        match events.next(SOON) {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("the stream ended without a word after {count} events"),
            Err(status) => return (count, status),
        }
    }
}

#[test]
fn a_pods_life_is_told_to_every_subscriber_in_order_and_with_all_statuses() {
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let node = Node::start();
    let mut all = [node.cri.listen().unwrap(), node.cri.listen().unwrap()];
    let pod = node.pod("told");
    let first = pod.sh("first", "sleep 1000");
    let second = pod.create(container("second", &["true"]));
    second.start();
    second.wait_exit();
    first.stop(0);
    first.remove();
    pod.stop();
    pod.remove();
    let table = [
        (Created, &pod.id, 0),
        (Started, &pod.id, 0),
        (Created, &first.id, 1),
        (Started, &first.id, 1),
        (Created, &second.id, 2),
        (Started, &second.id, 2),
        (Stopped, &second.id, 2),
        (Stopped, &first.id, 2),
        (Deleted, &first.id, 1),
        (Stopped, &pod.id, 1),
        (Deleted, &second.id, 0),
        (Deleted, &pod.id, 0),
    ];
    for events in &mut all {
        let mut last = 0;
        for (kind, id, containers) in table {
            let event = expect(events, kind, id);
            assert!(event.created_at > last, "{event:?}");
            last = event.created_at;
            assert_eq!(event.containers_statuses.len(), containers, "{event:?}");
            let is_last = kind == Deleted && *id == pod.id;
            assert_eq!(event.pod_sandbox_status.is_none(), is_last, "{event:?}");
            let own = event.containers_statuses.iter().find(|status| status.id == *id);
            match (kind, own) {
                (Stopped, Some(status)) => assert_eq!(status.state(), cri::ContainerState::ContainerExited),
                (Started, Some(status)) => assert_eq!(status.state(), cri::ContainerState::ContainerRunning),
                (Created, Some(status)) => assert_eq!(status.state(), cri::ContainerState::ContainerCreated),
                _ => {}
            }
        }
    }
}

#[test]
fn what_an_event_tells_can_be_asked_for_at_once() {
    let node = Node::start();
    let mut events = node.cri.listen().unwrap();
    let asked = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            loop {
                let event = next(&mut events);
                let request = cri::PodSandboxStatusRequest {
                    pod_sandbox_id: event
                        .pod_sandbox_status
                        .as_ref()
                        .map_or(String::new(), |status| status.id.clone()),
                    verbose: false,
                };
                if event.pod_sandbox_status.is_none() {
                    return asked;
                }
                // The pod may have gone on, but never back; a removed one is later than all of its events.
                match node.cri.pod_sandbox_status(request) {
                    Ok(reply) => {
                        assert!(reply.timestamp >= event.created_at, "{reply:?} after {event:?}");
                        assert_not_before(&reply.containers_statuses, &event.containers_statuses);
                        asked += 1;
                    }
                    Err(status) => assert_eq!(status.code(), Code::NotFound),
                }
            }
        });
        let pod = node.pod("asked");
        for number in 0..5 {
            pod.sh(&format!("c{number}"), "exit 0").wait_exit();
        }
        pod.remove();
        asking.join().unwrap()
    });
    assert!(asked > 5, "most were asked in time: {asked}");
}

/// Every container of `then` that is still there is in the same state or a later one.
#[track_caller]
fn assert_not_before(now: &[cri::ContainerStatus], then: &[cri::ContainerStatus]) {
    for old in then {
        if let Some(new) = now.iter().find(|new| new.id == old.id) {
            assert!(new.state >= old.state, "{new:?} was {old:?}");
        }
    }
}

#[test]
fn what_a_dying_shim_takes_along_is_told() {
    let node = Node::start();
    let pod = node.pod("dying");
    let container = pod.sh("main", "sleep 1000");
    let mut events = node.cri.listen().unwrap();
    kill(shim_of(&pod.id), Signal::SIGKILL).unwrap();
    let event = expect(&mut events, ContainerEventType::ContainerStoppedEvent, &container.id);
    assert_eq!(event.containers_statuses[0].reason, "Unknown");
    let event = expect(&mut events, ContainerEventType::ContainerStoppedEvent, &pod.id);
    let status = event.pod_sandbox_status.expect("its status");
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
}

#[test]
fn a_stream_is_of_the_present_and_ends_with_its_server() {
    let node = Node::start();
    let pod = node.pod("restarted");
    let gone = pod.sh("gone", "while [ ! -e /go ]; do usleep 10000; done; exit 7");
    let stays = pod.sh("stays", "sleep 1000");
    let mut old = node.cri.listen().unwrap();
    let go = format!("/proc/{}/root/go", gone.pid());
    node.stop_server();
    let (count, status) = end_of(&mut old);
    assert_eq!((count, status.code()), (0, Code::Unavailable), "{status}");
    fs::write(&go, "").unwrap();
    wait_for("it does not end", || !fs::exists(&go).unwrap_or_default());
    node.launch().unwrap();

    let mut events = node.cri.listen().unwrap();
    assert_eq!(
        gone.wait_exit().exit_code,
        7,
        "what happened meanwhile can be asked for"
    );
    stays.stop(0);
    let event = expect(&mut events, ContainerEventType::ContainerStoppedEvent, &stays.id);
    assert_eq!(event.containers_statuses.len(), 2, "and is part of what is told later");
    assert!(event.containers_statuses.iter().any(|status| status.exit_code == 7));
}

#[test]
fn a_reader_that_does_not_read_is_cut_off_and_keeps_nobody_waiting() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("many");
    config.annotations = map(&[("large", &"x".repeat(LARGE))]);
    let pod = node.run_pod(config);
    let deaf = Cri::new(&node.dir().join("run/corten.sock")).unwrap();
    let (mut slow, mut quick) = (deaf.listen().unwrap(), node.cri.listen().unwrap());
    let next_number = Mutex::new(0..MANY);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(number) = next_number.lock().unwrap().next() else {
                        return;
                    };
                    pod.create(container(&format!("c{number}"), &["true"])).remove();
                }
            });
        }
        let (mut last, mut deleted) = (0, 0);
        while deleted < MANY {
            let event = next(&mut quick);
            assert!(event.created_at > last);
            last = event.created_at;
            deleted += usize::from(event.container_event_type() == ContainerEventType::ContainerDeletedEvent);
        }
    });
    let (count, status) = end_of(&mut slow);
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(count < 2 * MANY, "nothing was lost: {count}");
    let again = deaf.listen().unwrap();
    drop(again);
}

#[test]
fn clients_that_go_away_leave_nothing() {
    let node = Node::start();
    let pod = node.pod("left");
    let fds = || fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap().count();
    let before = fds();
    for _ in 0..20 {
        let client = Cri::new(&node.dir().join("run/corten.sock")).unwrap();
        let mut events = client.listen().unwrap();
        let container = pod.create(container("main", &["true"]));
        expect(&mut events, ContainerEventType::ContainerCreatedEvent, &container.id);
        container.remove();
    }
    wait_for("descriptors of clients that have gone", || fds() <= before);
}
