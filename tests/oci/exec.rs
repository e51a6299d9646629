//! `exec`: another process in a running container.

use std::fs;

use corten_tests::bundle::{Bundle, Container, Report, Running, Runtime, finish, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

each_runtime! {
    it_sees_what_the_container_sees,
    it_exits_with_the_program_s_code,
    a_signal_becomes_a_code,
    it_reads_the_caller_s_stdin,
    user_env_and_cwd_are_taken,
    a_process_file_is_taken,
    it_has_the_container_s_capabilities,
    detach_leaves_it_running,
    a_missing_program_is_an_error,
    a_stopped_container_is_an_error,
    arguments_after_the_program_are_the_program_s,
    it_does_not_become_the_container_s_child,
    it_ends_with_the_container,
    many_at_once,
    capabilities_and_groups_can_be_added,
    no_new_privileges_can_be_asked_for,
    short_flags_are_understood,
    it_goes_to_a_cgroup_below,
    a_cgroup_below_must_exist,
    users_are_numbers,
}

corten_only! {
    it_stays_in_the_container_s_cgroup: "runc 1.1 takes the path for one below after it has cleaned it",
}

rootless! {
    it_sees_what_the_container_sees,
    it_exits_with_the_program_s_code,
    it_reads_the_caller_s_stdin,
    user_env_and_cwd_are_taken,
    it_has_the_container_s_capabilities,
    detach_leaves_it_running,
    a_missing_program_is_an_error,
    a_stopped_container_is_an_error,
    it_does_not_become_the_container_s_child,
    it_ends_with_the_container,
    many_at_once,
}

fn sleeper(runtime: &Runtime) -> (Bundle<'_>, Container) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    (bundle, container)
}

fn it_sees_what_the_container_sees(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let report = bundle.exec_report(&[]);
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let init = fs::read_link(format!("/proc/{}/ns/{kind}", container.pid)).expect("init runs");
        assert_eq!(report.namespace(kind), init.to_string_lossy(), "{kind}");
    }
    let init = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).expect("init runs");
    let lines: Vec<&str> = init.lines().collect();
    assert_eq!(report["cgroups"], json!(lines));
    assert_eq!(report["init_executable"], "/probe");
    assert_eq!(report["hostname"], "probe");
    assert_eq!(report.status("NoNewPrivs"), "1");
    assert_eq!(report["limits"]["Max open files"], json!(["1024", "1024"]));
    assert_eq!(report["session"], report["pid"]);
}

fn it_exits_with_the_program_s_code(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for code in [0, 1, 7, 255] {
        assert_eq!(bundle.exec(&[], &["/probe", "exit", &code.to_string()]).code, code);
    }
}

fn a_signal_becomes_a_code(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 });
    let _container = bundle.start();
    // The kernel kills the one that asks for too much.
    assert_eq!(
        bundle.exec(&[], &["/probe", "allocate", "128"]).code,
        128 + libc::SIGKILL
    );
    assert_eq!(bundle.status(), "running");
}

fn it_reads_the_caller_s_stdin(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let input = bundle.path().join("input");
    fs::write(&input, "through stdin").expect("write a file of the test");
    let mut command = bundle.command("exec");
    command
        .arg(&bundle.id)
        .args(["/probe", "cat"])
        .stdin(fs::File::open(&input).expect("open a file of the test"));
    assert_eq!(finish(&mut command).success().stdout, "through stdin");
}

fn user_env_and_cwd_are_taken(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let options = [
        "--user",
        "1000:1001",
        "--env",
        "ONE=1",
        "--env",
        "TWO=a=b",
        "--cwd",
        "/home/tester",
    ];
    let report = bundle.exec_report(&options);
    assert_eq!(report.status("Uid"), "1000 1000 1000 1000");
    assert_eq!(report.status("Gid"), "1001 1001 1001 1001");
    assert_eq!(report["cwd"], "/home/tester");
    let env = report["env"].as_array().expect("env is a list");
    for entry in ["ONE=1", "TWO=a=b", "TERM=xterm"] {
        assert!(env.contains(&json!(entry)), "{entry}: {env:?}");
    }
}

/// Runs the probe's report as the process this file describes.
fn by_process_file(bundle: &Bundle<'_>, process: &serde_json::Value) -> Report {
    let file = bundle.path().join("process.json");
    fs::write(&file, process.to_string()).expect("write a file of the test");
    let mut command = bundle.command("exec");
    Report::parse(
        &finish(command.arg("--process").arg(&file).arg(&bundle.id))
            .success()
            .stdout,
    )
}

