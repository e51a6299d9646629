//! `tmpcopyup`: a tmpfs that begins with what the image has at its destination.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use corten_tests::bundle::{Bundle, Container, Runtime};
use corten_tests::cgroup;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use serde_json::json;

use crate::mounts::{bind, host_directory};
use crate::namespaces::map_ids;

each_runtime! {
    files_directories_and_links_are_copied,
    the_image_is_left_as_it_is,
    a_destination_that_does_not_exist_is_an_empty_tmpfs,
    what_does_not_fit_is_an_error,
    links_are_copied_and_not_followed,
}

corten_only! {
    fifos_sockets_and_devices_are_copied: "runc 1.1 fails at a fifo",
    hard_links_and_attributes_are_kept: "runc 1.1 makes a file of each link, of the time of the copy",
    the_directory_itself_looks_as_before: "runc 1.1 keeps its mode alone",
    a_mode_that_is_named_counts: "runc 1.1 keeps the directory's, whatever the options say",
    mounts_below_are_left_out: "runc 1.1 copies what is mounted on the image too",
    a_user_namespace_has_no_devices_and_no_foreign_ids: "runc 1.1 fails at both",
    the_copy_is_the_container_s_memory: "runc 1.1 copies before the process is in its cgroup, or after, as it happens",
    a_tree_too_deep_is_refused: "runc 1.1 has no limit",
    only_a_tmpfs_copies_up: "runc passes over the option elsewhere",
}

fn copied_up(bundle: &mut Bundle<'_>, options: &[&str]) {
    let options: Vec<&str> = ["tmpcopyup"].iter().chain(options).copied().collect();
    bundle.add_mount(json!({ "destination": "/old", "type": "tmpfs", "source": "tmpfs", "options": options }));
}

/// An image with a directory in it that is to be copied.
fn old(bundle: &Bundle<'_>) -> PathBuf {
    let old = bundle.rootfs("/old");
    fs::create_dir_all(old.join("sub/empty")).expect("make directories of the image");
    fs::write(old.join("file"), "of the image").expect("write a file of the image");
    fs::write(old.join("sub/program"), "x").expect("write a file of the image");
    fs::set_permissions(old.join("sub/program"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    old
}

fn files_directories_and_links_are_copied(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    chown(old.join("file"), Some(1000), Some(50)).expect("chown");
    symlink("sub/program", old.join("link")).expect("make a link");
    copied_up(&mut bundle, &["nosuid"]);
    let report = bundle.report(&["/old", "/old/file", "/old/sub/program", "/old/sub/empty", "/old/link"]);
    assert_eq!(report.mount("/old")["type"], "tmpfs");
    assert_eq!(report.path("/old")["entries"], json!(["file", "link", "sub"]));
    let file = report.path("/old/file");
    assert_eq!(
        (&file["text"], &file["uid"], &file["gid"]),
        (&json!("of the image"), &json!(1000), &json!(50))
    );
    assert_eq!(report.path("/old/sub/program")["mode"], "4755");
    assert_eq!(report.path("/old/sub/empty")["type"], "directory");
    assert_eq!(report.path("/old/link")["target"], "sub/program");
}

fn the_image_is_left_as_it_is(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    copied_up(&mut bundle, &[]);
    bundle.probe(&["write", "/old/file", "changed"]);
    let _written = bundle.run().success();
    assert_eq!(
        fs::read_to_string(old.join("file")).expect("a file of the image"),
        "of the image"
    );
}

fn a_destination_that_does_not_exist_is_an_empty_tmpfs(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    copied_up(&mut bundle, &[]);
    let report = bundle.report(&["/old"]);
    assert_eq!(report.mount("/old")["type"], "tmpfs");
    assert_eq!(report.path("/old")["entries"], json!([]));
}

fn what_does_not_fit_is_an_error(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    fs::write(old.join("large"), vec![0; 1 << 20]).expect("write a file of the image");
    copied_up(&mut bundle, &["size=64k"]);
    let error = bundle.run().failure();
    assert!(
        error.to_lowercase().contains("no space left") && error.contains("/old"),
        "{error}"
    );
    bundle.assert_nothing_left();
}

fn links_are_copied_and_not_followed(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let outside = host_directory(&bundle, "outside");
    // The destination is reached by a link, and what it holds are links out of the root.
    fs::create_dir(bundle.rootfs("/real")).expect("make a directory of the image");
    symlink("real", bundle.rootfs("/old")).expect("make a link");
    symlink(&outside, bundle.rootfs("/real/absolute")).expect("make a link");
    symlink("../../outside", bundle.rootfs("/real/climbing")).expect("make a link");
    copied_up(&mut bundle, &[]);
    let report = bundle.report(&["/real/absolute", "/real/climbing"]);
    assert_eq!(report.mount("/real")["type"], "tmpfs");
    assert_eq!(report.path("/real/absolute")["target"], json!(outside));
    assert_eq!(report.path("/real/climbing")["target"], "../../outside");
}

/// The root of a container, as the host sees it.
fn inside(container: &Container, path: &str) -> PathBuf {
    Path::new(&format!("/proc/{}/root", container.pid)).join(path.trim_start_matches('/'))
}

fn started(bundle: &mut Bundle<'_>, options: &[&str]) -> Container {
    copied_up(bundle, options);
    bundle.probe(&["sleep"]);
    bundle.start()
}

fn fifos_sockets_and_devices_are_copied(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    mknod(&old.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o642), 0).expect("make a fifo");
    mknod(
        &old.join("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(1, 3),
    )
    .expect("make a device");
    drop(UnixListener::bind(old.join("socket")).expect("make a socket"));
    chown(old.join("fifo"), Some(7), Some(8)).expect("chown");
    let container = started(&mut bundle, &[]);
    let meta = |name: &str| fs::symlink_metadata(inside(&container, "/old").join(name)).expect(name);
    let fifo = meta("fifo");
    assert!(fifo.file_type().is_fifo());
    assert_eq!((fifo.uid(), fifo.gid()), (7, 8));
    assert_eq!(
        fifo.mode() & 0o7777,
        fs::metadata(old.join("fifo")).expect("the image's").mode() & 0o7777
    );
    assert!(meta("socket").file_type().is_socket());
    assert_eq!(
        (meta("null").file_type().is_char_device(), meta("null").rdev()),
        (true, makedev(1, 3))
    );
}

fn hard_links_and_attributes_are_kept(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    fs::hard_link(old.join("file"), old.join("sub/second")).expect("make a hard link");
    // CAP_CHOWN, as setcap writes it.
    let capability = [
        0x00, 0x00, 0x00, 0x02, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    setxattr(
        old.join("sub/program"),
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )
    .expect("setxattr");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5_000);
    let times = fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
    for name in ["sub", "file"] {
        fs::File::open(old.join(name))
            .and_then(|file| file.set_times(times))
            .expect("set times");
    }
    let container = started(&mut bundle, &[]);
    let copy = inside(&container, "/old");
    let [first, second] = ["file", "sub/second"].map(|name| fs::metadata(copy.join(name)).expect("it is copied"));
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    for name in ["sub", "file"] {
        assert_eq!(
            fs::metadata(copy.join(name)).and_then(|meta| meta.modified()).ok(),
            Some(long_ago),
            "{name}"
        );
    }
    let mut value = [0u8; 64];
    let length = getxattr(copy.join("sub/program"), "security.capability", &mut value[..]).expect("getxattr");
    assert_eq!(value[..length], capability);
}

fn the_directory_itself_looks_as_before(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    chown(&old, Some(20), Some(30)).expect("chown");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o2770)).expect("chmod");
    copied_up(&mut bundle, &[]);
    let report = bundle.report(&["/old"]);
    let is = report.path("/old");
    assert_eq!(
        (&is["uid"], &is["gid"], &is["mode"]),
        (&json!(20), &json!(30), &json!("2770"))
    );
}

