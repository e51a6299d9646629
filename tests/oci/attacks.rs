//! Containers and root filesystems that work against the runtime while it works.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Bundle, Runtime, wait_for};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

each_runtime! {
    a_container_sees_nothing_of_the_runtime_that_enters_it,
    a_swapped_cwd_does_not_lead_out,
    a_source_is_looked_for_on_the_host_alone,
}

corten_only! {
    a_swapped_mount_point_does_not_lead_out: "CVE-2024-45310: runc 1.1.5 makes the mount point on the host",
    a_swapped_device_directory_does_not_lead_out: "the same race: runc 1.1.5 makes the node on the host",
}

/// CVE-2016-9962 and CVE-2019-5736: between joining the container and executing the program, exec's process is the
/// runtime's code with the runtime's files, in the container's pid namespace. Nothing of it may be looked at.
fn a_container_sees_nothing_of_the_runtime_that_enters_it(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    // Far longer than it takes; it ends when it is told to, however slow this machine is.
    bundle.probe(&["snoop", "300"]);
    let container = bundle.start();
    // One that stays, so that there is something to be seen.
    let sleeper = bundle.exec_detached(&[], &["/probe", "sleep"]);
    // All of them end before the container does: an exec cut off by its end may leave runc's processes behind.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let _output = bundle.exec(&[], &["/probe", "exit", "0"]).success();
    }
    kill(sleeper, Signal::SIGKILL).expect("kill a process of this test");
    assert_eq!(wait_for(sleeper), 128 + libc::SIGKILL);
    kill(container.pid, Signal::SIGTERM).expect("the container waits for it");
    assert_eq!(container.wait(), 0);
    let seen: Value = serde_json::from_str(&container.stdout()).expect("the probe prints JSON");
    let programs = seen["programs"].as_array().expect("programs are a list");
    assert!(!programs.is_empty(), "it saw the executed programs: {seen}");
    assert!(programs.iter().all(|program| program == "/probe"), "{seen}");
    assert_eq!(seen["writable"], json!([]));
    let files = seen["files"]
        .as_array()
        .expect("files are a list")
        .iter()
        .filter_map(Value::as_str);
    let foreign: Vec<&str> = files.filter(|file| file.contains(runtime.marker())).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

/// Runs `work` while `place` in the root filesystem is by turns a directory and a symlink to a directory outside of
/// it, which is returned by name. Neither result of the work matters, only what is found outside.
fn while_swapping(bundle: &Bundle<'_>, place: &str, work: impl Fn()) -> Vec<String> {
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside).expect("make a directory of the test");
    let [place, other] = [place.to_owned(), format!("{place}-other")].map(|path| bundle.rootfs(&path));
    fs::create_dir_all(&place).expect("make a directory of the test");
    symlink(&outside, &other).expect("make a symlink");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange(&place, &other);
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    let found = fs::read_dir(&outside).expect("read a directory of the test").flatten();
    found
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn exchange(one: &Path, other: &Path) {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).expect("exchange two names");
}

const ROUNDS: usize = 40;

/// Runs the container again and again while `place` is swapped; nothing may appear outside of its root.
fn assert_kept_inside(bundle: &mut Bundle<'_>, place: &str) {
    bundle.probe(&["exit", "0"]);
    bundle.spec["root"]["readonly"] = json!(false);
    let found = while_swapping(bundle, place, || {
        for _ in 0..ROUNDS {
            let _either = bundle.run();
        }
    });
    assert!(found.is_empty(), "{found:?}");
}

fn a_swapped_mount_point_does_not_lead_out(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.add_mount(json!({ "destination": "/tmp/swapped/made/here", "type": "tmpfs", "source": "tmpfs" }));
    assert_kept_inside(&mut bundle, "/tmp/swapped");
}

fn a_swapped_device_directory_does_not_lead_out(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["linux"]["devices"] =
        json!([{ "path": "/tmp/swapped/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 }]);
    assert_kept_inside(&mut bundle, "/tmp/swapped");
}

fn a_swapped_cwd_does_not_lead_out(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["process"]["cwd"] = json!("/tmp/swapped/made/here");
    assert_kept_inside(&mut bundle, "/tmp/swapped");
}

/// The source of a bind is a link that climbs to `/`, as /etc/resolv.conf often is. The image has put a link of its own
/// where that would lead inside of it.
fn a_source_is_looked_for_on_the_host_alone(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let [wanted, outside, source] = ["wanted", "outside", "source"].map(|name| bundle.path().join(name));
    fs::write(&wanted, "wanted").expect("write a file of the test");
    fs::write(&outside, "outside").expect("write a file of the test");
    let below_root = wanted
        .strip_prefix("/")
        .expect("a temporary directory has an absolute path");
    let climb: PathBuf = below_root.components().skip(1).map(|_| "..").collect();
    symlink(climb.join(below_root), &source).expect("make a symlink");
    let bait = bundle.rootfs(&wanted.to_string_lossy());
    fs::create_dir_all(bait.parent().expect("it is in a directory")).expect("make a directory in the image");
    symlink(&outside, &bait).expect("make a symlink in the image");
    bundle.add_mount(json!({ "destination": "/got", "source": source, "options": ["bind"] }));
    assert_eq!(bundle.report(&["/got"]).path("/got")["text"], "wanted");
}
