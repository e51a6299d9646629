//! Pods with a user namespace of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;

use corten_proto::cri;
use corten_tests::image::{Image, Layer};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, Pod, container, image};
use tonic::Code;

use crate::lost::node_with_runtime;

const FIRST: u32 = 200_000;
pub(crate) const LENGTH: u32 = 65536;

fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn userns(mode: cri::NamespaceMode, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: mode.into(),
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    }
}

/// The node's ids from `first` on.
pub(crate) fn own(first: u32) -> cri::UserNamespace {
    let map = [mapping(0, first, LENGTH)];
    userns(cri::NamespaceMode::Pod, &map, &map)
}

fn options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let linux = config.linux.as_mut().unwrap();
    let context = linux.security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap()
}

fn pod_config(node: &Node, name: &str, user: cri::UserNamespace) -> cri::PodSandboxConfig {
    let mut config = node.pod_config(name);
    options(&mut config).userns_options = Some(user);
    config
}

fn pod<'n>(node: &'n Node, name: &str, first: u32) -> Pod<'n> {
    node.pull(BUSYBOX);
    node.run_pod(pod_config(node, name, own(first)))
}

fn context(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// A container of the pod with these capabilities and the pod's own namespaces, as a kubelet would ask for it.
fn member(pod: &Pod<'_>, name: &str, add: &[&str]) -> cri::ContainerConfig {
    let mut config = container(name, &["sleep", "1000"]);
    let user = options(&mut pod.config.clone()).userns_options.clone();
    let context = context(&mut config);
    context.namespace_options.as_mut().unwrap().userns_options = user;
    context.capabilities = Some(cri::Capability {
        add_capabilities: add.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    });
    config
}

/// The words of a file of procfs.
fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[track_caller]
fn assert_mapped(container: &Container<'_>, first: u32) {
    let map = [first, LENGTH].map(|number| number.to_string());
    for file in ["uid_map", "gid_map"] {
        let text = container.exec_sh(&format!("cat /proc/self/{file}"));
        assert_eq!(words(&text), ["0", &map[0], &map[1]], "{file}");
    }
    let proc = fs::metadata(format!("/proc/{}", container.pid())).unwrap();
    assert_eq!((proc.uid(), proc.gid()), (first, first), "of its init, on the node");
}

/// Processes that hold a namespace for the server: none, once a pod is there or has failed.
fn holders(node: &Node) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let parent = format!("PPid:\t{}\n", node.server_pid());
    processes
        .map(|entry| entry.path())
        .filter(|path| fs::read_to_string(path.join("status")).is_ok_and(|text| text.contains(&parent)))
        .filter_map(|path| fs::read_to_string(path.join("cmdline")).ok())
        .filter(|command| command.contains("--hold"))
        .collect()
}

