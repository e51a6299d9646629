//! The node's CNI configuration as an administrator handles it: capabilities, two versions of addresses, STATUS, and plugins
//! that fail to take a network down.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use serde_json::{Value, json};

fn node() -> Node {
    node_with(1)
}

/// A node that finds plugins in its configuration directory too, and has so many seconds of patience with those that fail.
pub(crate) fn node_with(patience_s: i64) -> Node {
    Node::with(|config| {
        let own = config["cni"]["conf_dir"].clone();
        let cni = config["cni"].as_table_mut().expect("a table");
        cni["bin_dirs"].as_array_mut().expect("a list").push(own);
        cni.insert("stop_patience_s".into(), patience_s.into());
    })
}

/// Changes the node's network configuration.
fn configure(node: &Node, change: impl FnOnce(&mut Value)) {
    let path = node.dir().join("cni/10-ct.conflist");
    let mut list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut list);
    let beside = node.dir().join("new.conflist");
    fs::write(&beside, list.to_string()).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Installs a script as a plugin.
pub(crate) fn install(node: &Node, name: &str, script: &str) {
    let path = node.dir().join("cni").join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Adds a plugin to the end of the chain.
pub(crate) fn add_plugin(node: &Node, plugin: Value) {
    configure(node, |list| list["plugins"].as_array_mut().unwrap().push(plugin));
}

/// What a command prints, run in the network that the server takes for the host's.
fn on_the_host(node: &Node, command: &[&str]) -> String {
    let output = node
        .network
        .enter(|| Command::new(command[0]).args(&command[1..]).output())
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn run_request(config: cri::PodSandboxConfig) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    }
}

/// The condition NetworkReady: whether, and why not.
fn network_ready(node: &Node) -> (bool, String) {
    let status = node.cri.status(cri::StatusRequest::default()).unwrap().status.unwrap();
    let condition = status
        .conditions
        .into_iter()
        .find(|it| it.r#type == "NetworkReady")
        .unwrap();
    (condition.status, condition.message)
}

fn wait_for(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_pod_has_addresses_of_both_versions() {
    for (preference, first) in [("cni", "10.88."), ("ipv6", "fd00:88::")] {
        let node = Node::with(|config| {
            let cni = config["cni"].as_table_mut().expect("a table");
            cni.insert("ip_preference".into(), preference.into());
        });
        configure(&node, |list| {
            let ipam = &mut list["plugins"][0]["ipam"];
            ipam["ranges"] = json!([[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]]);
            ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        });
        let pod = node.pod("dual");
        let network = pod.status().network.unwrap();
        assert!(network.ip.starts_with(first), "{preference}: {network:?}");
        assert_eq!(network.additional_ips.len(), 1);
        let own = pod.sh("main", "sleep 1000").exec_sh("ip -o addr show eth0");
        for ip in [&network.ip, &network.additional_ips[0].ip] {
            assert!(own.contains(ip.as_str()), "{ip} in {own}");
        }
        pod.stop();
        assert!(node.leases().is_empty());
    }
}

#[test]
fn annotations_limit_the_bandwidth() {
    let node = Node::start();
    node.pull(BUSYBOX);
    add_plugin(
        &node,
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
    );
    let limited = |ingress: &str| {
        let mut config = node.pod_config("limited");
        config.annotations = [
            ("kubernetes.io/ingress-bandwidth".to_owned(), ingress.to_owned()),
            ("kubernetes.io/egress-bandwidth".to_owned(), "20M".to_owned()),
        ]
        .into();
        config
    };
    let error = node.cri.run_pod_sandbox(run_request(limited("fast"))).unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    for part in ["kubernetes.io/ingress-bandwidth", "fast", "1k to 1P"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }

    let pod = node.run_pod(limited("10M"));
    let disciplines = on_the_host(&node, &["tc", "qdisc", "show"]);
    for rate in ["tbf", "rate 10Mbit", "rate 20Mbit"] {
        assert!(disciplines.contains(rate), "{rate}: {disciplines}");
    }
    pod.stop();
    let disciplines = on_the_host(&node, &["tc", "qdisc", "show"]);
    assert!(!disciplines.contains("tbf"), "{disciplines}");
}

/// Fails DEL for as long as the file `stuck` is beside it.
const STUCK: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) sed 's/.*"prevResult":\({.*}\),"type".*/\1/' ;;
DEL) [ ! -e "${0%/*}/stuck" ] || { echo '{"code":11,"msg":"the daemon sleeps"}'; exit 1; } ;;
esac
"#;

