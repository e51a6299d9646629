//! `corten-cri status` and `corten-cri support-bundle` beside a running server.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::node::Node;
use corten_tests::pod::{container, map};
use serde_json::Value;

/// Part of every secret that is planted.
const SECRET: &str = "planted-secret";

fn corten_cri(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("corten-cri"));
    command
        .arg("--config")
        .arg(node.dir().join("config.toml"))
        .args(arguments);
    node.network.enter(|| command.output()).expect("execute corten-cri")
}

#[track_caller]
fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_status_counts_what_there_is() {
    let node = Node::start();
    let pod = node.pod("web");
    let running = pod.sh("main", "exec sleep 1000");
    pod.sh("failing", "exit 3").wait_exit();
    pod.sh("fine", "exit 0").wait_exit();
    let text = printed(corten_cri(&node, &["status"]));
    for part in [
        format!(", process {}", node.server_pid()).as_str(),
        "RuntimeReady",
        "1 ready, 0 not ready",
        "1 running, 0 created, 2 exited",
        "1 shims",
        "disk root",
        "default/web failing",
        "exit code 3",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!(text.matches("failed ").count(), 1, "{text}");

    let status: Value = serde_json::from_str(&printed(corten_cri(&node, &["status", "--json"]))).unwrap();
    assert_eq!(status["containers"]["running"], 1);
    assert_eq!(status["failures"][0]["exit_code"], 3);
    assert_eq!(status["images"]["count"], 1);
    assert_eq!(status["conditions"][0]["good"], true);
    for number in [
        "/memory/server_rss",
        "/memory/shims_pss",
        "/images/bytes",
        "/disks/0/bytes_free",
    ] {
        assert!(
            status.pointer(number).and_then(Value::as_u64) > Some(0),
            "{number} in {status:#}"
        );
    }
    assert!(status["uptime_s"].as_u64() < Some(120), "{status:#}");
    running.stop(0);
}

#[test]
fn without_a_server_there_is_no_status() {
    let node = Node::start();
    node.stop_server();
    let output = corten_cri(&node, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no server answers at "), "{said}");
    node.launch().unwrap();
}

/// The files of an archive, by their paths below its one directory.
fn unpack(archive: &std::path::Path) -> BTreeMap<String, String> {
    let packed = flate2::read::GzDecoder::new(fs::File::open(archive).unwrap());
    let mut archive = tar::Archive::new(packed);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let (_, name) = path.split_once('/').expect("all are in one directory");
        (name.to_owned(), String::from_utf8_lossy(&content).into_owned())
    });
    entries.collect()
}

/// A container that has secrets wherever a container can have them.
fn with_secrets() -> cri::ContainerConfig {
    let script = format!("echo {SECRET}-of-stderr >&2; exec sleep 1000");
    let mut config = container(
        "main",
        &[
            "sh",
            "-c",
            "eval \"$SCRIPT\"",
            "--password",
            &format!("{SECRET}-of-args"),
        ],
    );
    let pairs = [
        ("SCRIPT", script),
        ("DB_PASSWORD", format!("{SECRET}-of-env")),
        ("HARMLESS", format!("{SECRET}-of-env")),
    ];
    let pair = |(key, value): (&str, String)| cri::KeyValue {
        key: key.to_owned(),
        value: value.into(),
    };
    config.envs = pairs.map(pair).into();
    let applied = format!("{{\"env\": [{{\"name\": \"A\", \"value\": \"{SECRET}-of-annotations\"}}]}}");
    config.annotations = map(&[("kubectl.kubernetes.io/last-applied-configuration", &applied)]);
    config
}

