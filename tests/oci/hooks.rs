//! Hooks: which run when, in which namespaces, with what on stdin and in the environment, and what a failure undoes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Running, Runtime, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

each_runtime! {
    the_environment_is_the_hook_s_own,
    namespaces_are_those_of_the_specification,
    hooks_get_every_signal,
    a_failing_hook_undoes_create,
    a_failing_start_hook_fails_start,
    a_hook_that_takes_too_long_is_killed,
    a_missing_hook_is_an_error,
    create_container_hooks_find_the_root_at_its_path,
    poststop_hooks_follow_a_failed_create,
    an_interrupt_leaves_the_last_hooks_alone,
}

rootless! {
    the_environment_is_the_hook_s_own,
    a_failing_hook_undoes_create,
    a_failing_start_hook_fails_start,
    create_container_hooks_find_the_root_at_its_path,
    poststop_hooks_follow_a_failed_create,
}

corten_only! {
    hooks_run_in_order: "runc 1.1 runs poststart hooks in create; runtime.md, step 10, has them after start",
    the_state_is_on_stdin: "the same: their state says created",
    hooks_have_only_stdio_open: "runc 1.1 lets createContainer hooks inherit the descriptors of its init",
    a_failing_poststop_hook_does_not_stop_delete: "runc 1.1 leaves the remaining hooks out; runtime.md, step 15, does not",
    an_ignored_signal_interrupts_nothing: "runc 1.1 passes it on to its own init, which it may end before the program is there",
    an_interrupt_ends_a_run_at_its_hooks: "runc 1.1 keeps the signal for a program that never comes",
    a_second_interrupt_spares_the_undoing: "the same",
    an_interrupt_at_poststart_is_the_program_s: "runc 1.1 waits for the hook first",
    an_init_that_is_killed_at_its_hooks_fails_start: "runc 1.1 takes any end of the fifo for the program's beginning",
    a_relative_hook_path_is_refused: "runc 1.1 runs it; config.md, POSIX-platform hooks, asks for an absolute path",
}

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn log(bundle: &Bundle<'_>) -> PathBuf {
    bundle.path().join("hooks/log")
}

/// A hook that appends to the log. Those that run in the container after pivot_root see the log's directory at the
/// same path by a bind mount, and the probe at `/probe`.
fn hook(bundle: &Bundle<'_>, kind: &str, label: &str) -> Value {
    let path = if kind == "startContainer" {
        "/probe".into()
    } else {
        bundle.rootfs("/probe")
    };
    json!({ "path": path, "args": ["probe", "hook", log(bundle), label], "env": [format!("HOOK={label}")] })
}

fn with_hooks(runtime: &Runtime) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    let directory = bundle.path().join("hooks");
    fs::create_dir(&directory).expect("make a directory of the test");
    bundle.add_mount(json!({ "destination": directory, "type": "bind", "source": directory, "options": ["bind"] }));
    bundle.probe(&["exit", "0"]);
    bundle
}

fn add(bundle: &mut Bundle<'_>, kind: &str, hook: Value) {
    let hooks = &mut bundle.spec["hooks"][kind];
    if hooks.is_null() {
        *hooks = json!([]);
    }
    hooks.as_array_mut().expect("hooks are a list").push(hook);
}

fn failing(bundle: &Bundle<'_>) -> Value {
    json!({ "path": bundle.rootfs("/probe"), "args": ["probe", "cat", "/no/such/file"] })
}

fn entries(bundle: &Bundle<'_>) -> Vec<Value> {
    let text = fs::read_to_string(log(bundle)).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a hook logs JSON"))
        .collect()
}

