//! Reload: what a running server takes over from changed files, what it does not, and that no call notices.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use nix::sys::signal::Signal;
use toml::{Table, Value};

/// Longest a reload may take.
const RELOAD: Duration = Duration::from_secs(20);
/// How often the server is told to reload under load, and how many clients make pods meanwhile.
const RELOADS: usize = 50;
const CLIENTS: usize = 8;

/// Sets `TABLE.KEY`.
fn set(config: &mut Table, table: &str, key: &str, value: impl Into<Value>) {
    let table = config.entry(table).or_insert_with(|| Table::new().into());
    table.as_table_mut().unwrap().insert(key.to_owned(), value.into());
}

/// How often the server has said so.
fn said(node: &Node, text: &str) -> usize {
    node.server_log().matches(text).count()
}

/// Sends SIGHUP and waits until the server has said what became of it.
fn hang_up(node: &Node) {
    let told = |node: &Node| said(node, "configuration reloaded") + said(node, "the configuration is not reloaded");
    let (before, deadline) = (told(node), Instant::now() + RELOAD);
    node.signal(Signal::SIGHUP);
    while told(node) == before {
        assert!(Instant::now() < deadline, "no reload\n{}", node.server_log());
        thread::sleep(Duration::from_millis(10));
    }
}

fn config_command(node: &Node, arguments: &[&str]) -> Output {
    let file = node.config_file();
    let mut command = Command::new(binary("corten-cri"));
    command.arg("--config").arg(file).arg("config").args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_pinned(node: &Node) -> bool {
    let image = Some(cri::ImageSpec {
        image: BUSYBOX.to_owned(),
        ..Default::default()
    });
    let request = cri::ImageStatusRequest { image, verbose: false };
    node.cri.image_status(request).unwrap().image.unwrap().pinned
}

#[test]
fn what_can_change_does_and_the_rest_is_told() {
    let node = Node::start();
    node.pull(BUSYBOX);
    assert!(!is_pinned(&node));
    node.reconfigure(|config| {
        config.insert("worker_threads".into(), 3.into());
        set(config, "log", "level", "debug");
        set(config, "storage", "pinned_images", vec!["127.0.0.1:5000/*"]);
        let path = Value::from(binary("corten").display().to_string());
        let runtime = Table::from_iter([("path".to_owned(), path)]);
        set(config, "runtimes", "second", runtime);
    });
    hang_up(&node);
    assert!(is_pinned(&node));
    let pod = node.run_pod_by(node.pod_config("by-the-second"), "second");
    let log = node.server_log();
    for line in [
        "configuration: log.level: \"info\" -> \"debug\"",
        "configuration: runtimes.second.path: not set -> ",
        "configuration: needs a restart: worker_threads: 2 -> 3 (it is read at the start only)",
        "configuration reloaded changed=5 restart=1",
        "DEBUG",
    ] {
        assert!(log.contains(line), "{line:?} in\n{log}");
    }

    // A runtime that a pod has stays, and all the rest with it.
    node.reconfigure(|config| {
        config.remove("runtimes");
        set(config, "storage", "pinned_images", Vec::<String>::new());
    });
    hang_up(&node);
    assert!(is_pinned(&node));
    let log = node.server_log();
    assert!(log.contains("runtimes.second: must stay: pod sandbox"), "{log}");
    pod.stop();
    pod.remove();
    hang_up(&node);
    assert!(!is_pinned(&node));
}

#[test]
fn a_bad_file_changes_nothing_and_is_reported() {
    let node = Node::start();
    node.pull(BUSYBOX);
    node.reconfigure(|config| {
        set(config, "storage", "pinned_images", vec!["127.0.0.1:5000/*"]);
        set(config, "cni", "timeout_s", 0);
    });
    hang_up(&node);
    let log = node.server_log();
    let rule = "cni.timeout_s: must be 1 to 600 (it is 0)";
    assert!(log.contains(rule) && log.contains("config.toml:"), "{log}");
    assert!(log.contains("all of it stays as it was"), "{log}");
    assert!(!is_pinned(&node), "the good part of a bad file counts neither");
    let output = config_command(&node, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(rule), "{output:?}");
    // The server can be asked all the same, and says the same.
    let output = config_command(&node, &["show", "--running"]);
    assert!(
        text(&output.stdout).contains("cni.timeout_s = 60  # default"),
        "{output:?}"
    );
    let output = config_command(&node, &["reload"]);
    assert!(
        !output.status.success() && text(&output.stderr).contains(rule),
        "{output:?}"
    );
    node.reconfigure(|config| set(config, "cni", "timeout_s", 30));
    let output = config_command(&node, &["reload"]);
    assert!(output.status.success(), "{output:?}");
    assert!(is_pinned(&node));
}

#[test]
fn the_command_line_reloads_and_shows_what_is_in_force() {
    let node = Node::start();
    node.reconfigure(|config| {
        set(config, "cni", "timeout_s", 33);
        set(config, "streaming", "idle_timeout_s", 77);
    });
    let shown = |arguments: &[&str]| {
        let output = config_command(&node, arguments);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let file = format!("# {}:", node.config_file().display());
    assert!(shown(&["show"]).contains("cni.timeout_s = 33"), "the files");
    assert!(
        shown(&["show", "--running"]).contains("cni.timeout_s = 60  # default\n"),
        "the server"
    );
    let said = shown(&["reload"]);
    assert!(said.contains("changed: cni.timeout_s: 60 -> 33\n"), "{said}");
    assert!(
        said.contains("needs a restart: streaming.idle_timeout_s: 14400 -> 77 ("),
        "{said}"
    );
    let running = shown(&["show", "--running"]);
    assert!(running.contains(&format!("cni.timeout_s = 33  {file}")), "{running}");
    let waits = "streaming.idle_timeout_s = 14400  # default; 77 after a restart\n";
    assert!(running.contains(waits), "{running}");
    assert!(
        shown(&["reload"]).contains("needs a restart: streaming"),
        "it waits still"
    );
    node.stop_server();
    node.launch().unwrap();
    let running = shown(&["show", "--running"]);
    assert!(
        running.contains(&format!("streaming.idle_timeout_s = 77  {file}")),
        "{running}"
    );
    assert_eq!(shown(&["reload"]), "nothing has changed\n");
}

#[test]
fn an_image_policy_comes_and_goes() {
    let node = Node::start();
    let policy = node.dir().join("policy.toml");
    std::fs::write(&policy, "[rules.'*']\naction = 'reject'\n").unwrap();
    let pull = || {
        node.cri.pull_image(cri::PullImageRequest {
            image: Some(cri::ImageSpec {
                image: BUSYBOX.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    pull().unwrap();
    node.reconfigure(|config| drop(config.insert("image_policy".into(), policy.display().to_string().into())));
    hang_up(&node);
    assert!(pull().is_err());
    node.reconfigure(|config| drop(config.remove("image_policy")));
    hang_up(&node);
    pull().unwrap();
    // A registry that is spoken to otherwise: HTTPS to one that speaks HTTP.
    node.reconfigure(|config| drop(config.remove("registries")));
    hang_up(&node);
    assert!(pull().is_err());
}

/// The configuration of the `number`th reload: every live value that a pod's life reads goes to and fro.
fn change(config: &mut Table, number: usize) {
    let odd = number % 2 == 1;
    config.insert("missing_host_path".into(), if odd { "reject" } else { "create" }.into());
    config.insert(
        "container_log_max_line_bytes".into(),
        if odd { 4096 } else { 16384 }.into(),
    );
    set(config, "log", "level", if odd { "debug" } else { "info" });
    set(config, "cni", "timeout_s", if odd { 30 } else { 60 });
    set(config, "cni", "ip_preference", if odd { "ipv4" } else { "cni" });
    set(config, "security", "mask_paths_by_default", odd);
    set(config, "pull", "layers_at_once", if odd { 5 } else { 6 });
    set(config, "pull", "progress_timeout_s", if odd { 60 } else { 300 });
    set(config, "storage", "pinned_images", if odd { vec!["*"] } else { vec![] });
    if odd {
        let path = Value::from(binary("corten").display().to_string());
        set(config, "runtimes", "odd", Table::from_iter([("path".to_owned(), path)]));
    } else {
        config.remove("runtimes");
    }
}

#[test]
fn no_call_fails_while_the_configuration_changes() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let (ended, pods) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (node, ended, pods) = (&node, &ended, &pods);
            scope.spawn(move || {
                let mut number = 0;
                while !ended.load(Ordering::Relaxed) {
                    let name = format!("pod-{client}-{number}");
                    let pod = node.run_pod(node.pod_config(&name));
                    node.pull(BUSYBOX);
                    let container = pod.sh("one", "echo here; sleep 1000");
                    container.wait_output("here");
                    assert_eq!(container.exec_sh("hostname"), format!("{name}\n"));
                    container.stop(0);
                    pod.stop();
                    pod.remove();
                    pods.fetch_add(1, Ordering::Relaxed);
                    number += 1;
                }
            });
        }
        for number in 1..=RELOADS {
            node.reconfigure(|config| change(config, number));
            hang_up(&node);
        }
        ended.store(true, Ordering::Relaxed);
    });
    let log = node.server_log();
    assert_eq!(said(&node, "the configuration is not reloaded"), 0, "{log}");
    assert_eq!(said(&node, "configuration reloaded"), RELOADS);
    println!("{RELOADS} reloads while {} pods lived", pods.load(Ordering::Relaxed));
    assert!(pods.load(Ordering::Relaxed) >= CLIENTS);
    node.assert_no_pods_left();
}
