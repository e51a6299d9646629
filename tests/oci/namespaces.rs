//! Namespaces: new ones, ones joined by path, and those a container is left in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use corten_tests::bundle::{Report, Runtime, wait_until};
use serde_json::json;

each_runtime! {
    default_namespaces_are_new,
    each_namespace_can_be_the_hosts,
    each_namespace_can_be_joined,
    a_joined_pid_namespace_has_another_init,
    a_new_pid_namespace_starts_at_one,
    cgroup_namespace_hides_the_path,
    user_namespace_maps_ids,
    a_path_of_the_wrong_type_is_refused,
    a_missing_path_is_refused,
    hostname_and_domainname_are_set,
    a_mount_namespace_can_be_joined,
    a_shared_mount_namespace_can_be_joined,
    paths_are_those_of_a_joined_mount_namespace,
    exec_enters_a_joined_mount_namespace,
    a_container_s_mount_namespace_is_left_as_it_is,
}

rootless! {
    a_new_pid_namespace_starts_at_one,
    cgroup_namespace_hides_the_path,
    hostname_and_domainname_are_set,
    a_path_of_the_wrong_type_is_refused,
    a_missing_path_is_refused,
}

corten_only! {
    user_namespace_can_be_joined: "runc 1.1 asks for mappings where a path is given, which config-linux.md does not",
    a_failed_create_leaves_a_joined_mount_namespace_as_it_is: "runc 1.1 leaves what it has mounted there",
}

fn own(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("every process has namespaces");
    link.to_string_lossy().into_owned()
}

fn default_namespaces_are_new(runtime: &Runtime) {
    let report = runtime.bundle().report(&[]);
    for kind in ["pid", "net", "ipc", "uts", "mnt"] {
        assert_ne!(report.namespace(kind), own(kind), "{kind} is new");
    }
    for kind in ["cgroup", "user"] {
        assert_eq!(report.namespace(kind), own(kind), "{kind} is the caller's");
    }
}

/// The name of a namespace in config.json and in /proc/PID/ns.
const KINDS: [(&str, &str); 4] = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

fn each_namespace_can_be_the_hosts(runtime: &Runtime) {
    for (name, link) in KINDS {
        let mut bundle = runtime.bundle();
        bundle.remove_namespace(name);
        if name == "uts" {
            bundle.spec["hostname"].take();
        }
        // Without an IPC namespace of its own there is no message queue filesystem to mount, and without a network
        // namespace of its own no sysfs.
        bundle.spec["mounts"]
            .as_array_mut()
            .expect("mounts are a list")
            .retain(|mount| {
                mount["destination"] != "/dev/mqueue" && mount["type"] != "sysfs" && mount["type"] != "cgroup"
            });
        assert_eq!(bundle.report(&[]).namespace(link), own(link), "{name} is the caller's");
    }
}

fn each_namespace_can_be_joined(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    for (name, link) in KINDS {
        let path = format!("/proc/{}/ns/{link}", target.pid);
        let mut bundle = runtime.bundle();
        bundle.namespace(name, Some(&path));
        if name == "uts" {
            bundle.spec["hostname"].take();
        }
        let expected = fs::read_link(&path).expect("the first container runs");
        let report = bundle.report(&[]);
        assert_eq!(
            report.namespace(link),
            expected.to_string_lossy(),
            "{name} is the first container's"
        );
        assert_ne!(report.namespace("mnt"), own("mnt"));
    }
}

fn a_joined_pid_namespace_has_another_init(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    bundle.namespace("pid", Some(&format!("/proc/{}/ns/pid", target.pid)));
    let report = bundle.report(&[]);
    assert_ne!(report["pid"], 1);
    assert_eq!(
        report.status("NSpid"),
        report["pid"].to_string(),
        "/proc is the joined namespace's"
    );
}

fn a_new_pid_namespace_starts_at_one(runtime: &Runtime) {
    let report = runtime.bundle().report(&[]);
    assert_eq!(report["pid"], 1);
    assert_eq!(report["ppid"], 0);
    assert_eq!(report["session"], 1);
    assert_eq!(report["init_executable"], "/probe");
}

