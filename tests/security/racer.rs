//! One container exchanges a path of another one's root, as fast as it can, while that one is created and deleted again
//! and again: a directory or a file for a link to the tripwire. What a create checks and then uses is then two things.
//!
//! `CORTEN_RACES` is the number of creates over all places, 10,000 being a thorough run.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use corten_tests::bundle::{Bundle, Runtime};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::tripwire::{SECRET, Tripwire};

tests! {
    a_volume_that_is_exchanged_takes_nested_mounts_nowhere_else,
    mount_points_are_made_in_no_exchanged_directory,
    proc_that_is_exchanged_for_a_link_is_none,
    sys_that_is_exchanged_for_a_link_is_none,
    dev_that_is_exchanged_for_a_link_is_not_furnished,
    a_null_device_that_is_exchanged_masks_nothing_else,
    a_console_that_is_exchanged_is_no_file_of_the_host_s,
    pts_that_is_exchanged_is_no_file_of_the_host_s,
    a_device_that_is_exchanged_changes_no_file_s_owner,
    a_masked_file_that_is_exchanged_hides_nothing_of_the_host_s,
    a_working_directory_that_is_exchanged_for_exec_leads_nowhere_else,
}

/// How many tests share the creates.
const PLACES: usize = 11;

/// Creates for one place.
fn rounds() -> usize {
    crate::number("CORTEN_RACES", 440).div_ceil(PLACES)
}

/// What is exchanged, and for what.
struct Race {
    /// The path in the root.
    place: &'static str,
    /// What is there when it is not the link.
    kind: Kind,
    /// Where in the tripwire the link leads that stands there at times.
    lure: &'static str,
    terminal: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    /// The null device, as an image may bring it.
    Null,
    /// What the runtime makes, anew each time.
    Made,
}

impl Race {
    const fn of_directory(place: &'static str) -> Race {
        Race {
            place,
            kind: Kind::Directory,
            lure: "directory",
            terminal: false,
        }
    }

    const fn of_file(place: &'static str) -> Race {
        Race {
            place,
            kind: Kind::File,
            lure: "file",
            terminal: false,
        }
    }
}

/// Runs the container of `bundle` against another that exchanges the place with the link.
fn run(runtime: &Runtime, bundle: &mut Bundle<'_>, race: &Race) {
    let tripwire = Tripwire::new(runtime.marker());
    lay_out(bundle, race, &tripwire);
    bundle.probe(&["report", "/"]);
    bundle.spec["process"]["terminal"] = json!(race.terminal);
    let mut attacker = runtime.bundle();
    let [one, other] = [race.place.to_owned(), format!("{}-lure", race.place)].map(|name| format!("/victim{name}"));
    attacker.probe(&["exchange", &one, &other]);
    attacker.add_mount(json!({ "source": bundle.rootfs("/"), "destination": "/victim", "options": ["bind", "rw"] }));
    let attack = attacker.start();
    attack.wait_for("ready");

    let (mut made, mut links) = (0, 0);
    let rounds = rounds();
    for round in 0..rounds {
        if race.kind == Kind::Made {
            lay_out(bundle, race, &tripwire);
        }
        made += usize::from(once(bundle, race));
        links += usize::from(fs::symlink_metadata(bundle.rootfs(race.place)).is_ok_and(|meta| meta.is_symlink()));
        if round % 32 == 0 {
            tripwire.assert_untouched(&race.place);
        }
    }
    tripwire.assert_untouched(&race.place);
    let still_there = attacker.status() == "running";
    let _deleted = attacker.call("delete", &["--force"]).success();
    eprintln!(
        "{}: {rounds} races, {made} containers made, {links} times a link afterwards",
        race.place
    );
    assert!(still_there, "the attack has ended early: {}", attack.stderr());
    assert!(
        rounds < 20 || (links > 0 && links < rounds),
        "nothing has been exchanged: {links} links of {rounds}"
    );
}

/// One create and all that follows; whether it came to be. Errors of any kind are fine, as long as they are clean.
fn once(bundle: &Bundle<'_>, race: &Race) -> bool {
    let output = if race.terminal {
        let socket = bundle.path().join("console.sock");
        fs::remove_file(&socket).ok();
        let _listener = UnixListener::bind(&socket).expect("bind a socket of the test");
        let created = bundle.call("create", &["--console-socket", &socket.to_string_lossy()]);
        if created.code == 0 {
            let _deleted = bundle.call("delete", &["--force"]).success();
        }
        created
    } else {
        bundle.run()
    };
    assert!(!output.stderr.contains("panicked"), "{output:?}");
    assert!(!output.stdout.contains(SECRET), "{output:?}");
    bundle.assert_nothing_left();
    output.code == 0
}

fn lay_out(bundle: &Bundle<'_>, race: &Race, tripwire: &Tripwire) {
    let place = bundle.rootfs(race.place);
    fs::create_dir_all(place.parent().expect("it is below the root")).expect("make a directory of the image");
    let lure = bundle.rootfs(&format!("{}-lure", race.place));
    match race.kind {
        Kind::Directory => fs::create_dir_all(&place).expect("make a directory of the image"),
        Kind::File => fs::write(&place, "of the image").expect("write a file of the image"),
        Kind::Null => {
            let mode = Mode::from_bits_truncate(0o666);
            mknod(&place, SFlag::S_IFCHR, mode, makedev(1, 3)).expect("make a node of the image");
        }
        Kind::Made => {
            fs::remove_file(&place).ok();
            fs::remove_file(&lure).ok();
        }
    }
    symlink(tripwire.path(race.lure), lure).expect("make a symlink");
}

