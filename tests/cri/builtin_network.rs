//! The network of a node without CNI configuration: addresses, who reaches whom, host ports, and what is left when pods go,
//! the server is killed, or somebody meddles.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::Pod;
use toml::Table;

use crate::network::{SERVE, get};

/// Both versions.
const DUAL: [&str; 2] = ["10.87.0.0/16", "fd00:87::/64"];

pub(crate) fn start() -> Node {
    Node::with_builtin_network(|_| {})
}

fn with_subnets(subnets: &[&str]) -> Node {
    let subnets: Vec<toml::Value> = subnets.iter().map(|&subnet| subnet.into()).collect();
    Node::with_builtin_network(|config| set(config, "subnets", subnets.into()))
}

fn set(config: &mut Table, key: &str, value: toml::Value) {
    config["network"]
        .as_table_mut()
        .expect("a table")
        .insert(key.into(), value);
}

/// What a command prints, run in the network that the server takes for the host's.
pub(crate) fn on_the_host(node: &Node, command: &str) -> String {
    let output = node
        .network
        .enter(|| Command::new("sh").args(["-c", command]).output())
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn assert_page(node: &Node, address: &str) {
    let page = get(node, address).unwrap_or_else(|error| panic!("{address}: {error}"));
    assert!(page.contains("a-page"), "{address}: {page}");
}

pub(crate) fn request(config: cri::PodSandboxConfig) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    }
}

pub(crate) fn port(host_port: i32, container_port: i32, protocol: cri::Protocol, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: host_ip.to_owned(),
    }
}

fn pod_with_ports<'n>(node: &'n Node, name: &str, ports: Vec<cri::PortMapping>) -> Pod<'n> {
    node.pull(BUSYBOX);
    let mut config = node.pod_config(name);
    config.port_mappings = ports;
    node.run_pod(config)
}

/// Does something in a pod's network; sockets made there stay there.
fn inside<T: Send>(node: &Node, pod: &Pod, work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(node.dir().join("run/netns").join(&pod.id)).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// All addresses of a pod, the primary one first.
fn ips(pod: &Pod) -> Vec<String> {
    let network = pod.status().network.expect("a network");
    let others = network.additional_ips.into_iter().map(|it| it.ip);
    std::iter::once(network.ip).chain(others).collect()
}

#[test]
fn a_pod_has_an_address_routes_and_a_resolver() {
    let node = start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("first");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        ..Default::default()
    });
    let pod = node.run_pod(config);
    assert_eq!(ips(&pod), ["10.87.0.2"]);
    let container = pod.sh("main", "sleep 1000");
    let address = container.exec_sh("ip -4 -o addr show eth0");
    assert!(address.contains("10.87.0.2/16"), "{address}");
    let routes = container.exec_sh("ip route show");
    assert!(routes.contains("default via 10.87.0.1 dev eth0"), "{routes}");
    assert!(container.exec_sh("ip -o link show lo").contains("UP"));
    assert_eq!(container.exec_sh("cat /etc/resolv.conf"), "nameserver 10.96.0.10\n");
    for (parameter, value) in [("accept_ra", "0\n"), ("accept_dad", "0\n")] {
        let path = format!("/proc/sys/net/ipv6/conf/eth0/{parameter}");
        assert_eq!(container.exec_sh(&format!("cat {path}")), value, "{parameter}");
    }
    assert_eq!(
        on_the_host(&node, "cat /proc/sys/net/ipv6/conf/corten0/accept_ra"),
        "0\n"
    );
    let port = on_the_host(&node, &format!("ip -d link show veth{}", &pod.id[..11]));
    for part in ["master corten0", "hairpin on", &format!("alias corten0:{}", pod.id)] {
        assert!(port.contains(part), "{part}: {port}");
    }
    assert_eq!(pod.info()["builtinNetwork"]["addresses"][0], "10.87.0.2/16");
}

