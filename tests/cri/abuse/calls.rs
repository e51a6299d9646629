//! Calls that ask for too much.

use std::time::Duration;

use corten_proto::cri;
use corten_proto::cri::image_service_client::ImageServiceClient;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use tonic::Code;

use super::{Watched, client, count, crowd};

/// Processes of a container, its own aside.
fn others(node: &Node, pod: &str) -> usize {
    let directory = corten_tests::cgroup::directory("pids", &format!("/{}", node.marker()));
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let containers = entries.filter(|it| it.path().is_dir() && !it.file_name().to_string_lossy().contains(pod));
    let processes = containers.map(|it| corten_tests::cgroup::all_processes(&it.path()).len().saturating_sub(1));
    processes.sum()
}

#[test]
fn outputs_of_exec_sync_are_bounded_and_their_commands_are_killed_in_time() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let _warm = main.exec(&["head", "-c", "1000000", "/dev/zero"]);
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    let mut calls = Vec::new();
    for number in 0..20 {
        // Two kinds: those that never end, and those whose output would be more than the answer takes.
        let command = ["cat", "head -c 20000000"][number % 2];
        let request = main.exec_request(&["sh", "-c", &format!("{command} /dev/zero; exit 7")], 4);
        let mut client = client(&channel);
        calls.push(executor.spawn(async move { client.exec_sync(request).await }));
    }
    // A probe of somebody else.
    assert_eq!(main.exec_sh("echo healthy"), "healthy\n");
    let (mut killed, mut cut, mut busy) = (0, 0, 0);
    for call in calls {
        match executor.block_on(call).unwrap() {
            Ok(reply) => {
                let reply = reply.into_inner();
                assert!(
                    reply.exit_code == 7 && reply.stdout.len() < 8 << 20,
                    "{}",
                    reply.stdout.len()
                );
                cut += 1;
            }
            Err(status) if status.code() == Code::DeadlineExceeded => killed += 1,
            Err(status) if status.code() == Code::ResourceExhausted => busy += 1,
            Err(status) => panic!("{status}"),
        }
    }
    println!("{killed} killed, {cut} cut, {busy} refused");
    assert!(killed >= 10 && cut + busy == 20 - killed, "{killed} {cut} {busy}");
    watched.end(200, 1);
    assert_eq!(others(&node, &pod.id), 0);
}

#[test]
fn a_storm_of_pods_is_made_or_refused_and_leaves_nothing() {
    let node = Node::start();
    node.run_pod(node.pod_config("first")).remove();
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    // Twice what a connection may have under way. They are refused before anything is made, but for a few.
    let calls: Vec<_> = (0..1100)
        .map(|number| {
            let mut config = node.pod_config(&format!("storm-{number}"));
            if number % 100 != 0 {
                config.hostname = "/".to_owned();
            }
            let request = cri::RunPodSandboxRequest {
                config: Some(config),
                ..Default::default()
            };
            let mut client = client(&channel);
            executor.spawn(async move { client.run_pod_sandbox(request).await })
        })
        .collect();
    let mut codes = std::collections::BTreeMap::<String, usize>::new();
    for call in calls {
        let code = executor
            .block_on(call)
            .unwrap()
            .map_or_else(|status| status.code(), |_pod| Code::Ok);
        *codes.entry(format!("{code:?}")).or_default() += 1;
    }
    println!("{codes:?}");
    assert!(
        codes
            .keys()
            .all(|it| ["Ok", "InvalidArgument", "ResourceExhausted"].contains(&it.as_str()))
    );
    let pods = node
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .unwrap()
        .items;
    for pod in pods {
        let pod_sandbox_id = pod.id;
        node.cri
            .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })
            .unwrap();
    }
    node.assert_no_pods_left();
    watched.end(48, 1);
}

#[test]
fn a_storm_of_pulls_is_one_pull_and_its_failures_are_told() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let (executor, channel) = crowd(&node);
    let watched = Watched::begin(&node);
    let names = [
        BUSYBOX,
        "127.0.0.1:5000/no/such:image",
        "127.0.0.1:1/closed:x",
        "not a name",
        "a:b:c",
    ];
    let calls: Vec<_> = (0..count(200))
        .map(|number| {
            let mut client = ImageServiceClient::new(channel.clone());
            let request = cri::PullImageRequest {
                image: Some(image(names[number % names.len()])),
                ..Default::default()
            };
            executor.spawn(async move { client.pull_image(request).await })
        })
        .collect();
    let mut pulled = 0;
    for call in calls {
        match executor.block_on(call).unwrap() {
            Ok(_image) => pulled += 1,
            Err(status) => assert_ne!(status.code(), Code::Internal, "{status}"),
        }
    }
    assert!(pulled > 0);
    watched.end(48, 1);
}

