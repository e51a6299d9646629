//! The mounts of config.json: order, types, options, propagation, and what a destination may resolve to.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use corten_tests::bundle::{Bundle, Output, Report, Runtime, finish};
use corten_tests::cgroup;
use serde_json::json;

each_runtime! {
    mounts_are_made_in_order,
    the_last_of_two_mounts_on_one_destination_is_seen,
    tmpfs_takes_its_options,
    a_directory_is_bound_and_its_mount_point_made,
    a_file_is_bound_and_its_mount_point_made,
    mount_points_keep_their_permissions_above,
    a_bind_takes_mount_flags,
    atime_options_are_taken,
    bind_leaves_submounts_out_and_rbind_takes_them,
    ro_is_shallow_and_rro_is_deep,
    propagation_options_are_taken,
    nothing_spreads_to_a_host_whose_mounts_are_shared,
    mounts_made_inside_are_not_seen_outside,
    a_relative_destination_is_taken_from_the_root,
    a_destination_resolves_inside_the_root,
    a_symlink_as_the_last_component_resolves_inside_the_root,
    proc_and_sys_must_be_directories,
    a_missing_source_is_refused,
    a_directory_cannot_be_bound_onto_a_file,
    an_unknown_filesystem_is_refused,
    cgroups_are_mounted_read_only,
    a_socket_is_bound,
    a_tmpfs_has_the_mode_of_the_directory_it_covers,
    sysfs_and_mqueue_need_namespaces_of_their_own,
}

rootless! {
    mounts_are_made_in_order,
    tmpfs_takes_its_options,
    a_directory_is_bound_and_its_mount_point_made,
    a_file_is_bound_and_its_mount_point_made,
    a_bind_takes_mount_flags,
    mounts_made_inside_are_not_seen_outside,
    a_destination_resolves_inside_the_root,
    a_symlink_as_the_last_component_resolves_inside_the_root,
    proc_and_sys_must_be_directories,
    a_missing_source_is_refused,
}

corten_only! {
    without_its_network_a_user_namespace_gets_the_host_s_sysfs: "runc 1.1 fails where crun binds the host's",
    a_slave_root_is_told_of_the_host_s_mounts: "runc 1.1 leaves the root a slave whatever rootfsPropagation says",
    binds_are_contained_whatever_the_root_is: "runc 1.1 leaves them shared with the host for all but rslave",
    rootfs_propagation_is_taken: "runc 1.1 sets it on the mount the root filesystem is made from, not on the root itself",
}

pub(crate) fn bind(source: &str, destination: &str, options: &[&str]) -> serde_json::Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

/// A file or directory of the host, inside the bundle directory but outside its root filesystem.
pub(crate) fn host_file(bundle: &Bundle<'_>, name: &str, text: &str) -> String {
    let path = bundle.path().join(name);
    fs::write(&path, text).expect("write a file of the test");
    path.to_string_lossy().into_owned()
}

pub(crate) fn host_directory(bundle: &Bundle<'_>, name: &str) -> String {
    let path = bundle.path().join(name);
    fs::create_dir_all(&path).expect("make a directory of the test");
    fs::write(path.join("inside"), "from the host").expect("write a file of the test");
    path.to_string_lossy().into_owned()
}

fn mounts_are_made_in_order(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = host_directory(&bundle, "data");
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "first" }));
    bundle.add_mount(bind(&source, "/tmp/data", &["bind"]));
    bundle.add_mount(json!({ "destination": "/tmp/data/inner", "type": "tmpfs", "source": "third" }));
    // mountinfo is sorted by when a mount was made, which need not be when it was put in its place; so what counts is
    // that none hides another.
    let report = bundle.report(&["/tmp/data/inside", "/tmp/data/inner"]);
    for destination in ["/tmp", "/tmp/data", "/tmp/data/inner"] {
        assert!(report.find_mount(destination).is_some(), "{destination}");
    }
    assert_eq!(report.path("/tmp/data/inside")["text"], "from the host");
    assert_eq!(report.path("/tmp/data/inner")["entries"], json!([]));
}

