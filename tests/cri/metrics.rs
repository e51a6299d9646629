//! ListMetricDescriptors, ListPodSandboxMetrics and its stream: cAdvisor's names and labels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use corten_proto::cri;
use corten_tests::cgroup;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, container};

/// What has no value on v1: the kernel keeps no pressure there.
const PRESSURE: [&str; 6] = [
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
];

fn descriptors(node: &Node) -> BTreeMap<String, cri::MetricDescriptor> {
    let reply = node.cri.list_metric_descriptors(cri::ListMetricDescriptorsRequest {});
    let all = reply.expect("ListMetricDescriptors").descriptors.into_iter();
    all.map(|descriptor| (descriptor.name.clone(), descriptor)).collect()
}

fn metrics(node: &Node) -> Vec<cri::PodSandboxMetrics> {
    let reply = node.cri.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {});
    reply.expect("ListPodSandboxMetrics").pod_metrics
}

/// All of a pod, with its containers'.
fn all_of(pod: &cri::PodSandboxMetrics) -> impl Iterator<Item = &cri::Metric> {
    let containers = pod.container_metrics.iter().flat_map(|container| &container.metrics);
    pod.metrics.iter().chain(containers)
}

/// The value of a container's metric that has one.
#[track_caller]
fn value(metrics: &[cri::PodSandboxMetrics], container: &Container<'_>, name: &str) -> u64 {
    let mut containers = metrics.iter().flat_map(|pod| &pod.container_metrics);
    let found = containers
        .find(|found| found.container_id == container.id)
        .expect("its metrics");
    let mut named = found.metrics.iter().filter(|metric| metric.name == name);
    let metric = named.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(named.next().is_none(), "{name} is there twice");
    metric.value.expect("a value").value
}

/// Names without a value on this machine: where there are controllers for huge pages depends on the kernel.
fn absent(cgroup_of: &str) -> BTreeSet<String> {
    let mut absent = BTreeSet::new();
    if !cgroup::unified() {
        absent.extend(PRESSURE.map(str::to_owned));
    }
    let has = |text: &str| {
        let directory = cgroup::directory("hugetlb", cgroup_of);
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names: Vec<String> = files
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect();
        names
            .iter()
            .any(|name| name.starts_with("hugetlb.") && name.ends_with(text))
    };
    if !has(".usage_in_bytes") && !has(".current") {
        absent.insert("container_hugetlb_usage_bytes".to_owned());
    }
    if !has(".max_usage_in_bytes") {
        absent.insert("container_hugetlb_max_usage_bytes".to_owned());
    }
    absent
}

/// Two processes, one of which has a socket, on port 8080.
const WORK: &str = "httpd -f -p 8080 & exec sleep 1000";

fn limited() -> cri::ContainerConfig {
    let mut config = container("main", &["sh", "-c", WORK]);
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    });
    config
}

#[test]
fn every_metric_has_its_descriptors_labels() {
    let node = Node::start();
    let descriptors = descriptors(&node);
    assert_eq!(descriptors.len(), 56, "{:?}", descriptors.keys());
    for descriptor in descriptors.values() {
        assert!(!descriptor.help.is_empty(), "{descriptor:?}");
        let common = ["container", "id", "image", "name", "namespace", "pod"];
        assert_eq!(descriptor.label_keys[..6], common, "{descriptor:?}");
    }
    let pod = node.pod("labels");
    let main = pod.start(limited());
    let found = metrics(&node);
    let mut seen = BTreeSet::new();
    for metric in all_of(&found[0]) {
        let descriptor = descriptors
            .get(&metric.name)
            .unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
        assert!(
            metric.timestamp > 1_600_000_000_000_000_000 && metric.value.is_some(),
            "{metric:?}"
        );
        let counts = metric.name.ends_with("_total") || metric.name == "container_memory_failcnt";
        let counts = counts && metric.name != "container_fs_inodes_total";
        assert_eq!(metric.metric_type() == cri::MetricType::Counter, counts, "{metric:?}");
        seen.insert(metric.name.clone());
    }
    let own = format!("/{}/{}", node.marker(), main.id);
    let missing: BTreeSet<String> = descriptors
        .keys()
        .filter(|name| !seen.contains(*name))
        .cloned()
        .collect();
    assert_eq!(missing, absent(&own));

    let of_container = &found[0].container_metrics[0];
    assert_eq!(
        (&found[0].pod_sandbox_id, &of_container.container_id),
        (&pod.id, &main.id)
    );
    let labels = ["main", &own, BUSYBOX, &main.id, "default", "labels"];
    assert!(
        of_container
            .metrics
            .iter()
            .all(|metric| metric.label_values[..6] == labels),
        "{of_container:?}"
    );
    let of_pod = &found[0].metrics;
    assert!(
        of_pod
            .iter()
            .all(|metric| metric.label_values[0].is_empty() && metric.label_values[5] == "labels")
    );
}