fn labels(bundle: &Bundle<'_>) -> Vec<String> {
    entries(bundle)
        .iter()
        .map(|entry| entry["hook"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Runs a container with one hook of every kind through its whole life, and returns what the hooks logged.
fn whole_life(runtime: &Runtime) -> (Bundle<'_>, i32, Vec<Value>) {
    let mut bundle = with_hooks(runtime);
    for kind in KINDS {
        let hook = hook(&bundle, kind, kind);
        add(&mut bundle, kind, hook);
    }
    let container = bundle.create();
    let _started = bundle.call("start", &[]).success();
    container.wait();
    bundle.wait_for_status("stopped");
    let _deleted = bundle.call("delete", &[]).success();
    let entries = entries(&bundle);
    (bundle, container.pid.as_raw(), entries)
}

fn hooks_run_in_order(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    for kind in KINDS.iter().rev() {
        for turn in ["first", "second"] {
            let hook = hook(&bundle, kind, &format!("{kind} {turn}"));
            add(&mut bundle, kind, hook);
        }
    }
    let after = |count: usize| -> Vec<String> {
        KINDS[..count]
            .iter()
            .flat_map(|kind| [format!("{kind} first"), format!("{kind} second")])
            .collect()
    };
    let container = bundle.create();
    assert_eq!(labels(&bundle), after(3), "create");
    let _started = bundle.call("start", &[]).success();
    container.wait();
    bundle.wait_for_status("stopped");
    assert_eq!(labels(&bundle), after(5), "start");
    let _deleted = bundle.call("delete", &[]).success();
    assert_eq!(labels(&bundle), after(6), "delete");
}

fn the_state_is_on_stdin(runtime: &Runtime) {
    let (bundle, pid, entries) = whole_life(runtime);
    assert_eq!(entries.len(), KINDS.len());
    for entry in &entries {
        let state = &entry["state"];
        assert_eq!(state["id"], json!(bundle.id), "{entry}");
        assert_eq!(state["bundle"], json!(bundle.path()), "{entry}");
        assert!(state["ociVersion"].is_string(), "{entry}");
    }
    // prestart and createRuntime run in the runtime's pid namespace, so the pid they are told is the host's.
    for entry in entries.iter().take(2) {
        assert_eq!(entry["state"]["pid"], pid, "{entry}");
    }
    let statuses: Vec<&str> = entries
        .iter()
        .filter_map(|entry| entry["state"]["status"].as_str())
        .collect();
    assert_eq!(
        statuses,
        ["creating", "creating", "creating", "created", "running", "stopped"]
    );
}

fn the_environment_is_the_hook_s_own(runtime: &Runtime) {
    let (_bundle, _pid, entries) = whole_life(runtime);
    for entry in &entries {
        let label = entry["hook"].as_str().unwrap_or_default();
        assert_eq!(entry["env"], json!([format!("HOOK={label}")]), "{entry}");
    }
}

fn hooks_have_only_stdio_open(runtime: &Runtime) {
    let (_bundle, _pid, entries) = whole_life(runtime);
    for entry in &entries {
        let fds: Vec<&String> = entry["fds"].as_object().expect("fds are a map").keys().collect();
        assert_eq!(fds, ["0", "1", "2"], "{entry}");
    }
}

/// Also where the runtime keeps signals for the container's program.
fn hooks_get_every_signal(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    let script = format!("grep SigBlk /proc/self/status >>{}", log(&bundle).display());
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] });
    add(&mut bundle, "createRuntime", hook.clone());
    add(&mut bundle, "createContainer", hook);
    let _ran = bundle.run().success();
    let text = fs::read_to_string(log(&bundle)).expect("the hooks ran");
    assert_eq!(text, "SigBlk:\t0000000000000000\n".repeat(2));
}

fn namespaces_are_those_of_the_specification(runtime: &Runtime) {
    let (_bundle, _pid, entries) = whole_life(runtime);
    for entry in &entries {
        let label = entry["hook"].as_str().unwrap_or_default();
        for kind in ["mnt", "net", "uts", "ipc"] {
            let own = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("every process has namespaces");
            let inside = entry["namespaces"][kind] != json!(own);
            let expected = ["createContainer", "startContainer"].contains(&label);
            assert_eq!(inside, expected, "{label} {kind}");
        }
    }
}

fn a_failing_hook_undoes_create(runtime: &Runtime) {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = with_hooks(runtime);
        let hook = failing(&bundle);
        add(&mut bundle, kind, hook);
        let error = bundle.call("create", &[]).failure();
        assert!(
            error.contains("/no/such/file") || error.contains("exit status 1"),
            "{kind}: {error}"
        );
        bundle.assert_nothing_left();
    }
}

fn a_failing_start_hook_fails_start(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    add(
        &mut bundle,
        "startContainer",
        json!({ "path": "/probe", "args": ["probe", "cat", "/no/such/file"] }),
    );
    bundle.probe(&["write", &log(&bundle).to_string_lossy(), "the program ran"]);
    let container = bundle.create();
    let _output = bundle.call("start", &[]);
    assert_ne!(container.wait(), 0);
    assert!(!log(&bundle).exists(), "the program must not run");
}

