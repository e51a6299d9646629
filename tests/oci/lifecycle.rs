//! The life of a container: create, start, state, kill, delete, list, and what is refused in each state.

use std::fs;
use std::os::unix::fs::MetadataExt;

use corten_tests::bundle::{Bundle, Container, Output, Running, Runtime, finish, wait_until};
use corten_tests::cgroup;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

each_runtime! {
    create_waits_for_start,
    state_has_what_the_specification_asks,
    pid_file_holds_the_host_s_pid,
    an_id_is_used_once,
    start_needs_a_created_container,
    delete_needs_a_stopped_container,
    delete_of_a_created_container_ends_it,
    delete_force_ends_a_running_container,
    delete_force_of_an_unknown_container_succeeds,
    every_command_on_an_unknown_container_fails,
    kill_takes_names_and_numbers,
    kill_sends_term_by_default,
    kill_refuses_an_unknown_signal,
    kill_needs_a_container_that_runs,
    kill_reaches_a_created_container,
    kill_all_reaches_every_process,
    delete_force_reaches_every_process_in_a_shared_pid_namespace,
    list_shows_every_container,
    list_prints_json_and_a_table,
    ids_that_are_no_names_are_refused,
    a_killed_init_is_stopped_in_state,
    state_is_private,
    short_flags_are_understood,
}

rootless! {
    create_waits_for_start,
    state_has_what_the_specification_asks,
    pid_file_holds_the_host_s_pid,
    an_id_is_used_once,
    start_needs_a_created_container,
    delete_needs_a_stopped_container,
    delete_of_a_created_container_ends_it,
    delete_force_ends_a_running_container,
    kill_takes_names_and_numbers,
    kill_needs_a_container_that_runs,
    kill_reaches_a_created_container,
    list_shows_every_container,
    a_killed_init_is_stopped_in_state,
}

corten_only! {
    a_killed_create_can_be_deleted: "runc 1.1 writes its state after the hooks, and leaves what nothing can delete",
    one_of_many_starts_wins: "runc 1.1 takes no lock",
    one_of_many_deletes_wins: "the same",
    start_and_delete_take_turns: "the same",
    one_of_many_creates_with_one_id_wins: "runc 1.1 takes no lock: a create that loses now and then removes the winner's state",
}

/// A running container that sleeps.
fn sleeper<'r>(runtime: &'r Runtime) -> (Bundle<'r>, Container) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    (bundle, container)
}

fn create_waits_for_start(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["say", "started"]);
    let container = bundle.create();
    assert_eq!(bundle.status(), "created");
    assert_eq!(container.stdout(), "");
    let _started = bundle.call("start", &[]).success();
    assert_eq!(container.wait(), 0);
    assert_eq!(container.stdout(), "started\n");
    assert_eq!(bundle.status(), "stopped");
    let _deleted = bundle.call("delete", &[]).success();
    bundle.assert_nothing_left();
}

fn state_has_what_the_specification_asks(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.spec["annotations"] = json!({ "org.example.key": "value" });
    let container = bundle.start();
    let state = bundle.state();
    let version = state["ociVersion"].as_str().expect("ociVersion is a string");
    assert!(version.starts_with("1."), "{version}");
    assert_eq!(state["id"], json!(bundle.id));
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"], container.pid.as_raw());
    assert_eq!(state["bundle"], json!(bundle.path()));
    assert_eq!(state["annotations"], json!({ "org.example.key": "value" }));
}

fn pid_file_holds_the_host_s_pid(runtime: &Runtime) {
    let (_bundle, container) = sleeper(runtime);
    // start returns when the program is about to be executed.
    let found = wait_until(|| {
        let program = fs::read(format!("/proc/{}/cmdline", container.pid)).expect("the process runs");
        (program == b"/probe\0sleep\0").then_some(())
    });
    assert!(found.is_some(), "{} runs the program", container.pid);
}

fn an_id_is_used_once(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let mut other = runtime.bundle();
    other.id.clone_from(&bundle.id);
    let error = other.call("create", &[]).failure();
    assert!(error.contains("exist"), "{error}");
    assert_eq!(
        bundle.state()["pid"],
        container.pid.as_raw(),
        "the first one is untouched"
    );
    assert_eq!(bundle.status(), "running");
}

fn start_needs_a_created_container(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    bundle.call("start", &[]).failure();
    let _killed = kill_with(&bundle, &["KILL"]).success();
    container.wait();
    bundle.wait_for_status("stopped");
    bundle.call("start", &[]).failure();
}

fn delete_needs_a_stopped_container(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let error = bundle.call("delete", &[]).failure();
    assert!(error.contains(&bundle.id), "{error}");
    assert_eq!(bundle.status(), "running");
}

