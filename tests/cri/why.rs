//! Why a container ended: the record, the verbose status, the status's message, and `corten-cri why`.

use std::fs;
use std::thread;
use std::time::Duration;

use corten_proto::cri;
use corten_proto::cri::security_profile::ProfileType;
use corten_tests::image::{Image, Layer};
use corten_tests::node::Node;
use corten_tests::pod::{Container, Pod, container, image};
use serde_json::{Value, json};

/// Runs a container to its end; what is known of it.
#[track_caller]
fn death<'n>(pod: &Pod<'n>, config: cri::ContainerConfig) -> (Container<'n>, cri::ContainerStatus, Value) {
    let container = pod.start(config);
    let status = container.wait_exit();
    let exit = container.info()["exit"].clone();
    (container, status, exit)
}

fn linux(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerConfig {
    config.linux.as_mut().unwrap()
}

#[test]
fn an_exit_code_and_the_last_words() {
    let node = Node::start();
    let pod = node.pod("code");
    let config = container("main", &["sh", "-c", "echo out; echo it hurts >&2; exit 3"]);
    let (main, status, exit) = death(&pod, config);
    assert_eq!(
        (status.reason.as_str(), status.exit_code, status.message.as_str()),
        ("Error", 3, ""),
        "a termination message stands alone"
    );
    assert_eq!(exit["cause"], json!({ "by": "exit" }));
    assert_eq!(exit["summary"], "ended by itself with exit code 3");
    let details = &exit["record"]["details"];
    assert_eq!(details["tail"], json!({ "stream": "stderr", "text": "it hurts\n" }));
    let times = [&exit["created_at"], &exit["started_at"], &exit["finished_at"]];
    let times = times.map(|time| time.as_i64().unwrap());
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!((times[1], times[2]), (status.started_at, status.finished_at));
    assert!(
        details["cgroup"]["version"].as_i64().is_some_and(|version| version > 0),
        "{details}"
    );

    let page = node.why(&main.id);
    assert!(
        page.starts_with("default/code/main: ended by itself with exit code 3.\n"),
        "{page}"
    );
    assert!(page.contains("last words on stderr:\n  it hurts\n"), "{page}");
    for asked in [&main.id[..12], "main", "code/main", "default/code/main"] {
        assert_eq!(node.why_json(asked)["id"], main.id.as_str(), "{asked}");
    }

    let (_, status, exit) = death(&pod, container("good", &["true"]));
    assert_eq!((status.reason.as_str(), status.message.as_str()), ("Completed", ""));
    assert_eq!(exit["exit_code"], 0);
}

#[test]
fn what_has_not_ended_or_is_not_known() {
    let node = Node::start();
    let pod = node.pod("alive");
    let main = pod.sh("main", "sleep 1000");
    assert_eq!(main.info()["exit"], Value::Null);
    for (asked, says) in [("main", "has not ended"), ("absent\u{1b}[2J", "no container")] {
        let output = node.why_output(&[asked]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(says), "{stderr}");
        assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
    }
    main.stop(0);
}

#[test]
fn a_stop_tells_its_reason() {
    let node = Node::start();
    let pod = node.pod("stop");
    let polite = pod.sh("polite", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done");
    polite.wait_output("ready");
    polite.stop(30);
    let exit = polite.info()["exit"].clone();
    assert_eq!(exit["cause"]["by"], "exit");
    assert_eq!(exit["cause"]["after"]["signal"], 15);
    assert_eq!(
        exit["summary"],
        "ended by itself with exit code 4, after SIGTERM was sent for StopContainer with 30 s of grace"
    );
    let stubborn = pod.sh("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    stubborn.wait_output("ready");
    stubborn.stop(1);
    let exit = stubborn.info()["exit"].clone();
    assert_eq!(
        (&exit["cause"]["by"], &exit["cause"]["signal"]),
        (&json!("request"), &json!("SIGKILL"))
    );
    let said = "killed by SIGKILL, sent for StopContainer with 1 s of grace, which were over";
    assert_eq!(exit["summary"], said);
    assert_eq!(stubborn.status().message, "", "the kubelet knows that it has asked");
    let other = pod.sh("other", "sleep 1000");
    pod.stop();
    let summary = other.info()["exit"]["summary"].as_str().unwrap().to_owned();
    assert!(summary.contains("StopPodSandbox"), "{summary}");
}

#[test]
fn a_memory_limit() {
    let node = Node::start();
    let pod = node.pod("oom");
    let mut config = container("main", &["sh", "-c", "echo eating >&2; exec tail /dev/zero"]);
    linux(&mut config).resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        memory_swap_limit_in_bytes: 16 << 20,
        ..Default::default()
    });
    let (main, status, exit) = death(&pod, config);
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    let said = "killed by the kernel because its memory limit of 16 MiB was reached; at most it used ";
    assert!(status.message.starts_with(said), "{}", status.message);
    assert_eq!(exit["summary"], status.message);
    assert_eq!(exit["cause"]["by"], "oom-killer");
    let cgroup = &exit["record"]["details"]["cgroup"];
    assert_eq!(cgroup["memory_limit"], 16 << 20);
    assert!(cgroup["memory_events"]["oom_kill"].as_u64().unwrap() > 0, "{cgroup}");
    if fs::File::open("/dev/kmsg").is_ok() {
        let kernel = exit["record"]["details"]["kernel"].to_string();
        assert!(
            kernel.contains("oom-kill:") && kernel.contains(&main.id),
            "the victim: {kernel}"
        );
        assert_eq!(exit["cause"]["scope"], "container");
    }
    let page = node.why("oom/main");
    assert!(page.contains("memory events") && page.contains("  eating\n"), "{page}");
    // The status is the record's, also of a server that has not seen the end.
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(main.status(), status);
    assert_eq!(main.info()["exit"], exit);
}

/// A program of a few instructions: it reads what is at address 0.
fn faulty_program() -> Vec<u8> {
    // xor eax, eax; mov al, [rax]
    let code = [0x31, 0xc0, 0x8a, 0x00];
    let word = |value: u64| value.to_le_bytes();
    let half = |value: u16| value.to_le_bytes();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for value in [0x0040_0078, 64, 0] {
        elf.extend(word(value));
    }
    elf.extend([0; 4]);
    for value in [64, 56, 1, 0, 0, 0] {
        elf.extend(half(value));
    }
    // One segment, readable and executable: the whole file.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for value in [0, 0x0040_0000, 0x0040_0000, 0x7c, 0x7c, 0x1000] {
        elf.extend(word(value));
    }
    elf.extend(code);
    elf
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_fault() {
    let node = Node::start();
    let built = Image::new().layer(Layer::new().file("fault", 0o755, &faulty_program()));
    built.save(&node.dir().join("images"), &["fault:1"]).unwrap();
    node.pull("127.0.0.1:5000/fault:1");
    let pod = node.pod("fault");
    let mut config = container("main", &["/fault"]);
    config.image = Some(image("127.0.0.1:5000/fault:1"));
    let (main, status, exit) = death(&pod, config);
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 139));
    assert_eq!(
        (&exit["cause"]["by"], &exit["cause"]["signal"]),
        (&json!("fault"), &json!("SIGSEGV"))
    );
    assert!(
        status.message.starts_with("killed by the kernel with SIGSEGV"),
        "{}",
        status.message
    );
    assert!(node.why(&main.id).contains("SIGSEGV"));
}

