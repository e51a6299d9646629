//! The system calls of a create and of an exec as strace shows them: what happens before what, and that nothing in the
//! root is named by a path.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::json;

tests! {
    init_is_not_dumpable_before_it_joins_or_mounts_anything,
    the_host_s_root_is_gone_before_any_program_runs,
    nothing_in_the_root_is_named_by_a_path,
    nothing_is_written_in_proc_by_path,
    only_the_runtime_and_the_program_are_executed,
    exec_is_not_dumpable_and_joins_all_at_once,
}

/// One system call: who made it, and its text.
struct Call {
    pid: String,
    text: String,
}

/// Runs a command under strace; `None`, aloud, where there is no strace.
fn trace(bundle: &Bundle<'_>, command: &Command) -> Option<Vec<Call>> {
    let file = bundle.path().join("trace");
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq", "-s", "4096", "-o"]).arg(&file);
    strace.arg(command.get_program()).args(command.get_args());
    strace.stdin(std::process::Stdio::null());
    if !std::path::Path::new("/usr/bin/strace").exists() {
        eprintln!("SKIP: strace is not installed");
        return None;
    }
    let _traced = finish(&mut strace).success();
    let text = fs::read_to_string(&file).expect("strace has written");
    Some(parse(&text))
}

/// What strace has written, with the calls whole that it wrote in two parts because another process came between.
fn parse(text: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((pid, text)) = line.split_once(' ') else {
            continue;
        };
        let text = text.trim_start();
        if let Some(first) = text.strip_suffix("<unfinished ...>") {
            begun.insert(pid, first.trim_end());
            continue;
        }
        let resumed = text.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let text = match resumed.zip(begun.remove(pid)) {
            // strace pads the answer into a column of its own.
            Some(((_, rest), first)) => match rest.rsplit_once(" = ") {
                Some((rest, answer)) => format!("{first}{} = {answer}", rest.trim_end()),
                None => format!("{first}{rest}"),
            },
            None => text.to_owned(),
        };
        calls.push(Call {
            pid: pid.to_owned(),
            text,
        });
    }
    calls
}

