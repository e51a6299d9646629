//! Strings of requests that are not what they should be: NUL bytes, line breaks, escapes, path separators and a megabyte of
//! anything, in every field that becomes a path, a file, a setting or a line of something. Each is refused with the field's
//! name, or harmless; nothing is left, and the node's own files and settings are as before.

use std::fs;
use std::path::Path;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{container, map};
use tonic::Code;

type PodChange = fn(&mut cri::PodSandboxConfig, &str);
type ContainerChange = fn(&mut cri::ContainerConfig, &str);

fn metadata(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
    config.metadata.as_mut().unwrap()
}

fn dns(config: &mut cri::PodSandboxConfig) -> &mut cri::DnsConfig {
    config.dns_config.get_or_insert_default()
}

fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

/// A pod's fields, and the field that a refusal names.
const POD: &[(&str, PodChange)] = &[
    ("metadata.name", |c, text| metadata(c).name = text.into()),
    ("metadata.namespace", |c, text| metadata(c).namespace = text.into()),
    ("metadata.uid", |c, text| metadata(c).uid = text.into()),
    ("hostname", |c, text| c.hostname = text.into()),
    ("log_directory", |c, text| c.log_directory = format!("logs/{text}")),
    ("log_directory", |c, text| {
        c.log_directory = format!("/var/log/../../{text}")
    }),
    ("dns_config.servers", |c, text| {
        dns(c).servers = vec![format!("1.1.1.1\n{text}")]
    }),
    ("dns_config.searches", |c, text| {
        dns(c).searches = vec![format!("a\r{text}")]
    }),
    ("dns_config.options", |c, text| {
        dns(c).options = vec![format!("a {text}")]
    }),
    ("linux.cgroup_parent", |c, text| {
        linux(c).cgroup_parent = format!("/a/../..{text}/..")
    }),
    ("linux.sysctls", |c, text| linux(c).sysctls = map(&[(text, "1")])),
    ("linux.sysctls", |c, text| {
        linux(c).sysctls = map(&[("net/../kernel/core_pattern", text)])
    }),
    ("linux.sysctls", |c, text| {
        linux(c).sysctls = map(&[("kernel.shm_rmid_forced", &format!("1\n{text}"))]);
    }),
    ("port_mappings[0].host_ip", |c, text| {
        c.port_mappings = vec![cri::PortMapping {
            container_port: 80,
            host_port: 80,
            host_ip: format!("127.0.0.1;{text}"),
            ..Default::default()
        }];
    }),
];

const CONTAINER: &[(&str, ContainerChange)] = &[
    ("metadata.name", |c, text| {
        c.metadata.as_mut().unwrap().name = text.into()
    }),
    ("image.image", |c, text| {
        c.image.as_mut().unwrap().image = format!("{text}/../{text}")
    }),
    ("log_path", |c, text| c.log_path = format!("../{text}")),
    ("log_path", |c, text| c.log_path = format!("/var/log/{text}")),
    ("log_path", |c, text| c.log_path = format!("main/../../../{text}")),
    ("working_dir", |c, text| c.working_dir = format!("a/{text}")),
    ("envs[0]", |c, text| {
        c.envs = vec![cri::KeyValue {
            key: format!("A=B{text}"),
            value: Vec::new(),
        }];
    }),
    ("envs[0]", |c, text| {
        c.envs = vec![cri::KeyValue {
            key: "A".into(),
            value: format!("\0{text}").into(),
        }];
    }),
    ("mounts[0].container_path", |c, text| {
        c.mounts = vec![cri::Mount {
            container_path: format!("a/{text}"),
            host_path: "/etc".into(),
            ..Default::default()
        }];
    }),
    ("mounts[0].host_path", |c, text| {
        c.mounts = vec![cri::Mount {
            container_path: "/a".into(),
            host_path: format!("../{text}"),
            ..Default::default()
        }];
    }),
    ("annotations", |c, text| c.annotations = map(&[("cdi.k8s.io/x", text)])),
    ("CDI_devices[0].name", |c, text| {
        c.cdi_devices = vec![cri::CdiDevice { name: text.into() }];
    }),
    ("stop_signal", |c, text| {
        c.stop_signal = i32::try_from(text.len()).unwrap() + 1000
    }),
];

/// Harmless in no field of the tables.
fn texts() -> Vec<String> {
    let short = [
        "a\0b",
        "a\nnameserver 6.6.6.6",
        "\u{1b}[2J/",
        "../../etc/\u{7f}",
        "\r\n/",
        "\u{85}/\t",
    ];
    let mut all: Vec<String> = short.map(str::to_owned).into();
    all.push(format!("{}/", "x".repeat(1 << 20)));
    all
}

/// The node's files and settings that such strings have changed elsewhere.
fn tripwire(node: &Node) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let names = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        format!("{names:?}")
    };
    let settings = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/shm_rmid_forced",
        "/proc/sys/kernel/modprobe",
    ];
    let files = [
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/hostname",
        "/proc/sys/kernel/hostname",
    ];
    let texts: Vec<_> = settings.into_iter().chain(files).map(read).collect();
    let directories = [
        Path::new("/etc"),
        Path::new("/var/log"),
        node.dir(),
        &node.dir().join("logs"),
    ];
    format!("{texts:?} {:?}", directories.map(names))
}