#[test]
fn host_and_pods_reach_each_other() {
    let node = start();
    let pod = node.pod("server");
    pod.sh("main", SERVE);
    let ip = pod.ip();
    assert_page(&node, &format!("{ip}:8080"));
    let other = node.pod("client");
    let client = other.sh("main", "sleep 1000");
    assert_ne!(other.ip(), ip);
    assert_eq!(client.exec_sh(&format!("wget -q -O- http://{ip}:8080/")), "a-page\n");

    let listener = node.network.enter(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let answer = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(format!("{}\n", peer.ip()).as_bytes()).unwrap();
    });
    let seen = client.exec_sh("nc 10.87.0.1 9000 </dev/null");
    assert_eq!(seen.trim(), other.ip(), "the node sees the pod's own address");
    answer.join().unwrap();
}

/// A machine beside the node, which is 192.0.2.1 and fd00:2::1: what leaves for it is seen as it arrives.
const NEIGHBOUR: &str = "set -e
    ip link add up0 type veth peer name out0
    ip netns add NAME
    ip link set out0 netns NAME
    ip addr add 192.0.2.1/24 dev up0; ip -6 addr add fd00:2::1/64 dev up0 nodad; ip link set up0 up
    ip -n NAME addr add 192.0.2.2/24 dev out0; ip -n NAME -6 addr add fd00:2::2/64 dev out0 nodad
    ip -n NAME link set out0 up; ip -n NAME link set lo up";

#[test]
fn what_leaves_the_node_comes_from_the_node() {
    let node = with_subnets(&DUAL);
    let name = node.marker();
    on_the_host(&node, &NEIGHBOUR.replace("NAME", &name));
    let pod = node.pod("traveller");
    let container = pod.sh("main", "sleep 1000");
    for (listen, target, expected) in [
        ("192.0.2.2:9000", "192.0.2.2", "192.0.2.1"),
        ("[fd00:2::2]:9000", "fd00:2::2", "fd00:2::1"),
    ] {
        let namespace = fs::File::open(format!("/run/netns/{name}")).unwrap();
        let listener = thread::spawn(move || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind(listen).unwrap()
        });
        let listener = listener.join().unwrap();
        let seen = thread::spawn(move || listener.accept().unwrap().1.ip().to_string());
        container.exec_sh(&format!("nc -w 5 {target} 9000 </dev/null"));
        assert_eq!(seen.join().unwrap(), expected);
    }
    on_the_host(&node, &format!("ip netns delete {name}"));
}

#[test]
fn a_pod_has_addresses_of_both_versions() {
    for (subnets, first) in [(DUAL, "10.87.0.2"), ([DUAL[1], DUAL[0]], "fd00:87::2")] {
        let node = with_subnets(&subnets);
        let pod = node.pod("dual");
        let mut found = ips(&pod);
        assert_eq!(found[0], first);
        found.sort();
        assert_eq!(found, ["10.87.0.2", "fd00:87::2"]);
        let server = pod.sh("main", SERVE);
        let own = server.exec_sh("ip -6 -o addr show eth0; ip -6 route show default");
        assert!(own.contains("fd00:87::2/64") && !own.contains("tentative"), "{own}");
        assert!(own.contains("via fd00:87::1"), "{own}");
        assert_page(&node, "[fd00:87::2]:8080");
        assert_page(&node, "10.87.0.2:8080");
        let client = node.pod("client");
        let client = client.sh("main", "sleep 1000");
        assert_eq!(client.exec_sh("wget -q -O- http://[fd00:87::2]:8080/"), "a-page\n");
    }
}

#[test]
fn host_ports_lead_into_the_pod_from_everywhere() {
    let node = with_subnets(&DUAL);
    on_the_host(
        &node,
        "ip addr add 192.0.2.1/24 dev lo; ip -6 addr add fd00:2::1/64 dev lo nodad",
    );
    let tcp = cri::Protocol::Tcp;
    let pod = pod_with_ports(
        &node,
        "server",
        vec![
            port(18080, 8080, tcp, ""),
            port(18081, 8080, tcp, "192.0.2.1"),
            port(0, 9999, tcp, ""),
        ],
    );
    let server = pod.sh("main", SERVE);
    for address in [
        "127.0.0.1:18080",
        "10.87.0.1:18080",
        "192.0.2.1:18080",
        "[fd00:2::1]:18080",
        "192.0.2.1:18081",
    ] {
        assert_page(&node, address);
    }
    assert!(get(&node, "127.0.0.1:18081").is_err(), "of another address");
    let client = node.pod("client");
    let client = client.sh("main", "sleep 1000");
    for container in [&client, &server] {
        for address in [
            "10.87.0.1:18080",
            "192.0.2.1:18080",
            "[fd00:2::1]:18080",
            "192.0.2.1:18081",
        ] {
            assert_eq!(
                container.exec_sh(&format!("wget -q -O- http://{address}/")),
                "a-page\n",
                "{address}"
            );
        }
    }
    pod.stop();
    assert!(get(&node, "127.0.0.1:18080").is_err(), "the mapping ends with the pod");
}