fn the_last_of_two_mounts_on_one_destination_is_seen(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "lower" }));
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "upper" }));
    assert_eq!(bundle.report(&[]).mount("/tmp")["source"], "upper");
}

fn tmpfs_takes_its_options(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({
        "destination": "/srv", "type": "tmpfs", "source": "small",
        "options": ["nosuid", "nodev", "noexec", "size=64k", "mode=0750", "uid=7", "gid=8"],
    }));
    let report = bundle.report(&["/srv"]);
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(report.has_option("/srv", option), "{option}");
    }
    let data = report.mount("/srv")["data"].as_array().expect("options are a list");
    assert!(data.contains(&json!("size=64k")), "{data:?}");
    let srv = report.path("/srv");
    assert_eq!(
        (&srv["mode"], &srv["uid"], &srv["gid"]),
        (&json!("0750"), &json!(7), &json!(8))
    );
}

fn a_directory_is_bound_and_its_mount_point_made(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = host_directory(&bundle, "data");
    bundle.add_mount(bind(&source, "/srv/deep/data", &["rbind", "rw"]));
    let report = bundle.report(&["/srv/deep/data/inside", "/srv/deep/data"]);
    assert_eq!(report.path("/srv/deep/data/inside")["text"], "from the host");
    assert_eq!(
        report.path("/srv/deep/data")["write"],
        json!(null),
        "a bind is writable in a read-only root"
    );
    assert!(bundle.rootfs("/srv/deep/data").is_dir());
}

fn a_file_is_bound_and_its_mount_point_made(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = host_file(&bundle, "resolv", "nameserver 192.0.2.1");
    bundle.add_mount(bind(&source, "/etc/net/resolv.conf", &["bind", "ro"]));
    let report = bundle.report(&["/etc/net/resolv.conf"]);
    assert_eq!(report.path("/etc/net/resolv.conf")["text"], "nameserver 192.0.2.1");
    assert_eq!(report.path("/etc/net/resolv.conf")["write"], "EROFS");
    assert!(bundle.rootfs("/etc/net/resolv.conf").is_file());
}

fn mount_points_keep_their_permissions_above(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["umask"] = json!(0o077);
    bundle.add_mount(json!({ "destination": "/opt/a/b", "type": "tmpfs", "source": "tmpfs" }));
    let report = bundle.report(&["/opt", "/opt/a"]);
    for path in ["/opt", "/opt/a"] {
        assert_eq!(report.path(path)["mode"], "0755", "{path}");
    }
}

fn a_bind_takes_mount_flags(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = host_directory(&bundle, "data");
    bundle.add_mount(bind(&source, "/tmp", &["bind", "ro", "nosuid", "nodev", "noexec"]));
    let report = bundle.report(&["/tmp"]);
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(report.has_option("/tmp", option), "{option}");
    }
    assert_eq!(report.path("/tmp")["write"], "EROFS");
}

fn atime_options_are_taken(runtime: &Runtime) {
    for (option, seen) in [
        ("noatime", "noatime"),
        ("relatime", "relatime"),
        ("nodiratime", "nodiratime"),
    ] {
        let mut bundle = runtime.bundle();
        let options = json!([option]);
        bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options }));
        assert!(bundle.report(&[]).has_option("/tmp", seen), "{option}");
    }
    let mut bundle = runtime.bundle();
    let options = json!(["strictatime"]);
    bundle.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options }));
    assert!(
        !bundle.report(&[]).has_option("/tmp", "relatime"),
        "strictatime is the absence of relatime"
    );
}

/// Runs the container from a mount namespace that stands for the host's: its mounts spread as `propagation` says, and
/// a line of shell has prepared it.
pub(crate) fn run_in_mounts(bundle: &Bundle<'_>, propagation: &str, script: &str) -> Output {
    let run = bundle.command("run");
    let mut command = Command::new("unshare");
    command
        // Private first: a peer of a host's shared mounts would make its own on the host as well.
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(format!("mount --make-r{propagation} /\n{script}\nexec \"$@\""))
        .arg("sh")
        .arg(run.get_program())
        .args(run.get_args());
    finish(command.arg(&bundle.id))
}

