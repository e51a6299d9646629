//! Programs that the server and the shim start: whatever the server was started with, they get the variables that are
//! meant for them, descriptors 0 to 2, `/` as their directory, and signals, umask and limits as if nothing had been.
//!
//! Each program is a script that writes down what it finds and becomes the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use corten_tests::registry::Access;
use serde_json::json;

/// A server of a careless parent: descriptors are open, signals are ignored and blocked, variables are set that make
/// programs load others' code, and new files are for nobody.
const CARELESS: &str = r#"
    trap "" HUP INT QUIT USR1 TTOU
    umask 0077
    ulimit -Sn 1000
    exec 3</etc/passwd 5</etc/passwd 77</etc/shadow
    export LD_LIBRARY_PATH=/evil BASH_ENV=/evil.sh ENV=/evil.sh GCONV_PATH=/evil SECRET=secret HTTP_PROXY=http://127.0.0.1:1
    exec "$@"
"#;

/// What a program writes down. The shell's own descriptors are closed in what it runs, and `ls` has one more than it was
/// given: the directory that it lists.
const REPORT: &str = r#"#!/bin/sh
{
    echo "program NAME"
    echo "cwd $(readlink /proc/$$/cwd)"
    echo "umask $(umask)"
    grep -E '^Sig(Blk|Ign)' /proc/self/status
    echo "files $(sed -n 's/^Max open files *\([0-9]*\).*/\1/p' /proc/$$/limits)"
    echo "oom $(cat /proc/$$/oom_score_adj)"
    tr '\0\n' '\n ' < /proc/$$/environ | sed 's/=.*//; s/^/env /'
} >> LOG.$$
ls /proc/self/fd | sed 's/^/fd /' >> LOG.$$
"#;

/// Variables that a program may get.
const RUNTIME: &[&str] = &["PATH"];
const PLUGIN: &[&str] = &[
    "PATH",
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];
const HELPER: &[&str] = &["PATH", "HOME", "HTTP_PROXY"];

/// Puts a script in a program's place; `then` is what it does after its report.
fn stand_in(directory: &Path, name: &str, then: &str) {
    let log = directory.join(format!("{name}.log"));
    let text = REPORT.replace("NAME", name).replace("LOG", &log.display().to_string());
    let path = directory.join(name);
    fs::write(&path, format!("{text}{then}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The reports of a program: what each says, by its first word.
fn reports(directory: &Path, name: &str) -> Vec<BTreeMap<String, BTreeSet<String>>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let prefix = format!("{name}.log.");
    entries
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .map(|path| {
            let mut report: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for line in fs::read_to_string(path).unwrap().lines() {
                let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
                let values = report.entry(word.trim_end_matches(':').to_owned()).or_default();
                values.insert(rest.trim().to_owned());
            }
            report
        })
        .collect()
}

/// A node whose programs are stand-ins in `programs/`, its server started by a careless parent.
fn node() -> Node {
    let node = Node::with(|config| {
        let dir = Path::new(config["root"].as_str().unwrap()).parent().unwrap().to_owned();
        let programs = dir.join("programs");
        fs::create_dir(&programs).unwrap();
        let real = |path: &Path| format!("exec {} \"$@\"", path.display());
        stand_in(&programs, "corten", &real(&binary("corten")));
        stand_in(&programs, "corten-shim", &real(&binary("corten-shim")));
        for plugin in ["bridge", "portmap"] {
            stand_in(&programs, plugin, &real(&Path::new("/usr/lib/cni").join(plugin)));
        }
        let unknown = "echo 'credentials not found in native keychain'; exit 1";
        stand_in(&programs, "docker-credential-test", unknown);
        let auth = json!({ "credHelpers": { "127.0.0.1:5000": "test" } });
        fs::write(dir.join("auth.json"), auth.to_string()).unwrap();
        let text = programs.display().to_string();
        let table: toml::Table = toml::from_str(&format!(
            "shim = '{text}/corten-shim'\ndefault_runtime = 'wrapped'\n[runtimes.wrapped]\npath = '{text}/corten'\n"
        ))
        .unwrap();
        config.extend(table);
        config["cni"]["bin_dirs"] = vec![text.clone(), "/usr/lib/cni".to_owned()].into();
        config["pull"]
            .as_table_mut()
            .unwrap()
            .insert("credential_helper_dirs".into(), vec![text].into());
    });
    node.stop_server();
    node.launch_by(&["/bin/bash", "-c", CARELESS, "bash"]).unwrap();
    node
}

/// Checks what every program is to find, and that it was run at all.
#[track_caller]
fn check(node: &Node, name: &str, variables: &[&str], descriptors: usize) {
    let reports = reports(&node.dir().join("programs"), name);
    assert!(!reports.is_empty(), "{name} was not run");
    for report in &reports {
        let one = |word: &str| report.get(word).and_then(|it| it.first()).cloned().unwrap_or_default();
        assert_eq!(one("cwd"), "/", "{name}");
        assert_eq!(one("umask"), "0022", "{name}");
        let mask = |word: &str| u64::from_str_radix(&one(word), 16).unwrap();
        // 32 and 33 are the C library's own, which it leaves alone whoever asks.
        let theirs = 0b11 << 31;
        assert_eq!(
            (mask("SigBlk") & !theirs, mask("SigIgn") & !theirs),
            (0, 0),
            "{name}: {report:?}"
        );
        let unknown: Vec<_> = report["env"]
            .iter()
            .filter(|it| !variables.contains(&it.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
        let expected: BTreeSet<_> = (0..=descriptors).map(|it| it.to_string()).collect();
        assert_eq!(report["fd"], expected, "{name}");
        assert_eq!(one("files"), "1000", "{name}");
        // The shim is protected, and its runtime gives every container the score of its specification.
        let least = if name.starts_with("corten") { -999 } else { 0 };
        let score: i32 = one("oom").parse().unwrap();
        assert!(score >= least, "{name}: {score}");
    }
    println!("{name}: {} starts", reports.len());
}

#[test]
fn programs_get_what_is_meant_for_them_and_no_more() {
    let node = node();
    node.pull(BUSYBOX);
    // A registry that asks who it is; the helper does not know, and the pull fails.
    node.registry()
        .require(Access::Login("user".to_owned(), "password".to_owned()));
    let absent = cri::PullImageRequest {
        image: Some(image("127.0.0.1:5000/absent:latest")),
        ..Default::default()
    };
    assert!(node.cri.pull_image(absent).is_err());
    let config = node.pod_config("web");
    let pod = node.run_pod(config);
    let main = pod.start(container("main", &["sleep", "1000"]));
    assert_eq!(
        main.exec_sh("echo $HOME$SECRET$LD_LIBRARY_PATH; ulimit -Sn"),
        "/root\n1000\n"
    );
    assert_eq!(main.exec_sh("ls /proc/self/fd"), "0\n1\n2\n3\n");
    let update = cri::UpdateContainerResourcesRequest {
        container_id: main.id.clone(),
        linux: Some(cri::LinuxContainerResources {
            cpu_shares: 512,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri.update_container_resources(update).unwrap();
    pod.stop();
    pod.remove();
    // The runtime is started by shim and server, the shim with its listener as descriptor 3.
    check(&node, "corten", RUNTIME, 3);
    check(&node, "corten-shim", RUNTIME, 4);
    check(&node, "bridge", PLUGIN, 3);
    check(&node, "portmap", PLUGIN, 3);
    check(&node, "docker-credential-test", HELPER, 3);
}