fn a_failing_poststop_hook_does_not_stop_delete(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    let hook_that_fails = failing(&bundle);
    add(&mut bundle, "poststop", hook_that_fails);
    let second = hook(&bundle, "poststop", "second");
    add(&mut bundle, "poststop", second);
    bundle.start().wait();
    let _deleted = bundle.call("delete", &[]).success();
    assert_eq!(labels(&bundle), ["second"]);
    bundle.assert_nothing_left();
}

fn a_hook_that_takes_too_long_is_killed(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    let hook = json!({ "path": bundle.rootfs("/probe"), "args": ["probe", "sleep"], "timeout": 1 });
    add(&mut bundle, "createRuntime", hook);
    let begin = Instant::now();
    bundle.call("create", &[]).failure();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    bundle.assert_nothing_left();
    let sleeping = running(&bundle.rootfs("/probe"));
    assert!(sleeping.is_empty(), "{sleeping:?}");
}

/// Without a timeout a hook may take for ever, and in the foreground signals are kept for a program that is not there yet.
fn an_interrupt_ends_a_run_at_its_hooks(runtime: &Runtime) {
    for (kind, signal) in [
        ("prestart", Signal::SIGTERM),
        ("createRuntime", Signal::SIGINT),
        ("createContainer", Signal::SIGTERM),
        ("startContainer", Signal::SIGHUP),
    ] {
        let mut bundle = with_hooks(runtime);
        bundle.probe(&["sleep"]);
        let begun = hook(&bundle, kind, "begun");
        let mut sleeping = begun.clone();
        sleeping["args"] = json!(["probe", "sleep", bundle.id]);
        add(&mut bundle, kind, begun);
        add(&mut bundle, kind, sleeping);
        let last = hook(&bundle, "poststop", "last");
        add(&mut bundle, "poststop", last);
        let run = Running::start(bundle.command("run").arg(&bundle.id));
        assert!(
            wait_until(|| (labels(&bundle) == ["begun"]).then_some(())).is_some(),
            "{kind}"
        );
        kill(run.pid(), signal).expect("signal a process of this test");
        let output = run.wait();
        assert_eq!(output.code, 128 + signal as i32, "{kind}: {output:?}");
        assert!(output.stderr.contains("interrupted by SIG"), "{kind}: {output:?}");
        assert_eq!(labels(&bundle), ["begun", "last"], "{kind}: what was begun is undone");
        bundle.assert_nothing_left();
    }
}

/// A hook that takes a while.
fn sleeping(seconds: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("sleep {seconds}")], "env": ["PATH=/bin:/usr/bin"] })
}

/// Starts a run of a bundle whose first hook logs `begun`, and waits for that.
fn run_to_its_hooks(bundle: &Bundle<'_>, command: &mut Command) -> Running {
    let run = Running::start(command.arg(&bundle.id));
    let begun = || (labels(bundle) == ["begun"]).then_some(());
    assert!(wait_until(begun).is_some(), "{:?}", labels(bundle));
    run
}

fn an_interrupt_leaves_the_last_hooks_alone(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    bundle.probe(&["exit", "7"]);
    for hook in [
        hook(&bundle, "poststop", "begun"),
        sleeping("1"),
        hook(&bundle, "poststop", "last"),
    ] {
        add(&mut bundle, "poststop", hook);
    }
    let run = run_to_its_hooks(&bundle, &mut bundle.command("run"));
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        kill(run.pid(), signal).expect("signal a process of this test");
    }
    assert_eq!(run.wait().code, 7, "the program's, which had ended before");
    assert_eq!(labels(&bundle), ["begun", "last"]);
    bundle.assert_nothing_left();
}

/// What a service manager does that sends SIGHUP too (SendSIGHUP of systemd.kill(5)).
fn a_second_interrupt_spares_the_undoing(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    for (kind, hook) in [
        ("createRuntime", hook(&bundle, "createRuntime", "begun")),
        ("createRuntime", sleeping("1000")),
        ("poststop", sleeping("0.3")),
        ("poststop", hook(&bundle, "poststop", "last")),
    ] {
        add(&mut bundle, kind, hook);
    }
    let run = run_to_its_hooks(&bundle, &mut bundle.command("run"));
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        kill(run.pid(), signal).expect("signal a process of this test");
    }
    let output = run.wait();
    let either = [Signal::SIGTERM, Signal::SIGHUP].map(|signal| 128 + signal as i32);
    assert!(either.contains(&output.code), "{output:?}");
    assert_eq!(labels(&bundle), ["begun", "last"], "{output:?}");
    bundle.assert_nothing_left();
}