// The host's /dev has mounts below it (/dev/pts, /dev/shm), so no test needs to make any on the host.

fn bind_leaves_submounts_out_and_rbind_takes_them(runtime: &Runtime) {
    for (option, submounts) in [("bind", false), ("rbind", true)] {
        let mut bundle = runtime.bundle();
        bundle.add_mount(bind("/dev", "/tmp", &[option]));
        let report = bundle.report(&[]);
        assert_eq!(report.find_mount("/tmp/pts").is_some(), submounts, "{option}");
    }
}

fn ro_is_shallow_and_rro_is_deep(runtime: &Runtime) {
    for (option, below) in [("ro", false), ("rro", true)] {
        let mut bundle = runtime.bundle();
        bundle.add_mount(bind("/dev", "/tmp", &["rbind", option]));
        let report = bundle.report(&[]);
        assert!(report.has_option("/tmp", "ro"), "{option}: {}", report.mount("/tmp"));
        assert_eq!(
            report.has_option("/tmp/pts", "ro"),
            below,
            "{option}: {}",
            report.mount("/tmp/pts")
        );
    }
}

fn propagation_options_are_taken(runtime: &Runtime) {
    let cases = [
        ("rshared", "shared:"),
        ("shared", "shared:"),
        ("unbindable", "unbindable"),
    ];
    for (option, tag) in cases {
        let mut bundle = runtime.bundle();
        bundle.add_mount(bind("/dev", "/tmp", &["bind", option]));
        let report = bundle.report(&[]);
        let tags = report.mount("/tmp")["propagation"].to_string();
        assert!(tags.contains(tag), "{option}: {tags}");
    }
    for option in ["private", "rprivate"] {
        let mut bundle = runtime.bundle();
        bundle.add_mount(bind("/dev", "/tmp", &["bind", option]));
        assert_eq!(bundle.report(&[]).mount("/tmp")["propagation"], json!([]), "{option}");
    }
}

/// On a host under systemd every mount is shared: a copy of one that stayed its peer would carry the container's mounts
/// out of it, onto the host's /dev/null or cgroups.
fn nothing_spreads_to_a_host_whose_mounts_are_shared(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["report"]);
    let report = Report::parse(&run_in_mounts(&bundle, "shared", "").success().stdout);
    let mounts = report["mounts"].as_array().expect("a list of mounts");
    assert!(
        mounts.iter().any(|mount| mount["root"] == "/null"),
        "a mask is among them"
    );
    for mount in mounts {
        let tags = mount["propagation"].to_string();
        assert!(!tags.contains("shared:"), "{mount}");
    }
}

fn rootfs_propagation_is_taken(runtime: &Runtime) {
    for (value, tag) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        // With `master:` where the host's mount is shared.
        ("slave", "["),
        ("rslave", "["),
        ("private", "[]"),
        ("rprivate", "[]"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["rootfsPropagation"] = json!(value);
        let tags = bundle.report(&[]).mount("/")["propagation"].to_string();
        assert!(tags.contains(tag), "{value}: {tags}");
        assert_eq!(tags.contains("shared:"), tag == "shared:", "{value}: {tags}");
    }
}

fn mounts_made_inside_are_not_seen_outside(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    let seen: Vec<&str> = mounts.lines().filter(|line| line.contains(&bundle.id)).collect();
    assert!(seen.is_empty(), "{seen:?}");
}

fn a_relative_destination_is_taken_from_the_root(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "tmp/relative", "type": "tmpfs", "source": "tmpfs" }));
    bundle.spec["process"]["cwd"] = json!("/etc");
    assert!(bundle.report(&[]).find_mount("/tmp/relative").is_some());
}

