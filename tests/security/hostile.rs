//! Root filesystems in which one path is a link, a device, a fifo or anything else that it should not be.
//!
//! Every case is a container created, started, looked at through exec, killed and deleted. It passes if the tripwire is
//! as before and either `create` or `start` refused in one line, with nothing left, or the container is as its
//! specification says: each mount inside its root, what is masked hidden, what is read-only not writable, its devices
//! real ones. Which of the two it is does not matter here; `REFUSED` lists what must be an error.
//!
//! All cases take some minutes: `CORTEN_HOSTILE=all` runs them, else it is a number of cases, picked by `CORTEN_SEED`.

mod holes;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use corten_tests::bundle::{Bundle, Report, Runtime};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::tripwire::{SECRET, Tripwire};
use holes::{
    a_bind_that_a_link_leads_to_dev_is_not_furnished, a_link_to_the_root_itself_takes_no_mount,
    a_masked_file_is_hidden_by_the_null_device, a_source_that_climbs_is_not_looked_for_in_the_image,
    a_volume_over_proc_is_refused, a_working_directory_through_a_descriptor_is_refused,
    closed_streams_are_not_taken_from_the_image, mount_points_that_were_made_are_not_removed,
    the_image_s_passwd_is_bounded,
};

tests! {
    no_obstacle_in_a_root_leads_out_of_it,
    links_where_the_kernel_s_filesystems_go_are_refused,
    a_volume_over_proc_is_refused,
    a_link_to_the_root_itself_takes_no_mount,
    a_bind_that_a_link_leads_to_dev_is_not_furnished,
    a_working_directory_through_a_descriptor_is_refused,
    a_masked_file_is_hidden_by_the_null_device,
    the_image_s_passwd_is_bounded,
    mount_points_that_were_made_are_not_removed,
    closed_streams_are_not_taken_from_the_image,
    a_source_that_climbs_is_not_looked_for_in_the_image,
}

/// What the image's own entry is replaced by, `{}` being the tripwire's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Link(&'static str),
    File,
    Directory,
    Fifo,
    Socket,
    Character,
    Block,
}

const OBSTACLES: [Obstacle; 24] = [
    Obstacle::Link("{}/file"),
    Obstacle::Link("{}/directory"),
    Obstacle::Link("{}/empty/new"),
    Obstacle::Link("../../../../../../../..{}/file"),
    Obstacle::Link("../../../../../../../..{}/directory"),
    Obstacle::Link("/proc/self/fd/0"),
    Obstacle::Link("/proc/self/fd/3"),
    Obstacle::Link("/proc/self/fd/7"),
    Obstacle::Link("/proc/1/root"),
    Obstacle::Link("/proc/1/root{}/file"),
    Obstacle::Link("/proc/self/root{}/directory"),
    Obstacle::Link("/proc/self/exe"),
    Obstacle::Link("/proc/self/cwd"),
    Obstacle::Link("/proc/thread-self/attr"),
    Obstacle::Link("SELF"),
    Obstacle::Link("/no/such/place"),
    Obstacle::Link("LONG"),
    Obstacle::Link("/"),
    Obstacle::File,
    Obstacle::Directory,
    Obstacle::Fifo,
    Obstacle::Socket,
    Obstacle::Character,
    Obstacle::Block,
];

/// Where the obstacle is. Mounts that would hide it are taken out of the specification.
const PLACES: [&str; 41] = [
    "/dev",
    "/dev/null",
    "/dev/zero",
    "/dev/console",
    "/dev/pts",
    "/dev/ptmx",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
    "/dev/stdin",
    "/dev/core",
    "/dev/made",
    "/proc",
    "/proc/self",
    "/proc/sys",
    "/sys",
    "/sys/fs",
    "/sys/fs/cgroup",
    "/sys/firmware",
    "/tmp",
    "/etc",
    "/etc/mtab",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run",
    "/run/secrets",
    "/run/secrets/inner",
    "/work",
    "/work/directory",
    "/data",
    "/data/volume",
    "/data/volume/nested",
    "/data/file",
    "/masked/file",
    "/masked/directory",
    "/masked/readonly",
    "/usr/bin",
    "/probe",
];

