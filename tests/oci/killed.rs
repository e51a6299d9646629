//! A create that is killed, at whatever step: `delete --force` leaves nothing of it.
//!
//! strace kills the process as it enters its Nth call of a certain kind, which a first run under strace has counted. The
//! steps of the runtime are killed without following its children; those of init are told by calls that only init makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use corten_tests::bundle::{Bundle, Running, Runtime, finish, wait_until};
use serde_json::Value;

corten_only! {
    a_create_killed_at_some_steps_is_deleted_wholly: "runc 1.1 writes its state late, and leaves what nothing can delete",
}

/// All of them take minutes.
#[test]
#[ignore = "minutes: every step of a create"]
fn a_create_killed_at_any_step_is_deleted_wholly() {
    crate::on("corten", |runtime| killed_at(runtime, 1));
}

/// Of both halves of a create, so many steps that each kind of place is met.
fn a_create_killed_at_some_steps_is_deleted_wholly(runtime: &Runtime) {
    killed_at(runtime, 17);
}

/// One call of a create's.
#[derive(Clone, Debug)]
struct Step {
    /// The system call.
    call: String,
    /// Its how manieth of that name, from 1.
    number: usize,
    /// Whether init makes it.
    init: bool,
}

/// Kills creates at every `stride`th step.
fn killed_at(runtime: &Runtime, stride: usize) {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIP: strace is not installed");
        return;
    }
    let all = steps(runtime);
    assert!(all.iter().filter(|step| step.init).count() > 20, "{all:?}");
    assert!(all.iter().filter(|step| !step.init).count() > 100, "{all:?}");
    let tried: Vec<&Step> = all.iter().step_by(stride).collect();
    let missed: Vec<&&Step> = tried.iter().filter(|step| !kill_at(runtime, step)).collect();
    // Some calls depend on what else happens on the machine, and are not made again.
    assert!(
        missed.len() * 10 < tried.len(),
        "{} steps, and not killed at {missed:?}",
        tried.len()
    );
}

/// Every step of a create, in the order of the first run but for those of init, which come last.
fn steps(runtime: &Runtime) -> Vec<Step> {
    let bundle = sleeper(runtime);
    let log = bundle.path().join("trace");
    let mut command = strace(&bundle, &["-f", "-o", &log.to_string_lossy()]);
    let tracer = Running::start(&mut command);
    // It follows init, and does not end before it.
    let created = wait_until(|| is_created(&bundle).then_some(()));
    assert!(created.is_some(), "{:?}", bundle.call("state", &[]));
    let _deleted = bundle.call("delete", &["--force"]).success();
    let _ended = tracer.wait();
    let text = fs::read_to_string(&log).expect("strace wrote a log");
    parse(&text)
}

/// Lines `PID CALL(...`; the first pid is the runtime's.
fn parse(trace: &str) -> Vec<Step> {
    let calls: Vec<(&str, &str)> = trace
        .lines()
        .filter_map(|line| {
            let (pid, rest) = line.split_once(' ')?;
            let call = rest.trim_start().split_once('(')?.0;
            let is_name = call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            (is_name && !call.is_empty()).then_some((pid, call))
        })
        .collect();
    let runtime = calls.first().expect("the trace has a line").0;
    let by_runtime: BTreeSet<&str> = calls
        .iter()
        .filter(|(pid, _)| *pid == runtime)
        .map(|(_, call)| *call)
        .collect();
    let (mut counts, mut steps) = (BTreeMap::new(), Vec::new());
    for (pid, call) in &calls {
        let init = *pid != runtime;
        // strace counts for each process by itself; a call that both make would be the runtime's first.
        if init && by_runtime.contains(call) || ["execve", "exit_group", "exit"].contains(call) {
            continue;
        }
        let number: &mut usize = counts.entry((*call, init)).or_default();
        *number += 1;
        let call = (*call).to_owned();
        steps.push(Step {
            call,
            number: *number,
            init,
        });
    }
    steps.sort_by_key(|step| step.init);
    steps
}

fn sleeper(runtime: &Runtime) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle
}

/// `strace OPTIONS.. corten create`.
fn strace(bundle: &Bundle<'_>, options: &[&str]) -> Command {
    let create = bundle.command("create");
    let mut command = Command::new("strace");
    command
        .arg("-qq")
        .args(options)
        .arg(create.get_program())
        .args(create.get_args())
        .arg(&bundle.id);
    command.stdin(std::process::Stdio::null());
    command
}

/// Creates a container, killed at this step, deletes it, and looks for what is left; whether it was killed.
fn kill_at(runtime: &Runtime, step: &Step) -> bool {
    let bundle = sleeper(runtime);
    let trace = format!("trace={}", step.call);
    let inject = format!("inject={}:signal=KILL:when={}", step.call, step.number);
    let mut options = vec!["-o", "/dev/null", "-e", &trace, "-e", &inject];
    if step.init {
        options.push("-f");
    }
    let running = Running::start(&mut strace(&bundle, &options));
    let killed = if step.init {
        ends_without_init(&bundle, running)
    } else {
        running.wait().code != 0
    };
    let deleted = finish(bundle.command("delete").arg("--force").arg(&bundle.id));
    assert_eq!((deleted.code, deleted.stderr.as_str()), (0, ""), "{step:?}");
    assert!(runtime.list().is_empty(), "{step:?}");
    bundle.assert_nothing_left();
    assert_no_process(&bundle, step);
    killed
}

/// Where init was not killed after all, strace stays with it: then it ends with the container.
fn ends_without_init(bundle: &Bundle<'_>, mut running: Running) -> bool {
    let created = wait_until(|| {
        let created = is_created(bundle);
        (created || running.has_ended()).then_some(created)
    });
    if created == Some(true) {
        let _deleted = bundle.call("delete", &["--force"]).success();
    }
    let _ended = running.wait();
    created == Some(false)
}

fn is_created(bundle: &Bundle<'_>) -> bool {
    let state: Option<Value> = serde_json::from_str(&bundle.call("state", &[]).stdout).ok();
    state.is_some_and(|state| state["status"] == "created")
}

/// Init hears of the runtime's end, and ends too: at once, but by itself.
fn assert_no_process(bundle: &Bundle<'_>, step: &Step) {
    let gone = wait_until(|| processes_with(&bundle.id).is_empty().then_some(()));
    assert!(gone.is_some(), "{step:?}: {:?}", processes_with(&bundle.id));
}

/// Processes that have this word among their arguments: a clone of the runtime has the runtime's.
fn processes_with(word: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("list processes").flatten();
    let lines = entries.filter_map(|entry| {
        let line = fs::read(Path::new("/proc").join(entry.file_name()).join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(word).then_some(line)
    });
    lines.collect()
}
