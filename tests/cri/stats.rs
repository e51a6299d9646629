//! ContainerStats, PodSandboxStats, their lists and their streams.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use corten_proto::cri;
use corten_tests::cgroup;
use corten_tests::leak;
use corten_tests::node::Node;
use corten_tests::pod::{Container, Pod, container, map};
use tonic::Code;

/// Keeps 16 MiB of memory and a processor.
const BURN: &str = "x=$(head -c 16000000 /dev/zero | tr '\\0' x); echo held; while :; do :; done";

/// Longest that numbers may lag behind: a round of the accounts of writable layers.
const LAG: Duration = Duration::from_secs(40);

fn stats(node: &Node, container: &Container<'_>) -> cri::ContainerStats {
    let container_id = container.id.clone();
    let reply = node.cri.container_stats(cri::ContainerStatsRequest { container_id });
    reply.expect("ContainerStats").stats.expect("stats")
}

fn pod_stats(node: &Node, pod: &Pod<'_>) -> cri::PodSandboxStats {
    let pod_sandbox_id = pod.id.clone();
    let reply = node
        .cri
        .pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id });
    reply.expect("PodSandboxStats").stats.expect("stats")
}

fn linux(stats: &cri::PodSandboxStats) -> &cri::LinuxPodSandboxStats {
    stats.linux.as_ref().expect("a pod on Linux")
}

/// The ids that ListContainerStats gives, in its order.
fn listed(node: &Node, filter: Option<cri::ContainerStatsFilter>) -> Vec<String> {
    let reply = node.cri.list_container_stats(cri::ListContainerStatsRequest { filter });
    let ids = reply.expect("ListContainerStats").stats.into_iter();
    ids.map(|stats| stats.attributes.expect("attributes").id).collect()
}

/// The same of ListPodSandboxStats.
fn listed_pods(node: &Node, filter: Option<cri::PodSandboxStatsFilter>) -> Vec<String> {
    let reply = node
        .cri
        .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter });
    let ids = reply.expect("ListPodSandboxStats").stats.into_iter();
    ids.map(|stats| stats.attributes.expect("attributes").id).collect()
}

/// A number that must be known.
#[track_caller]
fn known(value: Option<cri::UInt64Value>) -> u64 {
    value.expect("a number").value
}

/// A container with these limits.
fn limited(name: &str, script: &str, resources: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut config = container(name, &["sh", "-c", script]);
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

#[track_caller]
fn assert_recent(timestamp: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let at = Duration::from_nanos(timestamp.try_into().expect("after 1970"));
    let age = now.checked_sub(at).expect("not in the future");
    assert!(age < LAG, "{age:?} old");
}

#[test]
fn what_a_container_uses() {
    let node = Node::start();
    let pod = node.pod("work");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        ..Default::default()
    };
    let mut config = limited("burn", BURN, resources);
    config.labels = map(&[("app", "burn")]);
    config.annotations = map(&[("hash", "c0ffee\n")]);
    let burn = pod.start(config);
    let idle = pod.sh("idle", "sleep 1000");
    burn.wait_output("held");

    let first = stats(&node, &burn);
    let attributes = first.attributes.as_ref().unwrap();
    assert_eq!(attributes.id, burn.id);
    assert_eq!(attributes.metadata, burn.config.metadata);
    assert_eq!(
        (&attributes.labels, &attributes.annotations),
        (&burn.config.labels, &burn.config.annotations)
    );

    let memory = first.memory.as_ref().unwrap();
    assert_recent(memory.timestamp);
    let (working_set, usage) = (known(memory.working_set_bytes), known(memory.usage_bytes));
    assert!(
        16_000_000 <= working_set && working_set <= usage && usage <= 256 << 20,
        "{memory:?}"
    );
    assert!(known(memory.rss_bytes) >= 16_000_000, "{memory:?}");
    assert_eq!(known(memory.available_bytes), (256 << 20) - working_set);
    assert!(
        known(memory.page_faults) > 1000 && memory.major_page_faults.is_some(),
        "{memory:?}"
    );

    let cpu = first.cpu.as_ref().unwrap();
    assert_recent(cpu.timestamp);
    let used = known(cpu.usage_core_nano_seconds);
    assert!(
        used > 0 && known(cpu.usage_nano_cores) > 0,
        "the first call has a rate, too: {cpu:?}"
    );
    thread::sleep(Duration::from_millis(1100));
    let later = stats(&node, &burn).cpu.unwrap();
    assert!(
        known(later.usage_core_nano_seconds) > used && later.timestamp > cpu.timestamp,
        "{later:?}"
    );
    assert!(known(later.usage_nano_cores) > 10_000_000, "it burns: {later:?}");

    let idle = stats(&node, &idle);
    let memory = idle.memory.unwrap();
    assert!(known(memory.working_set_bytes) < 16_000_000, "{memory:?}");
    assert_eq!(memory.available_bytes, None, "there is no limit");
    assert!(known(idle.cpu.unwrap().usage_core_nano_seconds) < known(later.usage_core_nano_seconds));
    assert_eq!(first.io.is_some(), cgroup::unified(), "pressure is v2's");
}

