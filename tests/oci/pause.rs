//! `pause` and `resume`: what a paused container is, and what can be done to it.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use corten_tests::bundle::{Bundle, Container, Running, Runtime, finish, wait_until};
use corten_tests::cgroup;
use nix::unistd::Pid;

each_runtime! {
    a_paused_container_makes_no_progress,
    its_status_is_paused,
    a_created_container_can_be_paused,
    only_a_paused_container_is_resumed,
    a_stopped_container_is_not_paused,
    exec_is_refused,
    exec_that_ignores_it_waits_for_the_resume,
    a_signal_waits_for_the_resume,
    kill_ends_it,
    delete_needs_force,
    delete_force_ends_it,
    a_container_in_the_foreground_can_be_paused,
    a_container_in_the_foreground_can_be_deleted,
}

corten_only! {
    kill_all_leaves_it_paused: "runc 1.1 resumes a container when it signals all of its processes",
    kill_all_with_kill_ends_it: "runc 1.1 leaves the processes to die when somebody resumes the container",
    kill_ends_what_is_frozen_below: "runc 1.1 leaves it frozen",
    delete_force_ends_what_is_frozen_below: "runc 1.1 gives up after ten seconds",
    a_paused_container_is_not_paused_again: "runc 1.1 calls a paused container one that does not run",
}

fn paused(runtime: &Runtime) -> (Bundle<'_>, Container) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let container = bundle.start();
    container.wait_for("ready");
    let _paused = bundle.call("pause", &[]).success();
    (bundle, container)
}

/// User and system time of a process, in ticks.
fn cpu_time(pid: Pid) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields[index].parse().expect("a number of ticks");
    (field(11), field(12))
}

fn a_paused_container_makes_no_progress(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["spin"]);
    let container = bundle.start();
    let busy = || wait_until(|| (cpu_time(container.pid).0 > 0).then_some(()));
    assert!(busy().is_some());
    let _paused = bundle.call("pause", &[]).success();
    let before = cpu_time(container.pid);
    sleep(Duration::from_millis(200));
    assert_eq!(cpu_time(container.pid), before, "it stands still");
    let _resumed = bundle.call("resume", &[]).success();
    let going = wait_until(|| (cpu_time(container.pid).0 > before.0).then_some(()));
    assert!(going.is_some(), "it goes on");
}

fn its_status_is_paused(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    let state = bundle.state();
    assert_eq!(state["status"], "paused");
    assert_eq!(state["pid"], container.pid.as_raw());
    let table = runtime.call(["list"]).success().stdout;
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[1..3], [container.pid.to_string().as_str(), "paused"], "{table}");
    let _resumed = bundle.call("resume", &[]).success();
    assert_eq!(bundle.status(), "running");
}

fn a_created_container_can_be_paused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "7"]);
    let container = bundle.create();
    let _paused = bundle.call("pause", &[]).success();
    assert_eq!(bundle.status(), "paused");
    bundle.call("start", &[]).failure();
    let _resumed = bundle.call("resume", &[]).success();
    assert_eq!(bundle.status(), "created");
    let _started = bundle.call("start", &[]).success();
    assert_eq!(container.wait(), 7);
}

fn only_a_paused_container_is_resumed(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let error = bundle.call("resume", &[]).failure();
    assert!(runtime.is("runc") || error.contains("running"), "{error}");
    assert_eq!(bundle.status(), "running");
}

fn a_paused_container_is_not_paused_again(runtime: &Runtime) {
    let (bundle, _container) = paused(runtime);
    let error = bundle.call("pause", &[]).failure();
    assert!(error.contains("it is paused"), "{error}");
    assert_eq!(bundle.status(), "paused");
}

fn a_stopped_container_is_not_paused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.start().wait();
    for command in ["pause", "resume"] {
        bundle.call(command, &[]).failure();
    }
    assert_eq!(bundle.status(), "stopped");
}

fn exec_is_refused(runtime: &Runtime) {
    let (bundle, _container) = paused(runtime);
    let error = bundle.exec(&[], &["/probe", "exit", "0"]).failure();
    assert!(error.contains("paused"), "{error}");
}