fn a_destination_resolves_inside_the_root(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let outside = host_directory(&bundle, "outside");
    // From inside, the absolute target names a directory of the container; from outside, one of the host.
    symlink(&outside, bundle.rootfs("/absolute")).expect("make a symlink");
    symlink("../../../../../../../../tmp", bundle.rootfs("/climbing")).expect("make a symlink");
    bundle.add_mount(json!({ "destination": "/absolute/a", "type": "tmpfs", "source": "a" }));
    bundle.add_mount(json!({ "destination": "/climbing/b", "type": "tmpfs", "source": "b" }));
    let report = bundle.report(&[]);
    assert_eq!(report.mount(&format!("{outside}/a"))["source"], "a");
    assert_eq!(report.mount("/tmp/b")["source"], "b");
    let names: Vec<_> = fs::read_dir(&outside)
        .expect("read a directory of the test")
        .flatten()
        .collect();
    assert_eq!(names.len(), 1, "nothing was made on the host: {names:?}");
}

fn a_symlink_as_the_last_component_resolves_inside_the_root(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let outside = host_file(&bundle, "victim", "untouched");
    let source = host_file(&bundle, "source", "mounted");
    symlink(&outside, bundle.rootfs("/etc/hosts")).expect("make a symlink");
    bundle.add_mount(bind(&source, "/etc/hosts", &["bind"]));
    let report = bundle.report(&[&outside]);
    assert_eq!(
        report.path(&outside)["text"],
        "mounted",
        "the target inside the root is covered"
    );
    assert_eq!(
        fs::read_to_string(&outside).expect("read a file of the test"),
        "untouched"
    );
}

/// CVE-2019-19921 and its successors: where /proc is a symlink, masks and security attributes are written elsewhere.
fn proc_and_sys_must_be_directories(runtime: &Runtime) {
    for destination in ["/proc", "/sys"] {
        let bundle = runtime.bundle();
        fs::remove_dir(bundle.rootfs(destination)).expect("remove an empty directory");
        symlink("/tmp", bundle.rootfs(destination)).expect("make a symlink");
        let error = bundle.run().failure();
        assert!(error.contains(destination), "{error}");
        bundle.assert_nothing_left();
    }
}

fn a_missing_source_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let missing = bundle.path().join("missing");
    bundle.add_mount(bind(&missing.to_string_lossy(), "/tmp", &["bind"]));
    let error = bundle.run().failure();
    assert!(error.contains(&*missing.to_string_lossy()), "{error}");
    bundle.assert_nothing_left();
}

fn a_directory_cannot_be_bound_onto_a_file(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let source = host_directory(&bundle, "data");
    bundle.add_mount(bind(&source, "/etc/passwd", &["bind"]));
    let error = bundle.run().failure();
    assert!(error.contains("/etc/passwd"), "{error}");
    bundle.assert_nothing_left();
}

fn an_unknown_filesystem_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp", "type": "no-such-filesystem", "source": "none" }));
    let error = bundle.run().failure();
    assert!(error.contains("/tmp"), "{error}");
    bundle.assert_nothing_left();
}

fn cgroups_are_mounted_read_only(runtime: &Runtime) {
    if cgroup::unified() {
        unified_cgroup_is_mounted_read_only(runtime);
    } else {
        v1_controllers_are_mounted_read_only(runtime);
    }
}

/// What a v2 mount shows begins at the root of the cgroup namespace; without one of its own that is the host's.
fn unified_cgroup_is_mounted_read_only(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("cgroup", None);
    let [procs, kind] = ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/cgroup.type"];
    let report = bundle.report(&[procs, kind]);
    assert_eq!(report.path(procs)["write"], "EROFS");
    assert_eq!(
        report.path(kind)["type"],
        "file",
        "every cgroup but the host's root has a type"
    );
    assert_eq!(report.mount("/sys/fs/cgroup")["type"], "cgroup2");
    assert!(report.has_option("/sys/fs/cgroup", "ro"));
}