fn a_process_file_is_taken(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let kill = json!(["CAP_KILL"]);
    let report = by_process_file(
        &bundle,
        &json!({
            "user": { "uid": 1000, "gid": 1000, "additionalGids": [42], "umask": 0o027 },
            "args": ["/probe", "report"],
            "env": ["PATH=/bin", "HOME=/", "ONLY=this"],
            "cwd": "/tmp",
            "capabilities": {
                "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 }],
            "noNewPrivileges": false,
        }),
    );
    assert_eq!(report["env"], json!(["PATH=/bin", "HOME=/", "ONLY=this"]));
    assert_eq!(report["cwd"], "/tmp");
    assert_eq!(report.status("Uid"), "1000 1000 1000 1000");
    assert_eq!(report.status("Groups"), "42");
    // runc 1.1 keeps the container's umask, although it is a field of the user in config.md.
    if !runtime.is("runc") {
        assert_eq!(report.status("Umask"), "0027");
    }
    for set in ["CapBnd", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(report.status(set), "0000000000000020", "{set}");
    }
    assert_eq!(report["limits"]["Max open files"], json!(["64", "64"]));
    assert_eq!(report.status("NoNewPrivs"), "0");
}

fn it_has_the_container_s_capabilities(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let kill = json!(["CAP_KILL"]);
    bundle.spec["process"]["capabilities"] = json!({ "bounding": kill, "effective": kill, "permitted": kill });
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let report = bundle.exec_report(&[]);
    for (set, value) in [
        ("CapBnd", 0x20),
        ("CapPrm", 0x20),
        ("CapEff", 0x20),
        ("CapInh", 0),
        ("CapAmb", 0),
    ] {
        assert_eq!(report.status(set), format!("{value:016x}"), "{set}");
    }
}

fn detach_leaves_it_running(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let pid = bundle.exec_detached(&[], &["/probe", "sleep"]);
    assert_ne!(pid, container.pid);
    let found = wait_until(|| {
        let program = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (program == b"/probe\0sleep\0").then_some(())
    });
    assert!(found.is_some(), "{pid} runs the program");
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).expect("it runs");
    assert_eq!(namespace(pid), namespace(container.pid));
    // The init of a pid namespace ends after every other process in it has been reaped, and this one is ours to reap.
    let _sent = finish(bundle.command("kill").arg(&bundle.id).arg("KILL")).success();
    assert_eq!(wait_for(pid), 128 + libc::SIGKILL);
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
}

fn a_missing_program_is_an_error(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for program in ["not-there", "/not/there", "/etc"] {
        let error = bundle.exec(&[], &[program]).failure();
        assert!(error.contains(program), "{error}");
    }
    assert_eq!(bundle.status(), "running");
}

fn a_stopped_container_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.start().wait();
    bundle.exec(&[], &["/probe", "exit", "0"]).failure();
}

fn arguments_after_the_program_are_the_program_s(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let output = bundle
        .exec(&[], &["/probe", "say", "--user", "x", "-d", "--"])
        .success();
    assert_eq!(output.stdout, "--user x -d --\n");
}

fn it_does_not_become_the_container_s_child(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    assert_eq!(
        bundle.exec_report(&[])["ppid"],
        0,
        "its parent is outside the pid namespace"
    );
}

fn it_ends_with_the_container(runtime: &Runtime) {
    let (bundle, container) = sleeper(runtime);
    let mut command = bundle.command("exec");
    let running = Running::start(command.arg(&bundle.id).args(["/probe", "signal-wait"]));
    let ready = wait_until(|| running.stdout().contains("ready").then_some(()));
    assert!(ready.is_some());
    kill(container.pid, Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(running.wait().code, 128 + libc::SIGKILL);
}

fn many_at_once(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let running: Vec<_> = (0..20)
        .map(|code| {
            let mut command = bundle.command("exec");
            command.arg(&bundle.id).args(["/probe", "exit", &code.to_string()]);
            Running::start(&mut command)
        })
        .collect();
    let codes: Vec<i32> = running.into_iter().map(|running| running.wait().code).collect();
    assert_eq!(codes, (0..20).collect::<Vec<_>>());
}

fn capabilities_and_groups_can_be_added(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let kill = json!(["CAP_KILL"]);
    bundle.spec["process"]["capabilities"] = json!({ "bounding": kill, "effective": kill, "permitted": kill });
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let options = [
        "--cap",
        "CAP_CHOWN",
        "--additional-gids",
        "7",
        "--additional-gids",
        "50000",
    ];
    let report = bundle.exec_report(&options);
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(report.status(set), format!("{:016x}", 0x21), "{set}");
    }
    assert_eq!(report.status("Groups"), "7 50000");
}