/// Without a pid namespace of its own a container's first process can be killed from within by any signal.
#[test]
fn a_signal_of_a_stranger_is_not_ours() {
    let node = Node::start();
    let mut config = node.pod_config("stranger");
    node.pull(corten_tests::node::BUSYBOX);
    let pod_pids = |options: &mut Option<cri::NamespaceOption>| {
        options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
    };
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    pod_pids(&mut security.namespace_options);
    let pod = node.run_pod(config);
    for (signal, by, name) in [
        ("USR1", "unknown-sender", "SIGUSR1"),
        ("KILL", "unknown-sender", "SIGKILL"),
    ] {
        let mut config = container(
            &signal.to_lowercase(),
            &["sh", "-c", &format!("kill -{signal} $$; sleep 10")],
        );
        pod_pids(&mut linux(&mut config).security_context.as_mut().unwrap().namespace_options);
        let (_, status, exit) = death(&pod, config);
        assert_eq!(
            (status.reason.as_str(), status.message.as_str()),
            ("Error", ""),
            "{signal}"
        );
        assert_eq!(
            (&exit["cause"]["by"], &exit["cause"]["signal"]),
            (&json!(by), &json!(name))
        );
    }
}

#[test]
fn a_system_call_that_seccomp_kills_for() {
    let node = Node::start();
    let profile = node.dir().join("kill.json");
    let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" });
    let document = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    fs::write(&profile, document.to_string()).unwrap();
    let pod = node.pod("seccomp");
    let mut config = container("main", &["sh", "-c", "exec mkdir /x"]);
    linux(&mut config).security_context.as_mut().unwrap().seccomp = Some(cri::SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
    });
    let (main, status, exit) = death(&pod, config);
    assert_eq!((status.exit_code, &exit["cause"]["by"]), (159, &json!("seccomp")));
    assert!(status.message.contains("seccomp profile"), "{}", status.message);
    // A kernel with audit says so in its log, unless a daemon takes it from there.
    let kernel = exit["record"]["details"]["kernel"].to_string();
    assert_eq!(exit["cause"]["confirmed"], kernel.contains("type=1326"), "{kernel}");
    assert!(node.why(&main.id).contains("SIGSYS"));
}