#[test]
fn a_pod_has_its_own_ids() {
    let node = Node::start();
    let pod = pod(&node, "own", FIRST);
    assert_eq!(holders(&node), [""; 0]);
    let main = pod.start(member(&pod, "main", &[]));
    assert_mapped(&main, FIRST);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", main.pid())).unwrap();
    assert!(
        cgroup.contains(&format!("/{}/{}", node.marker(), main.id)),
        "below the pod's parent: {cgroup}"
    );
    for place in [
        "/",
        "/bin/busybox",
        "/etc/passwd",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/shm",
    ] {
        assert_eq!(main.exec_sh(&format!("stat -c %u:%g {place}")), "0:0\n", "{place}");
    }
    main.exec_sh("touch /new /dev/shm/new && chown 7:8 /new && mkdir /root/dir");
    let config = node.dir().join("lib/containers").join(&main.id).join("upper/new");
    let new = fs::metadata(config).unwrap();
    assert_eq!((new.uid(), new.gid()), (FIRST + 7, FIRST + 8), "on the disk");

    let mut config = member(&pod, "user", &[]);
    context(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    let user = pod.start(config);
    assert_eq!(user.exec_sh("id -u"), "1000\n");
    let shown = user.status().user.unwrap().linux.unwrap();
    assert_eq!((shown.uid, shown.gid), (1000, 0), "the pod's own ids");
    assert_eq!(
        fs::metadata(format!("/proc/{}", user.pid())).unwrap().uid(),
        FIRST + 1000
    );

    let mut silent = container("silent", &["sh", "-c", "cat /proc/self/uid_map"]);
    context(&mut silent).namespace_options.as_mut().unwrap().userns_options = None;
    let silent = pod.start(silent);
    silent.wait_exit();
    let output = silent.output("stdout");
    assert_eq!(
        words(&output)[1],
        FIRST.to_string(),
        "the pod's, also where nothing is said"
    );
}

/// Whoever owns a namespace may change it; the node's root owns nothing in here.
#[test]
fn the_pods_namespaces_belong_to_its_user_namespace() {
    let node = Node::start();
    let pod = pod(&node, "owner", FIRST);
    let main = pod.start(member(&pod, "main", &["NET_ADMIN", "SYS_ADMIN"]));
    main.exec_sh("ip link set lo down && ip link set lo up && hostname changed");
    assert!(main.exec_sh("ip addr show eth0").contains(&pod.ip()));
    let infra = pod.info()["pid"].as_i64().unwrap();
    for name in ["user", "net", "uts", "ipc"] {
        let of = |pid: i64| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(of(infra), of(main.pid()), "{name}");
        assert_ne!(of(infra), of(node.server_pid().into()), "{name}");
    }
    let range = main.exec_sh("cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_eq!(words(&range), ["0", &(LENGTH - 1).to_string(), "0"]);
    let masks = main.exec_sh("grep -c mqueue /proc/self/mounts; ls /sys/class/net");
    assert!(masks.contains("eth0"), "the pod's own: {masks}");
}

#[test]
fn pods_with_different_ids_share_an_image_and_its_volumes() {
    let node = Node::start();
    let layer = Layer::new().dir("data", 0o700).file("data/file", 0o600, b"content");
    let built = Image::new().layer(layer);
    built.save(&node.dir().join("images"), &["data:1"]).unwrap();
    let id = node.pull("127.0.0.1:5000/data:1");
    for first in [FIRST, 2 * FIRST] {
        let pod = pod(&node, &format!("p{first}"), first);
        let mut config = member(&pod, "main", &[]);
        config.mounts = vec![cri::Mount {
            container_path: "/volume".to_owned(),
            readonly: true,
            image: Some(image(&id)),
            ..Default::default()
        }];
        let main = pod.start(config);
        assert_mapped(&main, first);
        assert_eq!(
            main.exec_sh("cat /volume/data/file; stat -c %u:%g /volume/data /bin/busybox"),
            "content0:0\n0:0\n"
        );
    }
}

#[test]
fn the_nodes_network_with_ids_of_its_own() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = pod_config(&node, "hostnet", own(FIRST));
    options(&mut config).network = cri::NamespaceMode::Node.into();
    config.hostname.clear();
    let pod = node.run_pod(config);
    let mut config = member(&pod, "main", &[]);
    let namespaces = context(&mut config).namespace_options.as_mut().unwrap();
    namespaces.network = cri::NamespaceMode::Node.into();
    let main = pod.start(config);
    assert_mapped(&main, FIRST);
    let net = |pid: i64| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(net(main.pid()), net(node.server_pid().into()));
    let mounts = main.exec_sh("cat /proc/self/mounts");
    let below_sys: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields[1] == "/sys" || fields[1].starts_with("/sys/"))
        .filter(|fields| !fields[1].starts_with("/sys/fs/cgroup"))
        .collect();
    assert!(!below_sys.is_empty(), "{mounts}");
    for fields in below_sys {
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(fields[3].split(',').any(|it| it == option), "{fields:?}");
        }
    }
}

#[test]
fn the_nodes_user_namespace() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let pod = node.run_pod(pod_config(&node, "node", userns(cri::NamespaceMode::Node, &[], &[])));
    let main = pod.start(member(&pod, "main", &[]));
    let own = fs::read_to_string("/proc/self/uid_map").unwrap();
    assert_eq!(words(&main.exec_sh("cat /proc/self/uid_map")), words(&own));
}

#[test]
fn a_restarted_server_goes_on_with_such_pods() {
    let node = Node::start();
    let pod = pod(&node, "restart", FIRST);
    let main = pod.start(member(&pod, "main", &[]));
    node.kill_server();
    node.launch().unwrap();
    assert_mapped(&main, FIRST);
    let second = pod.start(member(&pod, "second", &[]));
    assert_mapped(&second, FIRST);
    assert_eq!(second.exec_sh("stat -c %u /bin/busybox"), "0\n");
}

