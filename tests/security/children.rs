//! Programs that the runtime runs on the host's behalf: hooks get the arguments and the environment of their entry, the
//! state on standard input, and nothing else, whatever image, specification and caller have.

use std::fs;
use std::process::Command;

use corten_tests::bundle::{Bundle, Runtime, finish};
use serde_json::{Value, json};

tests! {
    hooks_are_given_what_their_entry_names_and_no_more,
    a_hook_s_path_is_absolute_and_not_looked_for_in_the_image,
}

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The variables with which an image once got code into a hook (CVE-2025-23266), in the image's and in the caller's
/// environment.
const HOSTILE: [&str; 6] = [
    "LD_PRELOAD=/evil.so",
    "LD_LIBRARY_PATH=/evil",
    "LD_AUDIT=/evil.so",
    "BASH_ENV=/evil.sh",
    "PATH=/evil",
    "GCONV_PATH=/evil",
];

/// Runs a subcommand as a caller with a hostile environment and files open.
fn call(bundle: &Bundle<'_>, subcommand: &str, options: &[&str]) {
    let mut command = bundle.command(subcommand);
    command.args(options).arg(&bundle.id);
    let mut shell = Command::new("/bin/bash");
    let open = r#"exec /usr/bin/env "$@" 3</etc/passwd 4</etc/passwd 77</etc/passwd"#;
    shell.args(["-c", open, "bash"]);
    // The loader of a dynamic runtime would act on some of them; env itself must not.
    shell.args(["BASH_ENV=/evil.sh", "PATH=/evil", "GCONV_PATH=/evil"]);
    shell.arg(command.get_program()).args(command.get_args());
    let output = finish(&mut shell);
    assert_eq!(output.code, 0, "{subcommand}: {output:?}");
}

fn hooks_are_given_what_their_entry_names_and_no_more(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let directory = bundle.path().join("hooks");
    fs::create_dir(&directory).expect("make a directory of the test");
    let log = directory.join("log");
    for kind in KINDS {
        // In the container the log's directory is bound at the same path.
        let program = if kind == "startContainer" {
            "/probe".into()
        } else {
            corten_tests::binary("probe")
        };
        bundle.spec["hooks"][kind] =
            json!([{ "path": program, "args": ["named", "hook", log, kind], "env": [format!("HOOK={kind}")] }]);
    }
    bundle.add_mount(json!({ "source": directory, "destination": directory, "options": ["bind"] }));
    bundle.spec["process"]["env"] = json!(HOSTILE);
    bundle.probe(&["exit", "0"]);
    call(&bundle, "run", &[]);

    let text = fs::read_to_string(&log).expect("the hooks have logged");
    let entries: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a hook logs JSON"))
        .collect();
    let ran: Vec<&str> = entries.iter().filter_map(|entry| entry["hook"].as_str()).collect();
    assert_eq!(ran, KINDS);
    for entry in &entries {
        let kind = entry["hook"].as_str().expect("a label is a string");
        assert_eq!(entry["args"], json!(["named", "hook", log, kind]), "{kind}");
        assert_eq!(entry["env"], json!([format!("HOOK={kind}")]), "{kind}");
        assert_eq!(entry["state"]["id"], json!(bundle.id), "{kind}");
        let descriptors: Vec<&String> = entry["fds"]
            .as_object()
            .map(|fds| fds.keys().collect())
            .unwrap_or_default();
        assert_eq!(descriptors, ["0", "1", "2"], "{kind}: {}", entry["fds"]);
        // As runc has it: the bundle for the host's hooks, the root for those of the container.
        let cwd = entry["cwd"].as_str().unwrap_or_default();
        let expected = match kind {
            "createContainer" => bundle.rootfs("").to_string_lossy().trim_end_matches('/').to_owned(),
            "startContainer" => "/".to_owned(),
            _ => bundle.path().to_string_lossy().into_owned(),
        };
        assert_eq!(cwd, expected, "{kind}");
    }
}

fn a_hook_s_path_is_absolute_and_not_looked_for_in_the_image(runtime: &Runtime) {
    for path in [
        "probe",
        "./probe",
        "../../probe",
        "",
        "rootfs/probe",
        "/probe\0",
        "/no/such/hook",
        "/probe",
    ] {
        for kind in ["createRuntime", "createContainer"] {
            let mut bundle = runtime.bundle();
            bundle.spec["hooks"][kind] = json!([{ "path": path }]);
            bundle.probe(&["exit", "0"]);
            // /probe exists in the image alone.
            let error = bundle.run().failure();
            assert!(error.contains(&format!("hooks.{kind}")), "{path:?}: {error}");
            bundle.assert_nothing_left();
        }
    }
}
