//! What others have left, or put in the way: a create that was killed, a cgroup half gone, a document that is none.

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Runtime, finish};
use corten_tests::cgroup;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

corten_only! {
    delete_kills_nobody_in_a_cgroup_it_does_not_know: "runc 1.1 writes no state before its cgroup is made, and leaves that",
    delete_is_quiet_about_a_cgroup_half_gone: "runc 1.1 warns",
    a_config_that_is_no_file_is_refused: "runc 1.1 waits for somebody to write to a fifo",
}

/// The state as a create leaves it that is killed before it has looked into the cgroup.
fn delete_kills_nobody_in_a_cgroup_it_does_not_know(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    let kept = runtime.root().join(format!("{}.kept", bundle.id));
    let path = bundle.state_directory().join("state.json");
    let text = fs::read_to_string(&path).expect("the container has state");
    let mut state: Value = serde_json::from_str(&text).expect("the state is JSON");
    assert_eq!(state["ownCgroup"], true);
    state["ownCgroup"] = json!(false);
    state["pid"] = json!(0);
    // The directory goes with the delete; the container is to be deleted once more.
    let status = Command::new("cp")
        .arg("-a")
        .args([&bundle.state_directory(), &kept])
        .status();
    assert!(status.expect("run cp").success());
    fs::write(&path, state.to_string()).expect("write the state");
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert!(!bundle.state_directory().exists());
    let left = cgroup::processes(&bundle.cgroup("pids"));
    assert_eq!(left, [container.pid.as_raw()]);
    fs::rename(&kept, bundle.state_directory()).expect("put the state back");
    let _deleted = bundle.call("delete", &["--force"]).success();
    container.wait();
    bundle.assert_nothing_left();
}

fn delete_is_quiet_about_a_cgroup_half_gone(runtime: &Runtime) {
    if cgroup::unified() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    let container = bundle.start();
    container.wait();
    bundle.wait_for_status("stopped");
    // Busy in one hierarchy, gone in the freezer's.
    let mut left = Command::new("sleep").arg("60").spawn().expect("start sleep");
    fs::write(bundle.cgroup("pids").join("cgroup.procs"), left.id().to_string()).expect("move a process");
    fs::remove_dir(bundle.cgroup("freezer")).expect("remove an empty cgroup");
    let output = bundle.call("delete", &["--force"]).success();
    assert_eq!(output.stderr, "");
    assert!(!left.wait().expect("wait for a child").success());
    bundle.assert_nothing_left();
}

fn a_config_that_is_no_file_is_refused(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let config = bundle.path().join("config.json");
    nix::unistd::mkfifo(&config, Mode::S_IRUSR).expect("make a fifo");
    let mut command = runtime.command();
    command.arg("create").arg("--bundle").arg(bundle.path()).arg(&bundle.id);
    let error = finish(&mut command).failure();
    assert!(error.contains("config.json: not a regular file"), "{error}");
    bundle.assert_nothing_left();
}
