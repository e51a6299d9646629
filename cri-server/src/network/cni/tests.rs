//! The plugin chain against fake plugins at the process boundary, and as root against the real bridge.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use corten_proto::cri::Protocol;
use serde_json::json;

use super::*;
use crate::config::IpPreference;
use crate::network::netns;

/// Logs what it was given beside itself, then does what the configuration's `say` and `exit` ask for.
const FAKE_PLUGIN: &str = r#"#!/bin/sh
input=$(cat)
log=$(dirname "$0")/log
echo "$(basename "$0") $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ns=$CNI_NETNS $input" >> "$log"
env | sort > "$(dirname "$0")/env"
case "$input" in
  *'"hang"'*) sleep 60 & echo $! > "$(dirname "$0")/child"; wait ;;
  *'"fail"'*) [ "$CNI_COMMAND" = ADD ] && { echo '{"code":11,"msg":"try again","details":"later"}'; exit 1; } ;;
  *'"crash"'*) echo oops >&2; exit 3 ;;
  *'"unready"'*) [ "$CNI_COMMAND" = STATUS ] && { echo '{"code":50,"msg":"no daemon"}'; exit 1; } ;;
esac
[ "$CNI_COMMAND" = STATUS ] || [ "$CNI_COMMAND" = GC ] && exit 0
[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"}],
 "ips":[{"address":"10.1.2.3/24","interface":1},{"address":"10.1.2.1/24","interface":0},{"address":"fd00::3/64","interface":1}]}'
"#;

/// A configuration directory and two fake plugins, `one` and `two`.
struct Fixture {
    directory: tempfile::TempDir,
    cni: Cni,
}

impl Fixture {
    fn new(plugins: &Value) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let path = directory.path().join(name);
            fs::write(&path, FAKE_PLUGIN).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let cni = Cni::new(&config::Cni {
            conf_dir: directory.path().join("conf"),
            bin_dirs: vec![directory.path().join("none"), directory.path().to_owned()],
            timeout_s: 2,
            ..config::Cni::default()
        });
        fs::create_dir(directory.path().join("conf")).unwrap();
        let fixture = Fixture { directory, cni };
        fixture.configure("10-net.conflist", plugins);
        fixture
    }

    fn configure(&self, file: &str, plugins: &Value) {
        self.configure_version(file, "1.0.0", plugins);
    }

    fn configure_version(&self, file: &str, version: &str, plugins: &Value) {
        let list = json!({ "name": "net", "cniVersion": version, "plugins": plugins });
        fs::write(self.directory.path().join("conf").join(file), list.to_string()).unwrap();
    }

    fn pod(&self) -> PodNetwork {
        let mapping = |host_port| PortMapping {
            protocol: Protocol::Udp.into(),
            container_port: 53,
            host_port,
            host_ip: String::new(),
        };
        PodNetwork {
            id: "sandbox-1".parse().unwrap(),
            netns: self.directory.path().to_owned(),
            name: "web;EVIL=1".into(),
            namespace: "default".into(),
            uid: "u-1".into(),
            hostname: "web".into(),
            port_mappings: vec![mapping(0), mapping(5353)],
            bandwidth: Bandwidth {
                ingress: 1_000_000,
                egress: 0,
            },
            dns: None,
        }
    }

    /// Whether there is a network; else the text of the condition.
    fn ready(&self) -> Result<(), String> {
        run(self.cni.ready()).map_err(|error| format!("{error:#}"))
    }

    /// The lines that the plugins logged, each cut at `width` words.
    fn log(&self, width: usize) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log.lines()
            .map(|line| line.split(' ').take(width).collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// What the n-th run read on stdin.
    fn stdin(&self, run: usize) -> Value {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
        let line = log.lines().nth(run).unwrap();
        serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap()
    }
}

