//! Status of the node, of pods and of containers beyond what every test looks at: probes, snapshots, verbose info.

use std::fs;
use std::path::Path;
use std::thread;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::container;
use serde_json::Value;
use tonic::Code;

use crate::lost::{node_with_runtime, wait_for};
use crate::restart::now;
use crate::service::condition;

fn status(node: &Node) -> cri::StatusResponse {
    node.cri.status(cri::StatusRequest { verbose: true }).expect("Status")
}

fn info(reply: &cri::StatusResponse, key: &str) -> Value {
    let text = reply
        .info
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {:?}", reply.info));
    serde_json::from_str(text).expect("info is JSON")
}

fn pod_status(node: &Node, id: &str) -> cri::PodSandboxStatusResponse {
    let pod_sandbox_id = id.to_owned();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id,
        verbose: true,
    };
    node.cri.pod_sandbox_status(request).expect("PodSandboxStatus")
}

#[test]
fn a_runtime_that_fails_or_hangs_makes_the_node_not_ready_until_it_works_again() {
    let node = node_with_runtime("[ -e $DIR/broken ] && exit 9; [ -e $DIR/hangs ] && exec sleep 1000");
    let ready = || condition(&status(&node), "RuntimeReady");
    wait_for("ready", || ready().status);
    for (file, words) in [("broken", "exit status: 9"), ("hangs", "not done in 5 s")] {
        fs::write(node.dir().join(file), "").unwrap();
        wait_for("still ready", || !ready().status);
        let condition = ready();
        assert_eq!(condition.reason, "RuntimeNotReady");
        for word in ["runtime.sh", words] {
            assert!(condition.message.contains(word), "{word} in {condition:?}");
        }
        fs::remove_file(node.dir().join(file)).unwrap();
        wait_for("ready again", || ready().status);
    }
    assert!(condition(&status(&node), "NetworkReady").status, "none of its business");
}

#[test]
fn handlers_are_listed_once_in_order_with_their_own_features() {
    let node = Node::with(|config| {
        let runtime = |path: &str| {
            let path = toml::Value::String(path.to_owned());
            toml::Value::Table(toml::Table::from_iter([("path".to_owned(), path)]))
        };
        let runtimes = [
            ("runc", runtime("/usr/sbin/runc")),
            ("absent", runtime("/nowhere/runtime")),
            ("featureless", runtime("/bin/true")),
        ];
        let runtimes = runtimes.map(|(name, runtime)| (name.to_owned(), runtime));
        config.insert("runtimes".to_owned(), toml::Table::from_iter(runtimes).into());
    });
    let reply = status(&node);
    let names: Vec<_> = reply
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert_eq!(names, ["", "absent", "corten", "featureless", "runc"]);
    let features = |name: &str| {
        let mut handlers = reply.runtime_handlers.iter();
        let handler = handlers.find(|handler| handler.name == name).expect("listed");
        handler.features.expect("features")
    };
    assert!(
        features("").recursive_read_only_mounts,
        "the kernel has them since 5.12"
    );
    assert_eq!(features(""), features("corten"));
    for name in ["absent", "featureless"] {
        assert_eq!(features(name), cri::RuntimeHandlerFeatures::default(), "{name}");
        let problem = info(&reply, "handlers")[name]["problem"].clone();
        assert!(problem.is_string(), "{name}: {problem}");
    }
    assert!(condition(&reply, "RuntimeReady").status, "the default runtime is there");
    assert!(reply.features.unwrap().supplemental_groups_policy);
}

#[test]
fn the_nodes_info_is_json_and_shows_where_things_are_and_no_credentials() {
    let node = Node::with(|config| {
        let mirror = toml::toml! {
            endpoint = "127.0.0.1:5001"
        };
        config["registries"]
            .as_table_mut()
            .unwrap()
            .insert("mirror.example".to_owned(), mirror.into());
    });
    fs::write(
        node.dir().join("auth.json"),
        r#"{"auths":{"a.example":{"auth":"c2VjcmV0OnNlY3JldA=="}}}"#,
    )
    .unwrap();
    let reply = status(&node);
    let state = node.dir().join("run").display().to_string();
    assert_eq!(info(&reply, "config")["stateDir"], state);
    for (key, text) in &reply.info {
        let value: Result<Value, _> = serde_json::from_str(text);
        assert!(value.is_ok(), "{key}: {text}");
        assert!(
            !text.contains("c2VjcmV0") && !text.contains("mirror.example"),
            "{key}: {text}"
        );
    }
}

#[test]
fn a_quarantined_record_is_shown() {
    let node = Node::start();
    let pod = node.pod("torn");
    node.kill_server();
    let record = format!("{}.json", pod.id);
    fs::write(node.dir().join("lib/sandboxes").join(&record), "{").unwrap();
    node.launch().unwrap();
    let reply = status(&node);
    assert_eq!(info(&reply, "quarantine")["records"][0], format!("{record}.0"));
    assert!(condition(&reply, "RuntimeReady").status, "the node serves on");
}