#[test]
fn a_pod_does_not_reach_the_nodes_loopback() {
    let node = start();
    let pod = node.pod("nosy");
    let listener = node.network.enter(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    inside(&node, &pod, || {
        let script = "set -e
            ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 10.87.0.1
            echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet";
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        let connect = |address: [u8; 4]| {
            let address = SocketAddr::from((address, 9000));
            TcpStream::connect_timeout(&address, Duration::from_millis(500))
        };
        connect([10, 87, 0, 1]).expect("the node itself can be reached");
        connect([127, 0, 0, 1]).expect_err("its loopback cannot");
    });
    drop(listener);
}

#[test]
fn udp_ports_lead_to_the_pod_that_has_them_now() {
    let node = start();
    let mapping = || vec![port(15353, 5353, cri::Protocol::Udp, "")];
    // Asked from one port throughout, so that the kernel would take it for one connection.
    let socket = node.network.enter(|| UdpSocket::bind("127.0.0.1:45353").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    for name in ["one", "other"] {
        let pod = pod_with_ports(&node, name, mapping());
        let server = inside(&node, &pod, || UdpSocket::bind("0.0.0.0:5353").unwrap());
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let answers = thread::spawn(move || {
            let mut question = [0; 64];
            let (_, peer) = server.recv_from(&mut question).unwrap();
            server.send_to(name.as_bytes(), peer).unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut answer = [0; 64];
        let length = loop {
            assert!(Instant::now() < deadline, "{name} does not answer");
            // Refused until it listens.
            if socket.send_to(b"who\n", "127.0.0.1:15353").is_ok()
                && let Ok(length) = socket.recv(&mut answer)
            {
                break length;
            }
        };
        assert_eq!(String::from_utf8_lossy(&answer[..length]), name);
        answers.join().unwrap();
        pod.stop();
        pod.remove();
    }
}

#[test]
fn a_port_of_another_pod_is_refused_by_name() {
    let node = start();
    let holder = pod_with_ports(&node, "holder", vec![port(18080, 80, cri::Protocol::Tcp, "127.0.0.1")]);
    let mut config = node.pod_config("second");
    config.port_mappings = vec![port(18080, 80, cri::Protocol::Tcp, "")];
    let refused = node.cri.run_pod_sandbox(request(config.clone())).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    for part in ["TCP 0.0.0.0:18080", "default/holder", &holder.id] {
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
    // The same port of another protocol is another port.
    let udp = pod_with_ports(&node, "udp", vec![port(18080, 80, cri::Protocol::Udp, "")]);
    udp.stop();
    holder.stop();
    let second = node.run_pod(config);
    assert_ne!(second.ip(), holder.ip());
    let mut config = node.pod_config("sixth");
    config.port_mappings = vec![port(1, 1, cri::Protocol::Tcp, "fd00::1")];
    let refused = node.cri.run_pod_sandbox(request(config)).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("port_mappings[0].host_ip"), "{refused}");
}

#[test]
fn a_full_subnet_is_named_with_its_size_and_a_failed_run_frees_its_address() {
    let node = with_subnets(&["10.87.9.0/29"]);
    let pods: Vec<_> = (0..5).map(|number| node.pod(&format!("pod-{number}"))).collect();
    let taken: BTreeSet<_> = pods.iter().map(Pod::ip).collect();
    assert_eq!(taken.len(), 5);
    for _ in 0..2 {
        let refused = node.cri.run_pod_sandbox(request(node.pod_config("sixth"))).unwrap_err();
        let message = "subnet 10.87.9.0/29: all 5 addresses for pods are in use";
        assert!(refused.message().contains(message), "{refused}");
    }
    let first = pods[0].ip();
    pods[0].stop();
    // Fails after it has its address: such a runtime ends at once.
    let mut config = node.pod_config("failing");
    config.linux.as_mut().unwrap().sysctls = [("kernel.shm_rmid_forced".to_owned(), "no-number".to_owned())].into();
    let failed = node.cri.run_pod_sandbox(request(config)).unwrap_err();
    assert!(!failed.message().contains("in use"), "{failed}");
    assert_eq!(node.pod("late").ip(), first, "the only one that is free");
}

#[test]
fn churn_gives_no_address_twice_and_leaves_nothing() {
    let node = start();
    node.pull(BUSYBOX);
    let held = std::sync::Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for client in 0..8 {
            let (node, held) = (&node, &held);
            scope.spawn(move || {
                for round in 0..25 {
                    let mut config = node.pod_config(&format!("churn-{client}-{round}"));
                    config.port_mappings = vec![port(20000 + client, 80, cri::Protocol::Tcp, "")];
                    let pod = node.run_pod(config);
                    let ip = pod.ip();
                    assert!(held.lock().unwrap().insert(ip.clone()), "{ip} is given twice");
                    held.lock().unwrap().remove(&ip);
                    pod.stop();
                    pod.remove();
                }
            });
        }
    });
    node.assert_no_pods_left();
    let links = on_the_host(&node, "ip -o link show master corten0");
    assert_eq!(links, "", "the bridge has no port");
    assert_eq!(node.pod("after").ip(), "10.87.0.202", "in turn: 200 were given before");
}

#[test]
fn a_killed_server_knows_the_addresses_of_its_pods() {
    let node = start();
    let pod = pod_with_ports(&node, "survivor", vec![port(18080, 8080, cri::Protocol::Tcp, "")]);
    pod.sh("main", SERVE);
    assert_page(&node, "127.0.0.1:18080");
    node.kill_server();
    assert_page(&node, "127.0.0.1:18080");
    node.launch().unwrap();
    assert_page(&node, "127.0.0.1:18080");
    assert_eq!(pod.ip(), "10.87.0.2");
    assert_eq!(node.pod("next").ip(), "10.87.0.3");
    let mut config = node.pod_config("thief");
    config.port_mappings = vec![port(18080, 80, cri::Protocol::Tcp, "")];
    assert!(
        node.cri.run_pod_sandbox(request(config)).is_err(),
        "its port is known too"
    );
    pod.stop();
    assert!(get(&node, "127.0.0.1:18080").is_err());
}

#[test]
fn after_a_reboot_addresses_and_ports_are_free() {
    let node = start();
    let mapping = || vec![port(18080, 8080, cri::Protocol::Tcp, "")];
    let old = pod_with_ports(&node, "old", mapping());
    node.stop_server();
    let path = node.dir().join(format!("lib/sandboxes/{}.json", old.id));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["boot_id"] = "an earlier one".into();
    fs::write(&path, record.to_string()).unwrap();
    node.launch().unwrap();
    let new = pod_with_ports(&node, "new", mapping());
    assert_eq!(new.ip(), "10.87.0.2");
    new.sh("main", SERVE);
    old.stop();
    old.remove();
    assert_page(&node, "127.0.0.1:18080");
    assert_ne!(
        node.pod("third").ip(),
        new.ip(),
        "the old one has not freed what is the new one's"
    );
}

#[test]
fn a_configuration_that_appears_counts_for_new_pods_only() {
    let node = start();
    let old = node.pod("old");
    let (from, to) = (node.dir().join("cni"), node.absent_conf_dir());
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("10-ct.conflist"), to.join("10-ct.conflist")).unwrap();
    let new = node.pod("new");
    assert!(new.ip().starts_with("10.88."), "{}", new.ip());
    assert_eq!(old.ip(), "10.87.0.2");
    old.stop();
    new.stop();
    assert!(node.leases().is_empty());
    assert_eq!(on_the_host(&node, "ip -o link show type veth"), "");
    // One that is wrong does not bring the built-in network back.
    fs::write(to.join("10-ct.conflist"), "{").unwrap();
    let refused = node.cri.run_pod_sandbox(request(node.pod_config("lost"))).unwrap_err();
    assert!(refused.message().contains("no valid CNI configuration"), "{refused}");
    fs::remove_file(to.join("10-ct.conflist")).unwrap();
    assert_eq!(node.pod("again").ip(), "10.87.0.3");
}

#[test]
fn the_kubelets_range_takes_the_place_of_the_subnets() {
    let node = start();
    let old = node.pod("old");
    let update = |pod_cidr: &str| {
        let network_config = Some(cri::NetworkConfig {
            pod_cidr: pod_cidr.to_owned(),
        });
        let runtime_config = Some(cri::RuntimeConfig { network_config });
        node.cri
            .update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config })
            .unwrap();
    };
    update("10.99.1.0/24,fd00:99::/64");
    let new = node.pod("new");
    assert_eq!(ips(&new), ["10.99.1.2", "fd00:99::2"]);
    // Both gateways are there, and neither side is taken for foreign.
    old.sh("main", SERVE);
    let client = new.sh("main", "sleep 1000");
    assert_eq!(
        client.exec_sh(&format!("wget -q -O- http://{}:8080/", old.ip())),
        "a-page\n"
    );
    old.stop();
    node.stop_server();
    node.launch().unwrap();
    assert_eq!(ips(&node.pod("third"))[0], "10.99.1.3", "kept for the next server");
}

