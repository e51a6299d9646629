//! Every mount option of config.md ("Linux mount options"), by what mountinfo says inside.

use corten_tests::bundle::{Report, Runtime};
use serde_json::{Value, json};

use crate::mounts::{bind, host_directory, run_in_mounts};

each_runtime! {
    options_of_a_mount,
    options_that_lift_others,
    recursive_options_reach_the_mounts_below,
    options_of_the_filesystem,
    options_that_say_nothing,
    a_mount_is_changed_by_remount,
    remount_needs_a_mount,
}

corten_only! {
    a_remount_is_led_nowhere_by_the_image: "runc changes whatever mount a link leads to",
    recursive_options_lift_those_below: "runc 1.1 asks the kernel for half of the atime field, which it refuses",
    atime_options_lift_those_of_the_source: "runc 1.1 knows of binds only what their options set",
}

fn tmpfs(runtime: &Runtime, options: &[&str]) -> Report {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options }));
    bundle.report(&[])
}

fn options_of_a_mount(runtime: &Runtime) {
    for option in [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "nosymfollow",
    ] {
        assert!(
            !tmpfs(runtime, &[]).has_option("/tmp", option),
            "{option} is not the default"
        );
        assert!(tmpfs(runtime, &[option]).has_option("/tmp", option), "{option}");
    }
    for (options, relatime) in [
        (&[][..], true),
        (&["relatime"], true),
        (&["norelatime"], true),
        (&["strictatime"], false),
    ] {
        let report = tmpfs(runtime, options);
        assert_eq!(report.has_option("/tmp", "relatime"), relatime, "{options:?}");
        assert!(!report.has_option("/tmp", "noatime"), "{options:?}");
    }
}

/// The later of two options counts.
fn options_that_lift_others(runtime: &Runtime) {
    for (set, lift) in [
        ("ro", "rw"),
        ("nosuid", "suid"),
        ("nodev", "dev"),
        ("noexec", "exec"),
        ("noatime", "atime"),
        ("nodiratime", "diratime"),
        ("nosymfollow", "symfollow"),
    ] {
        assert!(!tmpfs(runtime, &[set, lift]).has_option("/tmp", set), "{set},{lift}");
        assert!(tmpfs(runtime, &[lift, set]).has_option("/tmp", set), "{lift},{set}");
    }
    assert!(tmpfs(runtime, &["strictatime", "nostrictatime"]).has_option("/tmp", "relatime"));
}

/// A bind of a directory with a tmpfs on it, and another below; both with these options on the host.
fn tree(runtime: &Runtime, host: &str, options: &[&str]) -> Report {
    let mut bundle = runtime.bundle();
    let source = host_directory(&bundle, "data");
    bundle.add_mount(bind(&source, "/tmp", options));
    bundle.probe(&["report"]);
    let script = format!(
        "mount -t tmpfs x {source}; mkdir {source}/sub; mount -t tmpfs y {source}/sub
         mount -o remount,bind,{host} {source}; mount -o remount,bind,{host} {source}/sub"
    );
    Report::parse(&run_in_mounts(&bundle, "private", &script).success().stdout)
}

fn recursive_options_reach_the_mounts_below(runtime: &Runtime) {
    for option in [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "nosymfollow",
    ] {
        for (options, below) in [
            (&["rbind", option][..], false),
            (&["rbind", &format!("r{option}")], true),
        ] {
            let report = tree(runtime, "rw", options);
            assert!(report.has_option("/tmp", option), "{options:?}");
            assert_eq!(report.has_option("/tmp/sub", option), below, "{options:?}");
        }
    }
    let report = tree(runtime, "rw", &["rbind", "rstrictatime"]);
    assert!(!report.has_option("/tmp/sub", "relatime"));
}

fn recursive_options_lift_those_below(runtime: &Runtime) {
    for (host, option) in [
        ("ro", "rrw"),
        ("nosuid", "rsuid"),
        ("nodev", "rdev"),
        ("noexec", "rexec"),
        ("noatime", "ratime"),
        ("noatime", "rrelatime"),
        ("nodiratime", "rdiratime"),
        ("nosymfollow", "rsymfollow"),
    ] {
        assert!(tree(runtime, host, &["rbind"]).has_option("/tmp/sub", host), "{host}");
        assert!(
            !tree(runtime, host, &["rbind", option]).has_option("/tmp/sub", host),
            "{option}"
        );
    }
    for option in ["rnorelatime", "rnostrictatime"] {
        let report = tree(runtime, "rw", &["rbind", "rnoatime", option]);
        assert!(!report.has_option("/tmp/sub", "noatime"), "{option}");
    }
}