/// A create with something of everything, and its start.
fn traced_run(runtime: &Runtime) -> Option<Vec<Call>> {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let target = runtime.bundle();
    let volume = target.path().join("volume");
    fs::create_dir(&volume).expect("make a volume");
    bundle.add_mount(json!({ "source": volume, "destination": "/tmp/volume/made", "options": ["bind"] }));
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 1" });
    bundle.spec["linux"]["devices"] =
        json!([{ "path": "/dev/made", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]);
    bundle.spec["process"]["oomScoreAdj"] = json!(500);
    let mut command = bundle.command("run");
    trace(&bundle, command.arg(&bundle.id))
}

/// The calls of the process that exchanges the root, up to the execution of the container's program.
fn of_init(calls: &[Call]) -> Vec<&str> {
    let pivot = calls
        .iter()
        .find(|call| call.text.starts_with("pivot_root("))
        .expect("init exchanges the root");
    let own = calls
        .iter()
        .filter(|call| call.pid == pivot.pid)
        .map(|call| call.text.as_str());
    let own: Vec<&str> = own.take_while(|text| !text.starts_with("execve(")).collect();
    assert!(own.len() > 50, "{own:#?}");
    own
}

/// Where the first call is that begins with `start`.
#[track_caller]
fn first(calls: &[&str], start: &str) -> usize {
    let found = calls.iter().position(|call| call.starts_with(start));
    found.unwrap_or_else(|| panic!("no {start} in {calls:#?}"))
}

const UNDUMPABLE: &str = "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE) = 0";

/// CVE-2016-9962.
fn init_is_not_dumpable_before_it_joins_or_mounts_anything(runtime: &Runtime) {
    let mut target = runtime.bundle();
    target.probe(&["sleep"]);
    let container = target.start();
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    // To join a pid namespace takes a process in between.
    for (kind, name) in [("pid", "pid"), ("network", "net"), ("ipc", "ipc")] {
        bundle.namespace(kind, Some(&format!("/proc/{}/ns/{name}", container.pid)));
    }
    let mut command = bundle.command("run");
    let Some(calls) = trace(&bundle, command.arg(&bundle.id)) else {
        return;
    };
    let joining: Vec<&Call> = calls.iter().filter(|call| call.text.starts_with("setns(")).collect();
    assert!(joining.len() >= 3, "three namespaces are joined");
    for join in joining {
        let own: Vec<&str> = calls
            .iter()
            .filter(|call| call.pid == join.pid)
            .map(|call| call.text.as_str())
            .collect();
        assert!(first(&own, UNDUMPABLE) < first(&own, "setns("), "{own:#?}");
    }
    if let Some(calls) = traced_run(runtime) {
        let init = of_init(&calls);
        let undumpable = first(&init, UNDUMPABLE);
        for later in ["fsopen(", "mount(", "move_mount(", "open_tree(", "openat2("] {
            assert!(undumpable < first(&init, later), "{later} comes first");
        }
        assert!(
            !init
                .iter()
                .any(|call| call.starts_with("prctl(PR_SET_DUMPABLE, SUID_DUMP_USER"))
        );
    }
}

fn the_host_s_root_is_gone_before_any_program_runs(runtime: &Runtime) {
    let Some(calls) = traced_run(runtime) else {
        return;
    };
    let init = of_init(&calls);
    let steps = [
        "pivot_root(\".\", \".\")",
        "umount2(\".\", MNT_DETACH)",
        "chdir(\"/\")",
        "close_range(",
        "capset(",
    ];
    let places: Vec<usize> = steps.iter().map(|step| first(&init, step)).collect();
    assert!(places.is_sorted(), "{steps:?} at {places:?}");
    // What is still open then is the channel, the fifo and procfs; all of them close on exec, as the audit sees.
    let ranges = init
        .iter()
        .filter(|call| call.starts_with("close_range("))
        .collect::<Vec<_>>();
    assert!(ranges.iter().any(|call| call.contains("2147483647")), "{ranges:?}");
}

/// Between the attachment of the root and the exchange no path is resolved from `/` or the working directory: paths in
/// the root are resolved by openat2 from its descriptor, and without magic links.
fn nothing_in_the_root_is_named_by_a_path(runtime: &Runtime) {
    let Some(calls) = traced_run(runtime) else {
        return;
    };
    let init = of_init(&calls);
    let attached = first(&init, "move_mount(");
    assert!(
        init[attached].contains("AT_FDCWD, \"/\", MOVE_MOUNT_F_EMPTY_PATH"),
        "{}",
        init[attached]
    );
    let exchanged = first(&init, "pivot_root(");
    let mut resolved = 0;
    for call in &init[attached + 1..exchanged] {
        // The first path of symlinkat is only written down.
        let absolute = call.contains("(\"/") && !call.starts_with("symlinkat(");
        let by_path = absolute || call.contains("AT_FDCWD") || call.starts_with("mount(");
        // Whether the host has this file; nothing is opened.
        assert!(
            !by_path || call.starts_with("statx(AT_FDCWD, \"/proc/kcore\""),
            "{call}"
        );
        if call.starts_with("openat2(") {
            assert!(
                call.contains("RESOLVE_IN_ROOT") && call.contains("RESOLVE_NO_MAGICLINKS"),
                "{call}"
            );
            resolved += 1;
        }
        if call.starts_with("move_mount(") {
            assert!(call.contains("MOVE_MOUNT_T_EMPTY_PATH"), "{call}");
        }
        let follows = call.starts_with("openat(") && call.contains("O_CREAT") && !call.contains("O_EXCL");
        assert!(!follows, "{call}");
    }
    assert!(resolved > 10, "{resolved} paths");
    let by_name = [
        "open(", "creat(", "mkdir(", "mknod(", "symlink(", "chmod(", "chown(", "lchown(", "unlink(",
    ];
    let named: Vec<_> = init[..exchanged]
        .iter()
        .filter(|call| by_name.iter().any(|name| call.starts_with(name)))
        .collect();
    assert!(named.is_empty(), "{named:#?}");
    let mounts: Vec<_> = init.iter().filter(|call| call.starts_with("mount(")).collect();
    assert!(
        mounts
            .iter()
            .all(|call| call.starts_with("mount(NULL, \"/\", NULL, MS_REC|MS_SLAVE")),
        "{mounts:#?}"
    );
}

/// CVE-2025-52881: settings and labels are written through a procfs that nobody could mount anything on.
fn nothing_is_written_in_proc_by_path(runtime: &Runtime) {
    let Some(calls) = traced_run(runtime) else {
        return;
    };
    let init = of_init(&calls);
    let writes = |call: &&&str| call.contains("O_WRONLY") || call.contains("O_RDWR") || call.starts_with("creat(");
    for call in init.iter().filter(writes) {
        assert!(!call.contains("\"/proc") && !call.contains("\"/sys"), "{call}");
    }
    let sysctl = init
        .iter()
        .find(|call| call.contains("ping_group_range"))
        .expect("a setting is written");
    for rule in [
        "openat2(",
        "\"sys/net/",
        "RESOLVE_NO_XDEV",
        "RESOLVE_NO_SYMLINKS",
        "RESOLVE_BENEATH",
    ] {
        assert!(sysctl.contains(rule), "{rule}: {sysctl}");
    }
}

/// CVE-2019-14271, CVE-2022-1227: no program and no library of the image before its own program, in its own root.
fn only_the_runtime_and_the_program_are_executed(runtime: &Runtime) {
    let Some(calls) = traced_run(runtime) else {
        return;
    };
    let executed: Vec<&str> = calls
        .iter()
        .map(|call| call.text.as_str())
        .filter(|call| call.starts_with("exec"))
        .collect();
    let [runtime_itself, sealed, program] = executed[..] else {
        panic!("{executed:#?}")
    };
    let binary = runtime.command().get_program().to_string_lossy().into_owned();
    assert!(runtime_itself.contains(&binary), "{runtime_itself}");
    assert!(
        sealed.starts_with("execveat(") && sealed.contains("AT_EMPTY_PATH"),
        "{sealed}"
    );
    assert!(program.starts_with("execve(\"/probe\""), "{program}");
    let loaded = calls
        .iter()
        .filter(|call| call.text.contains(".so") && call.text.contains("open"))
        .count();
    assert_eq!(loaded, 0, "the runtime loads no library");
}

fn exec_is_not_dumpable_and_joins_all_at_once(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let mut command = bundle.command("exec");
    let Some(calls) = trace(&bundle, command.arg(&bundle.id).args(["/probe", "exit", "0"])) else {
        return;
    };
    let joins: Vec<&Call> = calls.iter().filter(|call| call.text.starts_with("setns(")).collect();
    assert_eq!(joins.len(), 1, "one setns for all namespaces");
    let joiner: Vec<&str> = calls
        .iter()
        .filter(|call| call.pid == joins[0].pid)
        .map(|call| call.text.as_str())
        .collect();
    assert!(first(&joiner, UNDUMPABLE) < first(&joiner, "setns("), "{joiner:#?}");
    let program = calls
        .iter()
        .rev()
        .find(|call| call.text.starts_with("execve(\"/probe\""))
        .expect("the program runs");
    let own: Vec<&str> = calls
        .iter()
        .filter(|call| call.pid == program.pid)
        .map(|call| call.text.as_str())
        .collect();
    assert!(
        first(&own, "close_range(") < first(&own, "execve(\"/probe\""),
        "{own:#?}"
    );
}