#[test]
fn the_status_says_what_keeps_the_network_from_being_made() {
    let node = Node::with_builtin_network(|config| set(config, "bridge", "lo".into()));
    let status = node.cri.status(cri::StatusRequest::default()).unwrap().status.unwrap();
    let condition = status
        .conditions
        .into_iter()
        .find(|it| it.r#type == "NetworkReady")
        .unwrap();
    assert!(!condition.status);
    assert!(
        condition.message.contains("prepare bridge lo for pods"),
        "{}",
        condition.message
    );
    drop(node);
    let node = start();
    on_the_host(
        &node,
        "ip link add taken type bridge; ip link set taken up; ip addr add 10.87.44.1/24 dev taken",
    );
    let refused = node
        .cri
        .run_pod_sandbox(request(node.pod_config("colliding")))
        .unwrap_err();
    let message = "subnet 10.87.0.0/16: the node has a route to 10.87.44.0/24 already";
    assert!(refused.message().contains(message), "{refused}");
    node.assert_no_pods_left();
    on_the_host(&node, "ip link delete taken");
    let status = node.cri.status(cri::StatusRequest::default()).unwrap().status.unwrap();
    assert!(status.conditions.iter().all(|it| it.status), "{status:?}");
    node.pod("fine");
}

#[test]
fn host_ports_of_the_loopback_are_closed_to_neighbours() {
    let node = start();
    let name = node.marker();
    on_the_host(&node, &NEIGHBOUR.replace("NAME", &name));
    let tcp = cri::Protocol::Tcp;
    let ports = vec![port(18080, 8080, tcp, "127.0.0.1"), port(18081, 8080, tcp, "")];
    let pod = pod_with_ports(&node, "private", ports);
    pod.sh("main", SERVE);
    assert_page(&node, "127.0.0.1:18080");
    let namespace = fs::File::open(format!("/run/netns/{name}")).unwrap();
    thread::spawn(move || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let script = "set -e
            ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 192.0.2.1
            echo 1 >/proc/sys/net/ipv4/conf/out0/route_localnet";
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        let connect = |address: &str| {
            let address = address.parse().expect("an address");
            TcpStream::connect_timeout(&address, Duration::from_millis(500))
        };
        connect("192.0.2.1:18081").expect("what is for all is there");
        connect("127.0.0.1:18080").expect_err("what is for the node's loopback is not");
        connect("127.0.0.1:18081").expect_err("nor is it by this address");
    })
    .join()
    .unwrap();
    on_the_host(&node, &format!("ip netns delete {name}"));
}

