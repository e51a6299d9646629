//! What the runtime is named on its command line: ids, pid files, logs, sockets, bundles and documents, with links,
//! fifos and devices where files should be.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Running, Runtime, finish};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::tripwire::Tripwire;

tests! {
    an_id_is_a_name_and_no_path,
    a_pid_file_is_written_through_no_link,
    a_console_socket_that_is_none_is_refused,
    a_document_that_is_no_file_is_refused_at_once,
    a_log_says_one_line_whatever_is_in_it,
    the_state_is_for_root_alone,
    a_root_that_leads_away_by_links_is_refused,
}

fn an_id_is_a_name_and_no_path(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.write();
    let long = "x".repeat(300);
    let other = runtime.root().join("other");
    fs::create_dir(&other).expect("make a directory of the test");
    fs::write(other.join("state.json"), "{}").expect("write a file of the test");
    for id in [
        "..",
        ".",
        "",
        "/",
        "a/b",
        "../other",
        "other/../x",
        "a\nb",
        "a b",
        "\u{1b}[2J",
        "ä",
        "%2e%2e",
        "*",
        &long,
    ] {
        for subcommand in ["run", "create", "start", "state", "delete", "kill"] {
            let mut command = runtime.command();
            command.arg(subcommand);
            if ["create", "run"].contains(&subcommand) {
                command.arg("--bundle").arg(bundle.path());
            }
            let error = finish(command.arg("--").arg(id)).failure();
            assert!(
                error.contains("id") && !error.contains('\u{1b}'),
                "{subcommand} {id:?}: {error}"
            );
        }
        let mut command = runtime.command();
        let output = finish(command.args(["delete", "--force"]).arg("--").arg(id));
        assert_ne!(output.code, 0, "delete --force {id:?}");
    }
    assert!(other.join("state.json").exists(), "nothing else has been deleted");
}

/// The file itself is replaced, whatever it is; what it leads to is not touched, and neither is what its temporary
/// name leads to.
fn a_pid_file_is_written_through_no_link(runtime: &Runtime) {
    for name in ["pid", ".pid"] {
        let tripwire = Tripwire::new(runtime.marker());
        let mut bundle = runtime.bundle();
        bundle.probe(&["sleep"]);
        let pid_file = bundle.path().join("pid");
        symlink(tripwire.path("file"), bundle.path().join(name)).expect("make a symlink");
        let container = bundle.create();
        tripwire.assert_untouched(&name);
        let meta = fs::symlink_metadata(&pid_file).expect("there is a pid file");
        assert!(meta.is_file(), "{name}: {meta:?}");
        assert_eq!(
            fs::read_to_string(&pid_file).expect("read the pid file"),
            container.pid.to_string()
        );
        let _started = bundle.call("start", &[]).success();
        let exec = bundle.exec_detached(&[], &["/probe", "exit", "0"]);
        assert_eq!(corten_tests::bundle::wait_for(exec), 0);
        tripwire.assert_untouched(&name);
    }
}

fn a_console_socket_that_is_none_is_refused(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.spec["process"]["terminal"] = json!(true);
    let link = bundle.path().join("link");
    symlink(tripwire.path("file"), &link).expect("make a symlink");
    let long = format!("/{}", "x".repeat(200));
    for socket in [
        &*link.to_string_lossy(),
        "/etc/passwd",
        "/dev/null",
        "/",
        "",
        "/no/such/socket",
        &long,
    ] {
        let error = bundle.call("create", &["--console-socket", socket]).failure();
        assert!(error.contains("console"), "{socket}: {error}");
        bundle.assert_nothing_left();
    }
    tripwire.assert_untouched(&"console sockets");
}

/// Runs a command that must fail, and soon: what it reads has no end, or nobody writes it.
#[track_caller]
fn assert_refused_at_once(command: &mut std::process::Command) {
    let before = Instant::now();
    let error = Running::start(command).wait().failure();
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "{:?}: {error}",
        before.elapsed()
    );
}

fn a_document_that_is_no_file_is_refused_at_once(runtime: &Runtime) {
    let mut running = runtime.bundle();
    running.probe(&["sleep"]);
    let _container = running.start();
    let bundle = runtime.bundle();
    let config = bundle.path().join("config.json");
    let make: [(&str, &dyn Fn()); 5] = [
        ("a fifo", &|| mkfifo(&config, Mode::S_IRUSR).expect("make a fifo")),
        ("zeros", &|| symlink("/dev/zero", &config).expect("make a symlink")),
        ("a directory", &|| fs::create_dir(&config).expect("make a directory")),
        ("a dangling link", &|| {
            symlink("/no/such/file", &config).expect("make a symlink")
        }),
        ("a terabyte", &|| {
            let file = fs::File::create(&config).expect("make a file");
            file.set_len(1 << 40).expect("make it large");
        }),
    ];
    for (what, make) in make {
        make();
        eprintln!("{what}");
        for subcommand in ["create", "run"] {
            let mut command = runtime.command();
            assert_refused_at_once(
                command
                    .arg(subcommand)
                    .arg("--bundle")
                    .arg(bundle.path())
                    .arg(&bundle.id),
            );
        }
        let mut command = runtime.command();
        assert_refused_at_once(command.arg("exec").arg("--process").arg(&config).arg(&running.id));
        bundle.assert_nothing_left();
        let removed = if config.is_dir() {
            fs::remove_dir(&config)
        } else {
            fs::remove_file(&config)
        };
        removed.expect("remove what was made");
    }
}

/// A line that begins like another, or with escapes for a terminal, stays within its own.
fn a_log_says_one_line_whatever_is_in_it(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    bundle.spec["process"]["cwd"] = json!("x\n{\"level\":\"error\",\"msg\":\"forged\"}\n\u{1b}[2J");
    bundle.write();
    for format in ["json", "text"] {
        let log = bundle.path().join(format!("log-{format}"));
        let mut command = runtime.command();
        command
            .arg("--log")
            .arg(&log)
            .args(["--log-format", format, "run", "--bundle"])
            .arg(bundle.path());
        let _error = finish(command.arg(&bundle.id)).failure();
        let text = fs::read_to_string(&log).expect("read the log");
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

/// CVE-2021-41103 and CVE-2024-25621: what the runtime keeps is nobody else's to look at.
fn the_state_is_for_root_alone(runtime: &Runtime) {
    use std::os::unix::fs::PermissionsExt;
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let root = bundle.path().join("made/by/the/runtime");
    let mut command = std::process::Command::new(runtime.command().get_program());
    command
        .arg("--root")
        .arg(&root)
        .args(["create", "--bundle"])
        .arg(bundle.path())
        .arg(&bundle.id);
    bundle.write();
    let _created = finish(&mut command).success();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("stat a directory").permissions().mode() & 0o777;
    assert_eq!((mode(&root), mode(&root.join(&bundle.id))), (0o700, 0o700));
    let mut command = std::process::Command::new(runtime.command().get_program());
    let _deleted = finish(
        command
            .arg("--root")
            .arg(&root)
            .args(["delete", "--force"])
            .arg(&bundle.id),
    )
    .success();
}

/// A container's directory that somebody has put there before, as a link, is not taken for a new one.
fn a_root_that_leads_away_by_links_is_refused(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle: Bundle<'_> = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    for target in ["directory", "file", "empty", "no/such/place"] {
        let place = runtime.root().join(&bundle.id);
        symlink(tripwire.path(target), &place).expect("make a symlink");
        let error = bundle.call("create", &[]).failure();
        assert!(error.contains("exist"), "{target}: {error}");
        tripwire.assert_untouched(&target);
        fs::remove_file(&place).expect("remove the link");
    }
}
