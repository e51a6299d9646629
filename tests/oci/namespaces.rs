//! Namespaces: new ones, ones joined by path, and those a container is left in.

use std::fs;

use corten_tests::bundle::{Report, Runtime};
use serde_json::json;

each_runtime! {
    default_namespaces_are_new,
    each_namespace_can_be_the_hosts,
    each_namespace_can_be_joined,
    a_joined_pid_namespace_has_another_init,
    a_new_pid_namespace_starts_at_one,
    cgroup_namespace_hides_the_path,
    user_namespace_maps_ids,
    a_path_of_the_wrong_type_is_refused,
    a_missing_path_is_refused,
    hostname_and_domainname_are_set,
}

corten_only! {
    user_namespace_can_be_joined: "runc 1.1 asks for mappings where a path is given, which config-linux.md does not",
}

fn own(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/thread-self/ns/{kind}"))
        .expect("every process has namespaces");
    link.to_string_lossy().into_owned()
}

fn default_namespaces_are_new(runtime: &Runtime) {
    let report = runtime.bundle().report(&[]);
    for kind in ["pid", "net", "ipc", "uts", "mnt"] {
        assert_ne!(report.namespace(kind), own(kind), "{kind} is new");
    }
    for kind in ["cgroup", "user"] {
        assert_eq!(report.namespace(kind), own(kind), "{kind} is the caller's");
    }
}

/// The name of a namespace in config.json and in /proc/PID/ns.
const KINDS: [(&str, &str); 4] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
];

fn each_namespace_can_be_the_hosts(runtime: &Runtime) {
    for (name, link) in KINDS {
        let mut bundle = runtime.bundle();
        bundle.remove_namespace(name);
        if name == "uts" {
            bundle.spec["hostname"].take();
        }
        // Without an IPC namespace of its own there is no message queue filesystem to mount, and without a network
        // namespace of its own no sysfs.
        bundle.spec["mounts"]
            .as_array_mut()
            .expect("mounts are a list")
            .retain(|mount| {
                mount["destination"] != "/dev/mqueue"
                    && mount["type"] != "sysfs"
                    && mount["type"] != "cgroup"
            });
        assert_eq!(
            bundle.report(&[]).namespace(link),
            own(link),
            "{name} is the caller's"
        );
    }
}

fn each_namespace_can_be_joined(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    for (name, link) in KINDS {
        let path = format!("/proc/{}/ns/{link}", target.pid);
        let mut bundle = runtime.bundle();
        bundle.namespace(name, Some(&path));
        if name == "uts" {
            bundle.spec["hostname"].take();
        }
        let expected = fs::read_link(&path).expect("the first container runs");
        let report = bundle.report(&[]);
        assert_eq!(
            report.namespace(link),
            expected.to_string_lossy(),
            "{name} is the first container's"
        );
        assert_ne!(report.namespace("mnt"), own("mnt"));
    }
}

fn a_joined_pid_namespace_has_another_init(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    bundle.namespace("pid", Some(&format!("/proc/{}/ns/pid", target.pid)));
    let report = bundle.report(&[]);
    assert_ne!(report["pid"], 1);
    assert_eq!(
        report.status("NSpid"),
        report["pid"].to_string(),
        "/proc is the joined namespace's"
    );
}

fn a_new_pid_namespace_starts_at_one(runtime: &Runtime) {
    let report = runtime.bundle().report(&[]);
    assert_eq!(report["pid"], 1);
    assert_eq!(report["ppid"], 0);
    assert_eq!(report["session"], 1);
    assert_eq!(report["init_executable"], "/probe");
}

fn cgroup_namespace_hides_the_path(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("cgroup", None);
    let report = bundle.report(&[]);
    assert_ne!(report.namespace("cgroup"), own("cgroup"));
    let lines = report["cgroups"].as_array().expect("cgroups are a list");
    let memory = lines
        .iter()
        .filter_map(|line| line.as_str())
        .find(|line| line.contains(":memory:"));
    assert!(
        memory.is_some_and(|line| line.ends_with(":/")),
        "{memory:?}"
    );
}

fn map_ids(bundle: &mut corten_tests::bundle::Bundle<'_>) {
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] =
            json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    }
}

fn assert_mapped(report: &Report) {
    assert_eq!(report["uid_map"], json!([["0", "200000", "65536"]]));
    assert_eq!(report["gid_map"], json!([["0", "200000", "65536"]]));
    assert_eq!(report.status("Uid"), "0 0 0 0");
}

fn user_namespace_maps_ids(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    map_ids(&mut bundle);
    let report = bundle.report(&["/probe", "/dev/null"]);
    assert_ne!(report.namespace("user"), own("user"));
    assert_mapped(&report);
    assert_eq!(
        report.path("/probe")["uid"],
        65534,
        "the host's root is nobody inside"
    );
    assert_eq!(report.path("/dev/null")["device"], json!([1, 3]));
    assert_eq!(report.path("/dev/null")["write"], json!(null));
}

fn user_namespace_can_be_joined(runtime: &Runtime) {
    let mut first = runtime.bundle();
    map_ids(&mut first);
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    for (name, link) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        bundle.namespace(name, Some(&format!("/proc/{}/ns/{link}", target.pid)));
    }
    let report = bundle.report(&[]);
    assert_mapped(&report);
    let expected =
        fs::read_link(format!("/proc/{}/ns/user", target.pid)).expect("the first container runs");
    assert_eq!(report.namespace("user"), expected.to_string_lossy());
}

fn a_path_of_the_wrong_type_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("network", Some("/proc/self/ns/uts"));
    let output = bundle.run();
    assert_ne!(output.code, 0);
    bundle.assert_nothing_left();
}

fn a_missing_path_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("network", Some("/run/netns/there-is-none"));
    let error = bundle.run().failure();
    assert!(error.contains("/run/netns/there-is-none"), "{error}");
    bundle.assert_nothing_left();
}

fn hostname_and_domainname_are_set(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["hostname"] = json!("ship");
    // runc 1.1 does not know the domainname of config.md (1.1.0); it ignores it.
    if !runtime.is("runc") {
        bundle.spec["domainname"] = json!("sea.example");
    }
    let report = bundle.report(&[]);
    assert_eq!(report["hostname"], "ship");
    assert_eq!(
        report["domainname"],
        if runtime.is("runc") {
            "(none)"
        } else {
            "sea.example"
        }
    );
}
