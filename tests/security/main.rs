//! The published holes of container runtimes, each tried against `corten`. `README.md` beside this file says which test
//! stands for which of them.
//!
//! | file | what it does |
//! |---|---|
//! | `tripwire.rs` | files outside of every container, and the host's own settings, that no test may change |
//! | `hostile.rs` | root filesystems in which one path is not what it should be; `hostile/holes.rs`: single ones |
//! | `racer.rs` | a container that exchanges a path of another one's root while that is made |
//! | `audit.rs` | what a program in a container is given, compared with an expected document |
//! | `numbers.rs` | users and groups as strings and numbers |
//! | `children.rs` | what hooks are given |
//! | `devices.rs`, `cgroups.rs` | what a container can open and write that is the machine's |
//! | `documents.rs` | config.json with anything in any field |
//! | `host_paths.rs` | ids, pid files, logs, sockets and documents that are not what they should be |
//! | `executable.rs` | the runtime's own program, as a container can reach it |
//! | `order.rs` | the system calls of a create and of an exec, and their order |
//!
//! Only `corten` is tested: Debian's runc has several of these holes. That a harness can find what it looks for is
//! tested in `tripwire.rs`, and where a test needs an attack to have happened it checks that.

use std::path::Path;

use corten_tests::bundle::Runtime;
use corten_tests::leak;

/// Makes a `#[test]` of each named `fn(&Runtime)`.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        mod corten {
            $(#[test] fn $name() { crate::on(super::$name) })*
        }
    };
}

mod audit;
mod cgroups;
mod children;
mod devices;
mod documents;
mod executable;
mod host_paths;
mod hostile;
mod numbers;
mod order;
mod racer;
mod tripwire;

/// Runs one test, and checks that the host is as before and nothing is left.
fn on(test: fn(&Runtime)) {
    let runtime = Runtime::find("corten").expect("corten is built, not installed");
    let watch = leak::Watch::new([runtime.marker()]);
    let host = tripwire::Host::look();
    test(&runtime);
    drop(runtime);
    watch.assert_clean();
    host.assert_same();
}

/// A number from the environment, or `otherwise`.
fn number(variable: &str, otherwise: usize) -> usize {
    let Ok(text) = std::env::var(variable) else {
        return otherwise;
    };
    text.parse()
        .unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
}

/// Every row of the table names tests that exist: a test that is renamed or removed takes its row along.
#[test]
fn every_row_of_the_table_names_tests_that_exist() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("security");
    let table = std::fs::read_to_string(folder.join("README.md")).expect("read the table");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 60, "{} rows", rows.len());
    let mut named = 0;
    for row in rows {
        for name in row.split('`').filter(|word| word.contains("::")) {
            let (module, test) = name.split_once("::").expect("it has been looked for");
            let text = text_of(&folder, module);
            assert!(text.contains(&format!("fn {test}(")), "{row}: no test {name}");
            named += 1;
        }
    }
    assert!(named > 60, "{named} tests are named");
}

/// A module's file, and those below it. One of another suite has that suite's name before its own, `cri/abuse`.
fn text_of(folder: &Path, module: &str) -> String {
    let folder = match module.contains('/') {
        true => folder.parent().expect("it is a folder of tests"),
        false => folder,
    };
    let below = std::fs::read_dir(folder.join(module)).into_iter().flatten();
    let below = below.map(|entry| entry.expect("read a directory").path());
    let files = std::iter::once(folder.join(format!("{module}.rs"))).chain(below);
    let read = |file: std::path::PathBuf| {
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.map(read).collect()
}
