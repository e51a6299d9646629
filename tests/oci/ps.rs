//! `ps`: the processes of a container.

use corten_tests::bundle::{Bundle, Container, Runtime, finish};
use nix::unistd::Pid;

each_runtime! {
    the_pids_as_json,
    the_table_has_the_container_s_processes_alone,
    options_are_the_host_s_ps_s,
    a_table_without_pids_is_an_error,
    what_ps_says_is_wrong_is_an_error,
    a_created_container_has_its_init,
}

/// A container of two processes.
fn two(runtime: &Runtime) -> (Bundle<'_>, Container, Pid) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let container = bundle.start();
    let other = bundle.exec_detached(&[], &["/probe", "sleep"]);
    (bundle, container, other)
}

fn ps(bundle: &Bundle<'_>, before: &[&str], after: &[&str]) -> corten_tests::bundle::Output {
    finish(bundle.command("ps").args(before).arg(&bundle.id).args(after))
}

/// Init and the exec end together only if the exec is reaped, which dropping the bundle does.
fn end(bundle: &Bundle<'_>, container: &Container, other: Pid) {
    let _sent = finish(bundle.command("kill").arg(&bundle.id).arg("KILL")).success();
    assert_eq!(corten_tests::bundle::wait_for(other), 128 + libc::SIGKILL);
    assert_eq!(container.wait(), 128 + libc::SIGKILL);
}

fn the_pids_as_json(runtime: &Runtime) {
    let (bundle, container, other) = two(runtime);
    for format in ["--format", "-f"] {
        let text = ps(&bundle, &[format, "json"], &[]).success().stdout;
        let mut pids: Vec<i32> = serde_json::from_str(&text).expect("a list of pids");
        pids.sort_unstable();
        let mut expected = [container.pid.as_raw(), other.as_raw()];
        expected.sort_unstable();
        assert_eq!(pids, expected);
    }
    end(&bundle, &container, other);
}

/// The column PID of a table.
fn pids(table: &str) -> Vec<String> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heading = lines.next().expect("a table has a heading");
    let column = heading.iter().position(|title| *title == "PID").expect("a column PID");
    lines.map(|fields| fields[column].to_owned()).collect()
}

fn the_table_has_the_container_s_processes_alone(runtime: &Runtime) {
    let (bundle, container, other) = two(runtime);
    for table in [ps(&bundle, &[], &[]), ps(&bundle, &["--format", "table"], &[])] {
        let table = table.success().stdout;
        let mut expected = [container.pid.to_string(), other.to_string()];
        let mut found = pids(&table);
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{table}");
        assert!(table.contains("/probe sleep"), "{table}");
    }
    end(&bundle, &container, other);
}

fn options_are_the_host_s_ps_s(runtime: &Runtime) {
    let (bundle, container, other) = two(runtime);
    let table = ps(&bundle, &[], &["-e", "-o", "stat,pid,args"]).success().stdout;
    let heading: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["STAT", "PID", "COMMAND"]);
    assert_eq!(pids(&table).len(), 2, "{table}");
    end(&bundle, &container, other);
}

fn a_table_without_pids_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let error = ps(&bundle, &[], &["-e", "-o", "comm"]).failure();
    assert!(error.contains("PID"), "{error}");
}

fn what_ps_says_is_wrong_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let output = ps(&bundle, &[], &["--no-such-option"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("ps"), "{output:?}");
}

fn a_created_container_has_its_init(runtime: &Runtime) {
    let bundle = runtime.bundle();
    let container = bundle.create();
    let text = ps(&bundle, &["-f", "json"], &[]).success().stdout;
    let pids: Vec<i32> = serde_json::from_str(&text).expect("a list of pids");
    assert_eq!(pids, [container.pid.as_raw()]);
}