#[test]
fn a_terminal() {
    let node = Node::start();
    let pod = node.pod("tty");
    let mut config = container("main", &["sh", "-c", "echo out; echo err >&2; exit 1"]);
    config.tty = true;
    let (_, _, exit) = death(&pod, config);
    let tail = &exit["record"]["details"]["tail"];
    assert_eq!(*tail, json!({ "stream": "stdout", "text": "out\r\nerr\r\n" }));
}

#[test]
fn hostile_words_reach_no_terminal() {
    let node = Node::start();
    let pod = node.pod("hostile");
    let script = r"printf '\033]0;owned\007\033[2J\302\2331A\342\200\256\177\n' >&2; exit 1";
    let (main, _, exit) = death(&pod, container("main", &["sh", "-c", script]));
    let words = exit["record"]["details"]["tail"]["text"].as_str().unwrap();
    assert_eq!(
        words, "\x1b]0;owned\x07\x1b[2J\u{9b}1A\u{202e}\x7f\n",
        "the record has all of it"
    );
    let page = node.why(&main.id);
    assert!(
        page.contains("\\u{1b}]0;owned\\u{7}\\u{1b}[2J\\u{9b}1A\\u{202e}\\u{7f}"),
        "{page}"
    );
    let harmful = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    assert!(!harmful(&page), "{page:?}");
    let output = node.why_output(&["--json", &main.id]);
    let json = String::from_utf8(output.stdout).unwrap();
    assert!(!harmful(&json), "{json:?}");
    let back: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(back["record"]["details"]["tail"]["text"], words, "escaped, not lost");
}

/// The kubelet removes containers soon; who asks later is answered all the same, by a server or by the disk.
#[test]
fn a_container_that_was_removed() {
    let node = Node::start();
    let pod = node.pod("gone");
    let mut first = container("main", &["sh", "-c", "echo first >&2; exit 1"]);
    let (old, ..) = death(&pod, first.clone());
    first.metadata.as_mut().unwrap().attempt = 1;
    first.command = ["sh", "-c", "echo second >&2; exit 2"].map(str::to_owned).into();
    let (new, _, exit) = death(&pod, first);
    let unstarted = pod.create(container("never", &["true"]));
    for container in [&old, &new, &unstarted] {
        container.remove();
    }
    let running = pod.sh("killed", "sleep 1000");
    running.remove();
    let check = || {
        assert_eq!(node.why_json(&old.id)["record"]["details"]["tail"]["text"], "first\n");
        assert_eq!(node.why_json("gone/main"), exit, "the last of them");
        let summary = node.why_json("killed")["summary"].as_str().unwrap().to_owned();
        assert_eq!(summary, "killed by SIGKILL, sent for RemoveContainer");
        assert!(!node.why_output(&["never"]).status.success(), "it has nothing to tell");
    };
    check();
    node.kill_server();
    node.launch().unwrap();
    check();
    pod.remove();
    check();
    node.stop_server();
    let output = node.why_output(&[&new.id]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("no server answers"),
        "{stderr}"
    );
    check();
    assert_eq!(fs::read_dir(node.dir().join("lib/exits")).unwrap().count(), 3);
    node.launch().unwrap();
}

