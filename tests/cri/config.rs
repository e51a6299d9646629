//! `corten-cri config default`, `config check` and `config show`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use corten_tests::binary;
use serde_json::Value;
use tempfile::TempDir;

/// For each key, `*` being any name: a wrong value, and what is said of it.
const WRONG: &[(&str, &str, &str)] = &[
    ("root", "'relative/path'", "absolute"),
    ("state", "'/var/lib/corten/state'", "inside root"),
    ("listen", "'corten.sock'", "absolute"),
    ("worker_threads", "0", "1 to 64"),
    ("import_dir", "'import'", "absolute"),
    ("image_policy", "'../policy'", "absolute"),
    ("shim", "'corten-shim'", "absolute"),
    ("default_runtime", "'absent'", "[runtimes]"),
    ("cgroup_parent", "'../x'", "absolute"),
    ("cgroup_driver", "'podman'", "`auto`, `cgroupfs`, `systemd`"),
    ("missing_host_path", "'ignore'", "`create` or `reject`"),
    ("device_ownership_from_security_context", "'yes'", "boolean"),
    ("cdi_spec_dirs", "['cdi']", "absolute"),
    ("criu", "'criu'", "absolute"),
    ("netns_dir", "'netns'", "absolute"),
    ("container_log_max_line_bytes", "255", "256 to 1048576"),
    ("container_log_limit_bytes", "1", "at least"),
    ("log.level", "'loud'", "`error`, `warn`"),
    ("log.format", "'xml'", "`text` or `json`"),
    ("security.mask_paths_by_default", "1", "boolean"),
    (
        "security.unset_seccomp_profile",
        "'None'",
        "`Unconfined` or `RuntimeDefault`",
    ),
    ("metrics.listen", "'localhost'", "ADDRESS:PORT"),
    ("tracing.otlp_endpoint", "'https://collector'", "http://ADDRESS:PORT"),
    ("tracing.otlp_protocol", "'udp'", "`grpc`"),
    ("tracing.sample_ratio", "2.0", "0 to 1"),
    ("checkpoint.restore_from_images", "'yes'", "boolean"),
    ("network.builtin", "'yes'", "boolean"),
    ("network.bridge", "'a/b'", "1 to 15 letters"),
    ("network.subnets", "['10.0.0.0/40']", "10.0.0.0/40"),
    ("network.mtu", "100", "1280 to 65535"),
    ("cni.conf_dir", "'net.d'", "absolute"),
    ("cni.bin_dirs", "[]", "one or more"),
    ("cni.timeout_s", "601", "1 to 600"),
    ("cni.ip_preference", "'ipv5'", "`ipv4`"),
    ("cni.stop_patience_s", "3601", "0 to 3600"),
    ("streaming.address", "'localhost'", "IP address"),
    ("streaming.port", "65536", "u16"),
    ("streaming.tls_cert", "'/c.pem'", "tls_key"),
    ("streaming.tls_key", "'/k.pem'", "tls_cert"),
    ("streaming.client_ca", "'/ca.pem'", "tls_cert"),
    ("streaming.idle_timeout_s", "0", "must be"),
    ("runtimes.*.path", "'runc'", "absolute"),
    ("runtimes.*.pod_annotations", "['']", "annotation"),
    ("runtimes.*.container_annotations", "['*a']", "annotation"),
    ("pull.hosts_dirs", "['certs.d']", "absolute"),
    ("pull.auth_file", "'auth.json'", "absolute"),
    ("pull.credential_helper_dirs", "['bin']", "absolute"),
    ("pull.progress_timeout_s", "0", "1 to 3600"),
    ("pull.layers_at_once", "17", "must be 1 to 16"),
    ("pull.layers_of_a_registry", "7", "layers_at_once"),
    ("pull.short_name_registries", "['https://r.example']", "HOST.DOMAIN"),
    ("pull.short_names.*", "'b:1'", "without tag"),
    ("storage.image_root", "'images'", "absolute"),
    ("storage.snapshotter", "'zfs'", "`overlayfs`"),
    ("storage.pinned_images", "['a/***']", "wildcards"),
    ("storage.writable_layer_limit_bytes", "4096", "at least 1048576"),
    ("storage.writable_layer_limit_inodes", "0", "at least"),
    ("registries.*.plain_http", "'no'", "boolean"),
    ("registries.*.endpoint", "'http://b/'", "without scheme"),
    ("registries.*.ca", "'ca.pem'", "absolute"),
    ("registries.*.skip_verify", "0", "boolean"),
];