#[test]
fn the_ranges_of_pod_addresses_are_kept_and_bad_ones_refused() {
    let node = Node::start();
    let update = |cidr: &str| {
        let pod_cidr = cidr.to_owned();
        let network_config = Some(cri::NetworkConfig { pod_cidr });
        let runtime_config = Some(cri::RuntimeConfig { network_config });
        node.cri
            .update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config })
    };
    update("10.244.1.0/24,fd00:1::/64").unwrap();
    for bad in ["10.244.1.0", "10.244.1.0/40", "pods"] {
        let error = update(bad).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(
            error.message().contains("pod_cidr") && error.message().contains(bad),
            "{error}"
        );
    }
    node.kill_server();
    node.launch().unwrap();
    let kept = info(&status(&node), "network")["podCIDRs"].clone();
    assert_eq!(kept, serde_json::json!(["10.244.1.0/24", "fd00:1::/64"]));

    // Many at once: one after the other, so that what is on disk is what the last one has left in memory.
    thread::scope(|scope| {
        for client in 0..8 {
            let update = &update;
            scope.spawn(move || (0..20).for_each(|_| assert!(update(&format!("10.{client}.0.0/16")).is_ok())));
        }
    });
    let last = info(&status(&node), "network")["podCIDRs"].clone();
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(info(&status(&node), "network")["podCIDRs"], last);
    update("").unwrap();
}

#[test]
fn a_pods_status_holds_all_its_containers_at_one_moment() {
    let node = Node::start();
    let pod = node.pod("snapshot");
    let running = pod.sh("running", "sleep 1000");
    let created = pod.create(container("created", &["true"]));
    let (before, reply, after) = (now(), pod_status(&node, &pod.id), now());
    assert!(before <= reply.timestamp && reply.timestamp <= after);
    assert_eq!(reply.containers_statuses, [running.status(), created.status()]);
    let options = pod.status().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(
        (options.network(), options.ipc()),
        (cri::NamespaceMode::Pod, cri::NamespaceMode::Pod)
    );
    let again = pod_status(&node, &pod.id);
    assert!(again.timestamp >= reply.timestamp);
    pod.stop();
    let states: Vec<_> = pod_status(&node, &pod.id)
        .containers_statuses
        .iter()
        .map(|status| status.state())
        .collect();
    assert_eq!(states, [cri::ContainerState::ContainerExited; 2]);
}

#[test]
fn times_of_a_container_that_never_ran_and_of_one_that_did() {
    let node = Node::start();
    let pod = node.pod("times");
    let never = pod.create(container("never", &["true"]));
    never.stop(0);
    let ran = pod.sh("ran", "exit 3");
    let (ended, stopped) = (ran.wait_exit(), never.status());
    assert_eq!(
        (stopped.started_at, stopped.state()),
        (0, cri::ContainerState::ContainerExited)
    );
    assert!(stopped.finished_at > 0);
    assert!(ended.started_at > 0 && ended.finished_at >= ended.started_at);
    assert_eq!(ended.message, "");
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(
        (ran.status(), never.status()),
        (ended, stopped),
        "kubelet's back-off counts from them"
    );
}

#[test]
fn the_verbose_info_of_containers_and_pods_has_what_tools_read() {
    let node = Node::start();
    let pod = node.pod("info");
    let container = pod.sh("main", "sleep 1000");
    let info = container.info();
    assert_eq!(info["sandboxID"], pod.id.as_str());
    assert_eq!(info["config"]["metadata"]["name"], "main");
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], "sh");
    assert_eq!(
        (&info["removing"], &info["runtimeType"]),
        (&Value::Bool(false), &"corten".into())
    );
    assert!(info["pid"].as_i64().unwrap() > 1);
    assert_eq!(
        (&info["outputLost"], &info["oomKills"]),
        (&Value::Null, &Value::Null),
        "they are told with the exit"
    );
    assert!(
        info["runtimeOptions"]["binaryName"]
            .as_str()
            .unwrap()
            .ends_with("/corten")
    );

    let info = pod.info();
    assert!(info["pid"].as_i64().unwrap() > 1);
    assert_eq!(
        (&info["netNamespaceClosed"], &info["processStatus"]),
        (&Value::Bool(false), &"running".into())
    );
    assert_eq!(info["config"]["metadata"]["name"], "info");
    assert!(
        info["cniResult"]["ips"][0]["address"]
            .as_str()
            .unwrap()
            .starts_with(&pod.ip())
    );
    assert!(info["runtimeSpec"]["linux"].is_object());
    pod.stop();
    let info = pod.info();
    assert_eq!(
        (&info["netNamespaceClosed"], &info["pid"]),
        (&Value::Bool(true), &0.into())
    );
}

#[test]
fn the_verbose_info_of_half_dead_objects_is_json_too() {
    let node = Node::start();
    let pod = node.pod("half-dead");
    let (torn, gone) = (pod.sh("torn", "sleep 1000"), pod.sh("gone", "sleep 1000"));
    let spec = |id: &str| node.dir().join("run/containers").join(id).join("config.json");
    fs::write(spec(&torn.id), "{\"process\":").unwrap();
    fs::remove_file(spec(&gone.id)).unwrap();
    let info = torn.info();
    assert_eq!(info["runtimeSpec"], Value::Null);
    assert!(
        info["runtimeSpecError"].as_str().unwrap().contains("config.json"),
        "{info}"
    );
    let info = gone.info();
    assert_eq!(
        (&info["runtimeSpec"], &info["runtimeSpecError"]),
        (&Value::Null, &Value::Null)
    );
    assert!(Path::new(&format!("/proc/{}", info["pid"])).exists());
    fs::write(node.dir().join("run/sandboxes").join(&pod.id).join("config.json"), "").unwrap();
    assert!(pod.info()["runtimeSpecError"].is_string());
}
