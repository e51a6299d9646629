//! config.json with anything in any field: it is refused in one short line that a terminal survives, or it makes a
//! container; the host is as before, and nothing is left.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Output, Runtime};
use serde_json::{Value, json};

use crate::tripwire::Tripwire;

tests! {
    anything_in_any_string_is_refused_or_harmless,
    anything_in_any_number_is_refused_or_harmless,
    a_value_of_another_type_is_refused_or_harmless,
    documents_that_are_too_large_or_too_deep_are_refused,
    long_lists_are_taken_or_refused_in_time,
    fields_longer_than_16_bits_are_not_cut,
    a_listener_that_is_none_is_refused,
    sysctls_are_of_the_container_s_namespaces_alone,
}

/// The longest that a create of nonsense may take here, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pointers of all values for which `wanted` holds.
fn pointers(value: &Value, wanted: fn(&Value) -> bool) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    let mut found: Vec<String> = wanted(value).then(String::new).into_iter().collect();
    for (name, child) in children {
        found.extend(pointers(child, wanted).into_iter().map(|rest| format!("/{name}{rest}")));
    }
    found
}

/// A document with something in every part of it.
fn full(bundle: &mut Bundle<'_>) {
    bundle.probe(&["exit", "0"]);
    bundle.spec["domainname"] = json!("domain");
    bundle.spec["annotations"] = json!({ "key": "value" });
    bundle.spec["linux"]["devices"] = json!([{ "path": "/dev/made", "type": "c", "major": 1, "minor": 3 }]);
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 1" });
    bundle.spec["linux"]["rootfsPropagation"] = json!("private");
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 1 << 30 });
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 100 });
    bundle.spec["hooks"]["createRuntime"] =
        json!([{ "path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5 }]);
}

/// Tries `values` in every place for which `wanted` holds, a few at each place: `step` places on, another one.
fn try_everywhere(runtime: &Runtime, wanted: fn(&Value) -> bool, values: &[Value]) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut example = runtime.bundle();
    full(&mut example);
    let places = pointers(&example.spec, wanted);
    let tried = crate::number("CORTEN_DOCUMENTS", 2).min(values.len());
    let (mut made, mut count) = (0, 0);
    for (index, place) in places.iter().enumerate() {
        for offset in 0..tried {
            let value = &values[(index * tried + offset) % values.len()];
            let mut bundle = runtime.bundle();
            full(&mut bundle);
            *bundle.spec.pointer_mut(place).expect("the documents are alike") = value.clone();
            let what = format!("{place} = {:.80}", value.to_string());
            made += usize::from(taken(&bundle, &what));
            tripwire.assert_untouched(&what);
            count += 1;
        }
    }
    eprintln!("{count} documents, {made} of them taken");
    assert!(count > 15 && made < count, "{made} of {count}");
}

/// Runs a document; whether it was taken.
fn taken(bundle: &Bundle<'_>, what: &str) -> bool {
    let before = Instant::now();
    let output = bundle.run();
    assert!(before.elapsed() < PATIENCE, "{what}: {:?}", before.elapsed());
    assert_tame(&output, what);
    if output.code != 0 {
        bundle.assert_nothing_left();
    }
    output.code == 0
}

/// Whatever was in the document, what is said is short, and no terminal's or log's parser is led astray.
fn assert_tame(output: &Output, what: &str) {
    // The document may name other arguments for the program, which then has its own opinion.
    assert!(output.code < 128, "{what}: {output:?}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output:?}");
    assert!(
        output.stderr.len() < 10 << 10,
        "{what}: {} bytes of error",
        output.stderr.len()
    );
    let wild = output
        .stderr
        .chars()
        .find(|character| character.is_control() && *character != '\n');
    assert_eq!(wild, None, "{what}: {:?}", output.stderr);
    let errors = output
        .stderr
        .lines()
        .filter(|line| !line.contains("level=warning"))
        .count();
    assert!(errors <= 1, "{what}: {:?}", output.stderr);
}

fn anything_in_any_string_is_refused_or_harmless(runtime: &Runtime) {
    let values = [
        json!(""),
        json!("a\nb"),
        json!("a\0b"),
        json!("\u{1b}[2J\u{1b}]0;title\u{7}\r"),
        json!("../../../../../../../../tmp/escape"),
        json!("/proc/self/fd/3"),
        json!("/proc/1/root/etc"),
        json!("x".repeat(70_000)),
        json!("%s%n=+,:;|&$(id)`id`"),
        json!("\u{202e}\u{feff}\u{10ffff}"),
    ];
    try_everywhere(runtime, Value::is_string, &values);
}

fn anything_in_any_number_is_refused_or_harmless(runtime: &Runtime) {
    let values = [
        json!(-1),
        json!(0),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1_i64 << 32),
        json!(0.5),
        json!(1e300),
        json!("1"),
    ];
    try_everywhere(runtime, Value::is_number, &values);
}

