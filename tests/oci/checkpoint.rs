//! checkpoint and restore: a process goes on where it was, and a bundle is above any archive.
//!
//! With a CRIU that works on this kernel: what it says to `criu check` decides, and a test that cannot run says so. What
//! CRIU is asked for is looked at everywhere, with the probe in its place.

mod archive;
mod joined;
mod request;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use corten_tests::bundle::{Bundle, Running, Runtime, finish, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use archive::{a_mount_behind_a_link_is_refused, an_archive_with_more_than_the_bundle_is_refused};
use joined::{a_joined_network_is_the_bundles, joined_names_and_queues_are_the_bundles};
use request::{
    a_notify_socket_is_named_to_criu, an_interrupt_ends_a_restore, criu_gets_nothing_of_ours, every_flag_reaches_criu,
};

each_runtime! {
    a_process_goes_on_where_it_was,
    a_container_can_be_left_running,
    a_dump_builds_on_an_earlier_one,
    standard_streams_are_those_of_the_restore,
    a_terminal_comes_over_the_console_socket,
    a_bind_shows_what_the_bundle_says,
    a_joined_network_is_the_bundles,
    joined_names_and_queues_are_the_bundles,
    a_restore_in_the_foreground_passes_signals_and_the_exit_code_on,
    a_failed_dump_leaves_the_container_running,
    an_archive_that_is_none_is_refused,
}

corten_only! {
    an_archive_with_more_than_the_bundle_is_refused: "runc takes what CRIU makes of the images",
    a_mount_behind_a_link_is_refused: "runc's checks are of the bundle alone",
    hooks_run_at_a_restore: "runc runs no poststart hooks",
    a_service_goes_on_without_its_manager: "runc is not to be told of a service manager at a restore",
    a_notify_socket_is_named_to_criu: "the request is corten's own",
    an_interrupt_ends_a_restore: "runc keeps the signal for a process that never comes",
    criu_gets_nothing_of_ours: "the request is corten's own",
    every_flag_reaches_criu: "the request is corten's own",
    without_criu_there_is_an_error: "runc finds it out late, and says less",
}

/// CRIU works here, or why not.
fn criu_works() -> bool {
    static WORKS: LazyLock<Result<(), String>> = LazyLock::new(|| {
        let output = Command::new("criu")
            .arg("check")
            .output()
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(text.lines().next().unwrap_or_default().to_owned())
        }
    });
    WORKS
        .as_ref()
        .inspect_err(|error| eprintln!("SKIP: criu check: {error}"))
        .is_ok()
}

/// A bundle whose process counts, in a root that it can write to.
fn counting<'r>(runtime: &'r Runtime) -> Bundle<'r> {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.probe(&["count", "/tmp/count"]);
    bundle
}

/// Runs a subcommand that leaves a container, with nothing but the null device as its standard streams.
#[track_caller]
fn launch(bundle: &Bundle<'_>, command: &mut Command) -> Pid {
    let pid_file = bundle.path().join("pid");
    command.args(["--detach", "--pid-file"]).arg(&pid_file).arg(&bundle.id);
    // What the runtime has to say goes to its log: its standard error is the container's, and has to be one that a dump
    // can do without.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().expect("start the runtime");
    let log = || fs::read_to_string(bundle.path().join("log")).unwrap_or_default();
    assert!(status.success(), "{command:?}: {}", log());
    bundle.adopt(&pid_file)
}

#[track_caller]
fn start(bundle: &Bundle<'_>) -> Pid {
    bundle.write();
    let mut command = logged(bundle, "run");
    command.arg("--bundle").arg(bundle.path());
    launch(bundle, &mut command)
}

/// A subcommand that writes its errors to a file.
fn logged(bundle: &Bundle<'_>, subcommand: &str) -> Command {
    let mut command = bundle.global(&["--log", &bundle.path().join("log").to_string_lossy()]);
    command.arg(subcommand);
    command
}

fn images(bundle: &Bundle<'_>, name: &str) -> PathBuf {
    bundle.path().join(name)
}

fn dump_command(bundle: &Bundle<'_>, name: &str, flags: &[&str]) -> Command {
    let mut command = bundle.command("checkpoint");
    command
        .arg("--image-path")
        .arg(images(bundle, name))
        .args(flags)
        .arg(&bundle.id);
    command
}