#[test]
fn what_a_container_writes() {
    let node = Node::start();
    let pod = node.pod("write");
    let writer = pod.sh(
        "writer",
        "head -c 3000000 /dev/urandom > /data; sync; echo written; exec sleep 1000",
    );
    writer.wait_output("written");
    let deadline = Instant::now() + LAG;
    let layer = loop {
        // A round of the accounts may just have come by before it was written.
        let layer = stats(&node, &writer).writable_layer;
        match layer {
            Some(layer) if known(layer.used_bytes) >= 3_000_000 => break layer,
            layer => assert!(Instant::now() < deadline, "{layer:?}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    assert_recent(layer.timestamp);
    assert!(
        known(layer.used_bytes) < 4_000_000 && (2..20).contains(&known(layer.inodes_used)),
        "{layer:?}"
    );
    let mountpoint = layer.fs_id.as_ref().unwrap().mountpoint.clone();
    assert!(node.dir().starts_with(&mountpoint), "{mountpoint}");
    let info = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).unwrap();
    let of_containers = info.container_filesystems[0].fs_id.as_ref().unwrap();
    assert_eq!(
        of_containers.mountpoint, mountpoint,
        "the kubelet takes it for the same filesystem"
    );

    writer.stop(0);
    writer.wait_exit();
    let ended = stats(&node, &writer);
    assert!(known(ended.writable_layer.unwrap().used_bytes) >= 3_000_000);
    assert_eq!(
        (ended.cpu, ended.memory, ended.swap, ended.io),
        (None, None, None, None)
    );
    assert_eq!(ended.attributes.unwrap().id, writer.id);
    assert_eq!(listed(&node, None), [writer.id.as_str()], "it is listed still");
}

#[test]
fn filters_and_unknown_ids() {
    let node = Node::start();
    let (one, two) = (node.pod("one"), node.pod("two"));
    let mut config = container("a", &["sleep", "1000"]);
    config.labels = map(&[("tier", "front"), ("x", "1")]);
    let a = one.start(config);
    let b = one.create(container("b", &["sleep", "1000"]));
    let c = two.sh("c", "sleep 1000");
    let all = [&a, &b, &c].map(|container| container.id.clone());

    let filter = |change: fn(&mut cri::ContainerStatsFilter, &str), value: &str| {
        let mut filter = cri::ContainerStatsFilter::default();
        change(&mut filter, value);
        listed(&node, Some(filter))
    };
    assert_eq!(listed(&node, None), all, "oldest first");
    assert_eq!(filter(|filter, id| filter.id = id.to_owned(), &a.id[..20]), all[..1]);
    assert_eq!(
        filter(|filter, id| filter.pod_sandbox_id = id.to_owned(), &one.id),
        all[..2]
    );
    let by_label = |filter: &mut cri::ContainerStatsFilter, value: &str| {
        filter.label_selector = map(&[("tier", value)]);
    };
    assert_eq!(filter(by_label, "front"), all[..1]);
    assert!(filter(by_label, "back").is_empty());
    assert!(filter(|filter, id| filter.id = id.to_owned(), "0123456789").is_empty());

    let pods = [&one, &two].map(|pod| pod.id.clone());
    let by_id = |id: &str| cri::PodSandboxStatsFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    let by_label = |app: &str| cri::PodSandboxStatsFilter {
        label_selector: map(&[("app", app)]),
        ..Default::default()
    };
    assert_eq!(listed_pods(&node, None), pods);
    assert_eq!(listed_pods(&node, Some(by_id(&two.id))), pods[1..]);
    assert_eq!(listed_pods(&node, Some(by_label("one"))), pods[..1]);
    assert!(listed_pods(&node, Some(by_label("three"))).is_empty());

    let created = stats(&node, &b);
    assert!(created.memory.is_some(), "its init waits for the start: {created:?}");
    for id in ["", "0123456789"] {
        let container_id = id.to_owned();
        let error = node
            .cri
            .container_stats(cri::ContainerStatsRequest { container_id })
            .unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{id:?}: {error}");
        let pod_sandbox_id = id.to_owned();
        let error = node
            .cri
            .pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id })
            .unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{id:?}: {error}");
    }
}

