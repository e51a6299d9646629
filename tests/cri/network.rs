//! The pod's network: an address, reachability, host ports, the host's own network, and plugins that fail.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::container;

/// Serves one page on port 8080, of either version.
pub(crate) const SERVE: &str = "mkdir /www && echo a-page > /www/index.html && exec httpd -f -p 8080 -h /www";

/// What an HTTP server at `address` answers, asked from the node; an error where nobody listens in three seconds.
pub(crate) fn get(node: &Node, address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address");
    let deadline = Instant::now() + Duration::from_secs(3);
    node.network.enter(|| {
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                    let mut text = String::new();
                    stream.read_to_string(&mut text)?;
                    return Ok(text);
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    })
}

/// A node that finds plugins in its configuration directory too.
pub(crate) fn node_with_scripts() -> Node {
    Node::with(|config| {
        let own = config["cni"]["conf_dir"].clone();
        config["cni"]["bin_dirs"].as_array_mut().expect("a list").push(own);
    })
}

/// Makes a script that can be run.
pub(crate) fn install(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_pod_has_an_address_that_the_host_and_other_pods_reach() {
    let node = Node::start();
    let pod = node.pod("server");
    let ip = pod.ip();
    assert!(ip.starts_with("10.88."), "{ip}");
    let server = pod.sh("main", SERVE);
    let own = server.exec_sh("ip -4 -o addr show eth0");
    assert!(own.contains(&format!("{ip}/16")), "{own}");
    assert!(server.exec_sh("ip -o link show lo").contains("UP"), "loopback is up");
    let page = get(&node, &format!("{ip}:8080")).expect("from the host");
    assert!(page.contains("a-page"), "{page}");

    let other = node.pod("client");
    let client = other.sh("main", "sleep 1000");
    assert_ne!(other.ip(), ip);
    assert_eq!(client.exec_sh(&format!("wget -q -O- http://{ip}:8080/")), "a-page\n");
}

#[test]
fn a_pod_reaches_the_host() {
    let node = Node::start();
    let pod = node.pod("client");
    let container = pod.sh("main", "sleep 1000");
    let listener = node.network.enter(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let answer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"from the host\n").unwrap();
    });
    assert_eq!(container.exec_sh("nc 10.88.0.1 9000 </dev/null"), "from the host\n");
    answer.join().unwrap();
}

#[test]
fn containers_of_a_pod_share_its_network() {
    let node = Node::start();
    let pod = node.pod("shared");
    pod.sh("server", SERVE);
    let client = pod.sh("client", "sleep 1000");
    client.exec_sh("for i in 1 2 3 4 5; do wget -q -O- http://127.0.0.1:8080/ && exit; sleep 0.2; done; exit 1");
}

#[test]
fn a_host_port_leads_into_the_pod_until_it_is_stopped() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("host-port");
    config.port_mappings = vec![
        cri::PortMapping {
            container_port: 8080,
            host_port: 18080,
            ..Default::default()
        },
        // 0 asks for no mapping at all, never for any free port.
        cri::PortMapping {
            container_port: 8081,
            ..Default::default()
        },
    ];
    let pod = node.run_pod(config);
    pod.sh("main", SERVE);
    for address in ["127.0.0.1:18080", "10.88.0.1:18080"] {
        let page = get(&node, address).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(page.contains("a-page"), "{address}: {page}");
    }
    pod.stop();
    assert!(get(&node, "127.0.0.1:18080").is_err(), "the mapping ends with the pod");
}

#[test]
fn stopping_a_pod_gives_its_address_back() {
    let node = Node::start();
    let pod = node.pod("lease");
    assert_eq!(node.leases(), [pod.ip()]);
    pod.stop();
    assert!(node.leases().is_empty(), "before StopPodSandbox answers");
    let links = node
        .network
        .enter(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    assert!(!links.contains("veth"), "{links}");
    let namespaces = fs::read_dir(node.dir().join("run/netns")).unwrap().count();
    assert_eq!(namespaces, 0);
}

#[test]
fn a_pod_of_the_hosts_network_has_no_address_of_its_own() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = node.pod_config("host-network");
    config.hostname = String::new();
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context
        .namespace_options
        .as_mut()
        .unwrap()
        .set_network(cri::NamespaceMode::Node);
    let pod = node.run_pod(config);
    let status = pod.status();
    assert_eq!(status.network.unwrap_or_default().ip, "");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), cri::NamespaceMode::Node);
    let mut config = container("main", &["sleep", "1000"]);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context
        .namespace_options
        .as_mut()
        .unwrap()
        .set_network(cri::NamespaceMode::Node);
    let container = pod.start(config);
    let inside = fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap();
    let host = node
        .network
        .enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    assert_eq!(inside, host);
    assert!(node.leases().is_empty());
}

#[test]
fn a_plugin_that_fails_is_quoted_and_what_was_done_is_undone() {
    let node = node_with_scripts();
    let plugins = node.dir().join("cni");
    let script = "#!/bin/sh\nif [ \"$CNI_COMMAND\" = ADD ]; then\n\
        echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"no more cheese\",\"details\":\"try later\"}'\nexit 1\nfi\n";
    install(&plugins.join("failing"), script);
    let good = fs::read_to_string(plugins.join("10-ct.conflist")).unwrap();
    let mut chain: serde_json::Value = serde_json::from_str(&good).unwrap();
    chain["plugins"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({ "type": "failing" }));
    fs::write(plugins.join("10-ct.conflist"), chain.to_string()).unwrap();

    let config = node.pod_config("unlucky");
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    let error = node.cri.run_pod_sandbox(request).unwrap_err();
    for part in ["failing", "no more cheese", "try later"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    assert!(
        node.leases().is_empty(),
        "the address of the plugin before it is given back"
    );
    node.assert_no_pods_left();

    fs::write(plugins.join("10-ct.conflist"), good).unwrap();
    node.run_pod(config);
}

#[test]
fn a_pod_can_be_stopped_after_its_network_configuration_has_gone() {
    let node = Node::start();
    let pod = node.pod("orphaned");
    fs::remove_file(node.dir().join("cni/10-ct.conflist")).unwrap();
    pod.stop();
    assert!(node.leases().is_empty());
}

#[test]
fn a_plugin_that_outlives_a_killed_server_leaves_no_address() {
    let node = node_with_scripts();
    let plugins = node.dir().join("cni");
    let list = plugins.join("10-ct.conflist");
    // Two seconds late with the address, which needs no network namespace any more.
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] && touch \"${0%/*}/begun\" && sleep 2\n\
        exec /usr/lib/cni/host-local\n";
    install(&plugins.join("late"), script);
    let good = fs::read_to_string(&list).unwrap();
    let mut chain: serde_json::Value = serde_json::from_str(&good).unwrap();
    let ipam = &mut chain["plugins"][0]["ipam"]["type"];
    assert_eq!(*ipam, "host-local");
    *ipam = "late".into();
    fs::write(&list, chain.to_string()).unwrap();

    let request = cri::RunPodSandboxRequest {
        config: Some(node.pod_config("half-added")),
        ..Default::default()
    };
    thread::scope(|scope| {
        let run = scope.spawn(|| node.cri.run_pod_sandbox(request));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !plugins.join("begun").exists() {
            assert!(Instant::now() < deadline, "the plugin was not run");
            thread::sleep(Duration::from_millis(10));
        }
        node.kill_server();
        assert!(run.join().expect("it returns its error").is_err());
    });
    node.launch().unwrap();
    thread::sleep(Duration::from_millis(2500));
    assert!(node.leases().is_empty(), "taken after it was taken down");
    node.assert_no_pods_left();
}
