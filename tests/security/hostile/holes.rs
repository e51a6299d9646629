//! Single holes that an image can lead a runtime into, each as it was published.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use corten_tests::bundle::{Runtime, finish};
use serde_json::json;

use super::{Obstacle, furnish, obstruct};
use crate::tripwire::Tripwire;

/// CVE-2019-16884: the label of a program would be written to a file of the image's.
pub(super) fn a_volume_over_proc_is_refused(runtime: &Runtime) {
    for (destination, through) in [
        ("/proc", None),
        ("/proc/self/attr", None),
        ("/link", Some("/proc")),
        ("/link/x", Some("/proc/sys")),
    ] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        let volume = bundle.path().join("volume");
        fs::create_dir_all(volume.join("self/attr")).expect("make a volume");
        fs::write(volume.join("self/attr/exec"), "").expect("write a file of the volume");
        if let Some(target) = through {
            symlink(target, bundle.rootfs("link")).expect("make a symlink");
        }
        bundle.add_mount(json!({ "source": volume, "destination": destination, "options": ["bind"] }));
        let error = bundle.run().failure();
        assert!(
            error.contains("procfs") || error.contains("mkdirat"),
            "{destination}: {error}"
        );
        bundle.assert_nothing_left();
    }
}

/// Mounted over the root it would be what exec finds as the root, and init does not.
pub(super) fn a_link_to_the_root_itself_takes_no_mount(runtime: &Runtime) {
    for (target, kind) in [("/", "tmpfs"), ("../../..", "tmpfs"), ("/tmp/..", "bind")] {
        let mut bundle = runtime.bundle();
        bundle.probe(&["exit", "0"]);
        symlink(target, bundle.rootfs("link")).expect("make a symlink");
        bundle.add_mount(json!({ "destination": "/link", "type": kind, "source": bundle.path() }));
        let error = bundle.run().failure();
        assert!(error.contains("a link leads to the root itself"), "{target}: {error}");
        for field in ["maskedPaths", "readonlyPaths"] {
            let mut bundle = runtime.bundle();
            bundle.probe(&["exit", "0"]);
            symlink(target, bundle.rootfs("link")).expect("make a symlink");
            bundle.spec["linux"][field] = json!(["/link"]);
            let error = bundle.run().failure();
            assert!(
                error.contains("a link leads to the root itself"),
                "{field}: {target}: {error}"
            );
        }
    }
}

