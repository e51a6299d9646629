//! The log files: their format, long lines, and rotation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use corten_proto::cri;
use corten_tests::node::Node;
use corten_tests::pod::{container, parse_log};

/// Longest content of one line of a log, in bytes; a longer one goes on in the next line.
const MAX_CONTENT: usize = 16 * 1024;

/// `2006-01-02T15:04:05.999999999Z`, or with an offset.
fn is_rfc3339_nano(text: &str) -> bool {
    let (date, rest) = text.split_at_checked(19).unwrap_or(("", ""));
    let form = "dddd-dd-ddTdd:dd:dd";
    let fits = date.len() == form.len()
        && date
            .chars()
            .zip(form.chars())
            .all(|(c, f)| if f == 'd' { c.is_ascii_digit() } else { c == f });
    let digits = rest
        .strip_prefix('.')
        .unwrap_or("")
        .chars()
        .take_while(char::is_ascii_digit)
        .count();
    let zone = rest.get(1 + digits..).unwrap_or("");
    let offset = |zone: &str| zone.len() == 6 && (zone.starts_with('+') || zone.starts_with('-'));
    fits && (1..=9).contains(&digits) && (zone == "Z" || offset(zone))
}

#[test]
fn lines_of_both_streams() {
    let node = Node::start();
    let pod = node.pod("format");
    let container = pod.sh("main", "echo one; echo two >&2; printf 'a\\r\\n\\nno end'");
    container.wait_exit();
    let lines = container.log_lines();
    for line in &lines {
        assert!(is_rfc3339_nano(&line.time), "{line:?}");
    }
    assert!(lines.is_sorted_by(|a, b| a.time <= b.time), "{lines:?}");
    let of = |stream: &str| {
        let lines = lines.iter().filter(|line| line.stream == stream);
        lines
            .map(|line| (line.partial, String::from_utf8_lossy(&line.content).into_owned()))
            .collect::<Vec<_>>()
    };
    let stdout = [(false, "one"), (false, "a\r"), (false, ""), (true, "no end")];
    assert_eq!(of("stdout"), stdout.map(|(partial, text)| (partial, text.to_owned())));
    assert_eq!(of("stderr"), [(false, "two".to_owned())]);
    let mode = fs::metadata(&container.log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn a_long_line_is_split() {
    let node = Node::start();
    let pod = node.pod("long");
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo after";
    let container = pod.sh("main", script);
    container.wait_exit();
    let lines = container.log_lines();
    assert!(lines.iter().all(|line| line.content.len() <= MAX_CONTENT));
    assert_eq!(container.output("stdout"), format!("{}\nafter\n", "x".repeat(40000)));
    assert!(lines.len() >= 4, "{} lines", lines.len());
}

#[test]
fn the_longest_line_is_configured() {
    let node = Node::with(|config| {
        config.insert("container_log_max_line_bytes".to_owned(), 256.into());
    });
    let pod = node.pod("short");
    let container = pod.sh("main", "head -c 600 /dev/zero | tr '\\0' x; echo");
    container.wait_exit();
    let lengths: Vec<_> = container.log_lines().iter().map(|line| line.content.len()).collect();
    assert_eq!(lengths, [256, 256, 88]);
}

/// The shim writes, not the server: a log is whole though the server was killed again and again meanwhile.
#[test]
fn a_log_is_whole_after_the_server_was_killed() {
    let node = Node::start();
    let pod = node.pod("survives");
    let script = "i=0; while [ ! -e /stop ]; do echo $i; echo $i >&2; i=$((i+1)); done; echo $i";
    let container = pod.sh("main", script);
    for _ in 0..5 {
        node.kill_server();
        thread::sleep(Duration::from_millis(50));
        node.launch().unwrap();
    }
    // The container may end, and its exec with it, before that has exited.
    container.exec(&["touch", "/stop"]);
    container.wait_exit();
    let of = |stream: &str| -> Vec<u64> {
        let output = container.output(stream);
        output.lines().map(|line| line.parse().unwrap()).collect()
    };
    let (stdout, stderr) = (of("stdout"), of("stderr"));
    let last = u64::try_from(stdout.len()).unwrap() - 1;
    assert!(
        last > 0 && stdout.into_iter().eq(0..=last),
        "every line once and in order"
    );
    assert!(stderr.into_iter().eq(0..last), "every line once and in order");
}

#[test]
fn without_a_log_path_nothing_is_logged() {
    let node = Node::start();
    let pod = node.pod("silent");
    let mut config = container("main", &["sh", "-c", "yes | head -c 1000000; exit 0"]);
    config.log_path = String::new();
    let exited = pod.start(config).wait_exit();
    assert_eq!(exited.exit_code, 0, "its output is drained all the same");
    let logs: Vec<_> = fs::read_dir(&pod.config.log_directory)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    assert!(logs.is_empty(), "{logs:?}");
}

#[test]
fn rotation_loses_and_tears_no_line() {
    let node = Node::start();
    let pod = node.pod("rotation");
    let container = pod.sh("main", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done");
    let mut files = Vec::new();
    for round in 0..50 {
        thread::sleep(Duration::from_millis(5));
        if container.status().state() != cri::ContainerState::ContainerRunning {
            break;
        }
        // As kubelet rotates: rename, then ask for a new file.
        let rotated = container.log.with_extension(format!("log.{round}"));
        fs::rename(&container.log, &rotated).unwrap();
        let request = cri::ReopenContainerLogRequest {
            container_id: container.id.clone(),
        };
        if node.cri.reopen_container_log(request).is_ok() {
            assert!(container.log.exists(), "the new file is there when the call returns");
        }
        files.push(rotated);
    }
    container.wait_exit();
    files.push(container.log.clone());
    let mut numbers = Vec::new();
    for file in files.iter().filter(|file| file.exists()) {
        let lines = parse_log(&fs::read(file).unwrap());
        numbers.extend(
            lines
                .iter()
                .map(|line| String::from_utf8_lossy(&line.content).parse::<u32>().unwrap()),
        );
    }
    assert_eq!(numbers.len(), 20000);
    assert!(
        numbers.iter().copied().eq(0..20000),
        "in order, none missing, none twice"
    );
}

#[test]
fn reopening_the_log_of_an_ended_container_makes_no_file() {
    let node = Node::start();
    let pod = node.pod("ended");
    let container = pod.sh("main", "echo bye");
    container.wait_exit();
    fs::remove_file(&container.log).unwrap();
    let request = cri::ReopenContainerLogRequest {
        container_id: container.id.clone(),
    };
    assert!(node.cri.reopen_container_log(request).is_err());
    assert!(
        !container.log.exists(),
        "cri-api: on an error there must be no new file"
    );
}

#[test]
fn the_log_directory_is_made() {
    let node = Node::start();
    let pod = node.pod("made");
    assert!(!std::path::Path::new(&pod.config.log_directory).join("deep").exists());
    let mut config = container("main", &["echo", "deep"]);
    config.log_path = "deep/er/0.log".to_owned();
    let container = pod.start(config);
    container.wait_exit();
    assert_eq!(container.output("stdout"), "deep\n");
}