#[test]
fn a_pod_is_its_containers_together() {
    let node = Node::start();
    let pod = node.pod("pod");
    let burn = pod.sh("burn", BURN);
    burn.wait_output("held");
    let idle = pod.sh("idle", "sleep 1000 & sleep 1000 & echo two; wait");
    idle.wait_output("two");
    let found = pod_stats(&node, &pod);
    let attributes = found.attributes.as_ref().unwrap();
    assert_eq!((&attributes.id, &attributes.metadata), (&pod.id, &pod.config.metadata));
    assert_eq!(attributes.labels, pod.config.labels);
    let linux = linux(&found);
    let containers: Vec<&str> = linux
        .containers
        .iter()
        .map(|it| it.attributes.as_ref().unwrap().id.as_str())
        .collect();
    assert_eq!(containers, [burn.id.as_str(), idle.id.as_str()]);
    let cpu = |stats: &cri::ContainerStats| known(stats.cpu.as_ref().unwrap().usage_core_nano_seconds);
    let memory = |stats: &cri::ContainerStats| known(stats.memory.as_ref().unwrap().usage_bytes);
    let pod_cpu = linux.cpu.as_ref().unwrap();
    assert!(
        known(pod_cpu.usage_core_nano_seconds) >= linux.containers.iter().map(cpu).sum(),
        "{linux:?}"
    );
    assert!(known(pod_cpu.usage_nano_cores) > 0, "{linux:?}");
    let pod_memory = linux.memory.as_ref().unwrap();
    assert!(
        known(pod_memory.usage_bytes) >= linux.containers.iter().map(memory).sum(),
        "{linux:?}"
    );
    // One infra container, one shell, and another with two children.
    assert_eq!(known(linux.process.as_ref().unwrap().process_count), 1 + 1 + 3);
    assert_recent(linux.process.as_ref().unwrap().timestamp);
}

#[test]
fn the_network_of_a_pod() {
    let node = Node::start();
    let pod = node.pod("net");
    let container = pod.sh("main", "sleep 1000");
    let network = |pod: &Pod<'_>| linux(&pod_stats(&node, pod)).network.clone();
    let before = network(&pod).expect("a network");
    assert_recent(before.timestamp);
    assert!(
        before.interfaces.is_empty(),
        "neither loopback nor eth0 again: {before:?}"
    );
    // Nobody listens there: what comes back counts all the same.
    container.exec_sh("for i in 1 2 3 4 5; do wget -q -O- http://10.88.0.1:9/; done; true");
    let after = network(&pod).expect("a network").default_interface.expect("eth0");
    let before = before.default_interface.expect("eth0");
    assert_eq!(after.name, "eth0");
    assert!(known(after.rx_bytes) > known(before.rx_bytes), "{before:?} {after:?}");
    assert!(known(after.tx_bytes) > known(before.tx_bytes), "{before:?} {after:?}");
    assert_eq!((known(after.rx_errors), known(after.tx_errors)), (0, 0));

    let mut config = node.pod_config("host");
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let options = context.and_then(|context| context.namespace_options.as_mut()).unwrap();
    options.network = cri::NamespaceMode::Node.into();
    assert_eq!(
        network(&node.run_pod(config)),
        None,
        "the node's interfaces are not a pod's"
    );
}