fn v1_controllers_are_mounted_read_only(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = bundle.report(&["/sys/fs/cgroup/memory/cgroup.procs"]);
    assert_eq!(report.path("/sys/fs/cgroup/memory/cgroup.procs")["write"], "EROFS");
    // runc 1.1 leaves the tmpfs that holds the controllers writable.
    assert_ne!(report.has_option("/sys/fs/cgroup", "ro"), runtime.is("runc"));
    for controller in ["memory", "pids", "cpu", "devices", "freezer"] {
        let destination = format!("/sys/fs/cgroup/{controller}");
        let mount = report.mount(&destination);
        assert_eq!(mount["type"], "cgroup", "{mount}");
        assert!(report.has_option(&destination, "ro"), "{mount}");
        let root = mount["root"].as_str().unwrap_or_default();
        assert!(
            root.ends_with(&bundle.id),
            "only the container's own cgroup is mounted: {mount}"
        );
    }
}

fn a_socket_is_bound(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let socket = bundle.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("make a socket");
    bundle.add_mount(bind(&socket.to_string_lossy(), "/run/service.sock", &["bind"]));
    let report = bundle.report(&["/run/service.sock"]);
    assert_eq!(report.path("/run/service.sock")["type"], "socket");
    assert!(
        bundle.rootfs("/run/service.sock").is_file(),
        "its mount point is a file"
    );
}

fn a_tmpfs_has_the_mode_of_the_directory_it_covers(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    fs::set_permissions(bundle.rootfs("/home"), fs::Permissions::from_mode(0o2750)).expect("chmod a directory");
    for destination in ["/home", "/new"] {
        bundle.add_mount(json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs" }));
    }
    let report = bundle.report(&["/home", "/new"]);
    assert_eq!(report.path("/home")["mode"], "2750");
    assert_eq!(report.path("/new")["mode"], "1777", "the default of a tmpfs");
}

/// Without a user namespace the host's instance is what is mounted.
fn sysfs_and_mqueue_need_namespaces_of_their_own(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let report = bundle.report(&[]);
    assert_eq!(report.mount("/sys")["type"], "sysfs");
    assert_eq!(report.mount("/dev/mqueue")["type"], "mqueue");
}

/// The kernel lets a user namespace mount a sysfs only of a network namespace that belongs to it.
fn without_its_network_a_user_namespace_gets_the_host_s_sysfs(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    crate::namespaces::map_ids(&mut bundle);
    bundle.remove_namespace("network");
    let report = bundle.report(&["/sys/class/net"]);
    assert_eq!(report.mount("/sys")["type"], "sysfs");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(report.has_option("/sys", option), "{option}");
    }
    assert_eq!(report.path("/sys/class/net")["write"], "EROFS");
}

fn a_slave_root_is_told_of_the_host_s_mounts(runtime: &Runtime) {
    for (value, told) in [("rslave", true), ("slave", true), ("private", false)] {
        let mut bundle = runtime.bundle();
        bundle.spec["linux"]["rootfsPropagation"] = json!(value);
        bundle.probe(&["report"]);
        let report = Report::parse(&run_in_mounts(&bundle, "shared", "").success().stdout);
        let tags = report.mount("/")["propagation"].to_string();
        assert_eq!(tags.contains("master:"), told, "{value}: {tags}");
        assert!(!tags.contains("shared:"), "{value}: {tags}");
    }
}

/// What the container mounts in a bind must not appear on the host, whatever is said of the root alone.
fn binds_are_contained_whatever_the_root_is(runtime: &Runtime) {
    for (value, tag) in [("slave", "master:"), ("private", "[]"), ("rprivate", "[]")] {
        let mut bundle = runtime.bundle();
        let source = host_directory(&bundle, "data");
        bundle.spec["linux"]["rootfsPropagation"] = json!(value);
        bundle.add_mount(bind(&source, "/tmp", &["rbind"]));
        bundle.probe(&["report"]);
        let script = format!("mount -t tmpfs x {source}; mkdir {source}/sub; mount -t tmpfs y {source}/sub");
        let report = Report::parse(&run_in_mounts(&bundle, "shared", &script).success().stdout);
        for destination in ["/tmp", "/tmp/sub"] {
            let tags = report.mount(destination)["propagation"].to_string();
            assert!(
                tags.contains(tag) && !tags.contains("shared:"),
                "{value} {destination}: {tags}"
            );
        }
    }
}