/// Ten thousand of everything that a container's request can list, one kind at a time.
fn crowded(kind: &str) -> cri::ContainerConfig {
    let names = || (0..10_000).map(|number| format!("k{number}"));
    let mut config = container(kind, &["sleep", "1000"]);
    match kind {
        "labels" => config.labels = names().map(|name| (name, String::new())).collect(),
        "annotations" => config.annotations = names().map(|name| (name, "v".to_owned())).collect(),
        "envs" => {
            config.envs = names()
                .map(|key| cri::KeyValue {
                    key,
                    value: b"v".to_vec(),
                })
                .collect();
        }
        "args" => config.args = names().collect(),
        "mounts" => {
            config.mounts = names()
                .map(|name| cri::Mount {
                    container_path: format!("/{name}"),
                    host_path: "/etc/hostname".to_owned(),
                    readonly: true,
                    ..Default::default()
                })
                .collect();
        }
        "devices" => {
            config.devices = names()
                .map(|name| cri::Device {
                    container_path: format!("/dev/{name}"),
                    host_path: "/dev/null".to_owned(),
                    permissions: "r".to_owned(),
                })
                .collect();
        }
        _ => unreachable!("{kind}"),
    }
    config
}

#[test]
fn ten_thousand_of_everything_are_taken_or_refused() {
    let node = Node::start();
    let pod = node.pod("web");
    let main = pod.start(container("main", &["sleep", "1000"]));
    let watched = Watched::begin(&node);
    for kind in ["labels", "annotations", "envs", "args", "mounts", "devices"] {
        let config = crowded(kind);
        let began = std::time::Instant::now();
        let request = pod.create_request(&config);
        let made = node.cri.within(Duration::from_secs(100)).create_container(request);
        println!(
            "{kind}: {:?} {:?}",
            began.elapsed(),
            made.as_ref().map_err(tonic::Status::message).map(drop)
        );
        match made {
            Ok(reply) => {
                let container_id = reply.container_id;
                let status = cri::ContainerStatusRequest {
                    container_id: container_id.clone(),
                    verbose: true,
                };
                node.cri.container_status(status).unwrap();
                node.cri
                    .remove_container(cri::RemoveContainerRequest { container_id })
                    .unwrap();
            }
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{kind}: {status}"),
        }
        assert_eq!(main.exec_sh("echo healthy"), "healthy\n", "{kind}");
    }
    watched.end(96, 2);
}

#[test]
fn lists_take_any_filter() {
    let node = Node::start();
    let pod = node.pod("web");
    pod.start(container("main", &["sleep", "1000"]));
    let watched = Watched::begin(&node);
    let long = "x".repeat(256 << 10);
    let odd = [
        "",
        ".",
        "..",
        "/",
        "../..",
        "\n",
        "\u{1b}[2J",
        "%s%n",
        "*",
        "' OR 1=1",
        &long,
        &pod.id,
    ];
    for text in odd {
        let labels: std::collections::HashMap<_, _> = [(text.to_owned(), text.to_owned())].into();
        for state in [0, 1, 7, -1, i32::MAX] {
            let filter = cri::PodSandboxFilter {
                id: text.to_owned(),
                state: Some(cri::PodSandboxStateValue { state }),
                label_selector: labels.clone(),
            };
            let found = node
                .cri
                .list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) });
            assert!(found.unwrap().items.is_empty(), "{text:?}");
            let filter = cri::ContainerFilter {
                id: text.to_owned(),
                pod_sandbox_id: text.to_owned(),
                state: Some(cri::ContainerStateValue { state }),
                label_selector: labels.clone(),
            };
            let found = node
                .cri
                .list_containers(cri::ListContainersRequest { filter: Some(filter) });
            assert!(found.unwrap().containers.is_empty(), "{text:?}");
        }
        let stats = cri::ContainerStatsFilter {
            id: text.to_owned(),
            pod_sandbox_id: String::new(),
            label_selector: labels,
        };
        let stats = node
            .cri
            .list_container_stats(cri::ListContainerStatsRequest { filter: Some(stats) });
        assert!(stats.unwrap().stats.is_empty(), "{text:?}");
    }
    watched.end(32, 1);
}