/// Nobody was there when it ended, and somebody asks before anybody is.
#[test]
fn a_container_of_a_killed_server() {
    let node = Node::start();
    let pod = node.pod("alone");
    let main = pod.sh(
        "main",
        "trap 'sleep 1; echo late >&2; exit 6' TERM; echo ready; while :; do sleep 0.05; done",
    );
    main.wait_output("ready");
    thread::scope(|scope| {
        let id = main.id.clone();
        let cri = &node.cri;
        let stop = scope.spawn(move || {
            let request = cri::StopContainerRequest {
                container_id: id,
                timeout: 60,
            };
            cri.stop_container(request)
        });
        thread::sleep(Duration::from_millis(300));
        node.kill_server();
        assert!(stop.join().unwrap().is_err(), "its server is gone");
    });
    let record = node.dir().join("lib/containers").join(&main.id).join("exit.json");
    for _ in 0..500 {
        if record.exists() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let check = || {
        let exit = node.why_json(&main.id);
        assert_eq!(exit["exit_code"], 6);
        let summary = exit["summary"].as_str().unwrap();
        assert!(
            summary.contains("after SIGTERM was sent for StopContainer with 60 s"),
            "{summary}"
        );
        assert_eq!(exit["record"]["details"]["tail"]["text"], "late\n");
    };
    check();
    node.launch().unwrap();
    main.wait_exit();
    check();
}

#[test]
fn a_start_that_failed() {
    let node = Node::start();
    let pod = node.pod("start");
    let request = pod.create_request(&container("main", &["/absent"]));
    let refused = node.cri.create_container(request);
    // The runtime looks for the program at create or at start; either way the caller is told.
    let created = match refused {
        Ok(created) => created,
        Err(status) => {
            assert!(status.message().contains("/absent"), "{status}");
            return;
        }
    };
    let start = cri::StartContainerRequest {
        container_id: created.container_id.clone(),
    };
    let error = node.cri.start_container(start).unwrap_err();
    let exit = node.why_json(&created.container_id);
    assert_eq!(
        (&exit["reason"], &exit["cause"]["by"]),
        (&json!("StartError"), &json!("start-failed"))
    );
    assert!(
        error.message().contains(exit["message"].as_str().unwrap()),
        "{error} {exit}"
    );
}

/// The limit of a log is the server's to set and the shim's to keep.
#[test]
fn a_log_with_a_limit() {
    let node = Node::with(|config| {
        config.insert("container_log_limit_bytes".to_owned(), 65536.into());
    });
    let pod = node.pod("limit");
    let script = "yes a line of output | head -c 300000; echo over >&2; exit 1";
    let (main, _, exit) = death(&pod, container("main", &["sh", "-c", script]));
    let length = fs::metadata(&main.log).unwrap().len();
    assert!((32768..=65536).contains(&length), "{length}");
    let lost = exit["record"]["output_lost"].as_u64().unwrap();
    assert_eq!(main.info()["outputLost"], lost);
    let page = node.why(&main.id);
    assert!(
        lost > 200_000 && page.contains(&format!("{lost} bytes of output are missing")),
        "{page}"
    );
    assert!(fs::read_to_string(&main.log).unwrap().contains("until it is rotated"));
    // As the kubelet does it.
    fs::rename(&main.log, main.log.with_extension("old")).unwrap();
}
