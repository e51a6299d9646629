//! The root filesystem: what is in its place, what is hidden, what is read-only, and the devices a container has.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use corten_tests::bundle::Runtime;
use serde_json::json;

each_runtime! {
    a_read_only_root_cannot_be_written,
    a_writable_root_can_be_written,
    root_path_may_be_absolute,
    a_missing_root_is_refused,
    a_file_as_root_is_refused,
    nothing_of_the_host_is_mounted,
    the_root_is_the_top_of_the_mount_namespace,
    masked_files_are_the_null_device,
    masked_directories_are_empty_and_read_only,
    missing_masked_and_readonly_paths_are_passed_over,
    readonly_paths_cannot_be_written,
    default_devices_are_there,
    default_symlinks_are_there,
    a_listed_device_is_made,
    a_listed_fifo_is_made,
    a_device_needs_the_cgroup_s_leave,
    devices_cannot_be_made_outside_the_root,
    dev_of_the_host_is_left_alone,
}

rootless! {
    a_read_only_root_cannot_be_written,
    a_writable_root_can_be_written,
    nothing_of_the_host_is_mounted,
    the_root_is_the_top_of_the_mount_namespace,
    masked_files_are_the_null_device,
    masked_directories_are_empty_and_read_only,
    default_symlinks_are_there,
    dev_of_the_host_is_left_alone,
}

corten_only! {
    readonly_paths_keep_what_is_mounted_below_read_only: "runc 1.1 makes the mount itself read-only and none below",
    masked_directories_share_one_filesystem: "runc 1.1 mounts a tmpfs for each",
    a_false_null_device_masks_nothing: "CVE-2025-31133: runc 1.1.5 binds whatever the image put at /dev/null",
}

fn a_read_only_root_cannot_be_written(runtime: &Runtime) {
    let report = runtime.bundle().report(&["/", "/etc/passwd"]);
    assert!(report.has_option("/", "ro"));
    assert_eq!(report.path("/")["write"], "EROFS");
    assert_eq!(report.path("/etc/passwd")["write"], "EROFS");
}

fn a_writable_root_can_be_written(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.probe(&["write", "/etc/new", "text"]);
    let _written = bundle.run().success();
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/etc/new")).expect("the container wrote it"),
        "text"
    );
}

fn root_path_may_be_absolute(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["path"] = json!(bundle.rootfs("/"));
    assert_eq!(bundle.report(&["/probe"]).path("/probe")["type"], "file");
}

fn a_missing_root_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["path"] = json!("nowhere");
    let error = bundle.run().failure();
    assert!(error.contains("nowhere"), "{error}");
    bundle.assert_nothing_left();
}

fn a_file_as_root_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["path"] = json!("rootfs/probe");
    let _error = bundle.run().failure();
    bundle.assert_nothing_left();
}

fn nothing_of_the_host_is_mounted(runtime: &Runtime) {
    let report = runtime.bundle().report(&[]);
    let mounts = report["mounts"].as_array().expect("mounts are a list");
    let foreign: Vec<_> = mounts
        .iter()
        .filter_map(|mount| mount["destination"].as_str())
        .filter(|path| *path != "/" && !["/proc", "/dev", "/sys"].iter().any(|top| path.starts_with(top)))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

fn the_root_is_the_top_of_the_mount_namespace(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = bundle.report(&["/../../../..", "/proc/1/root/etc/passwd", "/proc/1/root/../probe"]);
    assert_eq!(
        report.mount("/")["root"],
        json!(bundle.rootfs("").to_string_lossy().trim_end_matches('/'))
    );
    let roots = report["mounts"].as_array().expect("mounts are a list");
    assert_eq!(
        roots.iter().filter(|mount| mount["destination"] == "/").count(),
        1,
        "no root below the root"
    );
    let entries = report.path("/../../../..")["entries"]
        .as_array()
        .expect("it is a directory");
    assert!(entries.contains(&json!("probe")), "{entries:?}");
    assert_eq!(report.path("/proc/1/root/../probe")["type"], "file");
}

fn masked_files_are_the_null_device(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc/passwd", "/home/../etc/group"]);
    let report = bundle.report(&["/etc/passwd", "/etc/group"]);
    for path in ["/etc/passwd", "/etc/group"] {
        assert_eq!(report.path(path)["device"], json!([1, 3]), "{path}");
    }
}

fn masked_directories_are_empty_and_read_only(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc", "/sys/firmware"]);
    bundle.spec["root"]["readonly"] = json!(false);
    let report = bundle.report(&["/etc", "/sys/firmware"]);
    for path in ["/etc", "/sys/firmware"] {
        assert_eq!(report.path(path)["entries"], json!([]), "{path}");
        assert_eq!(report.path(path)["write"], "EROFS", "{path}");
    }
}

/// Two mounts of a filesystem have its number.
fn masked_directories_share_one_filesystem(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let paths = ["/etc", "/home", "/usr", "/tmp", "/run"];
    bundle.spec["linux"]["maskedPaths"] = json!(paths);
    bundle.spec["process"]["cwd"] = json!("/");
    let report = bundle.report(&[]);
    let numbers: BTreeSet<_> = paths.map(|path| report.mount(path)["device"].to_string()).into();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    let mounts = report["mounts"].as_array().expect("mounts are a list");
    let masks = mounts
        .iter()
        .filter(|mount| numbers.contains(&mount["device"].to_string()));
    assert_eq!(masks.count(), paths.len(), "one mount for each path, and no more");
}

fn readonly_paths_keep_what_is_mounted_below_read_only(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/home/tester", "type": "tmpfs", "source": "tmpfs" }));
    bundle.spec["linux"]["readonlyPaths"] = json!(["/home"]);
    let report = bundle.report(&["/home", "/home/tester"]);
    for path in ["/home", "/home/tester"] {
        assert_eq!(report.path(path)["write"], "EROFS", "{path}");
    }
}

fn missing_masked_and_readonly_paths_are_passed_over(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc/passwd", "/there/is/none"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/there/is/none", "/proc/sys"]);
    let report = bundle.report(&["/etc/passwd", "/there"]);
    assert_eq!(report.path("/etc/passwd")["type"], "character");
    assert_eq!(report.path("/there")["error"], "ENOENT");
    assert!(report.has_option("/proc/sys", "ro"));
}

