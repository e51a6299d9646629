//! `corten-cri doctor` on machines with one fault each, planted where only the doctor sees it: in a mount namespace and a
//! network namespace of its own, in files of a test's directory, in processes and cgroups of the test.

mod faults;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use corten_tests::binary;
use corten_tests::netns::Netns;
use corten_tests::node::Node;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::faults::{DISKS, Fault, LEFTOVERS, NETWORKS, PROGRAMS, SETTINGS};

/// An id as the server makes them.
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Makes what could be wrong with the machine that runs the tests right, where the doctor looks.
const HEALTHY: &str = r#"
    echo 1 > /proc/sys/net/ipv4/ip_forward
    over() { file=$(mktemp -p "$DIR"); printf '%s\n' "$2" > "$file"; mount --bind "$file" "$1"; }
    over /etc/resolv.conf 'nameserver 192.0.2.1'
    over /proc/sys/fs/inotify/max_user_instances 8192
"#;

/// Disks with room, whatever the machine has.
const ROOM: &str = "
    mount -t tmpfs -o mode=700,size=256m none $DIR/lib
    mount -t tmpfs -o mode=700,size=256m none $DIR/run
";

/// A machine without a server: its configuration, its directories, its network.
struct Machine {
    network: Netns,
    dir: TempDir,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::Builder::new().prefix("ct-").tempdir_in("/tmp").unwrap();
        for name in ["lib", "run", "cni"] {
            fs::DirBuilder::new().mode(0o700).create(dir.path().join(name)).unwrap();
        }
        let network = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "macvlan" }] });
        fs::write(dir.path().join("cni/10-net.conflist"), network.to_string()).unwrap();
        let machine = Machine {
            network: Netns::new().unwrap(),
            dir,
        };
        machine.configure("");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The name that its cgroups carry.
    fn marker(&self) -> String {
        self.dir.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Writes the configuration, with `more` keys before its tables.
    fn configure(&self, more: &str) {
        let (dir, marker) = (self.dir.path().display(), self.marker());
        let driver = if more.contains("cgroup_driver") {
            ""
        } else {
            "cgroup_driver = \"cgroupfs\""
        };
        let text = format!(
            "root = \"{dir}/lib\"\nstate = \"{dir}/run\"\nnetns_dir = \"{dir}/run/netns\"\ncgroup_parent = \"/{marker}\"\n\
             {driver}\n{}\n[cni]\nconf_dir = \"{dir}/cni\"\nbin_dirs = [\"{dir}/bin\", \"/usr/lib/cni\"]\n",
            more.replace("$DIR", &dir.to_string())
        );
        let text = text + no_builtin_network();
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Runs the doctor after a shell script, both in a mount namespace that goes with them.
    fn output(&self, program: &Path, plant: &str, arguments: &[&str]) -> Output {
        let script = format!("set -e\n{HEALTHY}\n{ROOM}\n{plant}\nexec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.arg(program).arg("--config").arg(self.path("config.toml"));
        command
            .arg("doctor")
            .args(arguments)
            .env("DIR", self.dir.path())
            .env("ID", ID);
        self.network.enter(|| command.output()).unwrap()
    }

    fn doctor(&self, plant: &str) -> Report {
        Report::of(&self.output(&binary("corten-cri"), plant, &["--json"]))
    }
}

/// Keys that leave a machine without a CNI configuration without any network.
fn no_builtin_network() -> &'static str {
    let output = Command::new(binary("corten-cri"))
        .args(["config", "default"])
        .output()
        .unwrap();
    let default: toml::Table = toml::from_str(str::from_utf8(&output.stdout).unwrap()).unwrap();
    let network = default.get("network").and_then(toml::Value::as_table);
    match network.is_some_and(|network| network.contains_key("builtin")) {
        true => "[network]\nbuiltin = false\n",
        false => "",
    }
}

/// What the doctor has said.
struct Report {
    checks: Vec<Value>,
    code: Option<i32>,
}

impl Report {
    fn of(output: &Output) -> Report {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|it| panic!("{it}: {error}"));
        Report {
            checks: document["checks"].as_array().unwrap().clone(),
            code: output.status.code(),
        }
    }

    /// What is wrong by a check's name, the worst first.
    fn complaint(&self, name: &str) -> Option<&Value> {
        self.checks.iter().find(|check| check["name"] == name && is_bad(check))
    }

    #[track_caller]
    fn assert_complains(&self, name: &str, found: &str, fix: &str) {
        let check = self
            .complaint(name)
            .unwrap_or_else(|| panic!("no complaint of {name}: {:#?}", self.checks));
        for (key, words) in [("found", found), ("fix", fix)] {
            let text = check[key].as_str().unwrap();
            assert!(text.contains(words), "{name}: {key}: {words:?} in {text:?}");
        }
        assert_ne!(check["meaning"], "", "{name}");
    }

    fn problems(&self) -> Vec<&Value> {
        self.checks
            .iter()
            .filter(|check| check["verdict"] == "problem")
            .collect()
    }
}

fn is_bad(check: &Value) -> bool {
    check["verdict"] == "problem" || check["verdict"] == "warning"
}

/// Plants each on a machine of its own.
#[track_caller]
fn assert_found(faults: &[Fault]) {
    let healthy = Machine::new().doctor("");
    for fault in faults {
        let said = healthy.complaint(fault.name).map(|check| check["found"].to_string());
        // The machine that runs the tests may lack something else.
        assert!(
            said.is_none_or(|said| !said.contains(fault.found)),
            "{}: without the fault",
            fault.name
        );
        let machine = Machine::new();
        machine.configure(fault.keys);
        let report = machine.doctor(fault.plant);
        report.assert_complains(fault.name, fault.found, fault.fix);
        let code = if report.problems().is_empty() { 0 } else { 1 };
        assert_eq!(report.code, Some(code), "{}", fault.name);
    }
}

