//! The same bundle run by corten and by runc, and what the probe sees compared field by field.
//!
//! A difference fails the test unless it is in [`ALLOWED`], with the reason.

use std::collections::BTreeMap;
use std::fs;

use corten_tests::bundle::{Bundle, Report, Runtime};
use corten_tests::leak;
use serde_json::{Value, json};

/// A field's name, or its beginning, and why the two may differ there.
type Difference = (&'static str, &'static str);

const ALLOWED: [Difference; 3] = [
    (
        "/mounts//sys/fs/cgroup/options",
        "config.md, mounts: `ro` applies to the mount; runc 1.1 applies it to the controllers below alone",
    ),
    (
        "/mounts//sys/fs/cgroup/systemd/source",
        "config.md, mounts: the source of a cgroup mount is a name; runc puts its own word in the place of the bundle's",
    ),
    (
        "/cgroups/0:",
        "a v2 hierarchy beside v1 controllers has no limits to set; runc makes a cgroup there, corten does not",
    ),
];

/// Allowed beside those where a process of another user is executed in a container.
const ALLOWED_IN_EXEC: [Difference; 3] = [
    (
        "/limits/Max open files",
        "config.md, rlimits: now and then runc 1.1's own Go runtime raises the soft limit to the hard one before execve",
    ),
    (
        "/status/CapInh",
        "CVE-2022-29162: of the inheritable capabilities corten keeps those the ambient ones need",
    ),
    (
        "/status/Umask",
        "config.md, user: runc 1.1 does not set the user's umask in exec",
    ),
];

/// Allowed beside those in a user namespace.
const ALLOWED_IN_USER_NAMESPACE: [Difference; 1] = [(
    "/paths//dev/mqueue/gid",
    "a mount belongs to who makes it; runc 1.1 is root by user but not yet by group when it mounts",
)];

/// Runs `look` with both runtimes on bundles that `change` makes alike.
fn same(change: fn(&mut Bundle<'_>), look: fn(&mut Bundle<'_>) -> Report, allowed: &[Difference]) {
    let [Some(corten), Some(runc)] = ["corten", "runc"].map(Runtime::find) else {
        eprintln!("SKIP: runc is not installed");
        return;
    };
    let watch = leak::Watch::new([corten.marker(), runc.marker()]);
    let [ours, theirs] = [&corten, &runc].map(|runtime| {
        let mut bundle = runtime.bundle();
        change(&mut bundle);
        let report = look(&mut bundle);
        fields(&bundle, &report)
    });
    assert!(ours.len() > 100, "the report has all its parts: {}", ours.len());
    let differences = differences(&ours, &theirs, allowed);
    assert!(differences.is_empty(), "corten, then runc:\n{}", differences.join("\n"));
    drop((corten, runc));
    watch.assert_clean();
}

fn differences(
    ours: &BTreeMap<String, Value>,
    theirs: &BTreeMap<String, Value>,
    allowed: &[Difference],
) -> Vec<String> {
    let names = ours
        .keys()
        .chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
    names
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .filter(|name| !allowed.iter().any(|(beginning, _)| name.starts_with(beginning)))
        .map(|name| format!("{name}: {:?} {:?}", ours.get(name), theirs.get(name)))
        .collect()
}

/// The report as a flat map, with what cannot be the same in two runs made the same.
fn fields(bundle: &Bundle<'_>, report: &Report) -> BTreeMap<String, Value> {
    // The longer first: the directory's name begins with the id.
    let directory = bundle.path().to_string_lossy().into_owned();
    let text = report
        .0
        .to_string()
        .replace(&directory, "BUNDLE")
        .replace(&bundle.id, "ID");
    let mut report: Value = serde_json::from_str(&text).expect("replacing names keeps JSON");
    make_comparable(&mut report);
    let mounts = report["mounts"].take();
    let cgroups = report["cgroups"].take();
    let mut flat = BTreeMap::new();
    for line in cgroups
        .as_array()
        .expect("cgroups are a list")
        .iter()
        .filter_map(Value::as_str)
    {
        let (hierarchy, path) = line.rsplit_once(':').expect("a line is number:controllers:path");
        flat.insert(format!("/cgroups/{hierarchy}"), json!(path));
    }
    flatten("", &report, &mut flat);
    for mount in mounts.as_array().expect("mounts are a list") {
        let mut mount = mount.clone();
        // The number of a filesystem is another each time.
        mount["device"].take();
        flatten(
            &format!("/mounts/{}", mount["destination"].as_str().unwrap_or_default()),
            &mount,
            &mut flat,
        );
    }
    flat
}

