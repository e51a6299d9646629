//! What a program in a container is given, all of it, compared with an expected document: as the first program, through
//! exec, with capabilities added, with descriptors passed on, as another user, in a user namespace.

use std::process::Command;

use corten_tests::bundle::{Bundle, Report, Runtime, finish};
use serde_json::{Map, Value, json};

tests! {
    the_first_program_is_given_what_the_specification_says,
    exec_gives_what_the_first_program_had,
    exec_adds_capabilities_but_never_inheritable_ones,
    exec_gives_no_more_than_the_process_document_says,
    another_user_keeps_no_capability,
    preserved_descriptors_are_the_only_others,
    a_user_namespace_changes_only_what_it_must,
    exec_leads_a_session_of_its_own,
    default_masks_hide_what_they_name,
}

/// CAP_AUDIT_WRITE, CAP_KILL, CAP_NET_BIND_SERVICE.
const GRANTED: &str = "0000000020000420";
const NONE: &str = "0000000000000000";

/// A bundle with an environment and limits that are known.
fn bundle(runtime: &Runtime) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["env"] = json!(["PATH=/usr/bin", "LD_PRELOAD=/evil.so", "A=b=c"]);
    bundle.spec["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 256, "hard": 512 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ]);
    bundle.spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
    bundle
}

/// What does not differ between machines and runs.
fn facts(report: &Report) -> Value {
    let status: Map<String, Value> = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Umask",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), json!(report.status(name))))
    .collect();
    json!({
        "status": status,
        "cwd": report["cwd"],
        "env": report["env"],
        "descriptors": report["fds"].as_object().map(|fds| fds.keys().cloned().collect::<Vec<_>>()),
        "files": report["limits"]["Max open files"],
        "core": report["limits"]["Max core file size"],
        "leads its session": report["pid"] == report["session"] && report["pid"] == report["process_group"],
        "executable": report["executable"],
        "first program": report["init_executable"],
        "terminal": report["terminal"].is_object(),
        "mounts": outline(report),
    })
}

/// Type, place and protections of every mount in order. Those of cgroups are the machine's, and what lies over a path of
/// /proc or /sys is looked at by `default_masks_hide_what_they_name`: not every machine has all of them.
fn outline(report: &Report) -> Vec<String> {
    let mounts = report["mounts"].as_array().expect("mounts are a list").iter();
    let covers = ["/sys/fs/cgroup", "/sys/firmware", "/proc/"];
    let wanted = mounts.filter(|mount| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        !covers.iter().any(|cover| destination.starts_with(cover))
    });
    wanted
        .map(|mount| {
            let options = mount["options"]
                .as_array()
                .expect("options are a list")
                .iter()
                .filter_map(Value::as_str);
            let protections: Vec<&str> = options
                .filter(|option| ["ro", "nosuid", "nodev", "noexec"].contains(option))
                .collect();
            let destination = mount["destination"].as_str().unwrap_or_default();
            // The root's filesystem is whatever holds the test's directory.
            let kind = if destination == "/" {
                "root"
            } else {
                mount["type"].as_str().unwrap_or_default()
            };
            format!("{kind} {destination} {}", protections.join(","))
                .trim_end()
                .to_owned()
        })
        .collect()
}

fn mounts() -> Vec<&'static str> {
    vec![
        "root / ro",
        "proc /proc",
        "tmpfs /dev nosuid",
        "devpts /dev/pts nosuid,noexec",
        "tmpfs /dev/shm nosuid,nodev,noexec",
        "mqueue /dev/mqueue nosuid,nodev,noexec",
        "sysfs /sys ro,nosuid,nodev,noexec",
    ]
}

/// The document every test begins with.
fn expected() -> Value {
    json!({
        "status": {
            "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "Umask": "0022",
            "CapInh": NONE, "CapPrm": GRANTED, "CapEff": GRANTED, "CapBnd": GRANTED, "CapAmb": NONE,
            "NoNewPrivs": "1", "Seccomp": "0",
        },
        "cwd": "/",
        "env": ["PATH=/usr/bin", "LD_PRELOAD=/evil.so", "A=b=c", "HOME=/root"],
        "descriptors": ["0", "1", "2"],
        "files": ["256", "512"],
        "core": ["0", "0"],
        "leads its session": true,
        "executable": "/probe",
        "first program": "/probe",
        "terminal": false,
        "mounts": mounts(),
    })
}

/// Equal to the last byte: maps of JSON are sorted, so that equal documents are equal text.
#[track_caller]
fn assert_facts(report: &Report, expected: &Value) {
    let text = |value: &Value| serde_json::to_string_pretty(value).expect("a value is JSON");
    assert_eq!(text(&facts(report)), text(expected));
}

fn the_first_program_is_given_what_the_specification_says(runtime: &Runtime) {
    let report = bundle(runtime).report(&[]);
    assert_facts(&report, &expected());
}

fn exec_gives_what_the_first_program_had(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    assert_facts(&bundle.exec_report(&[]), &expected());
}