/// Leaves what is mounted on `destination` and below to the image.
fn without(bundle: &mut Bundle<'_>, destination: &str) {
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
    mounts.retain(|mount| {
        !mount["destination"]
            .as_str()
            .unwrap_or_default()
            .starts_with(destination)
    });
}

fn bind(bundle: &mut Bundle<'_>, name: &str, destination: &str) {
    let source = bundle.path().join(name);
    if name == "directory" {
        fs::create_dir_all(&source).expect("make a volume");
    } else {
        fs::write(&source, "bound").expect("write a file of the test");
    }
    bundle.add_mount(json!({ "source": source, "destination": destination, "options": ["bind"] }));
}

/// CVE-2021-30465: mounts nested in a volume that another container has too.
fn a_volume_that_is_exchanged_takes_nested_mounts_nowhere_else(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    fs::create_dir_all(bundle.rootfs("data/volume/inner")).expect("make a directory of the image");
    bind(&mut bundle, "directory", "/data/volume/inner");
    bind(&mut bundle, "file", "/data/volume/file");
    bundle.add_mount(json!({ "destination": "/data/volume/empty", "type": "tmpfs", "source": "tmpfs" }));
    run(runtime, &mut bundle, &Race::of_directory("/data/volume"));
}

/// CVE-2024-45310: directories and files that are made to be mounted on.
fn mount_points_are_made_in_no_exchanged_directory(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["cwd"] = json!("/data/volume/work/here");
    bind(&mut bundle, "file", "/data/volume/a/b/c/file");
    bind(&mut bundle, "directory", "/data/volume/a/b/d/directory");
    run(runtime, &mut bundle, &Race::of_directory("/data/volume"));
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2025-52881: with something else there, labels and masks would go elsewhere.
fn proc_that_is_exchanged_for_a_link_is_none(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 1", "kernel.shmmax": "65536" });
    run(runtime, &mut bundle, &Race::of_directory("/proc"));
}

fn sys_that_is_exchanged_for_a_link_is_none(runtime: &Runtime) {
    run(runtime, &mut runtime.bundle(), &Race::of_directory("/sys"));
}

/// CVE-2026-41579: links and devices are made there, and `ptmx` removed.
fn dev_that_is_exchanged_for_a_link_is_not_furnished(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    without(&mut bundle, "/dev");
    run(runtime, &mut bundle, &Race::of_directory("/dev"));
}

/// CVE-2025-31133: what hides a file is not what the image has as its null device.
fn a_null_device_that_is_exchanged_masks_nothing_else(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    without(&mut bundle, "/dev");
    fs::write(bundle.rootfs("etc/masked"), "to be masked").expect("write a file of the image");
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc/masked", "/proc/kcore", "/proc/keys"]);
    let race = Race {
        kind: Kind::Null,
        ..Race::of_file("/dev/null")
    };
    run(runtime, &mut bundle, &race);
}

/// CVE-2025-52565, CVE-2026-88264.
fn a_console_that_is_exchanged_is_no_file_of_the_host_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    without(&mut bundle, "/dev");
    let devpts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"] });
    bundle.add_mount(devpts);
    run(
        runtime,
        &mut bundle,
        &Race {
            terminal: true,
            ..Race::of_file("/dev/console")
        },
    );
}

fn pts_that_is_exchanged_is_no_file_of_the_host_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    without(&mut bundle, "/dev");
    let devpts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"] });
    bundle.add_mount(devpts);
    run(
        runtime,
        &mut bundle,
        &Race {
            terminal: true,
            ..Race::of_directory("/dev/pts")
        },
    );
}

/// Between the making of a device and its change of owner it can become a link to anything.
fn a_device_that_is_exchanged_changes_no_file_s_owner(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["devices"] =
        json!([{ "path": "/data/device", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 7, "gid": 7 }]);
    let race = Race {
        kind: Kind::Made,
        ..Race::of_file("/data/device")
    };
    run(runtime, &mut bundle, &race);
}

/// A masked file in a shared volume: what is mounted over is in the root, wherever the link leads.
fn a_masked_file_that_is_exchanged_hides_nothing_of_the_host_s(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["maskedPaths"] = json!(["/data/masked"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/data/masked"]);
    run(runtime, &mut bundle, &Race::of_file("/data/masked"));
}

/// CVE-2024-21626 and CVE-2026-55686: the directory of an exec, in a container that is running.
fn a_working_directory_that_is_exchanged_for_exec_leads_nowhere_else(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    fs::create_dir_all(bundle.rootfs("work/here")).expect("make a directory of the image");
    symlink("/proc/self/fd/3", bundle.rootfs("work/here-lure")).expect("make a symlink");
    bundle.probe(&["exchange", "/work/here", "/work/here-lure"]);
    let container = bundle.start();
    container.wait_for("ready");
    let (mut entered, rounds) = (0, rounds());
    for _ in 0..rounds {
        let output = bundle.exec(&["--cwd", "/work/here"], &["/probe", "report"]);
        if output.code != 0 {
            assert!(output.stderr.contains("process.cwd"), "{output:?}");
            continue;
        }
        entered += 1;
        let report: Value = serde_json::from_str(&output.stdout).expect("the probe prints JSON");
        // The kernel names a directory as it is called now, which may be the other name.
        let cwd = report["cwd"].as_str().unwrap_or_default();
        assert!(cwd == "/work/here" || cwd == "/work/here-lure", "{cwd}");
    }
    eprintln!("exec: {rounds} races, {entered} entered");
    assert!(rounds < 20 || entered > 0, "none of {rounds} got in");
    tripwire.assert_untouched(&"exec");
}