/// Replaces what is another value in every run by what is to be the same about it.
fn make_comparable(report: &mut Value) {
    for (kind, namespace) in report["namespaces"].as_object_mut().expect("namespaces are a map") {
        let own = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("every process has namespaces");
        *namespace = json!(if *namespace == json!(own) {
            "the caller's"
        } else {
            "another"
        });
    }
    report["clocks"].take();
    // Standard input and output are a file, a pipe or the null device; that they are open is what counts.
    for number in ["0", "1", "2"] {
        if !report["fds"][number].is_null() {
            report["fds"][number] = json!("open");
        }
    }
    // Process ids: whether it is the first of its namespace, whether its parent is inside, whether it leads.
    let pid = report["pid"].take();
    for field in ["session", "process_group"] {
        report[field] = json!(report[field] == pid);
    }
    report["pid"] = json!(pid == 1);
    report["ppid"] = json!(report["ppid"] == 0);
    report["status"]["NSpid"].take();
    for described in report["paths"].as_object_mut().expect("paths are a map").values_mut() {
        // The size of a directory is the filesystem's own business; its entries are compared.
        if described["type"] == "directory" {
            described["size"].take();
        }
    }
    // A mount can be read-only, or its filesystem, or both; what a process meets is the mount's.
    for mount in report["mounts"].as_array_mut().expect("mounts are a list") {
        if is_mask(mount) {
            *mount = json!({ "destination": mount["destination"], "type": "mask" });
            continue;
        }
        let data = mount["data"].as_array_mut().expect("options are a list");
        data.retain(|option| option != "ro" && option != "rw");
    }
}

/// Whether this hides a path below /proc, /sys or /etc: config-linux.md asks that it cannot be read and leaves open by
/// what. What is seen at the path is compared under `/paths`.
fn is_mask(mount: &Value) -> bool {
    let destination = mount["destination"].as_str().unwrap_or_default();
    let below = ["/proc/", "/sys/", "/etc/"]
        .iter()
        .any(|top| destination.starts_with(top));
    let empty = mount["type"] == "tmpfs" && !destination.starts_with("/sys/fs/cgroup");
    below && (empty || mount["root"] == "/null")
}

/// A flat map of the fields. Peer groups are numbered by the kernel, so of a list of options only the names are kept, in
/// an order of their own.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(&format!("{name}/{key}"), value, into)),
        Value::Array(list) if name.starts_with("/mounts/") => {
            let mut words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            words.sort_unstable();
            let words: Vec<&str> = words
                .iter()
                .map(|word| word.split(':').next().unwrap_or(word))
                .collect();
            into.insert(name.to_owned(), json!(words));
        }
        value => {
            into.insert(name.to_owned(), value.clone());
        }
    }
}

const PATHS: [&str; 22] = [
    "/",
    "/dev",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/fd",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
    "/dev/ptmx",
    "/dev/pts/ptmx",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/core",
    "/proc/kcore",
    "/proc/timer_list",
    "/proc/sys/kernel/hostname",
    "/sys/firmware",
];

fn run(bundle: &mut Bundle<'_>) -> Report {
    bundle.report(&PATHS)
}

fn exec(bundle: &mut Bundle<'_>) -> Report {
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let words: Vec<&str> = ["/probe", "report"].into_iter().chain(PATHS).collect();
    Report::parse(&bundle.exec(&[], &words).success().stdout)
}

#[test]
fn same_result_as_runc() {
    same(|_| {}, run, &ALLOWED);
}

#[test]
fn same_result_as_runc_in_exec() {
    same(|_| {}, exec, &ALLOWED);
}

#[test]
fn same_result_as_runc_for_a_user() {
    same(as_user, run, &ALLOWED);
}

#[test]
fn same_result_as_runc_for_a_user_in_exec() {
    same(as_user, exec, &[&ALLOWED[..], &ALLOWED_IN_EXEC].concat());
}

#[test]
fn same_result_as_runc_in_a_user_namespace() {
    same(
        in_user_namespace,
        run,
        &[&ALLOWED[..], &ALLOWED_IN_USER_NAMESPACE].concat(),
    );
}

#[test]
fn same_result_as_runc_with_the_host_s_namespaces() {
    same(in_host_namespaces, run, &ALLOWED);
}

fn as_user(bundle: &mut Bundle<'_>) {
    let own = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]);
    bundle.spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [7, 50000], "umask": 0o027 });
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": own, "permitted": own, "effective": own, "inheritable": own, "ambient": ["CAP_KILL"] });
    bundle.spec["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ]);
    bundle.spec["process"]["env"] = json!(["PATH=/usr/bin", "A=1", "B="]);
    bundle.spec["process"]["cwd"] = json!("/home/tester");
    bundle.spec["process"]["noNewPrivileges"] = json!(false);
    bundle.spec["process"]["oomScoreAdj"] = json!(700);
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.namespace("cgroup", None);
    bundle.spec["linux"]["maskedPaths"] = json!(["/etc/group", "/home/nobody", "/proc/scsi"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/etc", "/proc/sys"]);
    bundle.spec["linux"]["devices"] =
        json!([{ "path": "/dev/core", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": 1000 }]);
    bundle.add_mount(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs",
        "options": ["noatime", "nosuid", "size=1m", "mode=0700"] }));
    bundle.add_mount(json!({ "destination": "/srv/host", "type": "bind", "source": "/dev",
        "options": ["rbind", "rro", "nosuid", "rslave"] }));
    bundle.add_mount(
        json!({ "destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/hostname",
        "options": ["bind", "ro", "nodev", "noexec"] }),
    );
}

fn in_user_namespace(bundle: &mut Bundle<'_>) {
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 300_000, "size": 65536 }]);
    }
}

fn in_host_namespaces(bundle: &mut Bundle<'_>) {
    for kind in ["pid", "network", "ipc", "uts"] {
        bundle.remove_namespace(kind);
    }
    bundle.spec["hostname"].take();
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts are a list");
    // Without a network namespace of its own a container cannot mount sysfs, and binds the host's.
    mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup" && mount["type"] != "mqueue");
    bundle.add_mount(json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"] }));
}