fn cgroup_namespace_hides_the_path(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("cgroup", None);
    let report = bundle.report(&[]);
    assert_ne!(report.namespace("cgroup"), own("cgroup"));
    assert_eq!(report.cgroup("memory"), Some("/"));
}

pub(crate) fn map_ids(bundle: &mut corten_tests::bundle::Bundle<'_>) {
    bundle.namespace("user", None);
    for field in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][field] = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    }
}

fn assert_mapped(report: &Report) {
    assert_eq!(report["uid_map"], json!([["0", "200000", "65536"]]));
    assert_eq!(report["gid_map"], json!([["0", "200000", "65536"]]));
    assert_eq!(report.status("Uid"), "0 0 0 0");
}

fn user_namespace_maps_ids(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    map_ids(&mut bundle);
    let report = bundle.report(&["/probe", "/dev/null"]);
    assert_ne!(report.namespace("user"), own("user"));
    assert_mapped(&report);
    assert_eq!(report.path("/probe")["uid"], 65534, "the host's root is nobody inside");
    assert_eq!(report.path("/dev/null")["device"], json!([1, 3]));
    assert_eq!(report.path("/dev/null")["write"], json!(null));
}

fn user_namespace_can_be_joined(runtime: &Runtime) {
    let mut first = runtime.bundle();
    map_ids(&mut first);
    first.probe(&["sleep"]);
    let target = first.start();
    let mut bundle = runtime.bundle();
    for (name, link) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        bundle.namespace(name, Some(&format!("/proc/{}/ns/{link}", target.pid)));
    }
    let report = bundle.report(&[]);
    assert_mapped(&report);
    let expected = fs::read_link(format!("/proc/{}/ns/user", target.pid)).expect("the first container runs");
    assert_eq!(report.namespace("user"), expected.to_string_lossy());
}

fn a_path_of_the_wrong_type_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("network", Some("/proc/self/ns/uts"));
    let output = bundle.run();
    assert_ne!(output.code, 0);
    bundle.assert_nothing_left();
}

fn a_missing_path_is_refused(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.namespace("network", Some("/run/netns/there-is-none"));
    let error = bundle.run().failure();
    assert!(error.contains("/run/netns/there-is-none"), "{error}");
    bundle.assert_nothing_left();
}

fn hostname_and_domainname_are_set(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    bundle.spec["hostname"] = json!("ship");
    // runc 1.1 does not know the domainname of config.md (1.1.0); it ignores it.
    if !runtime.is("runc") {
        bundle.spec["domainname"] = json!("sea.example");
    }
    let report = bundle.report(&[]);
    assert_eq!(report["hostname"], "ship");
    assert_eq!(
        report["domainname"],
        if runtime.is("runc") { "(none)" } else { "sea.example" }
    );
}

/// A process in a mount namespace of its own.
pub(crate) struct Holder(Child);

impl Holder {
    /// Sets the namespace up with a line of shell; its mounts spread as `propagation` says.
    pub(crate) fn new(propagation: &str, script: &str) -> Holder {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", propagation, "sh", "-ec"])
            .arg(format!("{script}\nexec sleep 60"))
            .stdin(Stdio::null());
        let holder = Holder(command.spawn().expect("start unshare"));
        let ready = wait_until(|| {
            let line = fs::read_to_string(holder.proc("cmdline")).unwrap_or_default();
            line.starts_with("sleep").then_some(())
        });
        ready.expect("the namespace is set up");
        holder
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0.id()).into()
    }

    pub(crate) fn path(&self) -> String {
        self.proc("ns/mnt").to_string_lossy().into_owned()
    }

    /// What is at a path of the namespace.
    fn has(&self, path: &str) -> bool {
        self.proc("root").join(path).exists()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("kill the holder");
        self.0.wait().expect("wait for the holder");
    }
}

/// Mount points of a process, and what is on them.
fn mounts(process: &Path) -> Vec<String> {
    let text = fs::read_to_string(process.join("mountinfo")).expect("the process is there");
    let fields = |line: &str| line.split(' ').skip(2).take(3).collect::<Vec<_>>().join(" ");
    text.lines().map(fields).collect()
}