#[test]
fn a_pod_is_let_go_when_its_network_is_stuck_and_the_network_is_taken_down_later() {
    let node = node();
    install(&node, "sticky", STUCK);
    add_plugin(&node, json!({ "type": "sticky" }));
    let pod = node.pod("stuck");
    let stuck = node.dir().join("cni/stuck");
    fs::write(&stuck, "").unwrap();
    let stop = || {
        node.cri.stop_pod_sandbox(cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        })
    };
    let error = stop().unwrap_err();
    for part in ["take the pod's network down", "sticky DEL", "the daemon sleeps"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    assert!(node.leases().is_empty(), "the other plugins have done their part");
    let left = || fs::read_dir(node.dir().join("lib/networks")).unwrap().count();
    assert_eq!(left(), 0);

    thread::sleep(Duration::from_millis(1100));
    stop().expect("the server's patience is over");
    pod.remove();
    assert_eq!(left(), 1);

    // The next server goes on with it.
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(left(), 1);
    fs::remove_file(&stuck).unwrap();
    fs::remove_file(node.dir().join("cni/10-ct.conflist")).unwrap();
    wait_for("DEL", Duration::from_secs(20), || left() == 0);
    assert!(node.server_log().contains("has been taken down"));
}

#[test]
fn a_namespace_of_which_only_the_name_is_left_can_be_taken_down() {
    let node = Node::start();
    let pod = node.pod("unmounted");
    // As a server leaves it that is killed between the two steps of the removal.
    let name = node.dir().join("run/netns").join(&pod.id);
    nix::mount::umount2(&name, nix::mount::MntFlags::MNT_DETACH).unwrap();
    pod.stop();
    assert!(node.leases().is_empty());
}

#[test]
fn the_directory_may_go_and_come_back() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let (conf, away) = (node.dir().join("cni"), node.dir().join("away"));
    fs::rename(&conf, &away).unwrap();
    let refused = node
        .cri
        .run_pod_sandbox(run_request(node.pod_config("early")))
        .unwrap_err();
    assert!(refused.message().contains("no CNI configuration"), "{refused}");
    node.assert_no_pods_left();
    fs::rename(&away, &conf).unwrap();
    node.pod("late");
}

/// A plugin of version 1.1.0: not ready while the file `asleep` is beside it; keeps what GC was told.
const MODERN: &str = r#"#!/bin/sh
dir=${0%/*}
case $CNI_COMMAND in
ADD) sed 's/.*"prevResult":\({.*}\),"type".*/\1/' ;;
STATUS) [ ! -e "$dir/asleep" ] || { echo '{"code":50,"msg":"no route yet"}'; exit 1; } ;;
GC) cat > "$dir/garbage" ;;
esac
"#;

#[test]
fn plugins_say_whether_the_network_is_ready_and_collect_garbage_at_the_start() {
    let node = node();
    for name in ["modern", "bridge-1.1"] {
        install(&node, name, MODERN);
    }
    let pod = node.pod("old");
    fs::write(node.dir().join("cni/asleep"), "").unwrap();
    let list = json!({ "name": "new", "cniVersion": "1.1.0", "plugins": [{ "type": "modern" }] });
    fs::write(node.dir().join("cni/05-new.conflist"), list.to_string()).unwrap();
    wait_for("not ready", Duration::from_secs(30), || !network_ready(&node).0);
    let (_, message) = network_ready(&node);
    for part in ["modern STATUS", "no route yet"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    fs::remove_file(node.dir().join("cni/asleep")).unwrap();
    wait_for("ready", Duration::from_secs(30), || network_ready(&node).0);

    let garbage = node.dir().join("cni/garbage");
    node.stop_server();
    node.launch().unwrap();
    wait_for("GC", Duration::from_secs(30), || valid(&garbage).is_some());
    let expected = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    assert_eq!(valid(&garbage), Some(expected));
    fs::remove_file(node.dir().join("cni/05-new.conflist")).unwrap();
}

/// What GC was told to keep.
fn valid(garbage: &Path) -> Option<Value> {
    let config: Value = serde_json::from_str(&fs::read_to_string(garbage).ok()?).ok()?;
    Some(config["cni.dev/valid-attachments"].clone())
}