#[test]
fn values_are_those_of_the_container() {
    let node = Node::start();
    let pod = node.pod("values");
    let main = pod.start(limited());
    let plain = pod.sh("plain", "sleep 1000");
    main.exec_sh("until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done");
    let found = metrics(&node);
    let table = [
        ("container_spec_memory_limit_bytes", 128 << 20),
        ("container_spec_cpu_quota", 50_000),
        ("container_spec_cpu_period", 100_000),
        ("container_processes", 2),
        ("container_threads", 2),
        ("container_oom_events_total", 0),
        ("container_sockets", 1),
    ];
    for (name, expected) in table {
        assert_eq!(value(&found, &main, name), expected, "{name}");
    }
    // A v2 weight is a whole number, which stands for several shares.
    assert!(value(&found, &main, "container_spec_cpu_shares").abs_diff(512) < 12);
    assert!(
        value(&found, &main, "container_file_descriptors") >= 4,
        "three of each but for those of httpd"
    );
    assert!(value(&found, &main, "container_memory_usage_bytes") > 0);
    let limit = std::fs::read_to_string(format!("/proc/{}/limits", main.pid())).unwrap();
    let limit = limit
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let limit = limit.split_ascii_whitespace().next().unwrap();
    assert_eq!(value(&found, &main, "container_ulimits_soft").to_string(), limit);
    let started = u64::try_from(main.status().started_at).unwrap() / 1_000_000_000;
    assert_eq!(value(&found, &main, "container_start_time_seconds"), started);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(now - value(&found, &main, "container_last_seen") < 60);
    assert_eq!(
        value(&found, &plain, "container_spec_memory_limit_bytes"),
        0,
        "no limit"
    );
    let inodes = ["container_fs_inodes_total", "container_fs_inodes_free"].map(|name| value(&found, &plain, name));
    assert!(inodes[0] >= inodes[1] && value(&found, &plain, "container_fs_limit_bytes") > 1 << 20);
    assert!(value(&found, &plain, "container_fs_usage_bytes") < 1 << 20);
}

#[test]
fn pods_of_all_kinds() {
    let node = Node::start();
    let stream = || {
        node.cri
            .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})
    };
    assert_eq!(
        stream().expect("StreamPodSandboxMetrics"),
        None,
        "no message for nothing"
    );
    assert!(metrics(&node).is_empty());
    let ready = node.pod("ready");
    ready.create(container("created", &["true"]));
    let ended = ready.sh("ended", "exit 0");
    ended.wait_exit();
    let stopped = node.pod("stopped");
    stopped.stop();
    let mut config = node.pod_config("host");
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let options = context.and_then(|context| context.namespace_options.as_mut()).unwrap();
    options.network = cri::NamespaceMode::Node.into();
    let host = node.run_pod(config);

    let found = metrics(&node);
    let ids: Vec<&str> = found.iter().map(|pod| pod.pod_sandbox_id.as_str()).collect();
    assert_eq!(
        ids,
        [ready.id.as_str(), host.id.as_str()],
        "those that are ready, oldest first"
    );
    assert!(
        found.iter().all(|pod| pod.container_metrics.is_empty()),
        "none of the containers runs"
    );
    let interfaces = |pod: &cri::PodSandboxMetrics| {
        let of_network = pod
            .metrics
            .iter()
            .filter(|metric| metric.name.starts_with("container_network_"));
        let named = of_network.map(|metric| metric.label_values.last().unwrap().clone());
        named.collect::<Vec<_>>()
    };
    assert_eq!(interfaces(&found[0]), ["eth0"; 8], "each of the eight once");
    assert!(interfaces(&found[1]).is_empty(), "the node's are not the pod's");

    let streamed = stream()
        .expect("StreamPodSandboxMetrics")
        .expect("a message")
        .pod_sandbox_metrics;
    let names = |pods: &[cri::PodSandboxMetrics]| -> Vec<(String, Vec<String>)> {
        let names = |pod: &cri::PodSandboxMetrics| all_of(pod).map(|metric| metric.name.clone()).collect();
        pods.iter()
            .map(|pod| (pod.pod_sandbox_id.clone(), names(pod)))
            .collect()
    };
    assert_eq!(names(&streamed), names(&found));
}