/// The container's root becomes that of the namespace, for every process in it; the host sees nothing of it.
fn join_mount_namespace(runtime: &Runtime, propagation: &str) {
    let holder = Holder::new(propagation, "");
    let mut bundle = runtime.bundle();
    bundle.namespace("mount", Some(&holder.path()));
    let report = bundle.report(&["/etc", "/dev/null", "/tests"]);
    assert_eq!(
        Some(Path::new(report.namespace("mnt"))),
        fs::read_link(holder.path()).ok().as_deref()
    );
    assert_eq!(report.path("/dev/null")["device"], json!([1, 3]));
    assert_eq!(report["init_executable"], "/probe");
    assert!(report.find_mount("/proc").is_some() && report.find_mount("/dev").is_some());
    let roots = report["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mount| mount["destination"] == "/");
    assert_eq!(roots.count(), 1, "the old root is gone");
    assert!(holder.has("probe"), "the holder's root is the container's");
    let own = mounts(Path::new("/proc/self"));
    assert!(!own.iter().any(|mount| mount.contains(&bundle.id)), "{own:?}");
    bundle.assert_nothing_left();
}

fn a_mount_namespace_can_be_joined(runtime: &Runtime) {
    join_mount_namespace(runtime, "private");
}

fn a_shared_mount_namespace_can_be_joined(runtime: &Runtime) {
    join_mount_namespace(runtime, "shared");
}

fn paths_are_those_of_a_joined_mount_namespace(runtime: &Runtime) {
    let mut bundle = runtime.bundle();
    let data = bundle.path().join("data");
    fs::create_dir(&data).expect("make a directory of the test");
    let script = format!("mount -t tmpfs none {0}; mkdir {0}/inside", data.display());
    let holder = Holder::new("private", &script);
    bundle.namespace("mount", Some(&holder.path()));
    let mount = json!({ "destination": "/data", "type": "bind", "source": data, "options": ["bind"] });
    bundle.add_mount(mount);
    let report = bundle.report(&[]);
    assert_eq!(report.mount("/data")["type"], "tmpfs");
    assert!(holder.has("data/inside"));
}

fn exec_enters_a_joined_mount_namespace(runtime: &Runtime) {
    let holder = Holder::new("private", "");
    let mut bundle = runtime.bundle();
    bundle.namespace("mount", Some(&holder.path()));
    bundle.probe(&["sleep"]);
    let _container = bundle.start();
    let report = bundle.exec_report(&[]);
    assert_eq!(
        Some(Path::new(report.namespace("mnt"))),
        fs::read_link(holder.path()).ok().as_deref()
    );
    assert!(report.find_mount("/proc").is_some());
}

fn a_container_s_mount_namespace_is_left_as_it_is(runtime: &Runtime) {
    let mut first = runtime.bundle();
    first.probe(&["sleep"]);
    let target = first.start();
    let process = PathBuf::from(format!("/proc/{}", target.pid));
    let before = mounts(&process);
    let mut bundle = runtime.bundle();
    for (name, link) in [("mount", "mnt"), ("pid", "pid")] {
        let path = process.join("ns").join(link);
        bundle.namespace(name, Some(&path.to_string_lossy()));
    }
    // Its root is not to be found there.
    let error = bundle.run().failure();
    assert!(
        error.contains("No such file") || error.contains("no such file"),
        "{error}"
    );
    assert_eq!(mounts(&process), before);
    bundle.assert_nothing_left();
}

fn a_failed_create_leaves_a_joined_mount_namespace_as_it_is(runtime: &Runtime) {
    let holder = Holder::new("private", "");
    let before = mounts(&holder.proc(""));
    let mut bundle = runtime.bundle();
    bundle.namespace("mount", Some(&holder.path()));
    bundle.add_mount(json!({ "destination": "/x", "type": "nosuchfs", "source": "none" }));
    let error = bundle.run().failure();
    assert!(error.contains("nosuchfs"), "{error}");
    assert_eq!(mounts(&holder.proc("")), before);
    assert!(!holder.has("probe"));
    bundle.assert_nothing_left();
}