#[track_caller]
fn dump(bundle: &Bundle<'_>, name: &str, flags: &[&str]) {
    let log = images(bundle, name).join("dump.log");
    let output = finish(&mut dump_command(bundle, name, flags));
    assert_eq!(
        output.code,
        0,
        "{output:?}\n{}",
        fs::read_to_string(log).unwrap_or_default()
    );
}

fn restore_command(bundle: &Bundle<'_>, images: &Path) -> Command {
    bundle.write();
    let mut command = logged(bundle, "restore");
    command
        .arg("--bundle")
        .arg(bundle.path())
        .arg("--image-path")
        .arg(images);
    command
}

#[track_caller]
fn restore(bundle: &Bundle<'_>, name: &str) -> Pid {
    launch(bundle, &mut restore_command(bundle, &images(bundle, name)))
}

/// The counting process and its count, from its file.
#[track_caller]
fn count_in(file: &Path) -> (String, u64) {
    let read = || {
        let text = fs::read_to_string(file).ok()?;
        let (name, count) = text.split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    wait_until(read).unwrap_or_else(|| panic!("nobody counts in {}", file.display()))
}

fn count(bundle: &Bundle<'_>) -> (String, u64) {
    count_in(&bundle.rootfs("/tmp/count"))
}

/// Waits until the same process has counted on.
#[track_caller]
fn assert_goes_on(bundle: &Bundle<'_>, before: &(String, u64)) {
    let on = wait_until(|| (count(bundle).1 > before.1 + 2).then(|| count(bundle)));
    assert_eq!(
        on.map(|(name, _)| name).as_ref(),
        Some(&before.0),
        "the same process, after {}",
        before.1
    );
}

fn status(bundle: &Bundle<'_>) -> Option<String> {
    let output = bundle.call("state", &[]);
    let state: Value = serde_json::from_str(&output.stdout).ok()?;
    Some(state["status"].as_str()?.to_owned())
}

#[track_caller]
fn kill_init(bundle: &Bundle<'_>) {
    let _killed = finish(bundle.command("kill").arg(&bundle.id).arg("KILL")).success();
}

fn a_process_goes_on_where_it_was(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let bundle = counting(runtime);
    let first = start(&bundle);
    count(&bundle);
    dump(&bundle, "images", &[]);
    assert_eq!(status(&bundle), None, "a container that has been dumped is deleted");
    assert_eq!(
        nix::sys::signal::kill(first, None).ok().filter(|()| alive(first)),
        None,
        "its init has ended"
    );
    let before = count(&bundle);

    let pid = restore(&bundle, "images");
    assert_goes_on(&bundle, &before);
    assert_eq!(status(&bundle).as_deref(), Some("running"));
    let state: Value = serde_json::from_str(&bundle.call("state", &[]).success().stdout).expect("state is JSON");
    assert_eq!(
        state["pid"],
        json!(pid.as_raw()),
        "the pid file and the state name init"
    );
    let report = bundle.exec_report(&[]);
    assert_eq!(report.status("NoNewPrivs"), "1");
    assert!(report.cgroup("pids").is_some());
    assert_eq!(bundle.cgroup_file("pids", "cgroup.procs"), pid.to_string());

    // And once more, from what was restored.
    dump(&bundle, "again", &[]);
    let before = count(&bundle);
    restore(&bundle, "again");
    assert_goes_on(&bundle, &before);
}

fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn a_container_can_be_left_running(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let bundle = counting(runtime);
    let pid = start(&bundle);
    let before = count(&bundle);
    dump(&bundle, "images", &["--leave-running"]);
    assert!(images(&bundle, "images").join("inventory.img").exists());
    assert!(alive(pid));
    assert_goes_on(&bundle, &before);
    assert_eq!(status(&bundle).as_deref(), Some("running"));
}

fn a_dump_builds_on_an_earlier_one(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut check = Command::new("criu");
    let check = check
        .args(["check", "--feature", "mem_dirty_track"])
        .output()
        .expect("start criu");
    if !check.status.success() {
        eprintln!("SKIP: this kernel does not track which memory is written to (soft-dirty)");
        return;
    }
    let bundle = counting(runtime);
    start(&bundle);
    count(&bundle);
    dump(&bundle, "first", &["--pre-dump"]);
    assert_eq!(status(&bundle).as_deref(), Some("running"), "a pre-dump ends nothing");
    dump(&bundle, "second", &["--pre-dump", "--parent-path", "../first"]);
    dump(&bundle, "last", &["--parent-path", "../second"]);
    assert_eq!(
        fs::read_link(images(&bundle, "last").join("parent")).expect("a link"),
        Path::new("../second")
    );
    let before = count(&bundle);
    restore(&bundle, "last");
    assert_goes_on(&bundle, &before);
}

fn standard_streams_are_those_of_the_restore(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = counting(runtime);
    bundle.probe(&["count", "-"]);
    let with_pipe = |mut command: Command| {
        let pid_file = bundle.path().join("pid");
        let (reader, writer) = std::io::pipe().expect("pipe");
        command.args(["--detach", "--pid-file"]).arg(&pid_file).arg(&bundle.id);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
        assert!(command.status().expect("start the runtime").success(), "{command:?}");
        drop(command);
        bundle.adopt(&pid_file);
        File::from(std::os::fd::OwnedFd::from(reader))
    };
    let mut before = with_pipe(bundle.command("run"));
    let mut text = [0; 40];
    before.read_exact(&mut text).expect("the container writes");
    dump(&bundle, "images", &[]);
    let mut rest = String::new();
    before
        .read_to_string(&mut rest)
        .expect("the pipe ends with the container");
    let text = format!("{}{rest}", String::from_utf8_lossy(&text));
    let last = text.lines().last().expect("a line").to_owned();

    let mut after = with_pipe(restore_command(&bundle, &images(&bundle, "images")));
    let mut text = [0; 60];
    after.read_exact(&mut text).expect("the restored container writes");
    let text = String::from_utf8_lossy(&text).into_owned();
    let (name, count) = last.split_once(' ').expect("a name and a count");
    let next = count.parse::<u64>().expect("a number") + 1;
    assert!(text.contains(&format!("{name} {next}\n")), "{text:?} after {last:?}");
    kill_init(&bundle);
}

fn a_terminal_comes_over_the_console_socket(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = counting(runtime);
    bundle.spec["process"]["terminal"] = json!(true);
    bundle.probe(&["count", "-"]);
    let connect = |subcommand: Command, name: &str| {
        let path = bundle.path().join(name);
        let listener = UnixListener::bind(&path).expect("bind a socket of the test");
        let mut command = subcommand;
        command.arg("--console-socket").arg(&path);
        launch(&bundle, &mut command);
        crate::terminal::master_of(&listener)
    };
    let mut master = connect(bundle.command("run"), "first.sock");
    let mut text = [0; 100];
    master.read_exact(&mut text).expect("the container writes");
    let first = String::from_utf8_lossy(&text).into_owned();
    let name = first
        .lines()
        .nth(1)
        .and_then(|line| line.split_once(' '))
        .expect("a line")
        .0
        .to_owned();
    // Else the last of what it wrote is restored too.
    dump(&bundle, "images", &[]);
    drop(master);
    let mut master = connect(restore_command(&bundle, &images(&bundle, "images")), "second.sock");
    let mut text = [0; 100];
    master.read_exact(&mut text).expect("the restored container writes");
    let second = String::from_utf8_lossy(&text).into_owned();
    assert!(second.contains(&name), "{second:?} of {name}");
    kill_init(&bundle);
}

fn a_bind_shows_what_the_bundle_says(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = counting(runtime);
    let (old, new) = (bundle.path().join("old"), bundle.path().join("new"));
    fs::create_dir(&old).expect("make a directory");
    fs::create_dir(&new).expect("make a directory");
    bundle.probe(&["count", "/data/count"]);
    bundle.add_mount(json!({ "destination": "/data", "source": old, "options": ["bind", "rw"] }));
    start(&bundle);
    let (name, _) = count_in(&old.join("count"));
    dump(&bundle, "images", &[]);
    bundle.mount("/data")["source"] = json!(new);
    restore(&bundle, "images");
    assert_eq!(count_in(&new.join("count")).0, name, "the source is the bundle's");
}

/// And the root is read-only, as that of most containers is.
fn a_restore_in_the_foreground_passes_signals_and_the_exit_code_on(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = runtime.bundle();
    bundle.probe(&["signal-wait"]);
    let pid = start(&bundle);
    let waits = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        (blocked.trim() != "0000000000000000").then_some(())
    };
    assert!(wait_until(waits).is_some(), "it never waits for signals");
    dump(&bundle, "images", &[]);
    for (signal, code) in [(Signal::SIGTERM, 0), (Signal::SIGKILL, 128 + libc::SIGKILL)] {
        let mut command = restore_command(&bundle, &images(&bundle, "images"));
        let restoring = Running::start(command.arg(&bundle.id));
        let runs = wait_until(|| status(&bundle).filter(|status| status == "running"));
        let log = fs::read_to_string(bundle.path().join("log")).unwrap_or_default();
        assert!(runs.is_some(), "{signal}: {log}");
        if signal == Signal::SIGKILL {
            kill_init(&bundle);
        } else {
            kill(restoring.pid(), signal).expect("signal a process of this test");
        }
        let output = restoring.wait();
        assert_eq!(output.code, code, "{signal}: {output:?}");
        assert_eq!(status(&bundle), None, "it is deleted at its end");
    }
}