#[track_caller]
fn assert_refused(field: &str, text: &str, status: &tonic::Status) {
    let shown = &text[..text.floor_char_boundary(20)];
    let code = status.code();
    assert!(
        code == Code::InvalidArgument || code == Code::NotFound,
        "{field} {shown:?}: {code:?} {}",
        status.message()
    );
    // An abbreviated field is the longer one's beginning.
    let names_it = status.message().contains(field) || code == Code::NotFound;
    assert!(names_it, "{field} {shown:?}: {}", status.message());
    let is_printable = !status.message().contains(['\0', '\n', '\r', '\u{1b}']);
    assert!(
        is_printable && status.message().len() < 5000,
        "{field} {shown:?}: {:?}",
        status.message()
    );
}

#[test]
fn a_pod_s_hostile_strings_are_refused_by_the_field_s_name() {
    let node = Node::start();
    let before = tripwire(&node);
    for (field, change) in POD {
        for text in texts() {
            let mut config = node.pod_config("hostile");
            change(&mut config, &text);
            let request = cri::RunPodSandboxRequest {
                config: Some(config),
                ..Default::default()
            };
            let status = node.cri.run_pod_sandbox(request).expect_err(field);
            assert_refused(field, &text, &status);
        }
    }
    assert_eq!(tripwire(&node), before);
    node.assert_no_pods_left();
}

#[test]
fn a_container_s_hostile_strings_are_refused_by_the_field_s_name() {
    let node = Node::start();
    let pod = node.pod("web");
    let before = tripwire(&node);
    for (field, change) in CONTAINER {
        for text in texts() {
            let mut config = container("main", &["sleep", "1000"]);
            change(&mut config, &text);
            let status = node.cri.create_container(pod.create_request(&config)).expect_err(field);
            assert_refused(field, &text, &status);
        }
    }
    assert_eq!(tripwire(&node), before);
    let containers = node
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .unwrap()
        .containers;
    assert!(containers.is_empty(), "{containers:?}");
}

#[test]
fn an_id_is_no_path_whatever_call_it_comes_with() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let before = tripwire(&node);
    let mut ids = texts();
    ids.extend(["", "..", ".", "/", "../web", "*", "%00"].map(str::to_owned));
    ids.push(format!("../containers/{}", main.id));
    ids.push(format!("{}/", pod.id));
    for id in ids {
        let cri = &node.cri;
        let answers = [
            cri.container_status(cri::ContainerStatusRequest {
                container_id: id.clone(),
                verbose: true,
            })
            .map(drop),
            cri.pod_sandbox_status(cri::PodSandboxStatusRequest {
                pod_sandbox_id: id.clone(),
                verbose: true,
            })
            .map(drop),
            cri.start_container(cri::StartContainerRequest {
                container_id: id.clone(),
            })
            .map(drop),
            cri.exec_sync(cri::ExecSyncRequest {
                container_id: id.clone(),
                cmd: vec!["x".into()],
                timeout: 1,
            })
            .map(drop),
            cri.reopen_container_log(cri::ReopenContainerLogRequest {
                container_id: id.clone(),
            })
            .map(drop),
            cri.container_stats(cri::ContainerStatsRequest {
                container_id: id.clone(),
            })
            .map(drop),
        ];
        for answer in answers {
            assert_refused("", &id, &answer.expect_err(&id));
        }
        // These succeed for what is not there, and must not remove what is.
        drop(cri.remove_container(cri::RemoveContainerRequest {
            container_id: id.clone(),
        }));
        drop(cri.remove_pod_sandbox(cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.clone(),
        }));
        drop(cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id }));
    }
    assert_eq!(main.exec_sh("echo still here"), "still here\n");
    assert_eq!(tripwire(&node), before);
}

/// Labels and annotations may hold anything: they are shown as they came, and end up in no line of anything.
#[test]
fn labels_are_data_and_break_out_of_nothing() {
    let node = Node::start();
    let pairs = map(&[
        ("a\nb", "c\0d"),
        ("\u{1b}[2J", "\u{7f}"),
        ("../..", "/"),
        ("", "\"},{\""),
    ]);
    let mut config = node.pod_config("labels");
    (config.labels, config.annotations) = (pairs.clone(), pairs.clone());
    node.pull(corten_tests::node::BUSYBOX);
    let pod = node.run_pod(config);
    let mut asked = container("main", &["sleep", "1000"]);
    (asked.labels, asked.annotations) = (pairs.clone(), pairs.clone());
    let main = pod.start(asked);
    assert_eq!(
        (pod.status().labels, main.status().annotations),
        (pairs.clone(), pairs.clone())
    );
    node.kill_server();
    node.launch().unwrap();
    assert_eq!((pod.status().annotations, main.status().labels), (pairs.clone(), pairs));
    let escapes = node.server_log().contains(['\0', '\u{1b}']);
    assert!(!escapes, "{}", node.server_log());
}

/// A directory on the way to a log that leads elsewhere: the log directory belongs to whoever can mount /var/log.
#[test]
fn a_log_is_written_through_no_link() {
    let node = Node::start();
    let pod = node.pod("web");
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let logs = Path::new(&pod.config.log_directory);
    fs::create_dir_all(logs).unwrap();
    std::os::unix::fs::symlink(&outside, logs.join("main")).unwrap();
    let made = node
        .cri
        .create_container(pod.create_request(&container("main", &["echo", "x"])));
    let status = made.expect_err("the log's directory is a link");
    assert!(status.message().contains("main"), "{status}");
    fs::write(outside.join("victim"), "kept").unwrap();
    std::os::unix::fs::symlink(outside.join("victim"), logs.join("file.log")).unwrap();
    let mut config = container("file", &["echo", "x"]);
    config.log_path = "file.log".to_owned();
    let made = node.cri.create_container(pod.create_request(&config));
    assert!(made.is_err(), "the log is a link");
    let names: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["victim"]);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "kept");
}