#[test]
fn kernel_settings_that_pods_suffer_from_are_found() {
    assert_found(SETTINGS);
}

#[test]
fn disks_and_permissions_that_are_wrong_are_found() {
    assert_found(DISKS);
}

#[test]
fn programs_and_keys_that_are_wrong_are_found() {
    assert_found(PROGRAMS);
}

#[test]
fn networks_that_cannot_work_are_found() {
    assert_found(NETWORKS);
}

#[test]
fn what_is_left_of_pods_is_found() {
    assert_found(LEFTOVERS);
}

/// A cgroup that goes with the test.
struct LostCgroup(Vec<PathBuf>);

impl Drop for LostCgroup {
    fn drop(&mut self) {
        for directory in &self.0 {
            fs::remove_dir(directory).expect("remove our own cgroup");
        }
    }
}

#[test]
fn a_cgroup_that_no_pod_has_is_found() {
    let machine = Machine::new();
    let pids = Path::new("/sys/fs/cgroup/pids");
    let hierarchy = if pids.is_dir() {
        pids
    } else {
        Path::new("/sys/fs/cgroup")
    };
    let parent = hierarchy.join(machine.marker());
    let lost = LostCgroup(vec![parent.join(ID), parent]);
    fs::create_dir_all(&lost.0[0]).unwrap();
    let report = machine.doctor("");
    report.assert_complains("leftover-cgroups", ID, "rmdir");
    assert!(lost.0[0].is_dir(), "nothing was touched");
}

/// A process that goes with the test.
struct LostShim(Child);

impl Drop for LostShim {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

#[test]
fn a_shim_that_no_pod_has_is_found() {
    let machine = Machine::new();
    let mut command = Command::new("/bin/sh");
    command
        .arg0("corten-shim")
        .args(["-c", "read _", "--id", ID, "--pause-rootfs"]);
    command
        .arg(machine.path("lib/pause"))
        .stdin(std::process::Stdio::piped());
    let shim = LostShim(command.spawn().unwrap());
    let report = machine.doctor("");
    report.assert_complains("leftover-shims", &format!("process {} of {ID}", shim.0.id()), "kill");
}

#[test]
fn a_clock_from_before_the_program_was_written_is_found() {
    let machine = Machine::new();
    let program = machine.path("corten-cri");
    fs::copy(binary("corten-cri"), &program).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(365 * 86_400);
    fs::File::options()
        .write(true)
        .open(&program)
        .unwrap()
        .set_modified(later)
        .unwrap();
    let report = Report::of(&machine.output(&program, "", &["--json"]));
    report.assert_complains("clock", "this program was written 11months", "chrony");
}

#[test]
fn a_server_that_does_not_answer_is_found() {
    let node = Node::start();
    let pid = Pid::from_raw(node.server_pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let report = of_node(&node);
    kill(pid, Signal::SIGCONT).unwrap();
    report.assert_complains("server", &format!("process {pid} holds "), "support-bundle");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

#[test]
fn a_program_that_hangs_does_not_hang_the_doctor() {
    let machine = Machine::new();
    fs::create_dir(machine.path("bin")).unwrap();
    let shim = machine.path("bin/corten-shim");
    fs::write(&shim, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    machine.configure("shim = \"$DIR/bin/corten-shim\"\n");
    let begun = Instant::now();
    let report = machine.doctor("");
    report.assert_complains("corten-shim-version", "not done in 5 s", "one release");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

/// The doctor in the network of a node, with what could be wrong with the machine made right.
fn of_node(node: &Node) -> Report {
    let mut command = Command::new("unshare");
    let script = format!("set -e\n{HEALTHY}\nexec \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command
        .arg(binary("corten-cri"))
        .arg("--config")
        .arg(node.dir().join("config.toml"));
    command.args(["doctor", "--json"]).env("DIR", node.dir());
    Report::of(&node.network.enter(|| command.output()).unwrap())
}

#[test]
fn a_healthy_node_has_no_problem_and_nothing_is_changed() {
    let node = Node::start();
    let pod = node.pod("healthy");
    let container = pod.sh("main", "exec sleep 1000");
    let before = node.pods_left();
    let report = of_node(&node);
    assert_eq!(report.problems(), Vec::<&Value>::new());
    assert_eq!(report.code, Some(0));
    for name in [
        "leftover-shims",
        "leftover-mounts",
        "leftover-netns",
        "leftover-cgroups",
        "leftover-files",
        "records",
    ] {
        assert_eq!(report.complaint(name), None);
    }
    let names: Vec<&str> = report
        .checks
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    for name in [
        "overlayfs",
        "idmapped-mounts",
        "server",
        "kernel-version",
        "capabilities",
        "memory",
        "criu",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(node.pods_left(), before);
    container.stop(0);
}

#[test]
fn the_text_is_short_and_has_the_worst_first() {
    let machine = Machine::new();
    let output = machine.output(&binary("corten-cri"), "rm $DIR/cni/*", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("problem  "), "{text}");
    assert!(
        text.contains("means  pods get no network") && text.contains("fix  install a network"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "no colours but on a terminal");
    assert!(!text.contains("\nok "), "{text}");
    let all = machine.output(&binary("corten-cri"), "", &["--all"]);
    assert!(
        String::from_utf8(all.stdout)
            .unwrap()
            .contains("\nok       kernel-version")
    );
}

#[test]
fn who_is_not_root_is_told() {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(binary("corten-cri"))
        .arg("doctor")
        .output()
        .unwrap();
    // Where the tests lie, others may not even execute.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("Permission denied") {
        eprintln!("skipped: the binary cannot be reached by another user");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("must be root"), "{said}");
}