fn a_mode_that_is_named_counts(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let _old = old(&bundle);
    copied_up(&mut bundle, &["mode=0711", "uid=9"]);
    let report = bundle.report(&["/old"]);
    let is = report.path("/old");
    assert_eq!((&is["uid"], &is["mode"]), (&json!(9), &json!("0711")));
}

fn mounts_below_are_left_out(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let _old = old(&bundle);
    let data = host_directory(&bundle, "data");
    bundle.add_mount(bind(&data, "/old/sub", &["bind"]));
    bundle.add_mount(bind(&format!("{data}/inside"), "/old/file", &["bind"]));
    copied_up(&mut bundle, &[]);
    let report = bundle.report(&["/old", "/old/sub"]);
    assert_eq!(report.path("/old")["entries"], json!(["sub"]));
    assert_eq!(report.path("/old/sub")["entries"], json!([]));
}

fn a_user_namespace_has_no_devices_and_no_foreign_ids(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    mknod(
        &old.join("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(1, 3),
    )
    .expect("make a device");
    chown(old.join("file"), Some(200_005), Some(200_006)).expect("chown");
    map_ids(&mut bundle);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field][0]["size"] = json!(1000);
    }
    copied_up(&mut bundle, &[]);
    let report = bundle.report(&["/old", "/old/file", "/old/sub"]);
    assert_eq!(report.path("/old")["entries"], json!(["file", "sub"]));
    assert_eq!(report.path("/old/file")["uid"], 5);
    assert_eq!(report.path("/old/file")["gid"], 6);
    assert_eq!(report.path("/old/sub")["uid"], 0, "the host's root has no id inside");
}

fn the_copy_is_the_container_s_memory(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let old = old(&bundle);
    fs::write(old.join("large"), vec![1; 8 << 20]).expect("write a file of the image");
    let _container = started(&mut bundle, &[]);
    let file = if cgroup::unified() {
        "memory.current"
    } else {
        "memory.usage_in_bytes"
    };
    let used: u64 = bundle.cgroup_file("memory", file).parse().expect("a number of bytes");
    assert!(used >= 8 << 20, "{used}");
}

fn a_tree_too_deep_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let mut path = old(&bundle);
    for _ in 0..130 {
        path.push("d");
        fs::create_dir(&path).expect("make a directory of the image");
    }
    copied_up(&mut bundle, &[]);
    let error = bundle.run().failure();
    assert!(error.contains("directories deep"), "{error}");
    bundle.assert_nothing_left();
}

fn only_a_tmpfs_copies_up(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let data = host_directory(&bundle, "data");
    bundle.add_mount(bind(&data, "/old", &["bind", "tmpcopyup"]));
    let error = bundle.run().failure();
    assert!(error.contains("tmpcopyup: needs a new mount of type tmpfs"), "{error}");
    bundle.assert_nothing_left();
}
