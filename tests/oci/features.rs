//! `features`: the document, and that it is true: what it names is accepted, what it says is not there is refused.

use corten_tests::bundle::Runtime;
use serde_json::{Value, json};

each_runtime! {
    the_document_has_the_specification_s_form,
    capabilities_are_those_of_this_kernel,
    hooks_run,
}

corten_only! {
    every_mount_option_is_taken: "runc lists idmap and recursive options that it then takes for binds alone",
    what_is_not_enabled_is_refused: "runc 1.1 knows of nothing that it lacks",
    every_seccomp_word_is_taken: "runc 1.1 names no flags",
    every_namespace_is_made: "runc 1.1 has all but the time namespace",
    it_has_what_runc_has: "it is compared with what runc prints",
}

fn features(runtime: &Runtime) -> Value {
    serde_json::from_str(&runtime.call(["features"]).success().stdout).expect("features prints JSON")
}

fn words(value: &Value) -> Vec<&str> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value}: not a list"));
    list.iter().map(|word| word.as_str().expect("a word")).collect()
}

fn the_document_has_the_specification_s_form(runtime: &Runtime) {
    let features = features(runtime);
    for version in ["ociVersionMin", "ociVersionMax"] {
        assert!(
            features[version].as_str().is_some_and(|text| text.starts_with("1.")),
            "{features}"
        );
    }
    for cgroup in ["v1", "v2", "systemd", "systemdUser"] {
        assert!(features["linux"]["cgroup"][cgroup].is_boolean(), "{cgroup}: {features}");
    }
    for feature in ["seccomp", "apparmor", "selinux"] {
        assert!(
            features["linux"][feature]["enabled"].is_boolean(),
            "{feature}: {features}"
        );
    }
    assert!(features["annotations"].is_object());
}

/// The kernel's own list: the bounding set of its first process.
fn capabilities_are_those_of_this_kernel(runtime: &Runtime) {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("the kernel has capabilities");
    let last: usize = last.trim().parse().expect("a number");
    let features = features(runtime);
    let names = words(&features["linux"]["capabilities"]);
    assert_eq!(names.len(), last + 1, "{names:?}");
    assert_eq!((names[0], names[21]), ("CAP_CHOWN", "CAP_SYS_ADMIN"));
}

fn hooks_run(runtime: &Runtime) {
    let features = features(runtime);
    for kind in words(&features["hooks"]) {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        let file = bundle.path().join("hook");
        // The hook of one kind runs inside of the container, whose root is read-only.
        let inside = kind == "startContainer";
        let path = if inside {
            "/probe".into()
        } else {
            bundle.rootfs("/probe")
        };
        bundle.spec["root"]["readonly"] = json!(false);
        let target = if inside { "/hook".into() } else { file.clone() };
        bundle.spec["hooks"][kind] = json!([{ "path": path, "args": ["probe", "write", target, kind] }]);
        assert_eq!(bundle.run().code, 0, "{kind}");
        let written = if inside { bundle.rootfs("/hook") } else { file };
        assert_eq!(std::fs::read_to_string(written).unwrap_or_default(), kind);
    }
}

fn every_mount_option_is_taken(runtime: &Runtime) {
    let features = features(runtime);
    // What a tmpfs made on its own cannot be: a bind, with mappings or not; and what is for other filesystems to have.
    // And what is mounted there already.
    let of_binds = ["bind", "rbind", "idmap", "ridmap", "remount"];
    let of_some_filesystems = ["acl", "noacl", "iversion"];
    for option in words(&features["mountOptions"]) {
        if of_binds.contains(&option) || of_some_filesystems.contains(&option) {
            continue;
        }
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [option] }));
        let output = bundle.run();
        assert_eq!(output.code, 0, "{option}: {output:?}");
    }
}

fn what_is_not_enabled_is_refused(runtime: &Runtime) {
    let features = features(runtime);
    for (feature, pointer, value) in [
        (
            "/linux/seccomp",
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
        ),
        ("/linux/apparmor", "/process/apparmorProfile", json!("profile")),
        ("/linux/selinux", "/process/selinuxLabel", json!("a:b:c:d")),
        ("/linux/intelRdt", "/linux/intelRdt", json!({ "closID": "group" })),
        ("/linux/netDevices", "/linux/netDevices", json!({ "none0": {} })),
    ] {
        if features
            .pointer(feature)
            .is_some_and(|feature| feature["enabled"] == true)
        {
            continue;
        }
        let mut bundle = runtime.bundle();
        let (parent, name) = pointer.rsplit_once('/').expect("a JSON pointer has a slash");
        bundle.spec.pointer_mut(parent).expect("the default has it")[name] = value;
        let error = bundle.call("create", &[]).failure();
        assert!(error.contains(name), "{error}");
    }
}

/// And a flag that is known, but not to this kernel, is refused.
fn every_seccomp_word_is_taken(runtime: &Runtime) {
    let features = features(runtime);
    let seccomp = &features["linux"]["seccomp"];
    let rule = |action: &str| json!([{ "names": ["mkdir"], "action": action }]);
    let run = |profile: Value| {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        bundle.spec["linux"]["seccomp"] = profile;
        bundle.run()
    };
    for arch in words(&seccomp["archs"]) {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch],
            "syscalls": rule("SCMP_ACT_ERRNO") });
        let output = run(profile);
        assert_eq!(output.code, 0, "{arch}: {output:?}");
    }
    let supported = words(&seccomp["supportedFlags"]);
    for flag in words(&seccomp["knownFlags"]) {
        // It goes with an agent; that such profiles are taken is shown elsewhere.
        if flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" {
            continue;
        }
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": [flag], "syscalls": rule("SCMP_ACT_ERRNO") });
        assert_eq!(run(profile).code == 0, supported.contains(&flag), "{flag}");
    }
}

fn every_namespace_is_made(runtime: &Runtime) {
    let features = features(runtime);
    for kind in words(&features["linux"]["namespaces"]) {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        bundle.namespace(kind, None);
        if kind == "user" {
            let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
            bundle.spec["linux"]["uidMappings"] = mapping.clone();
            bundle.spec["linux"]["gidMappings"] = mapping;
        }
        let output = bundle.run();
        assert_eq!(output.code, 0, "{kind}: {output:?}");
    }
}

/// Architectures whose byte order is not that of x86 and ARM.
const OTHER_BYTE_ORDER: [&str; 7] = [
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
];

/// Whoever asks runc for something by this document gets it from corten too.
fn it_has_what_runc_has(runtime: &Runtime) {
    let Some(runc) = Runtime::find("runc") else {
        eprintln!("SKIP: runc is not installed");
        return;
    };
    let (ours, theirs) = (features(runtime), features(&runc));
    for pointer in [
        "/hooks",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/archs",
    ] {
        let ours = words(ours.pointer(pointer).expect("ours has it"));
        let theirs = words(theirs.pointer(pointer).expect("runc's has it"));
        // runc lists what its libseccomp has ever heard of; that refuses to put both byte orders into one filter.
        let other_order = |word: &str| pointer.ends_with("archs") && OTHER_BYTE_ORDER.contains(&word);
        let missing: Vec<&&str> = theirs
            .iter()
            .filter(|word| !ours.contains(word) && !other_order(word))
            .collect();
        assert!(missing.is_empty(), "{pointer}: {missing:?}");
    }
    let (ours, theirs) = (words(&ours["mountOptions"]), words(&theirs["mountOptions"]));
    let missing: Vec<&&str> = theirs.iter().filter(|option| !ours.contains(option)).collect();
    assert!(missing.is_empty() || missing == [&"tmpcopyup"], "{missing:?}");
}
