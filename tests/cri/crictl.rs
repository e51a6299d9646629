//! crictl's commands for the node, images, pods and containers: what each prints, and that it is so.

use corten_tests::image;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, map};
use serde_json::{Value, json};

/// The words of the line of a table that begins with `first`.
#[track_caller]
fn row<'t>(table: &'t str, first: &str) -> Vec<&'t str> {
    let line = table.lines().find(|line| line.starts_with(first));
    let line = line.unwrap_or_else(|| panic!("no {first} in\n{table}"));
    // Columns are told by at least two spaces.
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

/// An id as tables show it.
fn short(id: &str) -> &str {
    &id[..13]
}

#[test]
fn the_node() {
    let node = Node::start();
    let version = node.crictl(&["version"]);
    for line in ["Version:  0.1.0", "RuntimeName:  corten", "RuntimeApiVersion:  v1"] {
        assert!(version.lines().any(|known| known == line), "{version}");
    }
    let info = node.crictl_json(&["info"]);
    let conditions = info["status"]["conditions"].as_array().unwrap();
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition["type"] == name);
        assert_eq!(condition.unwrap()["status"], true, "{info}");
    }
    let state = node.dir().join("run");
    assert_eq!(info["config"]["stateDir"], json!(state), "{info}");
    let handlers = info["runtimeHandlers"].as_array().unwrap();
    assert!(handlers.iter().any(|handler| handler["name"] == Value::Null), "{info}");
    assert!(handlers.iter().any(|handler| handler["name"] == "corten"), "{info}");
    assert_eq!(info["features"]["supplemental_groups_policy"], true, "{info}");
    let quiet = node.crictl_json(&["info", "--quiet"]);
    assert_eq!(quiet["config"], Value::Null, "{quiet}");

    assert_eq!(node.crictl(&["runtime-config"]).trim(), "cgroup driver:   CGROUPFS");
    node.crictl(&["update-runtime-config", "--pod-cidr", "10.88.0.0/16"]);
}

#[test]
fn images() {
    let node = Node::start();
    let pulled = node.crictl(&["pull", BUSYBOX]);
    let id = pulled
        .trim()
        .strip_prefix("Image is up to date for ")
        .unwrap()
        .to_owned();
    assert!(id.starts_with("sha256:"), "{pulled}");
    let images = node.crictl(&["images"]);
    let busybox = row(&images, "127.0.0.1:5000/busybox");
    assert_eq!(busybox[1..3], ["latest", &id["sha256:".len()..][..13]], "{images}");
    let listed = node.crictl_json(&["images", "--output", "json"]);
    assert_eq!(listed["images"][0]["id"], id.as_str());
    assert_eq!(node.crictl(&["images", "--quiet"]).trim(), id);
    for name in [BUSYBOX, &id, &id["sha256:".len()..][..13]] {
        let inspected = node.crictl_json(&["inspecti", name]);
        assert_eq!(inspected["status"]["id"], id.as_str(), "{name}");
        assert_eq!(inspected["status"]["repoTags"], json!([BUSYBOX]), "{name}");
        assert_eq!(inspected["info"]["imageSpec"]["config"]["Cmd"], json!(["sh"]), "{name}");
    }
    let space = node.crictl_json(&["imagefsinfo"]);
    let used = space["status"]["imageFilesystems"][0]["usedBytes"]["value"].as_str();
    assert!(used.unwrap().parse::<u64>().unwrap() > 1 << 20, "{space}");
    let mountpoint = space["status"]["imageFilesystems"][0]["fsId"]["mountpoint"].as_str();
    assert!(mountpoint.unwrap().starts_with('/'), "{space}");

    let missing = node.crictl_output(&["inspecti", "127.0.0.1:5000/nothing:latest"]);
    assert!(!missing.status.success());
    let removed = node.crictl(&["rmi", BUSYBOX]);
    assert!(removed.contains(&format!("Deleted: {BUSYBOX}")), "{removed}");
    assert_eq!(node.crictl(&["images", "--quiet"]), "");
}