#[test]
fn mappings_that_are_refused() {
    use cri::NamespaceMode::{Container, Node as OfNode, Pod as OfPod, Target};
    let node = Node::start();
    node.pull(BUSYBOX);
    let good = mapping(0, FIRST, LENGTH);
    for (user, words) in [
        (
            userns(OfPod, &[good, mapping(0, 2000, LENGTH)], &[good]),
            ["uids", "exactly one"],
        ),
        (userns(OfPod, &[], &[]), ["uids", "exactly one"]),
        (
            userns(OfPod, &[mapping(1, FIRST, LENGTH)], &[good]),
            ["container_id", "must be 0"],
        ),
        (
            userns(OfPod, &[good], &[mapping(0, FIRST, 1000)]),
            ["gids[0].length", "as long"],
        ),
        (userns(Container, &[], &[]), ["userns_options.mode", "CONTAINER"]),
        (userns(Target, &[], &[]), ["userns_options.mode", "TARGET"]),
        (userns(OfNode, &[good], &[good]), ["userns_options.mode", "excludes"]),
    ] {
        let request = cri::RunPodSandboxRequest {
            config: Some(pod_config(&node, "refused", user)),
            runtime_handler: String::new(),
        };
        let error = node.cri.run_pod_sandbox(request).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{error}");
        }
    }
    node.assert_no_pods_left();

    let pod = pod(&node, "good", FIRST);
    let mut other = member(&pod, "other", &[]);
    let namespaces = context(&mut other).namespace_options.as_mut().unwrap();
    namespaces.userns_options = Some(own(2 * FIRST));
    let mut outside = member(&pod, "outside", &[]);
    context(&mut outside).run_as_user = Some(cri::Int64Value { value: LENGTH.into() });
    for (config, word) in [(other, "the same as the sandbox's"), (outside, "below its length")] {
        let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
}

/// What Status says of the handlers holds.
#[test]
fn a_handler_that_has_no_user_namespaces() {
    let node = node_with_runtime("true");
    node.pull(BUSYBOX);
    let statuses = node.cri.status(cri::StatusRequest { verbose: false }).unwrap();
    for (handler, able) in [("", false), ("wrapped", false), ("corten", true)] {
        let mut handlers = statuses.runtime_handlers.iter();
        let said = handlers.find(|it| it.name == handler).unwrap().features.unwrap();
        let request = cri::RunPodSandboxRequest {
            config: Some(pod_config(&node, "own", own(FIRST))),
            runtime_handler: handler.to_owned(),
        };
        if able {
            let pod = node.run_pod_by(request.config.unwrap(), handler);
            assert_mapped(&pod.start(member(&pod, "main", &[])), FIRST);
            continue;
        }
        assert!(!said.user_namespaces, "{handler}");
        let error = node.cri.run_pod_sandbox(request).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
        assert!(error.message().contains("runtime_handler \"wrapped\""), "{error}");
        node.assert_no_pods_left();
    }
}

#[test]
fn a_failed_pod_leaves_nothing() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let mut config = pod_config(&node, "failed", own(FIRST));
    let mut fails = |change: &dyn Fn(&mut cri::PodSandboxConfig), word: &str| {
        change(&mut config);
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let error = node.cri.run_pod_sandbox(request).unwrap_err();
        assert!(error.message().contains(word), "{error}");
        node.assert_no_pods_left();
        assert_eq!(holders(&node), [""; 0]);
    };
    // At the last step: a setting of an interface that is not there.
    let sysctl = corten_tests::pod::map(&[("net.ipv4.conf.none0.forwarding", "1")]);
    fails(
        &|config| config.linux.as_mut().unwrap().sysctls = sysctl.clone(),
        "none0",
    );
    // Before the first process.
    let conflist = node.dir().join("cni/10-ct.conflist");
    let text = fs::read_to_string(&conflist).unwrap();
    fs::write(&conflist, text.replace("10.88.0.0/16", "no subnet")).unwrap();
    fails(&|_| {}, "network");
}