#[test]
fn a_bridge_of_another_is_left_alone() {
    for alias in ["", "corten-bridge:/elsewhere"] {
        let node = start();
        on_the_host(
            &node,
            "ip link add corten0 type bridge; ip link set corten0 up; ip addr add 10.50.0.1/24 dev corten0",
        );
        if !alias.is_empty() {
            on_the_host(&node, &format!("ip link set corten0 alias {alias}"));
        }
        let links = "ip link add veth0123456789a type veth peer name other0
            ip link set veth0123456789a alias corten0:0123456789ab master corten0";
        on_the_host(&node, links);
        node.kill_server();
        node.launch().unwrap();
        let refused = node
            .cri
            .run_pod_sandbox(request(node.pod_config("usurper")))
            .unwrap_err();
        assert!(
            refused.message().contains("a bridge of this name that is another's"),
            "{refused}"
        );
        let left = on_the_host(&node, "ip -o -4 addr show corten0; ip -o link show master corten0");
        assert!(
            left.contains("10.50.0.1/24") && left.contains("veth0123456789a"),
            "{left}"
        );
        on_the_host(&node, "ip link delete veth0123456789a; ip link delete corten0");
        node.pod("own");
    }
}

#[test]
fn the_mtu_of_the_configuration_stays_when_the_last_pod_goes() {
    let node = Node::with_builtin_network(|config| set(config, "mtu", 1400.into()));
    for name in ["one", "other"] {
        let pod = node.pod(name);
        let container = pod.sh("main", "sleep 1000");
        assert_eq!(container.exec_sh("cat /sys/class/net/eth0/mtu"), "1400\n", "{name}");
        pod.stop();
        assert!(
            on_the_host(&node, "ip link show corten0").contains("mtu 1400"),
            "{name}"
        );
    }
}

