//! The descriptors a container starts with: its stdio, those it is to be given, and none of the runtime's.

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Bundle, Report, Runtime, finish};
use serde_json::json;

each_runtime! {
    only_stdio_is_open,
    exec_has_only_stdio_open,
    preserved_descriptors_are_passed_on,
    exec_passes_preserved_descriptors_on,
    stdio_is_the_caller_s,
    the_runtime_s_binary_cannot_be_written,
}

rootless! {
    only_stdio_is_open,
    exec_has_only_stdio_open,
    preserved_descriptors_are_passed_on,
    stdio_is_the_caller_s,
    the_runtime_s_binary_cannot_be_written,
}

fn numbers(report: &Report) -> Vec<&str> {
    report["fds"]
        .as_object()
        .expect("fds are a map")
        .keys()
        .map(String::as_str)
        .collect()
}

/// The same command, started with descriptors 3, 4 and 5 open.
fn with_open_files(bundle: &Bundle<'_>, command: &Command) -> Command {
    let file = bundle.path().join("open");
    fs::write(&file, "open").expect("write a file of the test");
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(r#"f=$1; shift; exec "$@" 3<"$f" 4<"$f" 5<"$f""#)
        .arg("sh")
        .arg(file);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

fn only_stdio_is_open(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["report"]);
    let mut command = bundle.command("run");
    let output = finish(&mut with_open_files(&bundle, command.arg(&bundle.id))).success();
    assert_eq!(numbers(&Report::parse(&output.stdout)), ["0", "1", "2"]);
}

fn exec_has_only_stdio_open(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let mut command = bundle.command("exec");
    let command = command.arg(&bundle.id).args(["/probe", "report"]);
    let output = finish(&mut with_open_files(&bundle, command)).success();
    assert_eq!(numbers(&Report::parse(&output.stdout)), ["0", "1", "2"]);
}

fn assert_two_preserved(bundle: &Bundle<'_>, report: &Report) {
    let file = bundle.path().join("open").to_string_lossy().into_owned();
    assert_eq!(numbers(report), ["0", "1", "2", "3", "4"]);
    assert_eq!((&report["fds"]["3"], &report["fds"]["4"]), (&json!(file), &json!(file)));
}

fn preserved_descriptors_are_passed_on(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["report"]);
    let mut command = bundle.command("run");
    let command = command.args(["--preserve-fds", "2"]).arg(&bundle.id);
    let output = finish(&mut with_open_files(&bundle, command)).success();
    assert_two_preserved(&bundle, &Report::parse(&output.stdout));
}

fn exec_passes_preserved_descriptors_on(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let mut command = bundle.command("exec");
    let command = command
        .args(["--preserve-fds", "2"])
        .arg(&bundle.id)
        .args(["/probe", "report"]);
    let output = finish(&mut with_open_files(&bundle, command)).success();
    assert_two_preserved(&bundle, &Report::parse(&output.stdout));
}

fn stdio_is_the_caller_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let input = bundle.path().join("input");
    fs::write(&input, "through stdin").expect("write a file of the test");
    bundle.probe(&["cat"]);
    let mut command = bundle.command("run");
    command
        .arg(&bundle.id)
        .stdin(fs::File::open(&input).expect("open a file of the test"));
    let output = finish(&mut command).success();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("through stdin", ""));

    let mut bundle = runtime.bundle();
    bundle.probe(&["errors", "through stderr"]);
    let output = bundle.run().success();
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("", "through stderr\n")
    );
}

/// CVE-2019-5736: a container whose program is `/proc/self/exe` runs the runtime's own binary inside, and could open
/// it for writing. It must be a copy that cannot be written, or not be run at all.
fn the_runtime_s_binary_cannot_be_written(runtime: &Runtime) {
    let command = runtime.command();
    let before = fs::metadata(command.get_program())
        .and_then(|meta| meta.modified())
        .expect("it exists");
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["args"] = json!(["/proc/self/exe", "report", "/proc/self/exe"]);
    let output = bundle.run();
    assert!(!output.stdout.contains("\"write\":null"), "{output:?}");
    let after = fs::metadata(command.get_program())
        .and_then(|meta| meta.modified())
        .expect("it exists");
    assert_eq!(before, after);
}