fn exec_that_ignores_it_waits_for_the_resume(runtime: &Runtime) {
    let (bundle, _container) = paused(runtime);
    let mut command = bundle.command("exec");
    command
        .arg("--ignore-paused")
        .arg(&bundle.id)
        .args(["/probe", "say", "done"]);
    let running = Running::start(&mut command);
    sleep(Duration::from_millis(300));
    assert_eq!(running.stdout(), "", "it does not run yet");
    let _resumed = bundle.call("resume", &[]).success();
    assert_eq!(running.wait().success().stdout, "done\n");
}

fn kill(bundle: &Bundle<'_>, args: &[&str], signal: &str) {
    let _sent = finish(bundle.command("kill").args(args).arg(&bundle.id).arg(signal)).success();
}

fn a_signal_waits_for_the_resume(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    kill(&bundle, &[], "USR1");
    sleep(Duration::from_millis(50));
    assert_eq!(bundle.status(), "paused");
    assert_eq!(container.stdout(), "ready\n");
    let _resumed = bundle.call("resume", &[]).success();
    assert_eq!(container.wait(), 0);
    assert_eq!(container.stdout(), "ready\nSIGUSR1\n");
}

fn kill_all_leaves_it_paused(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    kill(&bundle, &["--all"], "USR1");
    assert_eq!(bundle.status(), "paused");
    let _resumed = bundle.call("resume", &[]).success();
    assert_eq!(container.wait(), 0);
    assert_eq!(container.stdout(), "ready\nSIGUSR1\n");
}

fn kill_ends_it(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    kill(&bundle, &[], "KILL");
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    assert_eq!(bundle.status(), "stopped");
}

fn kill_all_with_kill_ends_it(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    kill(&bundle, &["--all"], "KILL");
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    assert_eq!(bundle.status(), "stopped");
}

fn delete_needs_force(runtime: &Runtime) {
    let (bundle, _container) = paused(runtime);
    let error = bundle.call("delete", &[]).failure();
    assert!(error.contains("paused"), "{error}");
    assert_eq!(bundle.status(), "paused");
}

fn delete_force_ends_it(runtime: &Runtime) {
    let (bundle, container) = paused(runtime);
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

/// A container whose init is in a frozen cgroup below its own, as one that may write to its cgroups can arrange.
fn frozen_below(runtime: &Runtime) -> (Bundle<'_>, Container) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let container = bundle.start();
    container.wait_for("ready");
    let below = bundle.cgroup("freezer").join("below");
    fs::create_dir(&below).expect("make a cgroup");
    fs::write(below.join("cgroup.procs"), container.pid.to_string()).expect("move init");
    let (file, text) = if cgroup::unified() {
        ("cgroup.freeze", "1")
    } else {
        ("freezer.state", "FROZEN")
    };
    fs::write(below.join(file), text).expect("freeze a cgroup");
    (bundle, container)
}

fn kill_ends_what_is_frozen_below(runtime: &Runtime) {
    let (bundle, container) = frozen_below(runtime);
    assert_eq!(bundle.status(), "running", "the container itself is not paused");
    kill(&bundle, &[], "KILL");
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
}

fn delete_force_ends_what_is_frozen_below(runtime: &Runtime) {
    let (bundle, container) = frozen_below(runtime);
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}

/// `run` in the foreground, of a container that waits for a signal.
fn foreground(runtime: &Runtime) -> (Bundle<'_>, Running) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let running = Running::start(bundle.command("run").arg(&bundle.id));
    let ready = wait_until(|| running.stdout().contains("ready").then_some(()));
    assert!(ready.is_some());
    (bundle, running)
}

fn a_container_in_the_foreground_can_be_paused(runtime: &Runtime) {
    let (bundle, running) = foreground(runtime);
    let _paused = bundle.call("pause", &[]).success();
    assert_eq!(bundle.status(), "paused");
    let _resumed = bundle.call("resume", &[]).success();
    kill(&bundle, &[], "TERM");
    assert_eq!(running.wait().code, 0);
    bundle.assert_nothing_left();
}

fn a_container_in_the_foreground_can_be_deleted(runtime: &Runtime) {
    let (bundle, running) = foreground(runtime);
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(running.wait().code, 128 + libc::SIGKILL);
    bundle.assert_nothing_left();
}