/// CVE-2026-41579, CVE-2026-47766: /dev of the host is bound somewhere, and a link of the image leads that to its /dev.
pub(super) fn a_bind_that_a_link_leads_to_dev_is_not_furnished(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    bundle.probe(&["exit", "0"]);
    symlink("/dev", bundle.rootfs("host-dev")).expect("make a symlink");
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
    mounts.retain(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/dev"));
    bundle.add_mount(json!({ "source": tripwire.path("directory"), "destination": "/host-dev", "options": ["bind"] }));
    let error = bundle.run().failure();
    assert!(error.contains("/dev: a link has led the bind"), "{error}");
    tripwire.assert_untouched(&"a bind led to /dev");
}

/// CVE-2024-21626: a descriptor that the runtime has open leads to a directory of the host.
pub(super) fn a_working_directory_through_a_descriptor_is_refused(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let descriptors = (0..=20).map(|number| format!("/proc/self/fd/{number}"));
    let others = [
        "/proc/self/cwd",
        "/proc/1/cwd",
        "/proc/thread-self/fd/3/..",
        "/proc/1/root/..",
    ]
    .map(str::to_owned);
    let mut running = runtime.bundle();
    running.probe(&["sleep"]);
    let _container = running.start();
    for cwd in descriptors.chain(others) {
        let mut bundle = runtime.bundle();
        bundle.probe(&["report"]);
        bundle.spec["process"]["cwd"] = json!(cwd);
        let error = bundle.run().failure();
        assert!(error.contains("process.cwd"), "{cwd}: {error}");
        // As the same through a link of the image.
        symlink(&cwd, bundle.rootfs("work")).expect("make a symlink");
        bundle.spec["process"]["cwd"] = json!("/work");
        let error = bundle.run().failure();
        assert!(error.contains("process.cwd"), "a link to {cwd}: {error}");
        let error = running.exec(&["--cwd", &cwd], &["/probe", "report"]).failure();
        assert!(error.contains("process.cwd"), "exec in {cwd}: {error}");
    }
    tripwire.assert_untouched(&"working directories");
}

/// CVE-2025-31133: with the image's own /dev, its /dev/null could be anything that would then be seen, and written to,
/// where something was to be hidden.
pub(super) fn a_masked_file_is_hidden_by_the_null_device(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    furnish(&mut bundle);
    bundle.spec["linux"]["maskedPaths"] = json!(["/masked/file", "/masked/directory"]);
    let report = bundle.report(&["/masked/file", "/masked/directory"]);
    assert_eq!(report.path("/masked/file")["device"], json!([1, 3]));
    assert_eq!(report.path("/masked/directory")["entries"], json!([]));
    assert_eq!(report.path("/masked/directory")["write"], "EROFS");
}

/// CVE-2026-47262 and CVE-2024-9676: whatever the image has for /etc/passwd is read for HOME, but not for ever.
pub(super) fn the_image_s_passwd_is_bounded(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let kinds = [
        Obstacle::Fifo,
        Obstacle::Socket,
        Obstacle::Character,
        Obstacle::Block,
        Obstacle::Directory,
    ];
    let links = ["/dev/zero", "/proc/self/fd/0", "/proc/kmsg", "{}/file", "SELF"].map(Obstacle::Link);
    for obstacle in kinds.into_iter().chain(links) {
        let mut bundle = runtime.bundle();
        obstruct(&bundle, "/etc/passwd", obstacle, &tripwire);
        let before = Instant::now();
        let report = bundle.report(&[]);
        assert!(
            before.elapsed() < Duration::from_secs(20),
            "{obstacle:?}: {:?}",
            before.elapsed()
        );
        assert!(
            report["env"].to_string().contains("\"HOME=/\""),
            "{obstacle:?}: {}",
            report["env"]
        );
    }
    // Sparse: what is read is zeros without end.
    let mut bundle = runtime.bundle();
    let passwd = fs::File::create(bundle.rootfs("etc/passwd")).expect("make a file of the image");
    passwd.set_len(1 << 40).expect("make it large");
    assert!(bundle.report(&[])["env"].to_string().contains("\"HOME=/\""));
    tripwire.assert_untouched(&"passwd");
}

/// CVE-2024-23652: mount points that were made stay; whoever took them away again could be led to delete elsewhere.
pub(super) fn mount_points_that_were_made_are_not_removed(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.probe(&["exit", "0"]);
    furnish(&mut bundle);
    let _exit = bundle.run().success();
    assert!(bundle.rootfs("data/volume").is_dir() && bundle.rootfs("data/file").is_file());
    assert!(bundle.path().join("volume/nested").is_dir() && bundle.path().join("file").is_file());
    tripwire.assert_untouched(&"mount points");
}

/// CVE-2026-88265: a caller without standard streams gets the host's null device for them, and nobody's owner changes.
pub(super) fn closed_streams_are_not_taken_from_the_image(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
    mounts.retain(|mount| mount["destination"] != "/dev");
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    bundle.probe(&["exit", "0"]);
    for image in [None, Some(Obstacle::Link("{}/file")), Some(Obstacle::File)] {
        if let Some(obstacle) = image {
            obstruct(&bundle, "/dev/null", obstacle, &tripwire);
        }
        let mut command = bundle.command("run");
        command.arg(&bundle.id);
        let mut shell = Command::new("/bin/bash");
        shell
            .args(["-c", r#"exec "$@" <&- >&- 2>&-"#, "bash"])
            .arg(command.get_program())
            .args(command.get_args());
        let output = finish(&mut shell);
        assert_eq!(output.code == 0, image.is_none(), "{image:?}: {output:?}");
        tripwire.assert_untouched(&image);
        bundle.assert_nothing_left();
    }
    let null = fs::metadata("/dev/null").expect("stat the null device");
    assert_eq!((null.uid(), null.mode() & 0o777), (0, 0o666));
}

/// A source such as /etc/resolv.conf -> ../run/... climbs to `/`, over which the container's root already lay.
pub(super) fn a_source_that_climbs_is_not_looked_for_in_the_image(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let mut bundle = runtime.bundle();
    let [wanted, source] = ["wanted", "source"].map(|name| bundle.path().join(name));
    fs::write(&wanted, "wanted").expect("write a file of the test");
    let below = wanted
        .strip_prefix("/")
        .expect("a temporary directory has an absolute path");
    let climb: PathBuf = below.components().skip(1).map(|_| "..").collect();
    symlink(climb.join(below), &source).expect("make a symlink");
    let bait = bundle.rootfs(&wanted.to_string_lossy());
    fs::create_dir_all(bait.parent().expect("it is in a directory")).expect("make a directory of the image");
    symlink(tripwire.path("file"), &bait).expect("make a symlink");
    bundle.add_mount(json!({ "source": source, "destination": "/by-link", "options": ["bind"] }));
    bundle.add_mount(
        json!({ "source": PathBuf::from("/..").join(below), "destination": "/by-path", "options": ["bind"] }),
    );
    let report = bundle.report(&["/by-link", "/by-path"]);
    for path in ["/by-link", "/by-path"] {
        assert_eq!(report.path(path)["text"], "wanted", "{path}");
    }
}
