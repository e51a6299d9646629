//! `run`: create, start, wait and delete in one command; its exit code, its signals, and that it never hangs.

use std::thread;

use corten_tests::bundle::{Running, Runtime, wait_until};
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