/// CVE-2022-29162, CVE-2022-27650, CVE-2025-27612.
fn exec_adds_capabilities_but_never_inheritable_ones(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let mut expected = expected();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        expected["status"][set] = json!("0000000020200420");
    }
    assert_facts(&bundle.exec_report(&["--cap", "CAP_SYS_ADMIN"]), &expected);
}

fn exec_gives_no_more_than_the_process_document_says(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let all = json!(["CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]);
    let process = json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["/probe", "report"], "cwd": "/", "env": ["PATH=/usr/bin"],
        "capabilities": { "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"], "inheritable": all },
        "rlimits": bundle.spec["process"]["rlimits"],
    });
    let file = bundle.path().join("process.json");
    std::fs::write(&file, process.to_string()).expect("write a file of the test");
    let report = Report::parse(
        &bundle
            .exec(&["--process", &file.to_string_lossy()], &[])
            .success()
            .stdout,
    );
    let mut expected = expected();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        expected["status"][set] = json!("0000000000000020");
    }
    expected["status"]["NoNewPrivs"] = json!("0");
    expected["env"] = json!(["PATH=/usr/bin", "HOME=/root"]);
    // It has fewer capabilities than the first program, and may not look at it.
    expected["first program"] = Value::Null;
    assert_facts(&report, &expected);
}

/// CVE-2018-1000400 and CVE-2018-10856, and the groups of CVE-2022-2995: exactly those that are named.
fn another_user_keeps_no_capability(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "umask": 0o077, "additionalGids": [5, 1000] });
    let mut expected = expected();
    expected["status"] = json!({
        "Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000", "Groups": "5 1000", "Umask": "0077",
        "CapInh": NONE, "CapPrm": NONE, "CapEff": NONE, "CapBnd": GRANTED, "CapAmb": NONE,
        "NoNewPrivs": "1", "Seccomp": "0",
    });
    expected["env"][3] = json!("HOME=/home/tester");
    assert_facts(&bundle.report(&[]), &expected);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    // Another user's /proc/1/exe cannot be read without the capabilities of the first program's.
    assert_facts(&bundle.exec_report(&[]), &expected);
}

/// The caller has more files open than it wants to pass on.
fn preserved_descriptors_are_the_only_others(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.probe(&["report"]);
    let mut command = bundle.command("run");
    command.args(["--preserve-fds", "2"]).arg(&bundle.id);
    let mut shell = Command::new("/bin/bash");
    let open = r#"exec "$@" 3</dev/null 4</dev/zero 5</etc/passwd 9</etc/passwd 200</etc/passwd"#;
    shell
        .args(["-c", open, "bash"])
        .arg(command.get_program())
        .args(command.get_args());
    let report = Report::parse(&finish(&mut shell).success().stdout);
    assert_eq!(
        (&report["fds"]["3"], &report["fds"]["4"]),
        (&json!("/dev/null"), &json!("/dev/zero"))
    );
    let mut expected = expected();
    expected["descriptors"] = json!(["0", "1", "2", "3", "4"]);
    assert_facts(&report, &expected);
}

fn a_user_namespace_changes_only_what_it_must(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    }
    let mut report = bundle.report(&[]);
    // Devices are binds of the host's there.
    let bound = |mount: &Value| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        ["null", "zero", "full", "random", "urandom", "tty"]
            .iter()
            .any(|name| destination == format!("/dev/{name}"))
    };
    let mounts = report.0["mounts"].as_array_mut().expect("mounts are a list");
    let all = mounts.len();
    mounts.retain(|mount| !bound(mount));
    assert_eq!(all - mounts.len(), 6, "{mounts:?}");
    assert_facts(&report, &expected());
}

fn exec_leads_a_session_of_its_own(runtime: &Runtime) {
    let mut bundle = bundle(runtime);
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let report = bundle.exec_report(&[]);
    assert_ne!(
        report["session"], 1,
        "exec leads a session of its own, so that it cannot type into another's terminal"
    );
    assert_facts(&report, &expected());
}

/// CVE-2015-3630, GHSA-7ww5-4wqc-m92c, CVE-2017-16539, CVE-2018-10892: what the specification masks is read as empty.
fn default_masks_hide_what_they_name(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let extra = [
        "/sys/devices/virtual/powercap",
        "/proc/interrupts",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ];
    let masked = bundle.spec["linux"]["maskedPaths"]
        .as_array_mut()
        .expect("masked paths are a list");
    masked.extend(extra.map(|path| json!(path)));
    let masked: Vec<String> = masked.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let readonly = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    let paths: Vec<&str> = masked.iter().map(String::as_str).chain(readonly).collect();
    let report = bundle.report(&paths);
    let mut hidden = 0;
    for path in &masked {
        let seen = report.path(path);
        match seen["type"].as_str() {
            None => continue,
            Some("directory") => assert_eq!(
                (&seen["entries"], &seen["write"]),
                (&json!([]), &json!("EROFS")),
                "{path}"
            ),
            Some(_) => assert_eq!(seen["device"], json!([1, 3]), "{path}: {seen}"),
        }
        hidden += 1;
    }
    assert!(hidden >= 4, "only {hidden} of the paths exist");
    for path in readonly {
        assert!(!report.is_writable(path), "{path}");
    }
}
