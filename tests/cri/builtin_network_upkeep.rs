//! `corten-cri network`, what brings the built-in network back after somebody has meddled with it, and limits of bandwidth.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use serde_json::Value;

use crate::builtin_network::{assert_page, on_the_host, port, request, start};
use crate::network::SERVE;

/// `corten-cri network` on the node, whatever comes of it.
fn network_output(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("corten-cri"));
    command
        .arg("--config")
        .arg(node.dir().join("config.toml"))
        .arg("network");
    command.args(arguments).stdin(Stdio::null());
    node.network.enter(|| command.output()).expect("execute corten-cri")
}

#[track_caller]
fn network(node: &Node, arguments: &[&str]) -> String {
    let output = network_output(node, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(node: &Node, arguments: &[&str]) -> String {
    let output = network_output(node, arguments);
    assert!(!output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// What `show` knows.
pub(crate) fn show(node: &Node) -> Value {
    serde_json::from_str(&network(node, &["show", "--output", "json"])).unwrap()
}

#[test]
fn show_tells_what_there_is() {
    let node = start();
    assert!(network(&node, &["show"]).contains("bridge corten0: not made yet"));
    node.pull(BUSYBOX);
    let mut config = node.pod_config("shown");
    let (tcp, sctp) = (cri::Protocol::Tcp, cri::Protocol::Sctp);
    config.port_mappings = vec![port(18080, 80, tcp, ""), port(18081, 81, sctp, "127.0.0.1")];
    let pod = node.run_pod(config);
    let shown = show(&node);
    assert_eq!(shown["unusedBecause"], "");
    assert_eq!(
        (shown["bridge"].as_str(), shown["mtu"].as_u64()),
        (Some("corten0"), Some(1500))
    );
    assert_eq!(shown["table"], true);
    assert_eq!(shown["pods"].as_array().unwrap().len(), 1);
    assert_eq!(shown["pods"][0]["name"], "default/shown");
    assert_eq!(shown["pods"][0]["sandbox"], *pod.id);
    assert_eq!(shown["pods"][0]["addresses"][0], "10.87.0.2/16");
    assert_eq!(shown["pods"][0]["link"], format!("veth{}", &pod.id[..11]));
    let ports: Vec<_> = shown["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| format!("{} {}", it["protocol"], it["listen"]))
        .collect();
    assert_eq!(ports, ["\"TCP\" \"0.0.0.0:18080\"", "\"SCTP\" \"127.0.0.1:18081\""]);
    assert_eq!(shown["droppingChains"].as_array().unwrap().len(), 0);
    on_the_host(&node, "iptables -P FORWARD DROP");
    // Chains of the old kind of iptables cannot be seen.
    if on_the_host(&node, "iptables --version").contains("nf_tables") {
        assert_eq!(show(&node)["droppingChains"][0], "ip filter FORWARD");
    }
    pod.stop();
    let shown = show(&node);
    assert_eq!(
        (shown["pods"].clone(), shown["ports"].clone()),
        (Value::Array(vec![]), Value::Array(vec![]))
    );
}

#[test]
fn repair_brings_back_what_a_pod_has_lost() {
    let node = start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("meddled");
    config.port_mappings = vec![port(18080, 8080, cri::Protocol::Tcp, "")];
    let pod = node.run_pod(config);
    let server = pod.sh("main", SERVE);
    assert_page(&node, "127.0.0.1:18080");
    let link = format!("veth{}", &pod.id[..11]);
    for damage in [
        format!("ip link delete {link}"),
        format!("ip link set {link} nomaster"),
        "ip link delete corten0".to_owned(),
        "ip addr flush dev corten0".to_owned(),
    ] {
        on_the_host(&node, &damage);
        assert!(network(&node, &["repair"]).contains("looked at 1 pods"));
        assert_page(&node, "127.0.0.1:18080");
        assert_page(&node, "10.87.0.2:8080");
    }
    assert!(server.exec_sh("ip route show default").contains("10.87.0.1"));
    // What looks like a pod's and is none's goes; what is another's stays.
    on_the_host(
        &node,
        "ip link add vethstranger type veth peer name other0; ip link set vethstranger alias corten0:0123456789ab master corten0
         ip link add vethforeign type veth peer name other1; ip link set vethforeign master corten0",
    );
    assert!(network(&node, &["repair"]).contains("removed vethstranger: no pod has it"));
    let links = on_the_host(&node, "ip -o link show type veth");
    assert!(
        !links.contains("vethstranger") && links.contains("vethforeign"),
        "{links}"
    );
    on_the_host(&node, "ip link delete vethforeign");
}

#[test]
fn a_server_that_was_killed_anywhere_leaves_what_its_successor_clears() {
    let node = start();
    node.pull(BUSYBOX);
    for round in 0..8 {
        thread::scope(|scope| {
            for client in 0..4 {
                let mut config = node.pod_config(&format!("killed-{round}-{client}"));
                config.port_mappings = vec![port(20000 + client, 80, cri::Protocol::Tcp, "")];
                let node = &node;
                scope.spawn(move || drop(node.cri.run_pod_sandbox(request(config))));
            }
            thread::sleep(Duration::from_millis(4 * round));
            node.kill_server();
        });
        node.launch().unwrap();
        let listed = node
            .cri
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .unwrap()
            .items;
        let shown = show(&node);
        assert_eq!(
            shown["pods"].as_array().unwrap().len(),
            listed.len(),
            "round {round}: {shown}"
        );
        assert!(shown["ports"].as_array().unwrap().len() <= listed.len());
        for pod in listed {
            let pod_sandbox_id = pod.id;
            node.cri
                .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })
                .unwrap();
        }
        node.assert_no_pods_left();
    }
}

#[test]
fn remove_is_refused_while_pods_use_the_network() {
    let node = start();
    let pod = node.pod("user");
    let text = refused(&node, &["remove"]);
    assert!(text.contains("bridge corten0 is in use by 1 pods"), "{text}");
    node.stop_server();
    let text = refused(&node, &["remove"]);
    assert!(text.contains("bridge corten0 has 1 ports"), "{text}");
    node.launch().unwrap();
    pod.stop();
    network(&node, &["remove"]);
    assert_eq!(on_the_host(&node, "ip -o link show type bridge"), "");
    assert_eq!(show(&node)["table"], false);
    network(&node, &["remove"]);
    let pod = node.pod("next");
    pod.stop();
    node.stop_server();
    network(&node, &["remove"]);
    assert_eq!(on_the_host(&node, "ip -o link show type bridge"), "");
    let text = refused(&node, &["show"]);
    assert!(text.contains("no server answers"), "{text}");
    node.launch().unwrap();
}

#[test]
fn what_flushes_the_packet_filter_is_made_good_at_the_next_look() {
    let node = start();
    let pod = node.pod("first");
    // As `nft flush ruleset` does; there is no nft here to do it.
    network(&node, &["remove", "--force"]);
    let status = node.cri.status(cri::StatusRequest::default()).unwrap();
    drop(status);
    let deadline = Instant::now() + Duration::from_secs(5);
    while show(&node)["table"] == false {
        assert!(Instant::now() < deadline, "no table");
        node.cri.status(cri::StatusRequest::default()).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    network(&node, &["repair"]);
    assert_eq!(on_the_host(&node, "ip -o link show master corten0 | wc -l"), "1\n");
    pod.stop();
}

#[test]
fn annotations_limit_what_a_pod_sends_and_receives() {
    let node = start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("limited");
    config.annotations = [
        ("kubernetes.io/ingress-bandwidth", "16M"),
        ("kubernetes.io/egress-bandwidth", "8M"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let pod = node.run_pod(config);
    let link = &pod.id[..11];
    let buckets = on_the_host(&node, "tc qdisc show");
    assert!(
        buckets.contains(&format!("dev veth{link} root")) && buckets.contains("rate 16Mbit"),
        "{buckets}"
    );
    assert!(
        buckets.contains(&format!("dev ifb-{link} root")) && buckets.contains("rate 8Mbit"),
        "{buckets}"
    );
    let container = pod.sh("main", "sleep 1000");
    // A megabyte takes a second at 8 Mbit/s, less what passes at once; unlimited it takes a few milliseconds.
    let listener = node
        .network
        .enter(|| std::net::TcpListener::bind("10.87.0.1:9000").unwrap());
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let begun = Instant::now();
        let bytes = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        (bytes, begun.elapsed())
    });
    container.exec_sh("head -c 1000000 /dev/zero | nc 10.87.0.1 9000");
    let (bytes, took) = reader.join().unwrap();
    assert_eq!(bytes, 1_000_000);
    assert!(
        took > Duration::from_millis(600) && took < Duration::from_secs(5),
        "{took:?}"
    );
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(on_the_host(&node, "tc qdisc show"), buckets);
    pod.stop();
    assert_eq!(on_the_host(&node, "ip -o link show type ifb"), "");
    let configs = fs::read_dir(node.dir().join("run/netns")).unwrap().count();
    assert_eq!(configs, 0);
}