/// Secrets in files of the node's configuration.
fn plant_files(node: &Node) {
    let write = |name: &str, text: &str| {
        let path = node.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "auth.json",
        &format!(r#"{{"auths": {{"r.example": {{"username": "u", "password": "{SECRET}"}}}}}}"#),
    );
    write(
        "certs.d/r.example/hosts.toml",
        &format!("[host.\"https://m.example\"]\nusername = \"u\"\npassword = \"{SECRET}\"\n"),
    );
    write(
        "cni/99-other.conf",
        &format!(r#"{{"name": "other", "cniVersion": "1.0.0", "type": "macvlan", "token": "{SECRET}"}}"#),
    );
    write(
        "cni/98-key.pem",
        &format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"),
    );
}

/// No file holds a secret, in any form.
#[track_caller]
fn assert_no_secret(files: &BTreeMap<String, String>) {
    let bytes: Vec<String> = SECRET.bytes().map(|byte| byte.to_string()).collect();
    let bytes = bytes.join(",");
    for (name, content) in files {
        // The CRI has values of environment variables as bytes, which JSON has as numbers.
        let packed: String = content.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(!packed.contains(&bytes), "{name}");
        let at = content.find(SECRET);
        assert!(
            at.is_none(),
            "{name}: ...{}",
            &content[at.unwrap_or(0).saturating_sub(200)..]
        );
    }
}

#[test]
fn a_support_bundle_has_everything_but_secrets() {
    let node = Node::start();
    plant_files(&node);
    let pod = node.pod("secretive");
    let running = pod.start(with_secrets());
    let mut failing = with_secrets();
    failing.metadata = Some(cri::ContainerMetadata {
        name: "failing".to_owned(),
        attempt: 0,
    });
    failing.command = vec!["sh".to_owned()];
    failing.args = vec!["-c".to_owned(), "echo $HARMLESS >&2; exit 3".to_owned()];
    pod.start(failing).wait_exit();

    let archive = node.dir().join("bundle.tar.gz");
    let output = corten_cri(&node, &["support-bundle", "--output", archive.to_str().unwrap()]);
    assert_eq!(printed(output).trim(), archive.to_str().unwrap());
    let metadata = fs::metadata(&archive).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.len() < 8 << 20, "{} bytes", metadata.len());

    let files = unpack(&archive);
    assert_no_secret(&files);
    for (name, words) in [
        ("MANIFEST", "doctor.txt: "),
        ("doctor.txt", "kernel-version"),
        ("status.txt", "RuntimeReady"),
        ("config/effective.json", "\"cgroup_parent\""),
        ("config/cni/99-other.conf", "\"token\": \"***\""),
        ("cri/status.json", "RuntimeReady"),
        (format!("cri/pod-{}.json", pod.id).as_str(), "secretive"),
        (format!("cri/container-{}.json", running.id).as_str(), "DB_PASSWORD=***"),
        (
            format!("records/containers/{}/record.json", running.id).as_str(),
            "DB_PASSWORD",
        ),
        (format!("records/sandboxes/{}.json", pod.id).as_str(), "secretive"),
        ("process/server/threads.txt", "-- wchan"),
        ("process/server/status", "VmRSS"),
        ("kernel/proc/version", "Linux version"),
        ("kernel/proc/self/mountinfo", "cgroup"),
        ("kernel/sysctl.txt", "net.ipv4.ip_forward = "),
        ("kernel/ip-address.txt", "cni0"),
    ] {
        let content = files
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
        assert!(content.contains(words), "{name}: {words:?} in {content}");
    }
    assert!(
        files.keys().any(|name| name.ends_with("exit.json")),
        "{:?}",
        files.keys()
    );
    running.stop(0);
}

#[test]
fn a_bundle_is_made_without_a_server_and_without_a_valid_configuration() {
    let node = Node::start();
    node.stop_server();
    let config = fs::read_to_string(node.dir().join("config.toml")).unwrap();
    let archive = node.dir().join("bundle.tar.gz");
    let bundle = || {
        printed(corten_cri(&node, &["support-bundle", "-o", archive.to_str().unwrap()]));
        unpack(&archive)
    };
    let files = bundle();
    assert!(
        files["status.txt"].contains("no server answers"),
        "{}",
        files["status.txt"]
    );
    fs::write(node.dir().join("config.toml"), format!("nonsense = 1\n{config}")).unwrap();
    let files = bundle();
    assert!(files["doctor.txt"].contains("nonsense"), "{}", files["doctor.txt"]);
    fs::write(node.dir().join("config.toml"), config).unwrap();
    node.launch().unwrap();
}
