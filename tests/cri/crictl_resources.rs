//! crictl's commands that show or change what pods and containers use.

use corten_tests::node::Node;
use serde_json::Value;

/// A number that protobuf's JSON has in quotes, of an optional field.
#[track_caller]
fn number(value: &Value) -> u64 {
    let text = value["value"].as_str().unwrap_or_else(|| panic!("no value: {value}"));
    text.parse().unwrap_or_else(|_| panic!("no number: {value}"))
}

#[test]
fn update() {
    let node = Node::start();
    let pod = node.pod("update");
    let main = pod.sh("main", "sleep 1000");
    let limits = [
        "--cpu-period",
        "100000",
        "--cpu-quota",
        "50000",
        "--cpu-share",
        "512",
        "--memory",
        "67108864",
    ];
    let printed = node.crictl(&[&["update"][..], &limits, &[main.id.as_str()]].concat());
    assert_eq!(printed.trim(), main.id);
    let inspected = node.crictl_json(&["inspect", &main.id]);
    let linux = &inspected["status"]["resources"]["linux"];
    assert_eq!(linux["cpuPeriod"], "100000", "{linux}");
    assert_eq!(linux["cpuQuota"], "50000", "{linux}");
    assert_eq!(linux["cpuShares"], "512", "{linux}");
    assert_eq!(linux["memoryLimitInBytes"], "67108864", "{linux}");
    // On cgroup v1 or v2, as the container itself reads it.
    let limit =
        main.exec_sh("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || :");
    assert_eq!(limit, "67108864\n");
    let refused = node.crictl_output(&["update", "--memory", "1", &main.id]);
    assert!(!refused.status.success(), "less than what it has");
}

#[test]
fn stats() {
    let node = Node::start();
    let pod = node.pod("stats");
    let main = pod.sh(
        "main",
        "dd if=/dev/zero of=/written bs=1M count=2; echo ready; while :; do :; done",
    );
    main.wait_output("ready");
    let ended = pod.sh("ended", "true");
    ended.wait_exit();
    let listed = node.crictl_json(&["stats", "--output", "json"]);
    let of = |id: &str| {
        let stats = listed["stats"].as_array().unwrap().iter();
        stats.clone().find(|stats| stats["attributes"]["id"] == id)
    };
    let running = of(&main.id).unwrap();
    assert_eq!(running["attributes"]["metadata"]["name"], "main", "{running}");
    assert!(number(&running["cpu"]["usageCoreNanoSeconds"]) > 0, "{running}");
    assert!(number(&running["memory"]["workingSetBytes"]) > 0, "{running}");
    assert!(number(&running["writableLayer"]["usedBytes"]) >= 2 << 20, "{running}");
    let listed_all = node.crictl_json(&["stats", "--all", "--output", "json"]);
    let mut all = listed_all["stats"].as_array().unwrap().iter();
    assert!(
        all.any(|stats| stats["attributes"]["id"] == ended.id.as_str()),
        "{listed_all}"
    );
    let printed = node.crictl(&["stats", &main.id]);
    // It clears the screen first.
    let table = printed.trim_start_matches("\u{1b}[2J\u{1b}[H");
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head[..2], ["CONTAINER", "NAME"], "{table}");
    let line = table.lines().find(|line| line.starts_with(&main.id[..13])).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert!(cells[2].parse::<f64>().unwrap() > 1.0, "a loop takes time: {table}");
}

#[test]
fn pod_stats() {
    let node = Node::start();
    let pod = node.pod("pod-stats");
    let main = pod.sh("main", "echo ready; while :; do :; done");
    main.wait_output("ready");
    let listed = node.crictl_json(&["statsp", "--output", "json"]);
    let stats = &listed["stats"][0];
    assert_eq!(stats["attributes"]["id"], pod.id.as_str(), "{listed}");
    assert!(number(&stats["linux"]["cpu"]["usageCoreNanoSeconds"]) > 0, "{stats}");
    assert!(number(&stats["linux"]["memory"]["workingSetBytes"]) > 0, "{stats}");
    assert_eq!(stats["linux"]["network"]["defaultInterface"]["name"], "eth0", "{stats}");
    assert!(number(&stats["linux"]["process"]["processCount"]) >= 2, "{stats}");
    let containers = stats["linux"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{stats}");
    assert_eq!(containers[0]["attributes"]["id"], main.id.as_str(), "{stats}");
    let table = node.crictl(&["statsp", &pod.id]);
    assert!(table.contains("pod-stats") && table.contains(&pod.id[..13]), "{table}");
}

#[test]
fn metrics() {
    let node = Node::start();
    let pod = node.pod("metrics");
    let main = pod.sh("main", "sleep 1000");
    let described = node.crictl_json(&["metricdescs"]);
    let descriptors = described["descriptors"].as_array().unwrap();
    let keys_of = |name: &str| {
        let descriptor = descriptors.iter().find(|descriptor| descriptor["name"] == name);
        descriptor.map(|descriptor| descriptor["labelKeys"].as_array().map_or(0, Vec::len))
    };
    assert!(
        descriptors.iter().all(|descriptor| descriptor["help"] != ""),
        "{described}"
    );
    let listed = node.crictl_json(&["metricsp"]);
    let of_pod = &listed["podMetrics"][0];
    assert_eq!(of_pod["podSandboxId"], pod.id.as_str(), "{listed}");
    let of_container = &of_pod["containerMetrics"][0];
    assert_eq!(of_container["containerId"], main.id.as_str(), "{listed}");
    let metrics = of_container["metrics"].as_array().unwrap();
    let memory = metrics
        .iter()
        .find(|metric| metric["name"] == "container_memory_usage_bytes")
        .unwrap();
    assert!(number(&memory["value"]) > 0, "{memory}");
    for metric in metrics.iter().chain(of_pod["metrics"].as_array().unwrap()) {
        let name = metric["name"].as_str().unwrap();
        let values = metric["labelValues"].as_array().map_or(0, Vec::len);
        assert_eq!(keys_of(name), Some(values), "a value for each key of {name}: {metric}");
    }
}