fn no_new_privileges_can_be_asked_for(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["noNewPrivileges"] = json!(false);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    assert_eq!(bundle.exec_report(&[]).status("NoNewPrivs"), "0");
    assert_eq!(bundle.exec_report(&["--no-new-privs"]).status("NoNewPrivs"), "1");
}

fn short_flags_are_understood(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    let report = bundle.exec_report(&["-u", "5:6", "-e", "A=1", "-g", "9"]);
    assert_eq!(report.status("Uid"), "5 5 5 5");
    assert_eq!(report.status("Gid"), "6 6 6 6");
    assert_eq!(report.status("Groups"), "9");
    assert!(report["env"].as_array().is_some_and(|env| env.contains(&json!("A=1"))));
}

/// Makes the cgroup `below` in each of the container's; it goes with the container.
fn make_below(bundle: &Bundle<'_>) {
    let own = fs::read_to_string("/proc/self/cgroup").expect("read a file of proc");
    let controllers = own.lines().filter_map(|line| line.split(':').nth(1));
    for controller in controllers.filter_map(|names| names.trim_start_matches("name=").split(',').next()) {
        let container = bundle.cgroup(controller);
        if container.is_dir() {
            fs::create_dir(container.join("below")).expect("make a cgroup");
            // A new v1 cpuset takes no process before it has these.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| controller == "cpuset") {
                let inherited = fs::read(container.join(file)).expect("read a file of a cgroup");
                fs::write(container.join("below").join(file), inherited).expect("write a file of a cgroup");
            }
        }
    }
    // runc wants it in the v2 tree of a hybrid machine too.
    let unified = std::path::Path::new("/sys/fs/cgroup/unified").join(&bundle.id);
    if unified.is_dir() {
        fs::create_dir(unified.join("below")).expect("make a cgroup");
    }
}

fn it_goes_to_a_cgroup_below(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    make_below(&bundle);
    let cgroup = |options: &[&str], controller: &str| {
        let report = bundle.exec_report(options);
        report.cgroup(controller).unwrap_or_default().to_owned()
    };
    let own = cgroup(&[], "pids");
    let below = format!("{own}/below");
    assert_eq!(cgroup(&["--cgroup", "below"], "pids"), below);
    assert_eq!(cgroup(&["--cgroup", "/"], "pids"), own);
    // Only a hierarchy of v1 has controllers of its own.
    if bundle.cgroup("pids") != bundle.cgroup("memory") {
        assert_eq!(cgroup(&["--cgroup", "pids:below"], "pids"), below);
        assert_eq!(cgroup(&["--cgroup", "memory:below"], "pids"), own);
    }
}

fn a_cgroup_below_must_exist(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for value in ["none", "nonsense:none"] {
        let output = bundle.exec(&["--cgroup", value], &["/probe", "exit", "0"]);
        assert_ne!(output.code, 0, "{value}: {output:?}");
    }
    assert!(!bundle.cgroup("pids").join("none").exists());
}

fn it_stays_in_the_container_s_cgroup(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for value in ["..", "../..", "/../x", "below/../../x", "pids:.."] {
        let error = bundle.exec(&["--cgroup", value], &["/probe", "exit", "0"]).failure();
        assert!(error.contains("--cgroup"), "{value}: {error}");
    }
}

/// A name is never looked up, in no database.
fn users_are_numbers(runtime: &Runtime) {
    let (bundle, _container) = sleeper(runtime);
    for value in ["tester", "root", "1000:tester", "-1", "1000:1000:1000", "", " 1", "0x1"] {
        // runc takes no user for the container's.
        if value.is_empty() && runtime.is("runc") {
            continue;
        }
        let output = bundle.exec(&["--user", value], &["/probe", "exit", "0"]);
        assert_ne!(output.code, 0, "{value:?}: {output:?}");
    }
}
