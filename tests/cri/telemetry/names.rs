//! Names in the server's log: whom a line is about.

use corten_proto::cri;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use serde_json::Value;

use super::set;
use crate::lost::wait_for;

fn logging(format: &str, level: &str) -> Node {
    let keys = [("format", format.into()), ("level", level.into())];
    Node::with(|config| set(config, "log", &keys))
}

/// A pod's life with a failure in it; its uid, and the ids of the sandbox and the container.
fn live(node: &Node) -> [String; 3] {
    let pod = node.pod("web");
    let main = pod.sh("main", "exit 3");
    main.wait_exit();
    let container_id = main.id.clone();
    let again = cri::StartContainerRequest { container_id };
    node.cri.start_container(again).unwrap_err();
    main.remove();
    pod.stop();
    pod.remove();
    let uid = pod.config.metadata.clone().unwrap().uid;
    [uid, pod.id.clone(), main.id.clone()]
}

#[test]
fn lines_in_json_have_stable_keys() {
    let node = logging("json", "debug");
    let [uid, sandbox, container] = live(&node);
    wait_for("the removal is logged", || {
        node.server_log().contains("RemovePodSandbox")
    });
    let log = node.server_log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for key in ["timestamp", "level", "target"] {
            assert!(line[key].is_string(), "{key} of {line}");
        }
        assert!(line["fields"].is_object() && line.get("spans").is_none(), "{line}");
    }
    let of = |method: &str| {
        lines
            .iter()
            .filter(move |line| line["span"]["method"] == method)
            .collect::<Vec<_>>()
    };
    for method in ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
        assert!(!of(method).is_empty(), "no line of {method}");
        for line in of(method) {
            assert_pod(line, &uid, &sandbox);
        }
    }
    for method in ["CreateContainer", "StartContainer", "RemoveContainer"] {
        assert!(!of(method).is_empty(), "no line of {method}");
        for line in of(method) {
            assert_pod(line, &uid, &sandbox);
            assert_eq!(line["span"]["container_name"], "main", "{line}");
            assert_eq!(line["span"]["container_id"], *container, "{line}");
        }
    }
    let failed = of("StartContainer")
        .into_iter()
        .find(|line| line["level"] == "WARN")
        .expect("the failure");
    assert!(
        failed["fields"]["message"]
            .as_str()
            .unwrap()
            .contains("not CONTAINER_CREATED")
    );
    let exited = lines
        .iter()
        .find(|line| line["fields"]["message"] == "exited" && line["fields"]["container"] == *container)
        .expect("the exit, which no call brought about");
    assert_pod(exited, &uid, &sandbox);
    assert_eq!(exited["span"]["container_name"], "main");
}

fn assert_pod(line: &Value, uid: &str, sandbox: &str) {
    let span = &line["span"];
    assert_eq!(span["pod_namespace"], "default", "{line}");
    assert_eq!(span["pod_name"], "web", "{line}");
    assert_eq!(span["pod_uid"], uid, "{line}");
    // A call that makes it has lines before it has an id.
    assert!(span["sandbox_id"] == sandbox || span["sandbox_id"].is_null(), "{line}");
}

#[test]
fn lines_of_text_have_the_same_names() {
    let node = logging("text", "warn");
    let [uid, sandbox, container] = live(&node);
    let log = node.server_log();
    let line = log
        .lines()
        .find(|line| line.contains("not CONTAINER_CREATED"))
        .expect("the failure");
    for name in [
        "method=\"StartContainer\"",
        "pod_namespace=\"default\"",
        "pod_name=\"web\"",
        &format!("pod_uid=\"{uid}\""),
        &format!("sandbox_id=\"{sandbox}\""),
        "container_name=\"main\"",
        &format!("container_id=\"{container}\""),
    ] {
        assert!(line.contains(name), "{name}: {line}");
    }
}

#[test]
fn an_image_is_pulled_for_its_pod() {
    let node = logging("json", "info");
    let request = cri::PullImageRequest {
        image: Some(image(BUSYBOX)),
        sandbox_config: Some(node.pod_config("puller")),
        ..Default::default()
    };
    node.cri.pull_image(request).unwrap();
    let log = node.server_log();
    let begins = log.lines().find(|line| line.contains("pull begins")).expect("a line");
    let begins: Value = serde_json::from_str(begins).unwrap();
    assert_eq!(begins["span"]["pod_name"], "puller");
    assert_eq!(begins["span"]["method"], "PullImage");
}

#[test]
fn secrets_are_in_no_line() {
    let node = logging("json", "trace");
    let request = cri::PullImageRequest {
        image: Some(image(BUSYBOX)),
        auth: Some(cri::AuthConfig {
            username: "node".to_owned(),
            password: "pull-secret-1".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri.pull_image(request).unwrap();
    let pod = node.pod("secret");
    let mut config = container("main", &["sleep", "1000"]);
    config.envs = vec![cri::KeyValue {
        key: "TOKEN".to_owned(),
        value: "env-secret-2".into(),
    }];
    let main = pod.start(config);
    assert!(main.exec_sh("echo $TOKEN").contains("env-secret-2"));
    let mut bad = container("bad", &["/nowhere"]);
    bad.envs = main.config.envs.clone();
    node.cri.create_container(pod.create_request(&bad)).unwrap_err();
    pod.stop();
    let log = node.server_log();
    assert!(log.contains("CreateContainer") && !log.contains("-secret-"), "{log}");
}

#[test]
fn long_and_hostile_names_stay_on_their_line() {
    let node = logging("json", "debug");
    let mut config = node.pod_config("web");
    let metadata = config.metadata.as_mut().unwrap();
    metadata.name = format!("a\n{{\"level\":\"ERROR\"}}{}", "x".repeat(100_000));
    metadata.uid.clear();
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    };
    node.cri.run_pod_sandbox(request).unwrap_err();
    let log = node.server_log();
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line.len() < 8192, "{} bytes", line.len());
    }
    assert!(log.contains("RunPodSandbox"));
}