/// The program runs already. What it does about the signal is its own affair, and its exit code the run's.
fn an_interrupt_at_poststart_is_the_program_s(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    bundle.probe(&["signal-wait"]);
    for (kind, hook) in [
        ("poststart", hook(&bundle, "poststart", "begun")),
        ("poststart", sleeping("1000")),
        ("poststart", hook(&bundle, "poststart", "left out")),
        ("poststop", hook(&bundle, "poststop", "last")),
    ] {
        add(&mut bundle, kind, hook);
    }
    let run = run_to_its_hooks(&bundle, &mut bundle.command("run"));
    assert!(wait_until(|| run.stdout().contains("ready").then_some(())).is_some());
    kill(run.pid(), Signal::SIGTERM).expect("signal a process of this test");
    let output = run.wait().success();
    assert_eq!(output.stdout.lines().last(), Some("SIGTERM"), "{output:?}");
    assert_eq!(labels(&bundle), ["begun", "last"]);
    bundle.assert_nothing_left();
}

/// As nohup(1) and a shell's background jobs have them; the kernel keeps them for whoever blocks them all the same.
fn an_ignored_signal_interrupts_nothing(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    bundle.probe(&["exit", "5"]);
    for hook in [
        hook(&bundle, "createRuntime", "begun"),
        sleeping("1"),
        hook(&bundle, "createRuntime", "last"),
    ] {
        add(&mut bundle, "createRuntime", hook);
    }
    let run = bundle.command("run");
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP INT; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    let run = run_to_its_hooks(&bundle, &mut command);
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        kill(run.pid(), signal).expect("signal a process of this test");
    }
    let output = run.wait();
    assert_eq!(output.code, 5, "{output:?}");
    assert_eq!(labels(&bundle), ["begun", "last"], "{output:?}");
}

fn an_init_that_is_killed_at_its_hooks_fails_start(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    for hook in [
        hook(&bundle, "startContainer", "begun"),
        json!({ "path": "/probe", "args": ["probe", "sleep", bundle.id] }),
    ] {
        add(&mut bundle, "startContainer", hook);
    }
    let container = bundle.create();
    let start = run_to_its_hooks(&bundle, &mut bundle.command("start"));
    kill(container.pid, Signal::SIGKILL).expect("kill a process of this test");
    let error = start.wait().failure();
    assert!(error.contains("init ended before it could run the program"), "{error}");
    assert_eq!(container.wait(), 128 + Signal::SIGKILL as i32);
    assert_eq!(bundle.status(), "stopped");
}

/// Processes that run this very file.
fn running(program: &std::path::Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc")
        .expect("list processes")
        .flatten()
        .map(|entry| entry.path());
    processes
        .filter(|path| fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program))
        .collect()
}

fn a_relative_hook_path_is_refused(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    add(
        &mut bundle,
        "createRuntime",
        json!({ "path": "rootfs/probe", "args": ["probe", "exit", "0"] }),
    );
    bundle.call("create", &[]).failure();
    bundle.assert_nothing_left();
}

fn a_missing_hook_is_an_error(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    add(&mut bundle, "createRuntime", json!({ "path": "/no/such/hook" }));
    let error = bundle.call("create", &[]).failure();
    assert!(error.contains("/no/such/hook"), "{error}");
    bundle.assert_nothing_left();
}

fn create_container_hooks_find_the_root_at_its_path(runtime: &Runtime) {
    let mut bundle = with_hooks(runtime);
    let root = bundle.rootfs("");
    let root = root.to_string_lossy();
    let root = root.trim_end_matches('/');
    let script =
        format!("pwd -P; test -c {root}/dev/null && test -d {root}/proc/1 && test -c dev/zero && echo furnished");
    let script = format!("{{ {script}; }} >{}", log(&bundle).display());
    let env = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": [env] });
    add(&mut bundle, "createContainer", hook);
    assert_eq!(bundle.run().success().code, 0);
    let text = fs::read_to_string(log(&bundle)).expect("the hook ran");
    assert_eq!(text, format!("{root}\nfurnished\n"));
    assert!(!bundle.rootfs("/dev/null").exists(), "the host sees none of it");
}

fn poststop_hooks_follow_a_failed_create(runtime: &Runtime) {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = with_hooks(runtime);
        let hook_that_fails = failing(&bundle);
        add(&mut bundle, kind, hook_that_fails);
        let last = hook(&bundle, "poststop", "last");
        add(&mut bundle, "poststop", last);
        bundle.call("create", &[]).failure();
        assert_eq!(labels(&bundle), ["last"], "{kind}");
        bundle.assert_nothing_left();
    }
}