fn a_value_of_another_type_is_refused_or_harmless(runtime: &Runtime) {
    let values = [
        json!(null),
        json!([]),
        json!({}),
        json!(true),
        json!("x"),
        json!(7),
        json!([[]]),
        json!([{}]),
    ];
    try_everywhere(
        runtime,
        |value| value.is_object() || value.is_array() || value.is_boolean(),
        &values,
    );
}

fn documents_that_are_too_large_or_too_deep_are_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    full(&mut bundle);
    let text = bundle.spec.to_string();
    let spaces = |count: usize| " ".repeat(count);
    let deep = |open: &str, close: &str| {
        let nested = format!("{}{}", open.repeat(100_000), close.repeat(100_000));
        text.replacen(
            "\"annotations\":",
            &format!("\"org.example\":{nested},\"annotations\":"),
            1,
        )
    };
    for (what, document) in [
        ("100 MB", format!("{text}{}", spaces(100 << 20))),
        ("deep lists", deep("[", "]")),
        ("deep lists without an end", "[".repeat(1 << 20)),
        (
            "deep objects",
            text.replacen('{', &format!("{{\"x\":{}", "{\"x\":".repeat(100_000)), 1),
        ),
        ("a list", format!("[{text}]")),
        ("a list of numbers", format!("[{}1]", "1,".repeat(1 << 20))),
        ("nothing", String::new()),
        ("not UTF-8", "{\"ociVersion\":\"1.0.2\u{0}".to_owned()),
        ("two documents", format!("{text}{text}")),
    ] {
        // Written past `Bundle::write`, which would put the valid one in its place.
        let config = bundle.path().join("config.json");
        File::create(&config)
            .and_then(|mut file| file.write_all(document.as_bytes()))
            .expect("write the document");
        let before = Instant::now();
        let mut command = runtime.command();
        command.arg("run").arg("--bundle").arg(bundle.path()).arg(&bundle.id);
        let output = corten_tests::bundle::finish(&mut command);
        assert!(before.elapsed() < PATIENCE, "{what}: {:?}", before.elapsed());
        assert_tame(&output, what);
        assert_eq!(output.code, 1, "{what}: {output:?}");
        bundle.assert_nothing_left();
    }
}

fn long_lists_are_taken_or_refused_in_time(runtime: &Runtime) {
    let many = |value: &Value, count: usize| Value::Array(vec![value.clone(); count]);
    let mount = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" });
    for (pointer, value) in [
        ("/process/args", many(&json!("argument"), 200_000)),
        ("/process/env", many(&json!("A=b"), 200_000)),
        ("/process/user/additionalGids", many(&json!(7), 70_000)),
        (
            "/process/rlimits",
            many(&json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }), 10_000),
        ),
        ("/linux/maskedPaths", many(&json!("/proc/no/such/file"), 20_000)),
        ("/linux/namespaces", many(&json!({ "type": "mount" }), 10_000)),
        (
            "/linux/uidMappings",
            many(&json!({ "containerID": 0, "hostID": 0, "size": 1 }), 10_000),
        ),
        ("/mounts", many(&mount, 200)),
        ("/mounts/0/options", many(&json!("nosuid"), 100_000)),
        (
            "/linux/resources/devices",
            many(&json!({ "allow": false, "access": "rwm" }), 20_000),
        ),
    ] {
        let mut bundle = runtime.bundle();
        full(&mut bundle);
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
        bundle.spec.pointer_mut(parent).expect("the document has it")[name] = value;
        if parent == "/mounts/0" {
            let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
            mounts[0]["options"] = many(&json!("nosuid"), 100_000);
        }
        taken(&bundle, pointer);
    }
}

