//! `corten-cri config default` and `config check`.

use std::fs;
use std::process::{Command, Output};

use corten_tests::binary;

fn corten_cri(arguments: &[&str]) -> Output {
    Command::new(binary("corten-cri"))
        .args(arguments)
        .output()
        .expect("run corten-cri")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_default_configuration_is_complete_and_valid() {
    let output = corten_cri(&["config", "default"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let parsed: toml::Table = toml::from_str(&printed).expect("it is TOML");
    assert_eq!(parsed["root"].as_str(), Some("/var/lib/corten"));
    assert_eq!(parsed["state"].as_str(), Some("/run/corten"));
    assert!(printed.contains('#'), "every key is explained");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, &printed).unwrap();
    let output = corten_cri(&["config", "check", "--config", path.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn a_bad_configuration_is_refused_by_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    for (content, line, key) in [
        ("root = \"/a\"\nroote = \"/b\"\n", "2", "roote"),
        ("# a comment\n\nroot = 7\n", "3", "root"),
        ("[cni]\nconf_dir = [\n", "2", "unclosed"),
    ] {
        fs::write(&path, content).unwrap();
        let output = corten_cri(&["config", "check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{content}");
        let said = text(&output.stdout) + &text(&output.stderr);
        for part in [path.to_str().unwrap(), line, key] {
            assert!(said.contains(part), "{part:?} in {said:?} for {content:?}");
        }
    }
}

#[test]
fn values_are_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    for (content, key, rule) in [
        (
            "root = \"relative/path\"
",
            "root",
            "absolute",
        ),
        (
            "default_runtime = \"absent\"
",
            "default_runtime",
            "[runtimes]",
        ),
        (
            "root = \"/run/x\"
state = \"/run/x/y\"
",
            "state",
            "inside root",
        ),
    ] {
        fs::write(&path, content).unwrap();
        let output = corten_cri(&["config", "check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{content}");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(key) && said.contains(rule), "{said:?} for {content:?}");
        let output = corten_cri(&["--config", path.to_str().unwrap()]);
        assert!(
            !output.status.success(),
            "the server does not start with it either: {content}"
        );
    }
}