#[test]
fn a_pod_with_a_cgroup_of_its_own() {
    let node = Node::start();
    let mut config = node.pod_config("own");
    let uid = config.metadata.as_ref().unwrap().uid.clone();
    let parent = format!("/{}/pod{uid}", node.marker());
    config.linux.as_mut().unwrap().cgroup_parent.clone_from(&parent);
    let pod = node.run_pod(config);
    node.pull(corten_tests::node::BUSYBOX);
    let burn = pod.sh("burn", BURN);
    burn.wait_output("held");
    let file = if cgroup::unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    std::fs::write(cgroup::directory("memory", &parent).join(file), "268435456").expect("the kubelet's limit");
    let found = pod_stats(&node, &pod);
    let memory = linux(&found).memory.as_ref().unwrap();
    assert_eq!(
        known(memory.available_bytes),
        (256 << 20) - known(memory.working_set_bytes),
        "the pod's limit"
    );
    assert!(known(memory.rss_bytes) >= 16_000_000, "{memory:?}");
    burn.stop(0);
    burn.remove();
    let found = pod_stats(&node, &pod);
    let cpu = linux(&found).cpu.as_ref().unwrap();
    assert!(
        known(cpu.usage_core_nano_seconds) > 10_000_000,
        "what has gone still counts: {cpu:?}"
    );
    pod.stop();
    pod.remove();
    leak::remove_cgroup(&parent);
}

#[test]
fn a_pod_that_has_ended() {
    let node = Node::start();
    let pod = node.pod("ended");
    let container = pod.sh("main", "sleep 1000");
    pod.stop();
    let found = pod_stats(&node, &pod);
    let linux = linux(&found);
    assert_eq!((&linux.cpu, &linux.memory, &linux.network), (&None, &None, &None));
    assert_eq!(linux.process, None, "{linux:?}");
    assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, container.id);
    assert_eq!(listed_pods(&node, None), [pod.id.as_str()]);
    pod.remove();
    let pod_sandbox_id = pod.id.clone();
    let error = node
        .cri
        .pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id })
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[test]
fn streams_say_what_the_lists_say() {
    let node = Node::start();
    let containers = || {
        node.cri
            .stream_container_stats(cri::StreamContainerStatsRequest::default())
    };
    let pods = || {
        node.cri
            .stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())
    };
    assert_eq!(
        containers().expect("StreamContainerStats"),
        None,
        "no message for nothing"
    );
    assert_eq!(pods().expect("StreamPodSandboxStats"), None);
    let pod = node.pod("stream");
    for name in ["a", "b", "c"] {
        pod.sh(name, "sleep 1000");
    }
    let streamed = containers()
        .expect("StreamContainerStats")
        .expect("a message")
        .container_stats;
    assert!(
        streamed
            .iter()
            .all(|stats| stats.cpu.is_some() && stats.memory.is_some())
    );
    let ids: Vec<_> = streamed.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!((ids.len(), ids), (3, listed(&node, None)));
    let streamed = pods()
        .expect("StreamPodSandboxStats")
        .expect("a message")
        .pod_sandbox_stats;
    assert_eq!(linux(&streamed[0]).containers.len(), 3);
    let ids: Vec<_> = streamed.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(ids, listed_pods(&node, None));
}

#[test]
fn lists_while_containers_come_and_go() {
    let node = Node::start();
    let pod = node.pod("churn");
    let stays = pod.sh("stays", "sleep 1000");
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for round in 0..8 {
                let container = pod.sh(&format!("c{round}"), "exit 0");
                container.wait_exit();
                container.remove();
            }
        });
        let mut looks = 0;
        while !churn.is_finished() || looks == 0 {
            assert!(listed(&node, None).contains(&stays.id));
            assert_eq!(listed_pods(&node, None), [pod.id.as_str()]);
            let metrics = node
                .cri
                .list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})
                .expect("metrics");
            assert_eq!(metrics.pod_metrics.len(), 1);
            looks += 1;
        }
    });
}