fn atime_options_lift_those_of_the_source(runtime: &Runtime) {
    for (host, option) in [
        ("noatime", "atime"),
        ("noatime", "relatime"),
        ("nosuid", "suid"),
        ("ro", "rw"),
    ] {
        assert!(
            tree(runtime, host, &["rbind"]).has_option("/tmp", host),
            "{host} is kept"
        );
        let report = tree(runtime, host, &["rbind", option]);
        assert!(!report.has_option("/tmp", host), "{option}");
        assert!(report.has_option("/tmp/sub", host), "{option} is not recursive");
    }
}

fn options_of_the_filesystem(runtime: &Runtime) {
    for (options, data, set) in [
        (&["sync"][..], "sync", true),
        (&["sync", "async"], "sync", false),
        (&["dirsync"], "dirsync", true),
        (&["mand"], "mand", true),
        (&["mand", "nomand"], "mand", false),
        (&["lazytime"], "lazytime", true),
        (&["lazytime", "nolazytime"], "lazytime", false),
        (&["size=1m"], "size=1024k", true),
    ] {
        let report = tmpfs(runtime, options);
        let seen = report.mount("/tmp")["data"]
            .as_array()
            .expect("options are a list")
            .contains(&json!(data));
        assert_eq!(seen, set, "{options:?}: {}", report.mount("/tmp"));
    }
}

fn options_that_say_nothing(runtime: &Runtime) {
    // runc 1.1 takes defaults for an option of the filesystem where there are others.
    let mut options = vec!["silent", "loud", "iversion", "noiversion", "acl"];
    if !runtime.is("runc") {
        options.push("defaults");
    }
    let (with, without) = (tmpfs(runtime, &options), tmpfs(runtime, &[]));
    let comparable = |report: &Report| -> Value {
        let mut mount = report.mount("/tmp").clone();
        mount["device"].take();
        mount
    };
    assert_eq!(comparable(&with), comparable(&without));
}

fn a_mount_is_changed_by_remount(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "first" }));
    bundle.add_mount(json!({
        "destination": "/tmp", "type": "tmpfs", "source": "second",
        "options": ["remount", "ro", "nosuid", "size=1m"],
    }));
    let report = bundle.report(&["/tmp"]);
    let mounts = report["mounts"].as_array().expect("mounts are a list");
    assert_eq!(mounts.iter().filter(|mount| mount["destination"] == "/tmp").count(), 1);
    assert!(report.has_option("/tmp", "ro") && report.has_option("/tmp", "nosuid"));
    assert_eq!(report.path("/tmp")["write"], "EROFS");
    assert!(report.mount("/tmp")["data"].to_string().contains("size=1024k"));
    assert_eq!(report.mount("/tmp")["source"], "first");
}

/// A link in the place of a volume would turn its options on /sys; one that has led the mount itself may lead its remount.
fn a_remount_is_led_nowhere_by_the_image(runtime: &Runtime) {
    let remount = |destination: &str, option: &str| json!({ "destination": destination, "type": "tmpfs", "source": "x", "options": ["remount", option] });
    let mut bundle = runtime.bundle();
    std::os::unix::fs::symlink("sys", bundle.rootfs("/volume")).expect("make a link");
    bundle.add_mount(remount("/volume", "rw"));
    let error = bundle.run().failure();
    assert!(error.contains("/volume") && error.contains("link"), "{error}");
    bundle.assert_nothing_left();

    let mut bundle = runtime.bundle();
    std::os::unix::fs::symlink("tmp", bundle.rootfs("/volume")).expect("make a link");
    bundle.add_mount(json!({ "destination": "/volume", "type": "tmpfs", "source": "x" }));
    bundle.add_mount(remount("/volume", "ro"));
    assert!(bundle.report(&[]).has_option("/tmp", "ro"));

    // A link of a volume that covers the mount of that name.
    let mut bundle = runtime.bundle();
    let volume = bundle.path().join("volume");
    std::fs::create_dir(&volume).expect("make a directory of the test");
    std::os::unix::fs::symlink("../sys", volume.join("b")).expect("make a link");
    bundle.add_mount(json!({ "destination": "/a/b", "type": "tmpfs", "source": "x" }));
    bundle.add_mount(json!({ "destination": "/a", "type": "bind", "source": volume, "options": ["bind"] }));
    bundle.add_mount(remount("/a/b", "rw"));
    let error = bundle.run().failure();
    assert!(error.contains("/a/b") && error.contains("link"), "{error}");
    bundle.assert_nothing_left();
}

fn remount_needs_a_mount(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["remount", "ro"] }));
    let error = bundle.run().failure();
    assert!(error.contains("/tmp"), "{error}");
    bundle.assert_nothing_left();
}