fn delete_of_a_created_container_ends_it(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let container = bundle.create();
    let _deleted = bundle.call("delete", &[]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

fn delete_force_ends_a_running_container(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

fn delete_force_of_an_unknown_container_succeeds(runtime: &Runtime) {
    let _deleted = runtime.bundle().call("delete", &["--force"]).success();
}

fn every_command_on_an_unknown_container_fails(runtime: &Runtime) {
    for command in ["start", "state", "kill", "delete", "exec"] {
        let bundle = runtime.bundle();
        let output = runtime.call(
            [command, bundle.id.as_str(), "/probe"]
                .iter()
                .take(if command == "exec" { 3 } else { 2 }),
        );
        output.failure();
    }
}

fn signalled(runtime: &Runtime, args: &[&str]) -> String {
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let container = bundle.start();
    container.wait_for("ready");
    let _sent = kill_with(&bundle, args).success();
    assert_eq!(container.wait(), 0);
    container.stdout().lines().last().unwrap_or_default().to_owned()
}

fn kill_with(bundle: &Bundle<'_>, args: &[&str]) -> Output {
    finish(bundle.command("kill").arg(&bundle.id).args(args))
}

fn kill_takes_names_and_numbers(runtime: &Runtime) {
    for (argument, signal) in [
        ("HUP", "SIGHUP"),
        ("SIGUSR1", "SIGUSR1"),
        ("12", "SIGUSR2"),
        ("winch", "SIGWINCH"),
    ] {
        assert_eq!(signalled(runtime, &[argument]), signal);
    }
}

fn kill_sends_term_by_default(runtime: &Runtime) {
    assert_eq!(signalled(runtime, &[]), "SIGTERM");
}

fn kill_refuses_an_unknown_signal(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for signal in ["NONSENSE", "SIG", "-1", "1000"] {
        let output = kill_with(&bundle, &["--", signal]);
        assert_ne!(output.code, 0, "{signal}");
    }
    assert_eq!(bundle.status(), "running");
}

fn kill_needs_a_container_that_runs(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let container = bundle.start();
    container.wait();
    kill_with(&bundle, &["TERM"]).failure();
}

fn kill_reaches_a_created_container(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let container = bundle.create();
    let _sent = kill_with(&bundle, &["KILL"]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    assert_eq!(bundle.status(), "stopped");
}

/// A container in the host's pid namespace, where no kernel ends the rest when its first process dies.
fn family(runtime: &Runtime) -> (Bundle<'_>, Container, Vec<Pid>) {
    let mut bundle = runtime.bundle();
    bundle.remove_namespace("pid");
    bundle.probe(&["orphan"]);
    let container = bundle.start();
    container.wait_for("ready");
    let pids = cgroup::processes(&bundle.cgroup("pids"));
    let pids: Vec<Pid> = pids.into_iter().map(Pid::from_raw).collect();
    assert_eq!(pids.len(), 2, "{pids:?}");
    (bundle, container, pids)
}

/// Waits until none of the processes runs; the orphans are this process's to reap.
fn assert_ended(pids: &[Pid]) {
    for pid in pids {
        let gone = wait_until(|| {
            let _reaped = nix::sys::wait::waitpid(*pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            kill(*pid, None).is_err().then_some(())
        });
        assert!(gone.is_some(), "{pid} still runs");
    }
}

fn kill_all_reaches_every_process(runtime: &Runtime) {
    let (bundle, _container, pids) = family(runtime);
    let _sent = finish(bundle.command("kill").arg("--all").arg(&bundle.id).arg("KILL")).success();
    assert_ended(&pids);
}

fn delete_force_reaches_every_process_in_a_shared_pid_namespace(runtime: &Runtime) {
    let (bundle, _container, pids) = family(runtime);
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_ended(&pids);
    bundle.assert_nothing_left();
}

fn list_shows_every_container(runtime: &Runtime) {
    assert_eq!(runtime.list(), Vec::<String>::new());
    let (first, _container) = sleeper(runtime);
    let second = runtime.bundle();
    second.create();
    let mut expected = vec![first.id.clone(), second.id.clone()];
    let mut listed = runtime.list();
    expected.sort();
    listed.sort();
    assert_eq!(listed, expected);
}

fn list_prints_json_and_a_table(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let output = runtime.call(["list", "--format", "json"]).success();
    let listed: Value = serde_json::from_str(&output.stdout).expect("list prints JSON");
    let entry = &listed[0];
    assert_eq!(entry["id"], json!(bundle.id));
    assert_eq!(entry["pid"], container.pid.as_raw());
    assert_eq!(entry["status"], "running");
    assert_eq!(entry["bundle"], json!(bundle.path()));
    assert_eq!(entry["owner"], "root");
    assert!(
        entry["created"].as_str().is_some_and(|time| time.ends_with('Z')),
        "{entry}"
    );
    let table = runtime.call(["list"]).success().stdout;
    let mut lines = table.lines();
    let heading: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert!(lines.next().is_some_and(|line| line.starts_with(&bundle.id)), "{table}");
}

fn ids_that_are_no_names_are_refused(runtime: &Runtime) {
    for id in ["", ".", "..", "a/b", "../escape", "/absolute", "a b", "a\nb", "naïve"] {
        let mut bundle = runtime.bundle();
        id.clone_into(&mut bundle.id);
        let output = bundle.call("create", &[]);
        assert_ne!(output.code, 0, "{id:?}");
        // Nothing to delete under such an id.
        bundle.id = corten_tests::bundle::unique(runtime.marker());
    }
    assert_eq!(
        fs::read_dir(runtime.root()).expect("list the state directory").count(),
        0
    );
}

fn a_killed_init_is_stopped_in_state(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    kill(container.pid, Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    assert_eq!(bundle.status(), "stopped");
    let _deleted = bundle.call("delete", &[]).success();
    bundle.assert_nothing_left();
}

fn one_of_many_creates_with_one_id_wins(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let running: Vec<Running> = (0..8)
        .map(|_| Running::start(bundle.command("create").arg(&bundle.id)))
        .collect();
    let codes: Vec<i32> = running.into_iter().map(|running| running.wait().code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(bundle.status(), "created");
    let pid = bundle.state()["pid"].as_i64().expect("a pid is a number");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"));
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_ended(&[pid]);
    bundle.assert_nothing_left();
}

/// The state tells where a container's files and namespaces are, and its fifo starts it.
fn state_is_private(runtime: &Runtime) {
    let bundle = runtime.bundle();
    bundle.create();
    let meta = fs::metadata(bundle.state_directory()).expect("the container has state");
    assert_eq!(meta.mode() & 0o066, 0, "{:o}", meta.mode());
    assert_eq!(meta.uid(), 0);
}

fn a_killed_create_can_be_deleted(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["hooks"]["createRuntime"] =
        json!([{ "path": bundle.rootfs("/probe"), "args": ["probe", "sleep", bundle.id] }]);
    let running = Running::start(bundle.command("create").arg(&bundle.id));
    let hook = wait_until(|| process_with(b"probe\0sleep\0", &bundle.id));
    let hook = hook.expect("the hook runs");
    kill(running.pid(), Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(running.wait().code, 128 + libc::SIGKILL);
    kill(hook, Signal::SIGKILL).expect("kill a process of this test");
    assert_ended(&[hook]);
    let _deleted = bundle.call("delete", &["--force"]).success();
    bundle.assert_nothing_left();
}

/// The process whose command line begins so and has this word.
fn process_with(beginning: &[u8], word: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").expect("list processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(beginning) && String::from_utf8_lossy(&line).contains(word)
    };
    pids.map(Pid::from_raw).find(|pid| found(&pid.as_raw()))
}

fn short_flags_are_understood(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.write();
    let path = bundle.path().to_string_lossy().into_owned();
    let id = bundle.id.clone();
    let pid_file = bundle.path().join("pid");
    let mut command = runtime.command();
    command
        .args(["run", "-d", "-b", &path, "--pid-file"])
        .arg(&pid_file)
        .arg(&id);
    let _started = finish(&mut command).success();
    let pid = fs::read_to_string(&pid_file).expect("read the pid file");
    let pid = Pid::from_raw(pid.parse().expect("a pid file holds digits alone"));
    assert_eq!(runtime.call(["list", "-q"]).success().stdout.trim_end(), id);
    let listed = runtime.call(["list", "-f", "json"]).success().stdout;
    assert!(listed.contains(&id), "{listed}");
    let _killed = runtime.call(["kill", "-a", &id, "USR1"]);
    let _deleted = runtime.call(["delete", "-f", &id]).success();
    assert_ended(&[pid]);
    bundle.assert_nothing_left();
}

/// The exit codes of so many commands on one container at once.
fn at_once(bundle: &Bundle<'_>, commands: &[&str]) -> Vec<i32> {
    let start = |command: &&str| {
        let mut words = command.split(' ');
        let mut command = bundle.command(words.next().expect("a command has a name"));
        Running::start(command.args(words).arg(&bundle.id))
    };
    let running: Vec<Running> = commands.iter().map(start).collect();
    running.into_iter().map(|running| running.wait().code).collect()
}

fn one_of_many_starts_wins(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.create();
    let codes = at_once(&bundle, &["start"; 8]);
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(bundle.status(), "running");
    let _killed = kill_with(&bundle, &["KILL"]).success();
    container.wait();
}

fn one_of_many_deletes_wins(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let container = bundle.start();
    container.wait();
    bundle.wait_for_status("stopped");
    let codes = at_once(&bundle, &["delete"; 8]);
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    bundle.assert_nothing_left();
}

/// Whoever comes first, the container is gone afterwards, and neither is left half done.
fn start_and_delete_take_turns(runtime: &Runtime) {
    for _ in 0..10 {
        let mut bundle = runtime.bundle();
        bundle.probe(&["sleep"]);
        let container = bundle.create();
        let codes = at_once(&bundle, &["start", "delete --force", "start", "delete --force"]);
        assert_eq!((codes[1], codes[3]), (0, 0), "{codes:?}");
        assert_eq!(container.wait(), 128 + libc::SIGKILL);
        bundle.assert_nothing_left();
    }
}
