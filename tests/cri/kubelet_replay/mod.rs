//! The calls of a kubelet, recorded in front of another runtime, made again in its order: start-up, steady state, a new pod, its
//! probes, its resize, its end. Answers are held against the recorded ones field by field.
//!
//! `data/kubelet-calls.jsonl` has one call a line: `m` the method, `req` and `resp` the messages as protobuf writes JSON,
//! `err` instead of an answer, `deadline` in seconds, `ms` what it took. `METHOD#msg` is a message of a stream.
//!
//! ```text
//! recorded request -- names of there become names of here --> our server --> answer -- names of here become those of there
//!                                                                                       --> compared with the recorded one
//! ```
//! The names are ids (learned as pods and containers are made), the image, directories and the cgroup parent. What may
//! differ is a list with reasons, in `compare`.

mod calls;
mod compare;
mod recorded;
mod replay;

use corten_tests::node::Node;

use recorded::recorded;
use replay::Replay;

#[test]
fn every_recorded_message_is_ours() {
    let messages = recorded();
    assert_eq!(messages.len(), 181);
    for call in &messages {
        call.decode();
    }
}

/// Two lines of the recording, and all between.
fn lines(first: usize, last: usize) -> Vec<usize> {
    (first..=last).collect()
}

#[test]
fn start_up_steady_state_and_the_pods_life() {
    let node = Node::start();
    let mut replay = Replay::new(&node);
    // The pod that kubelet found when it started: that of line 60, an attempt earlier.
    replay.earlier_pod();
    for line in lines(1, 39) {
        replay.call(line);
    }
    replay.stops(&[40, 41]);
    for line in lines(42, 59) {
        replay.call(line);
    }
    // The pod's successor, with its probes.
    for line in lines(60, 71) {
        replay.call(line);
    }
    replay.wait_for_probe(72);
    for line in lines(73, 84) {
        replay.call(line);
    }
    replay.resize();
    replay.stops(&[177, 179]);
    replay.call(181);
    replay.finish();
}

#[test]
fn lists_as_streams() {
    let node = Node::start();
    let mut replay = Replay::new(&node);
    for line in lines(60, 70) {
        replay.call(line);
    }
    for line in lines(85, 96).into_iter().chain(lines(115, 123)) {
        replay.call(line);
    }
    replay.stops(&[177, 179]);
    replay.call(181);
    replay.finish();
}

#[test]
fn a_pod_of_the_host() {
    let node = Node::start();
    let mut replay = Replay::new(&node);
    for line in [132, 133, 134, 135, 141, 165, 166, 172] {
        replay.call(line);
    }
    replay.finish();
}

#[test]
fn a_pod_with_an_image_as_a_volume() {
    let node = Node::start();
    let mut replay = Replay::new(&node);
    for line in [136, 138, 142, 170, 171, 173] {
        replay.call(line);
    }
    replay.finish();
}

#[test]
fn a_pod_in_a_user_namespace() {
    let node = Node::start();
    let mut replay = Replay::new(&node);
    for line in [175, 176, 178, 180] {
        replay.call(line);
    }
    replay.finish();
}
