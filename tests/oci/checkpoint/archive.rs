//! Archives that hold more than the bundle that they are restored under.

use std::fs;

use corten_tests::bundle::{Runtime, finish};
use serde_json::{Value, json};

use super::{count, counting, criu_works, dump, dump_command, images, restore_command, start};

/// Dumps what the loose bundle runs, and restores it as the strict one says: the error.
#[track_caller]
fn smuggled(runtime: &Runtime, loosen: fn(&mut Value), tighten: fn(&mut Value)) -> String {
    let mut bundle = counting(runtime);
    loosen(&mut bundle.spec);
    start(&bundle);
    count(&bundle);
    dump(&bundle, "images", &[]);
    tighten(&mut bundle.spec);
    let mut command = restore_command(&bundle, &images(&bundle, "images"));
    let output = finish(command.arg("--detach").arg(&bundle.id));
    let error = output.failure();
    bundle.assert_nothing_left();
    let before = count(&bundle);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(count(&bundle), before, "nothing of it has run");
    error
}

fn set_capabilities(spec: &mut Value, names: &[&str]) {
    for set in ["bounding", "permitted", "effective"] {
        spec["process"]["capabilities"][set] = json!(names);
    }
}

fn remove_mount(spec: &mut Value, destination: &str) {
    let mounts = spec["mounts"].as_array_mut().expect("mounts are a list");
    mounts.retain(|mount| mount["destination"] != destination);
}

/// A change of a specification.
type Change = fn(&mut Value);

const SMUGGLED_LIMIT: (&str, Change, Change) = (
    "process.rlimits",
    |spec| spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 65 }]),
    |spec| spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 }]),
);

/// The word of the error, what the container has that was dumped, and what the bundle says that it is restored under.
fn smuggling() -> [(&'static str, Change, Change); 9] {
    let nothing: Change = |_| {};
    [
        (
            "process.capabilities",
            |spec| set_capabilities(spec, &["CAP_SYS_ADMIN", "CAP_KILL"]),
            |spec| set_capabilities(spec, &["CAP_KILL"]),
        ),
        (
            "process.noNewPrivileges",
            |spec| spec["process"]["noNewPrivileges"] = json!(false),
            |spec| spec["process"]["noNewPrivileges"] = json!(true),
        ),
        ("process.user.uid", nothing, |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        }),
        SMUGGLED_LIMIT,
        (
            "linux.maskedPaths",
            |spec| spec["linux"]["maskedPaths"] = json!([]),
            |spec| {
                spec["linux"]["maskedPaths"] = json!(["/proc/keys", "/sys/firmware"]);
            },
        ),
        (
            "linux.readonlyPaths",
            |spec| spec["linux"]["readonlyPaths"] = json!([]),
            |spec| {
                spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
            },
        ),
        (
            "the bundle has no such mount",
            |spec| {
                let mounts = spec["mounts"].as_array_mut().expect("mounts are a list");
                mounts.push(json!({ "destination": "/host", "source": "/etc", "options": ["bind"] }));
            },
            |spec| remove_mount(spec, "/host"),
        ),
        (
            "is not ro",
            |spec| spec["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev"]),
            |spec| {
                spec["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev", "ro"]);
            },
        ),
        (
            "linux.namespaces",
            |spec| {
                let namespaces = spec["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("namespaces are a list");
                namespaces.retain(|namespace| namespace["type"] != "ipc");
                remove_mount(spec, "/dev/mqueue");
            },
            |spec| {
                let namespaces = spec["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("namespaces are a list");
                namespaces.push(json!({ "type": "ipc" }));
            },
        ),
    ]
}

pub(super) fn an_archive_with_more_than_the_bundle_is_refused(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    for (error, loosen, tighten) in smuggling() {
        let found = smuggled(runtime, loosen, tighten);
        assert!(found.contains(error), "{error}: {found}");
    }
}

pub(super) fn a_mount_behind_a_link_is_refused(runtime: &Runtime) {
    if !criu_works() {
        return;
    }
    let mut bundle = counting(runtime);
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside).expect("make a directory");
    bundle.add_mount(json!({ "destination": "/data", "source": "/etc", "options": ["bind", "ro"] }));
    start(&bundle);
    count(&bundle);
    dump(&bundle, "images", &[]);
    fs::remove_dir(bundle.rootfs("/data")).expect("the mount point is there");
    std::os::unix::fs::symlink(&outside, bundle.rootfs("/data")).expect("make a link");
    let mut command = restore_command(&bundle, &images(&bundle, "images"));
    let error = finish(command.arg("--detach").arg(&bundle.id)).failure();
    assert!(error.contains("/data"), "{error}");
    bundle.assert_nothing_left();
    assert_eq!(fs::read_dir(&outside).expect("read a directory").count(), 0);

    // A bracket could end the name of a mount early.
    fs::remove_file(bundle.rootfs("/data")).expect("remove the link");
    let mut bundle = counting(runtime);
    bundle.add_mount(json!({ "destination": "/a]:b", "source": "/etc", "options": ["bind", "ro"] }));
    start(&bundle);
    count(&bundle);
    let error = finish(&mut dump_command(&bundle, "images", &[])).failure();
    assert!(error.contains("mounts[7].destination"), "{error}");
}