/// CVE-2021-43784: a length that was cut to 16 bits made the rest of a field into fields of the attacker's.
fn fields_longer_than_16_bits_are_not_cut(runtime: &Runtime) {
    let long = "x".repeat((1 << 16) + 20);
    for (pointer, value) in [
        (
            "/linux/namespaces/1",
            json!({ "type": "network", "path": format!("/{long}") }),
        ),
        ("/mounts/0/destination", json!(format!("/proc/{long}"))),
        ("/mounts/0/source", json!(long)),
        ("/process/cwd", json!(format!("/{long}"))),
        ("/process/args/0", json!(format!("/{long}"))),
        ("/root/path", json!(long)),
        ("/hostname", json!(long)),
        ("/hooks/createRuntime/0/path", json!(format!("/{long}"))),
    ] {
        let mut bundle = runtime.bundle();
        full(&mut bundle);
        *bundle.spec.pointer_mut(pointer).expect("the document has it") = value;
        let kept = taken(&bundle, pointer);
        // The source of a procfs is a name that nobody looks at.
        assert!(!kept || pointer == "/mounts/0/source", "{pointer} is taken");
    }
    // Long and legal: it arrives whole.
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["env"] = json!([format!("LONG={long}")]);
    let report = bundle.report(&[]);
    assert!(report["env"].to_string().contains(&long));
    let mappings: Vec<Value> = (0..5000)
        .map(|id| json!({ "containerID": id, "hostID": 100_000 + id, "size": 1 }))
        .collect();
    let mut bundle = runtime.bundle();
    full(&mut bundle);
    bundle.namespace("user", None);
    bundle.spec["linux"]["uidMappings"] = json!(mappings);
    bundle.spec["linux"]["gidMappings"] = json!(mappings);
    assert!(!taken(&bundle, "5,000 mappings, of which the kernel takes 340"));
}

/// The listener of a seccomp filter gets a descriptor that decides over the container's calls.
fn a_listener_that_is_none_is_refused(runtime: &Runtime) {
    for path in [
        "relative.sock",
        "",
        "/no/such/socket",
        "/etc/passwd",
        "/dev/null",
        "a\0b",
        "\0abstract",
    ] {
        let mut bundle = runtime.bundle();
        full(&mut bundle);
        bundle.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "listenerPath": path,
            "syscalls": [{ "names": ["getppid"], "action": "SCMP_ACT_NOTIFY" }],
        });
        assert!(!taken(&bundle, path), "{path:?} is taken");
    }
}

/// CVE-2022-0532, CVE-2022-0811: no setting of the machine's, in whatever words.
fn sysctls_are_of_the_container_s_namespaces_alone(runtime: &Runtime) {
    for (key, value) in [
        ("kernel.core_pattern", "|/evil"),
        ("kernel/core_pattern", "|/evil"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net.//.kernel.core_pattern", "|/evil"),
        ("net.ipv4.ip_forward", "1\nkernel.core_pattern=|/evil"),
        ("net.ipv4.ip_forward", "1\0"),
        ("net.ipv4.ip_forward+kernel.core_pattern", "1"),
        ("kernel.shm_rmid_forced", "1 kernel.core_pattern=x\n"),
        ("kernel.hostname", "x"),
        ("vm.overcommit_memory", "1"),
        ("", "1"),
        ("/proc/sys/kernel/core_pattern", "x"),
    ] {
        let mut bundle = runtime.bundle();
        full(&mut bundle);
        bundle.spec["linux"]["sysctl"] = json!({ key: value });
        assert!(!taken(&bundle, key), "{key}={value:?} is taken");
    }
    for (namespace, key) in [
        ("network", "net.ipv4.ip_forward"),
        ("ipc", "kernel.shmmax"),
        ("uts", "kernel.domainname"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        bundle.remove_namespace(namespace);
        bundle
            .spec
            .as_object_mut()
            .expect("a specification is an object")
            .remove("hostname");
        bundle.spec["linux"]["sysctl"] = json!({ key: "1" });
        assert!(!taken(&bundle, key), "{key} is set in the host's {namespace} namespace");
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("read a setting");
    assert!(!pattern.contains("evil"), "{pattern}");
}