#[test]
fn a_port_that_is_a_host_port_too_is_reached_from_the_pods_own_address() {
    let node = start();
    let _holder = pod_with_ports(&node, "holder", vec![port(9000, 80, cri::Protocol::Tcp, "")]);
    let (server, client) = (node.pod("server"), node.pod("client"));
    let listener = inside(&node, &server, || TcpListener::bind("0.0.0.0:9000").unwrap());
    let target = SocketAddr::new(server.ip().parse().unwrap(), 9000);
    let asked = inside(&node, &client, || {
        TcpStream::connect_timeout(&target, Duration::from_secs(3))
    });
    asked.unwrap();
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), client.ip());
}

#[test]
fn interfaces_to_come_listen_to_no_router_because_of_forwarding() {
    let node = with_subnets(&DUAL);
    let name = node.marker();
    on_the_host(&node, &NEIGHBOUR.replace("NAME", &name));
    on_the_host(&node, "ip -6 route add default via fd00:2::2 dev up0 proto ra");
    node.pod("first");
    for (link, value) in [("default", "1\n"), ("all", "1\n"), ("lo", "1\n"), ("up0", "2\n")] {
        let read = format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra");
        assert_eq!(on_the_host(&node, &read), value, "{link}");
    }
    on_the_host(&node, &format!("ip netns delete {name}"));
}

#[test]
fn what_the_node_has_on_the_loopback_of_version_6_stays_reachable() {
    let node = with_subnets(&DUAL);
    let listener = node.network.enter(|| TcpListener::bind("[::1]:18080").unwrap());
    let _pod = pod_with_ports(&node, "shadow", vec![port(18080, 8080, cri::Protocol::Tcp, "")]);
    let address = "[::1]:18080".parse().unwrap();
    let connected = node
        .network
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
    connected.unwrap();
    drop(listener);
}

#[test]
fn a_subnet_with_the_node_itself_inside_is_refused() {
    let node = start();
    on_the_host(
        &node,
        "ip link add wide type bridge; ip link set wide up; ip addr add 10.87.3.1/8 dev wide",
    );
    let refused = node.cri.run_pod_sandbox(request(node.pod_config("inner"))).unwrap_err();
    let message = "subnet 10.87.0.0/16: the node has the address 10.87.3.1/8 elsewhere";
    assert!(refused.message().contains(message), "{refused}");
    on_the_host(&node, "ip link delete wide");
    node.pod("fine");
}

#[test]
fn a_bridge_that_is_down_is_brought_back_before_the_node_is_ready() {
    let node = start();
    let pod = node.pod("server");
    pod.sh("main", SERVE);
    for damage in [
        "ip link set corten0 down",
        "ip addr flush dev corten0",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
    ] {
        on_the_host(&node, damage);
        node.pod(&format!("next-{}", damage.len()));
        assert_eq!(
            on_the_host(&node, "cat /proc/sys/net/ipv4/ip_forward"),
            "1\n",
            "{damage}"
        );
        assert_page(&node, "10.87.0.2:8080");
    }
}