#[test]
fn images_that_nothing_uses_are_pruned() {
    let node = Node::start();
    let mut other = image::busybox(std::path::Path::new("/bin/busybox")).unwrap();
    other.config["Cmd"] = json!(["true"]);
    other.save(&node.dir().join("images"), &["other:1"]).unwrap();
    let pod = node.pod("prune");
    let used = pod.sh("main", "sleep 1000");
    node.crictl(&["pull", "127.0.0.1:5000/other:1"]);
    let pruned = node.crictl(&["rmi", "--prune"]);
    assert!(pruned.contains("Deleted: 127.0.0.1:5000/other:1"), "{pruned}");
    let left = node.crictl_json(&["images", "--output", "json"]);
    assert_eq!(left["images"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["images"][0]["repoTags"], json!([BUSYBOX]));
    assert_eq!(used.exec_sh("echo goes on"), "goes on\n");
}

#[test]
fn a_pod_from_its_run_to_its_removal() {
    let node = Node::start();
    let config = node.request_file("pod.json", &node.pod_config("web"));
    let id = node.crictl(&["runp", &config]).trim().to_owned();
    assert_eq!(id.len(), 64, "{id}");
    let pods = node.crictl(&["pods"]);
    let shown = row(&pods, short(&id));
    assert_eq!(shown[2..], ["Ready", "web", "default", "0", "(default)"], "{pods}");
    assert_eq!(node.crictl(&["pods", "--quiet", "--label", "app=web"]).trim(), id);
    assert_eq!(node.crictl(&["pods", "--quiet", "--label", "app=other"]), "");
    assert_eq!(node.crictl(&["pods", "--quiet", "--state", "notready"]), "");

    let inspected = node.crictl_json(&["inspectp", &id]);
    let status = &inspected["status"];
    assert_eq!(status["state"], "SANDBOX_READY", "{status}");
    assert_eq!(status["metadata"]["name"], "web", "{status}");
    assert!(
        status["network"]["ip"].as_str().unwrap().starts_with("10.88."),
        "{status}"
    );
    assert!(inspected["info"]["pid"].as_u64().unwrap() > 1, "{inspected}");
    assert_eq!(inspected["info"]["config"]["hostname"], "web", "{inspected}");
    assert!(inspected["info"]["runtimeSpec"]["linux"].is_object(), "{inspected}");
    assert_eq!(node.crictl_json(&["inspectp", short(&id)])["status"]["id"], id.as_str());

    assert_eq!(node.crictl(&["stopp", &id]).trim(), format!("Stopped sandbox {id}"));
    assert_eq!(row(&node.crictl(&["pods"]), short(&id))[2], "NotReady");
    assert_eq!(node.crictl(&["rmp", &id]).trim(), format!("Removed sandbox {id}"));
    assert_eq!(node.crictl(&["pods", "--quiet"]), "");
}

#[test]
fn a_container_from_its_creation_to_its_removal() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let pod_config = node.pod_config("one");
    let script = "echo hello; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let mut container_config = container("main", &["sh", "-c", script]);
    // Where ps has the names of pods from.
    container_config.labels = map(&[
        ("io.kubernetes.pod.name", "one"),
        ("io.kubernetes.pod.namespace", "default"),
    ]);
    let [pod_file, container_file] = node.request_files(&pod_config, &container_config);
    let pod = node.crictl(&["runp", &pod_file]).trim().to_owned();
    let id = node
        .crictl(&["create", &pod, &container_file, &pod_file])
        .trim()
        .to_owned();
    assert_eq!(id.len(), 64, "{id}");
    assert_eq!(node.crictl(&["ps", "--quiet"]), "", "a created container does not run");
    let table = node.crictl(&["ps", "--all"]);
    let shown = row(&table, short(&id));
    assert_eq!(shown[1], BUSYBOX, "{table}");
    assert_eq!(
        shown[3..],
        ["Created", "main", "0", short(&pod), "one", "default"],
        "{table}"
    );

    assert_eq!(node.crictl(&["start", &id]).trim(), id);
    assert_eq!(row(&node.crictl(&["ps"]), short(&id))[3], "Running");
    assert_eq!(
        node.crictl(&["ps", "--quiet", "--pod", &pod, "--name", "main"]).trim(),
        id
    );
    let inspected = node.crictl_json(&["inspect", &id]);
    let status = &inspected["status"];
    assert_eq!(status["state"], "CONTAINER_RUNNING", "{status}");
    assert_eq!(status["image"]["userSpecifiedImage"], BUSYBOX, "{status}");
    let info = &inspected["info"];
    assert!(info["pid"].as_u64().unwrap() > 1, "{info}");
    assert_eq!(info["sandboxID"], pod.as_str(), "{info}");
    assert_eq!(info["config"]["metadata"]["name"], "main", "{info}");
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], "sh", "{info}");
    let by_name = node.crictl_json(&["inspect", "--name", "main", "--output", "json"]);
    assert_eq!(by_name["status"]["id"], id.as_str(), "{by_name}");

    assert_eq!(node.crictl(&["stop", "--timeout", "10", &id]).trim(), id);
    let stopped = node.crictl_json(&["inspect", &id]);
    assert_eq!(stopped["status"]["state"], "CONTAINER_EXITED", "{stopped}");
    assert_eq!(stopped["status"]["exitCode"], 3, "{stopped}");
    assert_eq!(stopped["status"]["reason"], "Error", "{stopped}");
    assert_eq!(node.crictl(&["logs", &id]), "hello\n");
    assert_eq!(node.crictl(&["rm", &id]).trim(), id);
    assert_eq!(node.crictl(&["ps", "--all", "--quiet"]), "");
    let gone = node.crictl_output(&["inspect", &id]);
    assert!(!gone.status.success());
    assert!(String::from_utf8_lossy(&gone.stderr).contains("NotFound"));
}