/// One of everything that has a name of its own.
const NAMED: &str =
    "[runtimes.x]\npath = '/x'\n[pull.short_names]\nx = 'r.example/x'\n[registries.x]\nca = '/x'\nendpoint = 'x'\n";

fn corten_cri(arguments: &[&str]) -> Output {
    Command::new(binary("corten-cri"))
        .args(arguments)
        .output()
        .expect("run corten-cri")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory with these files; the path of its `config.toml`.
fn files(contents: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    for (name, content) in contents {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let config = dir.path().join("config.toml");
    (dir, config)
}

/// What `config check FILE` prints, and its exit code.
fn check(file: &Path) -> (String, Option<i32>) {
    let output = corten_cri(&["config", "check", file.to_str().unwrap()]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    (text(&output.stdout), output.status.code())
}

/// What `config show` says of each key, by its path with dots.
fn shown(arguments: &[&str]) -> BTreeMap<String, Value> {
    let output = corten_cri(&[&["config", "show", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let settings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let key = |setting: &Value| {
        let parts: Vec<_> = setting["key"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part.as_str().unwrap())
            .collect();
        parts.join(".")
    };
    settings.into_iter().map(|setting| (key(&setting), setting)).collect()
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

    let (_dir, path) = files(&[("config.toml", &printed)]);
    let said = check(&path);
    assert_eq!(said, (format!("OK: {}\n", path.display()), Some(0)));
    let output = corten_cri(&["--config", path.to_str().unwrap(), "config", "check"]);
    assert!(
        output.status.success() && output.stdout.starts_with(b"OK"),
        "the file of --config"
    );
}

#[test]
fn every_key_with_a_wrong_value_is_named_with_line_value_and_rule() {
    let (_dir, path) = files(&[("config.toml", NAMED)]);
    for key in shown(&["--config", path.to_str().unwrap()]).keys() {
        let pattern = key.replace(".x.", ".*.").replace("short_names.x", "short_names.*");
        assert!(
            WRONG.iter().any(|(known, ..)| *known == pattern),
            "give {pattern} a wrong value in tests/cri/config.rs"
        );
    }
    for (key, value, rule) in WRONG {
        let key = key.replace('*', "x");
        // What its table cannot be without.
        let rest = match key.ends_with("_annotations") {
            true => "runtimes.x.path = '/x'\n",
            false => "",
        };
        fs::write(&path, format!("# first\n\n{key} = {value}\n{rest}")).unwrap();
        let (said, code) = check(&path);
        assert_eq!(code, Some(1), "{key} = {value}: {said}");
        let place = format!("{}:3: {key}: ", path.display());
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with(&place)).collect();
        let [line] = lines[..] else {
            panic!("{key} = {value}: {said}");
        };
        // A value that was read is shown as TOML has it by itself.
        let it_is = format!("(it is {})", value.replace('\'', "\""));
        assert!(line.contains(rule), "{rule:?} in {line:?}");
        assert!(line.replace('\'', "\"").ends_with(&it_is), "{it_is:?} in {line:?}");
        let output = corten_cri(&["--config", path.to_str().unwrap()]);
        assert!(
            !output.status.success(),
            "the server does not start with it either: {key}"
        );
        assert!(text(&output.stderr).contains(line), "and says why: {key}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once() {
    let (dir, path) = files(&[
        (
            "config.toml",
            "roote = '/b'\n# a comment\nroot = 7\n[cni]\ntimeout = 5\n",
        ),
        ("conf.d/10.toml", "[log]\nlevel = 'loud'\n"),
        ("conf.d/20.toml", "a = [\n"),
    ]);
    let (said, code) = check(&path);
    assert_eq!(code, Some(1));
    let said = said.replace(&format!("{}/", dir.path().display()), "");
    let expected = [
        "config.toml:1: roote: unknown field `roote`; did you mean root? (it is '/b')",
        "config.toml:3: root: invalid type",
        "config.toml:5: cni.timeout: unknown field `timeout`; did you mean cni.timeout_s? (it is 5)",
        "conf.d/10.toml:2: log.level: unknown variant `loud`",
        "conf.d/20.toml:",
    ];
    for (line, expected) in said.lines().zip(expected) {
        assert!(line.starts_with(expected), "{expected:?} in {said}");
    }
    assert!(said.lines().count() >= expected.len(), "{said}");
}

#[test]
fn a_rule_that_two_files_break_is_blamed_on_the_last() {
    let (_dir, path) = files(&[
        ("config.toml", "root = '/run/x'\n"),
        ("conf.d/10.toml", "\nstate = '/run/x/y'\n"),
    ]);
    let (said, code) = check(&path);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("conf.d/10.toml:2: state: must be neither inside root"),
        "{said}"
    );
    let (said, code) = check(Path::new("/nonexistent/config.toml"));
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("/nonexistent/config.toml: read: No such file"),
        "{said}"
    );
}

#[test]
fn what_is_in_force_is_shown_with_who_has_set_it() {
    let (_dir, path) = files(&[
        (
            "config.toml",
            "root = '/a'\nworker_threads = 3\n\n[cni]\ntimeout_s = 5\n",
        ),
        (
            "conf.d/10.toml",
            "[cni]\n# patience\ntimeout_s = 6\n[registries.'r.example:5']\nca = '/ca'\n",
        ),
    ]);
    let file = path.to_str().unwrap();
    let arguments = ["--config", file, "--root", "/b"];
    let settings = shown(&arguments);
    let drop_in = path.with_file_name("conf.d/10.toml");
    for (key, value, origin) in [
        (
            "root",
            serde_json::json!("/b"),
            serde_json::json!({ "source": "flag", "flag": "--root" }),
        ),
        (
            "worker_threads",
            3.into(),
            serde_json::json!({ "source": "file", "file": file, "line": 2 }),
        ),
        (
            "cni.timeout_s",
            6.into(),
            serde_json::json!({ "source": "file", "file": drop_in, "line": 3 }),
        ),
        (
            "state",
            "/run/corten".into(),
            serde_json::json!({ "source": "default" }),
        ),
        ("shim", Value::Null, serde_json::json!({ "source": "default" })),
        (
            "registries.r.example:5.ca",
            "/ca".into(),
            serde_json::json!({ "source": "file", "file": drop_in, "line": 5 }),
        ),
    ] {
        let setting = &settings[key];
        assert_eq!((&setting["value"], &setting["origin"]), (&value, &origin), "{key}");
    }
    assert_eq!(
        (&settings["root"]["live"], &settings["cni.timeout_s"]["live"]),
        (&false.into(), &true.into())
    );

    // As TOML it is a configuration that says the same.
    let output = corten_cri(&[&["config", "show"][..], &arguments].concat());
    let printed = text(&output.stdout);
    assert!(
        printed.contains(&format!("cni.timeout_s = 6  # {}:3\n", drop_in.display())),
        "{printed}"
    );
    assert!(printed.contains("root = \"/b\"  # --root\n"), "{printed}");
    let (_dir, again) = files(&[("config.toml", &printed)]);
    for (key, setting) in shown(&["--config", again.to_str().unwrap()]) {
        assert_eq!(setting["value"], settings[&key]["value"], "{key}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let (_dir, path) = files(&[(
        "config.toml",
        "password = 'hush'\n[registries.x]\nendpoint = 'http://me:hush@r.example'\n",
    )]);
    let (said, code) = check(&path);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("password: unknown field") && said.contains("endpoint: must be HOST"),
        "{said}"
    );
    assert!(!said.contains("hush"), "{said}");
}