fn a_service_goes_on_without_its_manager(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let bundle = counting(runtime);
    bundle.write();
    let mut create = logged(&bundle, "create");
    create.arg("--bundle").arg(bundle.path()).arg("--pid-file");
    create
        .arg(bundle.path().join("pid"))
        .arg(&bundle.id)
        .env("NOTIFY_SOCKET", "/nobody");
    create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().expect("start the runtime").success());
    bundle.adopt(&bundle.path().join("pid"));
    let _started = bundle.call("start", &[]).success();
    count(&bundle);
    for round in ["images", "again"] {
        dump(&bundle, round, &[]);
        let before = count(&bundle);
        restore(&bundle, round);
        assert_goes_on(&bundle, &before);
    }
}

fn a_failed_dump_leaves_the_container_running(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let bundle = counting(runtime);
    // Its standard output is a file of the host's, which is in no mount of the container's.
    let container = bundle.launch("run", &["--detach"]);
    let before = count(&bundle);
    let output = finish(&mut dump_command(&bundle, "images", &[]));
    assert_ne!(output.code, 0, "{output:?}");
    if runtime.is("corten") {
        let log = images(&bundle, "images").join("dump.log");
        let (log, error) = (log.to_string_lossy().into_owned(), &output.stderr);
        assert!(
            error.contains(&log) && error.contains("Error ("),
            "the log and its last errors: {error}"
        );
    }
    assert!(alive(container.pid));
    assert_goes_on(&bundle, &before);
}

