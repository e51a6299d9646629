//! `run`: create, start, wait and delete in one command; its exit code, its signals, and that it never hangs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Output, Running, Runtime, finish, wait_until};
use nix::sys::signal::{Signal, kill};

each_runtime! {
    it_exits_with_the_program_s_code,
    a_signal_becomes_a_code,
    it_leaves_nothing,
    output_and_errors_stay_apart,
    detach_returns_while_the_container_runs,
    signals_are_passed_on,
    many_in_sequence,
    many_at_once,
    an_ignored_sigchld_loses_no_exit,
    it_can_be_deleted_by_others,
    thousands_of_runs_in_small,
}

corten_only! {
    an_end_between_two_looks_is_no_failure: "runc 1.1 has no such pair of looks",
}

rootless! {
    it_exits_with_the_program_s_code,
    a_signal_becomes_a_code,
    it_leaves_nothing,
    output_and_errors_stay_apart,
    detach_returns_while_the_container_runs,
    signals_are_passed_on,
    many_at_once,
}

fn it_exits_with_the_program_s_code(runtime: &Runtime) {
    for code in [0, 1, 42, 255] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", &code.to_string()]);
        assert_eq!(bundle.run().code, code);
    }
}

fn a_signal_becomes_a_code(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let running = Running::start(bundle.command("run").arg(&bundle.id));
    let init = wait_until(|| {
        let state = bundle.call("state", &[]);
        let state: serde_json::Value = serde_json::from_str(&state.stdout).ok()?;
        (state["status"] == "running").then(|| state["pid"].as_i64()).flatten()
    });
    let init = i32::try_from(init.expect("it runs")).expect("a pid is an i32");
    kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(running.wait().code, 128 + libc::SIGKILL);
}

fn it_leaves_nothing(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let _output = bundle.run().success();
    bundle.assert_nothing_left();
    assert!(runtime.list().is_empty());
}

fn output_and_errors_stay_apart(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["cat", "/etc/none"]);
    let output = bundle.run();
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    assert_eq!(
        output.stderr,
        "probe: open /etc/none: No such file or directory (os error 2)\n"
    );
}

fn detach_returns_while_the_container_runs(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.launch("run", &["--detach"]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.state()["pid"], container.pid.as_raw());
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
}

fn signals_are_passed_on(runtime: &Runtime) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["signal-wait"]);
        let running = Running::start(bundle.command("run").arg(&bundle.id));
        let ready = wait_until(|| running.stdout().contains("ready").then_some(()));
        assert!(ready.is_some());
        kill(running.pid(), signal).expect("signal a process of this test");
        let output = running.wait().success();
        assert_eq!(output.stdout.lines().last(), Some(signal.as_str()));
    }
}

/// runc takes five times as long, and is here only to show that the test is right.
fn rounds(runtime: &Runtime) -> u8 {
    if runtime.is("runc") { 20 } else { 200 }
}

fn one_run(runtime: &Runtime, code: u8) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", &code.to_string()]);
    let output = bundle.run();
    assert_eq!(output.code, i32::from(code), "{output:?}");
}

fn many_in_sequence(runtime: &Runtime) {
    for code in 0..rounds(runtime) {
        one_run(runtime, code);
    }
}

fn many_at_once(runtime: &Runtime) {
    thread::scope(|scope| {
        for worker in 0..4 {
            let mine = (0..rounds(runtime)).skip(worker).step_by(4);
            scope.spawn(move || mine.for_each(|code| one_run(runtime, code)));
        }
    });
    assert!(runtime.list().is_empty());
}

/// The kernel reaps the children of a process that ignores SIGCHLD, which execve keeps.
fn an_ignored_sigchld_loses_no_exit(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "42"]);
    let run = bundle.command("run");
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' CHLD; exec \"$@\"", "sh"])
        .arg(run.get_program());
    let output = finish(command.args(run.get_args()).arg(&bundle.id));
    assert_eq!(output.code, 42, "{output:?}");
}

/// What `hack/stress-runtime.sh` does with thousands.
fn thousands_of_runs_in_small(runtime: &Runtime) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/stress-runtime.sh");
    let count = if runtime.is("runc") { "5" } else { "20" };
    let program = runtime.program();
    let mut command = Command::new(script);
    command.arg("--runtime").arg(program.get_program());
    let output = finish(command.args(["--count", count, "--workers", "4"]));
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.ends_with("left behind: 0\n"), "{output:?}");
}

/// `start` polls the exec fifo and init's pidfd, one after the other: a program may begin and end between the two looks.
/// strace makes it so, by answering that poll after a while with the news of neither.
fn an_end_between_two_looks_is_no_failure(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "173"]);
    let log = bundle.path().join("trace");
    let log = log.to_string_lossy();
    let Some(output) = traced(&bundle, &["-e", "trace=poll", "-o", &log]) else {
        return;
    };
    assert_eq!(output.code, 173, "{output:?}");
    let polls = fs::read_to_string(&*log).expect("strace wrote a log");
    // The first that waits, and for two descriptors.
    let number = polls.lines().position(|line| line.contains("], 2, -1)"));
    let number = number.unwrap_or_else(|| panic!("no such poll: {polls}")) + 1;
    let inject = format!("inject=poll:retval=1:delay_enter=500000:when={number}");
    let output = traced(&bundle, &["-e", "trace=poll", "-e", &inject, "-o", "/dev/null"]);
    let output = output.expect("strace is there");
    assert_eq!(output.code, 173, "{output:?}");
}

/// `run` under strace.
fn traced(bundle: &Bundle<'_>, options: &[&str]) -> Option<Output> {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIP: strace is not installed");
        return None;
    }
    let run = bundle.command("run");
    let mut command = Command::new("strace");
    command
        .arg("-qq")
        .args(options)
        .arg(run.get_program())
        .args(run.get_args());
    Some(finish(command.arg(&bundle.id)))
}

/// Whoever waits for a container in the foreground does not keep others from it.
fn it_can_be_deleted_by_others(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let running = Running::start(bundle.command("run").arg(&bundle.id));
    let ready = wait_until(|| running.stdout().contains("ready").then_some(()));
    assert!(ready.is_some());
    let began = Instant::now();
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let output = running.wait();
    assert_eq!(output.code, 128 + libc::SIGKILL, "{output:?}");
    bundle.assert_nothing_left();
}