/// The pod as one that was never added. Its id is another: taking it down ends whatever runs for it, and the plugins of
/// other tests run beside this one.
fn never_added(pod: PodNetwork) -> PodNetwork {
    PodNetwork {
        id: "sandbox-never-added".parse().unwrap(),
        ..pod
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn a_chain_is_added_forwards_and_removed_backwards() {
    let plugins = json!([
        { "type": "one" },
        { "type": "two", "capabilities": { "portMappings": true } },
    ]);
    let fixture = Fixture::new(&plugins);
    let pod = fixture.pod();
    let attachment = run(fixture.cni.add(&pod)).unwrap();
    let ips: Vec<String> = attachment.ips.iter().map(ToString::to_string).collect();
    assert_eq!(
        ips,
        ["10.1.2.3", "fd00::3"],
        "the bridge's own address is not the pod's"
    );
    assert_eq!(fixture.log(4), ["one ADD sandbox-1 eth0", "two ADD sandbox-1 eth0"]);
    assert_eq!(fixture.stdin(0).get("prevResult"), None);
    assert_eq!(fixture.stdin(1)["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    let ports = &fixture.stdin(1)["runtimeConfig"]["portMappings"];
    assert_eq!(ports.as_array().unwrap().len(), 1, "host port 0 maps nothing");
    assert_eq!(
        (&ports[0]["hostPort"], &ports[0]["protocol"]),
        (&json!(5353), &json!("udp"))
    );

    // The configuration goes, the namespace goes: the record is enough.
    fs::remove_dir_all(fixture.directory.path().join("conf")).unwrap();
    let text = serde_json::to_string(&attachment).unwrap();
    let recorded: Attachment = serde_json::from_str(&text).unwrap();
    let gone = PodNetwork {
        netns: "/nonexistent/ns".into(),
        ..pod
    };
    run(fixture.cni.remove(&gone, Some(&recorded))).unwrap();
    let log = fixture.log(5);
    assert_eq!(log[2..], ["two DEL sandbox-1 eth0 ns=", "one DEL sandbox-1 eth0 ns="]);
    assert_eq!(fixture.stdin(3)["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    run(fixture.cni.remove(&never_added(gone), None)).unwrap();
    assert_eq!(
        fixture.log(1).len(),
        4,
        "without record and configuration nothing is run"
    );
}

#[test]
fn the_environment_is_the_specifications() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    run(fixture.cni.add(&fixture.pod())).unwrap();
    let env = fs::read_to_string(fixture.directory.path().join("env")).unwrap();
    let names: Vec<&str> = env.lines().map(|line| line.split('=').next().unwrap()).collect();
    // _, PWD and the like are the shell's own.
    let given: Vec<_> = names
        .iter()
        .filter(|it| it.starts_with("CNI_") || **it == "PATH")
        .collect();
    assert_eq!(
        given,
        [
            &"CNI_ARGS",
            &"CNI_COMMAND",
            &"CNI_CONTAINERID",
            &"CNI_IFNAME",
            &"CNI_NETNS",
            &"CNI_PATH",
            &"PATH"
        ]
    );
    assert!(
        !names.contains(&"CARGO_MANIFEST_DIR"),
        "nothing of the server's: {names:?}"
    );
    assert!(env.contains(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web_EVIL_1;\
         K8S_POD_INFRA_CONTAINER_ID=sandbox-1;K8S_POD_UID=u-1\n"
    ));
}

#[test]
fn a_failed_add_is_undone_and_told() {
    let fixture = Fixture::new(&json!([{ "type": "one" }, { "type": "two", "mode": "fail" }]));
    let error = run(fixture.cni.add(&fixture.pod())).unwrap_err();
    let text = format!("{error:#}");
    for part in ["net", "two ADD", "sandbox-1", "try again: later (code 11)"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(fixture.log(2), ["one ADD", "two ADD", "two DEL", "one DEL"]);
}

#[test]
fn a_crash_is_told_by_stderr() {
    let fixture = Fixture::new(&json!([{ "type": "one", "mode": "crash" }]));
    let text = format!("{:#}", run(fixture.cni.add(&fixture.pod())).unwrap_err());
    assert!(text.contains("exit status: 3: oops"), "{text}");
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    let pod = fixture.pod();
    let mut attachment = run(fixture.cni.add(&pod)).unwrap();
    attachment.network["plugins"][0]["mode"] = json!("hang");
    let started = Instant::now();
    let text = format!("{:#}", run(fixture.cni.remove(&pod, Some(&attachment))).unwrap_err());
    assert!(
        text.contains("one DEL") && text.contains("not done after 2 s"),
        "{text}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    let child = fs::read_to_string(fixture.directory.path().join("child")).unwrap();
    // The kill is asynchronous.
    wait_for("the end of the plugin's child", || !is_alive(&child));
}

/// Whether a process runs; a zombie has no executable.
fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).join("exe").exists()
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_a_killed_server_left_running_ends_before_its_undo() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    let pod = PodNetwork {
        id: "sandbox-of-a-killed-server".parse().unwrap(),
        ..fixture.pod()
    };
    // As a plugin is left by a server that was killed: in a group of its own, with a child, nobody waiting.
    let mut plugin = std::process::Command::new(fixture.directory.path().join("one"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", pod.id.as_str())
        .stdin(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    plugin.stdin.take().unwrap().write_all(b"\"hang\"").unwrap();
    let path = fixture.directory.path().join("child");
    let child = || fs::read_to_string(&path).unwrap_or_default();
    wait_for("the plugin's child", || child().ends_with('\n'));

    run(fixture.cni.remove(&pod, None)).unwrap();
    assert!(!is_alive(&child()), "the plugin's child");
    assert!(!plugin.wait().unwrap().success());
    let id = pod.id.as_str();
    assert_eq!(fixture.log(3), [format!("one ADD {id}"), format!("one DEL {id}")]);
}

#[test]
fn whoever_waits_for_the_directory_waits_without_a_thread() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    // This runtime has one worker: a caller that blocked it would never be timed out.
    run(async {
        let read_by_another = Arc::clone(&fixture.cni.loaded).lock_owned().await;
        for _ in 0..3 {
            let ready = tokio::time::timeout(Duration::from_millis(50), fixture.cni.ready());
            assert!(ready.await.is_err());
        }
        drop(read_by_another);
        fixture.cni.ready().await.unwrap();
    });
}

#[test]
fn a_failed_del_is_an_error_only_after_an_add() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    let pod = fixture.pod();
    let attachment = run(fixture.cni.add(&pod)).unwrap();
    fs::remove_file(fixture.directory.path().join("one")).unwrap();
    let text = format!("{:#}", run(fixture.cni.remove(&pod, Some(&attachment))).unwrap_err());
    assert!(text.contains("CNI plugin one is not in"), "{text}");
    run(fixture.cni.remove(&never_added(pod), None)).unwrap();
}

#[test]
fn the_first_valid_configuration_counts_and_changes_are_seen() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    assert_eq!(fixture.ready(), Ok(()));
    let conf = fixture.directory.path().join("conf");

    fs::write(conf.join("00-broken.conf"), "{").unwrap();
    fs::write(
        conf.join("01-evil.conf"),
        r#"{"name":"e","cniVersion":"1.0.0","type":"../one"}"#,
    )
    .unwrap();
    assert_eq!(fixture.ready(), Ok(()), "what is broken is passed over");

    fs::remove_file(conf.join("10-net.conflist")).unwrap();
    let reason = fixture.ready().unwrap_err();
    assert!(
        reason.contains("00-broken.conf") && reason.contains("without slashes"),
        "{reason}"
    );

    fixture.configure("20.conflist", &json!([{ "type": "three" }]));
    let reason = fixture.ready().unwrap_err();
    assert!(reason.contains("CNI plugin three is not in"), "{reason}");

    fs::remove_dir_all(&conf).unwrap();
    assert!(fixture.ready().unwrap_err().contains("no CNI configuration"));
    fs::create_dir(&conf).unwrap();
    assert!(fixture.ready().unwrap_err().contains("no CNI configuration in"));
    fixture.configure("30.conflist", &json!([{ "type": "two" }]));
    assert_eq!(fixture.ready(), Ok(()));
}

#[test]
fn results_without_an_address_are_refused() {
    for (result, good) in [
        (json!({ "ips": [{ "address": "10.0.0.1/8" }] }), true),
        (json!({ "ips": [] }), false),
        (json!({}), false),
        (json!({ "ips": [{ "address": "x" }] }), false),
        (
            json!({ "ips": [{ "address": "10.0.0.1/8", "interface": 0 }], "interfaces": [{}] }),
            false,
        ),
    ] {
        assert_eq!(addresses(&result).is_ok(), good, "{result}");
    }
}

#[test]
fn plugins_are_told_what_they_declare_and_again_at_del() {
    let capabilities = json!({ "bandwidth": true, "ipRanges": true, "aliases": true, "dns": true });
    let fixture = Fixture::new(&json!([{ "type": "one", "capabilities": capabilities }]));
    fixture.cni.set_pod_cidrs(vec!["10.1.2.0/24".to_owned()]);
    let pod = fixture.pod();
    let attachment = run(fixture.cni.add(&pod)).unwrap();
    fixture.cni.set_pod_cidrs(vec!["10.9.9.0/24".to_owned()]);
    run(fixture.cni.remove(&pod, Some(&attachment))).unwrap();
    let expected = json!({
        "bandwidth": { "ingressRate": 1_000_000, "ingressBurst": i32::MAX },
        "ipRanges": [[{ "subnet": "10.1.2.0/24" }]],
        "aliases": ["web;EVIL=1", "web"],
    });
    for command in 0..2 {
        assert_eq!(
            fixture.stdin(command)["runtimeConfig"],
            expected,
            "{:?}",
            fixture.log(2)
        );
    }
}

#[test]
fn an_old_record_without_capabilities_is_read() {
    let record = json!({ "ips": [], "network": {}, "result": {} });
    let attachment: Attachment = serde_json::from_value(record).unwrap();
    assert!(attachment.capabilities.is_empty());
}

#[test]
fn plugins_that_know_status_decide_whether_the_network_is_ready() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    assert_eq!(fixture.ready(), Ok(()));
    assert!(fixture.log(2).is_empty(), "1.0.0 has no STATUS");

    fixture.configure_version(
        "10-net.conflist",
        "1.1.0",
        &json!([{ "type": "one" }, { "type": "two", "mode": "unready" }]),
    );
    for _ in 0..2 {
        let reason = fixture.ready().unwrap_err();
        assert!(reason.contains("two STATUS: no daemon"), "{reason}");
    }
    assert_eq!(
        fixture.log(2),
        ["one STATUS", "two STATUS"],
        "the second time from memory"
    );
    let env = fs::read_to_string(fixture.directory.path().join("env")).unwrap();
    assert!(!env.contains("CNI_CONTAINERID") && !env.contains("CNI_NETNS"), "{env}");

    fixture.configure_version("10-net.conflist", "1.1.0", &json!([{ "type": "one" }]));
    assert_eq!(fixture.ready(), Ok(()), "another configuration is asked anew");
    fixture.configure_version("10-net.conflist", "1.1.0", &json!([{ "type": "one", "mode": "hang" }]));
    let reason = fixture.ready().unwrap_err();
    assert!(reason.contains("STATUS"), "{reason}");
}

#[test]
fn garbage_is_what_belongs_to_no_sandbox() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    assert!(run(fixture.cni.collect()).unwrap());
    assert!(fixture.log(2).is_empty(), "1.0.0 has no GC");

    fixture.configure_version(
        "10-net.conflist",
        "1.1.0",
        &json!([{ "type": "one" }, { "type": "two" }]),
    );
    let pod = fixture.pod();
    let attachment = run(fixture.cni.add(&pod)).unwrap();
    fixture.cni.adopt(&"sandbox-0".parse().unwrap());
    let valid = |run: usize| fixture.stdin(run)["cni.dev/valid-attachments"].clone();
    assert!(run(fixture.cni.collect()).unwrap());
    assert_eq!(fixture.log(2)[2..], ["one GC", "two GC"]);
    let both =
        json!([{ "containerID": "sandbox-0", "ifname": "eth0" }, { "containerID": "sandbox-1", "ifname": "eth0" }]);
    assert_eq!((valid(2), valid(3)), (both.clone(), both));

    run(fixture.cni.remove(&pod, Some(&attachment))).unwrap();
    fixture.cni.let_go(&"sandbox-0".parse().unwrap());
    assert!(run(fixture.cni.collect()).unwrap());
    assert_eq!(valid(6), json!([]));
}

#[test]
fn garbage_is_not_collected_beside_an_add() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    run(async {
        let adding = fixture.cni.upkeep.attaching(&"sandbox-1".parse().unwrap()).await;
        assert!(!fixture.cni.collect().await.unwrap());
        drop(adding);
        assert!(fixture.cni.collect().await.unwrap());
    });
}

#[test]
fn plugins_share_the_time_there_is_for_garbage() {
    let fixture = Fixture::new(&json!([{ "type": "one" }]));
    let plugins = json!([{ "type": "one", "mode": "hang" }, { "type": "two" }]);
    fixture.configure_version("10-net.conflist", "1.1.0", &plugins);
    let error = format!("{:#}", run(fixture.cni.collect()).unwrap_err());
    assert!(error.contains("one GC"), "{error}");
    assert_eq!(
        fixture.log(2),
        ["one GC"],
        "the next would begin when ADDs have waited long enough"
    );
}

#[test]
fn configurations_that_are_renamed_into_the_directory_are_seen() {
    let fixture = Fixture::new(&json!([{ "type": "three" }]));
    assert!(fixture.ready().unwrap_err().contains("three"));
    let conf = fixture.directory.path().join("conf");
    let elsewhere = fixture.directory.path().join("elsewhere");
    let list = |kind: &str| json!({ "name": "net", "cniVersion": "1.0.0", "plugins": [{ "type": kind }] }).to_string();
    fs::write(&elsewhere, list("one")).unwrap();
    fs::rename(&elsewhere, conf.join("10-net.conflist")).unwrap();
    assert_eq!(fixture.ready(), Ok(()));

    // The directory itself is replaced, as an installer does that swaps links.
    fs::rename(&conf, fixture.directory.path().join("old")).unwrap();
    assert!(fixture.ready().is_err());
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("10-net.conflist"), list("two")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &conf).unwrap();
    assert_eq!(fixture.ready(), Ok(()));

    // And a plugin of somebody else's, in the network's own directory.
    fs::create_dir(elsewhere.join("net")).unwrap();
    fs::write(elsewhere.join("net/10.conf"), r#"{"type":"three"}"#).unwrap();
    assert!(fixture.ready().unwrap_err().contains("three"));
}

#[test]
fn the_preferred_version_comes_first() {
    let ips: Vec<IpAddr> = ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]
        .map(|ip| ip.parse().unwrap())
        .into();
    for (preference, first) in [
        (IpPreference::Cni, ["fd00::1", "10.0.0.1"]),
        (IpPreference::Ipv4, ["10.0.0.1", "10.0.0.2"]),
        (IpPreference::Ipv6, ["fd00::1", "fd00::2"]),
    ] {
        let mut sorted = ips.clone();
        preference.sort(&mut sorted);
        let found: Vec<_> = sorted[..2].iter().map(ToString::to_string).collect();
        assert_eq!(found, first, "{preference:?}");
    }
}

/// Removes the bridge that the plugin made; a test that panics leaves none either.
struct Bridge(&'static str);

impl Drop for Bridge {
    fn drop(&mut self) {
        let status = std::process::Command::new("ip")
            .args(["link", "delete", self.0])
            .status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn debians_bridge_attaches_and_detaches_a_namespace() {
    let plugins = Path::new("/usr/lib/cni");
    if !nix::unistd::geteuid().is_root() || !plugins.join("bridge").exists() {
        eprintln!("skipped: needs root and the bridge plugin in /usr/lib/cni");
        return;
    }
    let bridge = Bridge("corten-d2t0");
    let directory = tempfile::tempdir().unwrap();
    let list = json!({
        "name": "corten-unit", "cniVersion": "1.0.0",
        "plugins": [{
            "type": "bridge", "bridge": bridge.0, "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": directory.path().join("ipam"),
                      "ranges": [[{ "subnet": "10.213.77.0/24" }]] },
        }],
    });
    fs::write(directory.path().join("net.conflist"), list.to_string()).unwrap();
    let cni = Cni::new(&config::Cni {
        conf_dir: directory.path().to_owned(),
        bin_dirs: vec![plugins.to_owned()],
        timeout_s: 30,
        ..config::Cni::default()
    });
    let id: SandboxId = "corten-unit-bridge".parse().unwrap();
    let namespaces = directory.path().join("ns");
    let netns = netns::create(&namespaces, &id).unwrap();
    let pod = PodNetwork {
        id: id.clone(),
        netns,
        name: "p".into(),
        namespace: "n".into(),
        uid: "u".into(),
        hostname: String::new(),
        port_mappings: Vec::new(),
        bandwidth: Bandwidth::default(),
        dns: None,
    };
    let attachment = run(cni.add(&pod)).unwrap();
    assert_eq!(attachment.ips, ["10.213.77.2".parse::<IpAddr>().unwrap()]);
    let lease = directory.path().join("ipam/corten-unit/10.213.77.2");
    assert!(lease.exists());

    run(cni.remove(&pod, Some(&attachment))).unwrap();
    assert!(!lease.exists(), "the address is free again");
    run(cni.remove(&pod, Some(&attachment))).unwrap();
    netns::remove(&namespaces, &id).unwrap();
    run(cni.remove(&pod, Some(&attachment))).unwrap();
}