fn an_archive_that_is_none_is_refused(runtime: &Runtime) {
    let bundle = counting(runtime);
    let empty = images(&bundle, "images");
    fs::create_dir(&empty).expect("make a directory");
    for path in [&empty, &images(&bundle, "nothing")] {
        let mut command = restore_command(&bundle, path);
        let output = finish(command.arg("--detach").arg(&bundle.id));
        assert_ne!(output.code, 0, "{output:?}");
        if runtime.is("corten") {
            assert!(output.stderr.contains("--image-path"), "{output:?}");
        }
        bundle.assert_nothing_left();
    }
}

fn hooks_run_at_a_restore(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = counting(runtime);
    start(&bundle);
    count(&bundle);
    dump(&bundle, "images", &[]);
    let log = bundle.path().join("hooks");
    let hook =
        |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {}", log.display())] }]);
    bundle.spec["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "startContainer": hook("startContainer"), "poststart": hook("poststart"), "poststop": hook("poststop"),
    });
    restore(&bundle, "images");
    assert_eq!(
        fs::read_to_string(&log).expect("hooks have run"),
        "prestart\ncreateRuntime\npoststart\n"
    );
    let _deleted = bundle.call("delete", &["--force"]).success();
    assert!(
        fs::read_to_string(&log)
            .expect("hooks have run")
            .ends_with("poststop\n")
    );
}

fn without_criu_there_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    let mut command = dump_command(&bundle, "images", &[]);
    let error = finish(command.env("PATH", "/nonexistent")).failure();
    assert!(error.contains("criu is not installed"), "{error}");
    assert!(alive(container.pid) && !images(&bundle, "images").exists());
}