#[derive(Clone, Copy, Debug)]
struct Case {
    place: &'static str,
    obstacle: Obstacle,
    terminal: bool,
    readonly: bool,
    masked: bool,
    user_namespace: bool,
}

/// Every combination.
fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in PLACES {
        for obstacle in OBSTACLES {
            for bits in 0..16 {
                let bit = |at: u32| bits >> at & 1 == 1;
                cases.push(Case {
                    place,
                    obstacle,
                    terminal: bit(0),
                    readonly: bit(1),
                    masked: bit(2),
                    user_namespace: bit(3),
                });
            }
        }
    }
    cases
}

/// As many of them as asked for: the seed shuffles.
fn chosen() -> Vec<Case> {
    let mut cases = all();
    if std::env::var("CORTEN_HOSTILE").is_ok_and(|value| value == "all") {
        return cases;
    }
    let wanted = crate::number("CORTEN_HOSTILE", 160).min(cases.len());
    let mut state = crate::number("CORTEN_SEED", 1) as u64;
    for index in 0..wanted {
        // Knuth's MMIX generator: any would do.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let left = cases.len() - index;
        let other = index + usize::try_from(state >> 33).expect("31 bits") % left;
        cases.swap(index, other);
    }
    cases.truncate(wanted);
    cases
}