#[test]
fn run_makes_a_pod_and_a_container_at_once() {
    let node = Node::start();
    let [pod_file, container_file] =
        node.request_files(&node.pod_config("run"), &container("main", &["sleep", "1000"]));
    let id = node.crictl(&["run", &container_file, &pod_file]).trim().to_owned();
    let table = node.crictl(&["ps"]);
    assert_eq!(row(&table, short(&id))[3..5], ["Running", "main"], "{table}");
    assert_eq!(
        row(&node.crictl(&["images"]), "127.0.0.1:5000/busybox")[1],
        "latest",
        "it has pulled"
    );
    let removed = node.crictl(&["rm", "--force", &id]);
    assert!(removed.lines().all(|line| line == id), "stopped and removed: {removed}");
    let removed = node.crictl(&["rmp", "--all", "--force"]);
    assert!(removed.contains("Removed sandbox"), "{removed}");
    assert_eq!(node.crictl(&["pods", "--quiet"]), "");
}

#[test]
fn logs_in_every_form() {
    let node = Node::start();
    let pod = node.pod("logs");
    // What goes to two streams at once may be logged in either order.
    let script = "echo oops >&2; while [ ! -e /go ]; do sleep 0.01; done; echo one; echo two; echo three; sleep 1000";
    let container = pod.sh("main", script);
    container.wait_logged("stderr", "oops");
    container.exec_sh("touch /go");
    container.wait_output("three");
    let id = container.id.as_str();
    let logs = |flags: &[&str]| node.crictl(&[&["logs"][..], flags, &[id]].concat());
    assert_eq!(logs(&["--tail", "1"]), "three\n");
    let output = node.crictl_output(&["logs", "--stream", "stderr", id]);
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b""[..], &b"oops\n"[..])
    );
    assert_eq!(logs(&["--stream", "stdout"]), "one\ntwo\nthree\n");
    let stamped = logs(&["--timestamps", "--tail", "1"]);
    let time = container.log_lines().last().unwrap().time.clone();
    assert_eq!(stamped, format!("{time} three\n"));

    let rotated = container.log.with_extension("log.1");
    std::fs::rename(&container.log, &rotated).unwrap();
    logs(&["--reopen"]);
    assert_eq!(
        std::fs::read(&container.log).unwrap(),
        b"",
        "it is there when the call returns"
    );

    let mut follow = node.crictl_start(&["logs", "--follow", id]);
    container.exec_sh("echo late >/proc/1/fd/1");
    follow.wait_for("late");
    container.stop(0);
    assert!(follow.wait().success(), "{}", follow.printed());
}