fn readonly_paths_cannot_be_written(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/home", "/etc/group", "/proc/sys"]);
    let report = bundle.report(&[
        "/home",
        "/home/tester",
        "/etc/group",
        "/etc/passwd",
        "/proc/sys/kernel/hostname",
    ]);
    for path in ["/home", "/home/tester", "/etc/group", "/proc/sys/kernel/hostname"] {
        assert_eq!(report.path(path)["write"], "EROFS", "{path}");
    }
    assert_eq!(report.path("/etc/passwd")["write"], json!(null));
}

fn default_devices_are_there(runtime: &Runtime) {
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    let paths: Vec<String> = devices.iter().map(|(name, _, _)| format!("/dev/{name}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).chain(["/dev/console"]).collect();
    let report = runtime.bundle().report(&paths);
    for (path, (_, major, minor)) in paths.iter().zip(devices) {
        let device = report.path(path);
        assert_eq!(device["type"], "character", "{path}");
        assert_eq!(device["device"], json!([major, minor]), "{path}");
        assert_eq!((&device["mode"], &device["uid"]), (&json!("0666"), &json!(0)), "{path}");
    }
    assert_eq!(report.path("/dev/null")["write"], json!(null));
    assert_eq!(report.path("/dev/console")["error"], "ENOENT", "there is no terminal");
}

fn default_symlinks_are_there(runtime: &Runtime) {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ];
    let report = runtime.bundle().report(&links.map(|(path, _)| path));
    for (path, target) in links {
        assert_eq!(report.path(path)["target"], target, "{path}");
    }
}

fn a_listed_device_is_made(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["devices"] = json!([
        { "path": "/dev/own/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 5 },
    ]);
    let report = bundle.report(&["/dev/own/zero"]);
    let device = report.path("/dev/own/zero");
    assert_eq!(device["device"], json!([1, 5]));
    assert_eq!(
        (&device["mode"], &device["uid"], &device["gid"]),
        (&json!("0640"), &json!(1000), &json!(5))
    );
}

fn a_listed_fifo_is_made(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["devices"] = json!([{ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }]);
    assert_eq!(bundle.report(&["/dev/pipe"]).path("/dev/pipe")["type"], "fifo");
}

/// /dev/kmsg can be opened for writing by anybody whom its mode allows; here it is the devices cgroup that decides.
fn a_device_needs_the_cgroup_s_leave(runtime: &Runtime) {
    let device = json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }]);
    let mut denied = runtime.bundle();
    denied.spec["linux"]["devices"] = device.clone();
    assert_eq!(denied.report(&["/dev/kmsg"]).path("/dev/kmsg")["write"], "EPERM");

    let mut allowed = runtime.bundle();
    allowed.spec["linux"]["devices"] = device;
    allowed.spec["linux"]["resources"]["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" },
    ]);
    assert_eq!(allowed.report(&["/dev/kmsg"]).path("/dev/kmsg")["write"], json!(null));
}

fn devices_cannot_be_made_outside_the_root(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside).expect("make a directory of the test");
    symlink(&outside, bundle.rootfs("/escape")).expect("make a symlink");
    bundle.spec["linux"]["devices"] = json!([{ "path": "/escape/null", "type": "c", "major": 1, "minor": 3 }]);
    let _output = bundle.run();
    assert_eq!(fs::read_dir(&outside).expect("read a directory of the test").count(), 0);
}

fn dev_of_the_host_is_left_alone(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["mounts"]
        .as_array_mut()
        .expect("mounts are a list")
        .retain(|mount| {
            !mount["destination"]
                .as_str()
                .is_some_and(|path| path.starts_with("/dev"))
        });
    bundle.add_mount(json!({ "destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"] }));
    let before = fs::read_link("/dev/ptmx").ok();
    let report = bundle.report(&["/dev/null", "/dev/shm"]);
    assert_eq!(report.path("/dev/null")["device"], json!([1, 3]));
    assert_eq!(
        fs::read_link("/dev/ptmx").ok(),
        before,
        "no node or link of the host was replaced"
    );
}

fn a_false_null_device_masks_nothing(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["mounts"]
        .as_array_mut()
        .expect("mounts are a list")
        .retain(|mount| {
            !mount["destination"]
                .as_str()
                .is_some_and(|path| path.starts_with("/dev"))
        });
    symlink("/etc/group", bundle.rootfs("/dev/null")).expect("make a symlink");
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc/passwd"]);
    bundle.probe(&["report", "/etc/passwd"]);
    let output = bundle.run();
    if output.code == 0 {
        let report = corten_tests::bundle::Report::parse(&output.stdout);
        assert_eq!(
            report.path("/etc/passwd")["device"],
            json!([1, 3]),
            "the mask is the kernel's null device"
        );
    } else {
        bundle.assert_nothing_left();
    }
}