fn no_obstacle_in_a_root_leads_out_of_it(runtime: &Runtime) {
    let cases = chosen();
    let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let tripwire = Tripwire::new(runtime.marker());
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !passes(runtime, *case, &tripwire) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for worker in [scope.spawn(work), scope.spawn(work)] {
            if let Err(panic) = worker.join() {
                next.store(cases.len(), Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
    let refused = refused.into_inner();
    eprintln!("{} hostile roots, {refused} of them refused", cases.len());
    // Neither does everything fail, which would test nothing, nor is everything taken.
    assert!(
        cases.len() < 100 || (refused > 0 && refused < cases.len() / 2),
        "{refused} of {}",
        cases.len()
    );
}

/// Runs one case; whether the container came to be.
fn passes(runtime: &Runtime, case: Case, tripwire: &Tripwire) -> bool {
    let mut bundle = runtime.bundle();
    prepare(&mut bundle, case);
    obstruct(&bundle, case.place, case.obstacle, tripwire);
    let socket = bundle.path().join("console.sock");
    // Whoever listens need not accept: the terminal waits in the socket, and goes with it.
    let _listener = UnixListener::bind(&socket).expect("bind a socket of the test");
    let socket = socket.to_string_lossy().into_owned();
    let options = if case.terminal {
        vec!["--console-socket", &socket]
    } else {
        vec![]
    };
    let output = bundle.call("create", &options);
    tripwire.assert_untouched(&case);
    if output.code != 0 {
        let error = output.failure();
        assert!(
            !error.contains("panicked") && error.len() < 32 << 10,
            "{case:?}: {error}"
        );
        bundle.assert_nothing_left();
        return false;
    }
    let started = bundle.call("start", &[]);
    let created = started.code == 0;
    // In the program's place there is no program, or by /proc/self/exe the runtime's own, which ends at once.
    if case.place != "/probe" {
        assert!(created, "{case:?}: {started:?}");
        inspect(&bundle, case);
    }
    let _deleted = bundle.call("delete", &["--force"]).success();
    tripwire.assert_untouched(&case);
    bundle.assert_nothing_left();
    created
}

fn prepare(bundle: &mut Bundle<'_>, case: Case) {
    bundle.probe(&["sleep"]);
    bundle.spec["root"]["readonly"] = json!(case.readonly);
    bundle.spec["process"]["terminal"] = json!(case.terminal);
    bundle.spec["process"]["cwd"] = json!("/work/directory");
    bundle.spec["linux"]["devices"] =
        json!([{ "path": "/dev/made", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 7 }]);
    furnish(bundle);
    if case.masked {
        let linux = &mut bundle.spec["linux"];
        let masked = linux["maskedPaths"].as_array_mut().expect("masked paths are a list");
        masked.extend([json!("/masked/file"), json!("/masked/directory")]);
        let readonly = linux["readonlyPaths"]
            .as_array_mut()
            .expect("read-only paths are a list");
        readonly.push(json!("/masked/readonly"));
    } else {
        bundle.spec["linux"]["maskedPaths"] = json!([]);
        bundle.spec["linux"]["readonlyPaths"] = json!([]);
    }
    if case.user_namespace {
        // The same ids inside and outside: permissions must not be what saves the host.
        bundle.namespace("user", None);
        for field in ["uidMappings", "gidMappings"] {
            bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
        }
        bundle.spec["linux"]["devices"] = json!([]);
    }
    let hides = |mount: &Value| {
        let destination = mount["destination"].as_str().expect("a destination is a string");
        case.place
            .strip_prefix(destination)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
    mounts.retain(|mount| !hides(mount));
}

/// Volumes, files that a runtime's caller binds, and what is to be masked.
fn furnish(bundle: &mut Bundle<'_>) {
    for directory in ["masked/directory", "masked/readonly", "work"] {
        fs::create_dir_all(bundle.rootfs(directory)).expect("make a directory of the image");
    }
    for file in ["masked/file", "masked/directory/file"] {
        fs::write(bundle.rootfs(file), "to be masked").expect("write a file of the image");
    }
    fs::create_dir_all(bundle.path().join("volume/nested")).expect("make a volume");
    for name in ["file", "hosts", "hostname", "resolv.conf"] {
        fs::write(bundle.path().join(name), format!("bound {name}")).expect("write a file of the test");
    }
    let bind =
        |source: &str, destination: &str| json!({ "source": source, "destination": destination, "options": ["bind"] });
    bundle.add_mount(bind("volume", "/data/volume"));
    bundle.add_mount(bind("file", "/data/file"));
    bundle.add_mount(bind("file", "/data/volume/nested/file"));
    for name in ["hosts", "hostname", "resolv.conf"] {
        bundle.add_mount(bind(name, &format!("/etc/{name}")));
    }
    bundle.add_mount(json!({ "destination": "/run/secrets", "type": "tmpfs", "source": "secrets" }));
    bundle.add_mount(bind("file", "/run/secrets/inner/file"));
}

/// Puts the obstacle in its place, instead of what is there.
fn obstruct(bundle: &Bundle<'_>, place: &str, obstacle: Obstacle, tripwire: &Tripwire) {
    let path = bundle.rootfs(place);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).expect("remove a directory of the image"),
        Ok(_) => fs::remove_file(&path).expect("remove a file of the image"),
        Err(_nothing) => fs::create_dir_all(path.parent().expect("it is below the root")).expect("make a directory"),
    }
    let node = |kind, number| mknod(&path, kind, Mode::from_bits_truncate(0o666), number).expect("make a node");
    match obstacle {
        Obstacle::Link("SELF") => symlink(place, &path).expect("make a symlink"),
        Obstacle::Link("LONG") => symlink("/long".repeat(818), &path).expect("make a symlink"),
        Obstacle::Link(target) => {
            let target = target.replace("{}", &tripwire.directory().to_string_lossy());
            symlink(target, &path).expect("make a symlink");
        }
        Obstacle::File => fs::write(&path, "of the image").expect("write a file of the image"),
        Obstacle::Directory => fs::create_dir(&path).expect("make a directory of the image"),
        Obstacle::Fifo => node(SFlag::S_IFIFO, 0),
        Obstacle::Socket => node(SFlag::S_IFSOCK, 0),
        // A random device and a loop device.
        Obstacle::Character => node(SFlag::S_IFCHR, makedev(1, 8)),
        Obstacle::Block => node(SFlag::S_IFBLK, makedev(7, 250)),
    }
}

const LOOKED_AT: [&str; 16] = [
    "/",
    "/dev/null",
    "/dev/console",
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/proc/self/attr",
    "/etc/passwd",
    "/etc/hosts",
    "/data/file",
    "/data/volume",
    "/data/volume/nested/file",
    "/masked/file",
    "/masked/directory",
    "/masked/readonly",
    "/work/directory",
    "/run/secrets",
];

/// The container that a case has become is as its specification says.
fn inspect(bundle: &Bundle<'_>, case: Case) {
    let words: Vec<&str> = ["/probe", "report"].into_iter().chain(LOOKED_AT).collect();
    let output = bundle.exec(&[], &words);
    assert_eq!(output.code, 0, "{case:?}: {output:?}");
    let report = Report::parse(&output.stdout);
    let text = report.to_string();
    assert!(!text.contains(SECRET), "{case:?} shows the host's secret: {text}");
    for mount in report["mounts"].as_array().expect("mounts are a list") {
        let root = mount["root"].as_str().unwrap_or_default();
        // In the root a directory of that name may have been made, for a mount to lie on.
        assert!(
            !root.contains("tripwire-") || root.contains("/rootfs/"),
            "{case:?}: {mount}"
        );
    }
    if case.place.starts_with("/proc/") {
        // Without a procfs, whose mount has made way for the obstacle, there is nothing to look at.
        return;
    }
    let numbers: Vec<&String> = report["fds"].as_object().expect("fds are a map").keys().collect();
    assert_eq!(numbers, ["0", "1", "2"], "{case:?}");
    assert_eq!(
        report["cwd"].as_str().map(|cwd| cwd.starts_with('/')),
        Some(true),
        "{case:?}: {}",
        report["cwd"]
    );
    for mount in bundle.spec["mounts"].as_array().expect("mounts are a list") {
        assert_landed(mount, &report, case);
    }
    if report.path("/dev/null")["type"] != "symlink" {
        assert_eq!(report.path("/dev/null")["device"], json!([1, 3]), "{case:?}");
    }
    if case.readonly {
        assert_eq!(report.path("/")["write"], "EROFS", "{case:?}");
    }
    if case.masked {
        assert_masked(&report, case);
    }
}

/// A mount of the specification is somewhere in the container: of its type, or of its source.
fn assert_landed(mount: &Value, report: &Report, case: Case) {
    let found = report["mounts"]
        .as_array()
        .expect("mounts are a list")
        .iter()
        .any(|found| {
            let bound = mount["options"]
                .as_array()
                .is_some_and(|options| options.contains(&json!("bind")));
            let source = mount["source"].as_str().unwrap_or_default();
            match (bound, mount["type"].as_str()) {
                (true, _) => found["root"]
                    .as_str()
                    .is_some_and(|root| root.ends_with(&format!("/{source}"))),
                (false, Some("cgroup")) => ["cgroup", "cgroup2"].contains(&found["type"].as_str().unwrap_or_default()),
                (false, kind) => found["type"].as_str() == kind,
            }
        });
    assert!(found, "{case:?}: {mount} is not in {}", report["mounts"]);
}

/// Nothing that is masked shows, and nothing that is read-only can be written.
fn assert_masked(report: &Report, case: Case) {
    assert!(!report.to_string().contains("to be masked"), "{case:?}: {report:?}");
    let entries = &report.path("/masked/directory")["entries"];
    let covered = case.place == "/masked/directory" || *entries == json!([]);
    assert!(covered, "{case:?}: {entries}");
    if report.find_mount("/proc").is_some() {
        for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
            assert!(!report.is_writable(path), "{case:?}: {path}");
        }
    }
    if case.place != "/masked/readonly" {
        assert_eq!(report.path("/masked/readonly")["write"], "EROFS", "{case:?}");
    }
}

/// What must be an error: a link where the rest depends on a filesystem of the kernel, CVE-2019-19921 and its kin, and
/// where the runtime puts devices.
const REFUSED: [(&str, bool); 7] = [
    ("/proc", false),
    ("/sys", false),
    ("/dev", false),
    ("/dev/null", false),
    ("/dev/zero", false),
    ("/dev/made", false),
    ("/dev/console", true),
];

fn links_where_the_kernel_s_filesystems_go_are_refused(runtime: &Runtime) {
    let tripwire = Tripwire::new(runtime.marker());
    let targets = ["{}/directory", "{}/file", "{}/empty/new", "/proc/self/fd/3", "/tmp"].map(Obstacle::Link);
    for (place, terminal) in REFUSED {
        for obstacle in targets {
            let case = Case {
                place,
                obstacle,
                terminal,
                readonly: false,
                masked: true,
                user_namespace: false,
            };
            assert!(!passes(runtime, case, &tripwire), "{case:?} is not refused");
        }
    }
}
