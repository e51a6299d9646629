//! OCI bundles for the tests of the runtime, and the runtimes that run them.
//!
//! A [`Bundle`] is a temporary directory with a root filesystem holding the probe, a `config.json` that starts as
//! `runc spec` would write it, and the id of the one container made from it. A [`Runtime`] is a binary with runc's
//! command line and a state directory of its own. Dropping a bundle deletes its container by force and reaps it.
//!
//! The specification is kept as JSON and not as types: tests must be able to write what is invalid or unknown, and a
//! field whose name the runtime's own types get wrong must not be wrong here in the same way.
//!
//! Commands write to files and not to pipes, because the container inherits its stdio from `create`, and reading a
//! pipe to its end would wait for the container.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything a test does on a loaded machine; a runtime that hangs fails the test after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The OCI runtimes every test runs against: ours, and runc as the control that the test itself is right.
pub const RUNTIMES: [&str; 2] = ["corten", "runc"];

/// An OCI runtime with a state directory of its own.
pub struct Runtime {
    name: &'static str,
    binary: PathBuf,
    root: TempDir,
    marker: String,
}

impl Runtime {
    /// The runtime of this name, or `None` where the machine has no runc. The environment's `OCI_RUNTIME` is the path
    /// of a binary to test in the place of `corten`.
    ///
    /// Makes this process the reaper of the containers it starts, so that [`Container::wait`] sees their exit.
    ///
    /// # Panics
    /// Where no temporary directory can be made, or `corten` has not been built.
    #[must_use]
    pub fn find(name: &'static str) -> Option<Runtime> {
        static SUBREAPER: Once = Once::new();
        SUBREAPER.call_once(|| {
            nix::sys::prctl::set_child_subreaper(true)
                .expect("PR_SET_CHILD_SUBREAPER takes any process");
        });
        let binary = match name {
            "corten" => std::env::var_os("OCI_RUNTIME")
                .map_or_else(|| crate::binary("corten"), PathBuf::from),
            _ => ["/usr/sbin", "/usr/bin", "/usr/local/sbin"]
                .iter()
                .map(|directory| Path::new(directory).join(name))
                .find(|path| path.exists())?,
        };
        let marker = unique("oci");
        let root = tempfile::Builder::new()
            .prefix(&marker)
            .tempdir()
            .expect("make the state directory");
        Some(Runtime {
            name,
            binary,
            root,
            marker,
        })
    }

    /// Whether this is the runtime called `name`.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// A word in the id of every container, every cgroup path and every command line of this runtime.
    #[must_use]
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// The directory given as `--root`.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The command line up to the subcommand: `RUNTIME --root DIR`.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--root")
            .arg(self.root.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `RUNTIME --root DIR ARGS..` to its end.
    ///
    /// # Panics
    /// Where it cannot be started or does not end.
    pub fn call<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Output {
        finish(self.command().args(args))
    }

    /// A new bundle with a new id.
    #[must_use]
    pub fn bundle(&self) -> Bundle<'_> {
        Bundle::new(self)
    }

    /// The ids `list --quiet` prints.
    ///
    /// # Panics
    /// Where `list` fails.
    pub fn list(&self) -> Vec<String> {
        let output = self.call(["list", "--quiet"]).success();
        output.stdout.lines().map(str::to_owned).collect()
    }
}

/// A word no other test of this or another process uses.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{prefix}{}x{}x",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// The exit code; 128 + n after signal n, as shells count.
    pub code: i32,
    /// What it, or the container it ran, wrote to stdout.
    pub stdout: String,
    /// The same for stderr.
    pub stderr: String,
}

impl Output {
    /// This output, of a command that exited with 0.
    ///
    /// # Panics
    /// Where it did not.
    #[must_use]
    #[track_caller]
    pub fn success(self) -> Output {
        assert_eq!(self.code, 0, "failed: {self:?}");
        self
    }

    /// The error of a command that failed the way runc's command line asks: exit code 1, or 255 for `exec` (runc's),
    /// and one line of error on stderr. Lines runc marks as warnings do not count.
    ///
    /// # Panics
    /// Where it succeeded or said nothing or too much.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(
            self.code == 1 || self.code == 255,
            "not a failure: {self:?}"
        );
        let mut errors = self
            .stderr
            .lines()
            .filter(|line| !line.contains("level=warning"));
        let error = errors
            .next()
            .unwrap_or_else(|| panic!("no error: {self:?}"));
        assert_eq!(errors.next(), None, "one line of error: {self:?}");
        error.to_owned()
    }
}

/// A command that has been started, with files as its stdout and stderr.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Running {
        let stdout = tempfile::tempfile().expect("make a file for stdout");
        let stderr = tempfile::tempfile().expect("make a file for stderr");
        let child = command
            .stdout(stdout.try_clone().expect("duplicate a descriptor"))
            .stderr(stderr.try_clone().expect("duplicate a descriptor"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running {
            child,
            stdout,
            stderr,
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is an i32"))
    }

    /// What has been written to stdout so far.
    ///
    /// # Panics
    /// Where the file cannot be read.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// Where it does not end; it is killed then.
    pub fn wait(mut self) -> Output {
        let end = wait_until(|| self.child.try_wait().expect("wait for a child"));
        let Some(status) = end else {
            panic!(
                "still running after {PATIENCE:?}; stderr: {}",
                contents(&self.stderr)
            );
        };
        let code = status
            .code()
            .or(status.signal().map(|signal| 128 + signal))
            .expect("it exited or was killed");
        Output {
            code,
            stdout: contents(&self.stdout),
            stderr: contents(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both succeed where it has ended and been reaped.
        self.child.kill().expect("kill a child");
        self.child.wait().expect("reap a child");
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    Running::start(command).wait()
}

fn contents(file: &File) -> String {
    // Opened anew: the offset of `file` is the writer's.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let bytes = fs::read(path).expect("read a file of ours");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Polls until `look` answers, for as long as anything in these tests may take.
pub fn wait_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A bundle directory and the id of its container.
pub struct Bundle<'r> {
    runtime: &'r Runtime,
    directory: TempDir,
    /// The container's id.
    pub id: String,
    /// What [`Bundle::write`] writes as `config.json`.
    pub spec: Value,
    /// Processes of the container that this process is to reap: inits, and execs that were detached.
    processes: RefCell<Vec<Pid>>,
}

impl<'r> Bundle<'r> {
    fn new(runtime: &'r Runtime) -> Bundle<'r> {
        let id = unique(&runtime.marker);
        let directory = tempfile::Builder::new()
            .prefix(&id)
            .tempdir()
            .expect("make the bundle directory");
        // A container's root user may be anyone to the host, and must still reach its files.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
            .expect("open the bundle to all");
        make_rootfs(&directory.path().join("rootfs")).expect("make the root filesystem");
        let spec = default_spec(&id);
        Bundle {
            runtime,
            directory,
            id,
            spec,
            processes: RefCell::new(Vec::new()),
        }
    }

    /// The bundle directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path inside the root filesystem, from the host.
    #[must_use]
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.directory
            .path()
            .join("rootfs")
            .join(path.trim_start_matches('/'))
    }

    /// Where the runtime keeps this container's state.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.runtime.root().join(&self.id)
    }

    /// Lets the container run the probe with these arguments.
    pub fn probe(&mut self, args: &[&str]) -> &mut Self {
        let all: Vec<&str> = std::iter::once("/probe")
            .chain(args.iter().copied())
            .collect();
        self.spec["process"]["args"] = json!(all);
        self
    }

    /// The mount entry for `destination`.
    ///
    /// # Panics
    /// Where there is none.
    pub fn mount(&mut self, destination: &str) -> &mut Value {
        let mounts = self.spec["mounts"]
            .as_array_mut()
            .expect("mounts are a list");
        mounts
            .iter_mut()
            .find(|mount| mount["destination"] == destination)
            .expect("the mount is in the list")
    }

    /// Adds a mount after those there are.
    ///
    /// # Panics
    /// Where the specification's mounts are no list any more.
    pub fn add_mount(&mut self, mount: Value) {
        self.spec["mounts"]
            .as_array_mut()
            .expect("mounts are a list")
            .push(mount);
    }

    /// Adds or replaces a namespace; no path means a new one.
    ///
    /// # Panics
    /// Where the specification's namespaces are no list any more.
    pub fn namespace(&mut self, kind: &str, path: Option<&str>) {
        self.remove_namespace(kind);
        let mut namespace = json!({ "type": kind });
        if let Some(path) = path {
            namespace["path"] = json!(path);
        }
        self.namespaces().push(namespace);
    }

    /// Leaves the container in the runtime's namespace of this kind.
    pub fn remove_namespace(&mut self, kind: &str) {
        self.namespaces()
            .retain(|namespace| namespace["type"] != kind);
    }

    fn namespaces(&mut self) -> &mut Vec<Value> {
        self.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces are a list")
    }

    /// Writes `config.json`.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self) {
        fs::write(self.path().join("config.json"), self.spec.to_string())
            .expect("write config.json");
    }

    /// `RUNTIME --root DIR SUBCOMMAND`, with `--bundle` where the subcommand takes it; the id is not yet given.
    #[must_use]
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = self.runtime.command();
        command.arg(subcommand);
        if ["create", "run"].contains(&subcommand) {
            self.write();
            command.arg("--bundle").arg(self.path());
        }
        command
    }

    /// Calls a subcommand on this container: `RUNTIME --root DIR SUBCOMMAND ARGS.. ID`.
    pub fn call(&self, subcommand: &str, args: &[&str]) -> Output {
        finish(self.command(subcommand).args(args).arg(&self.id))
    }

    /// `run`s the container to its end.
    pub fn run(&self) -> Output {
        self.call("run", &[])
    }

    /// `run`s the probe's report, also on these paths inside the container.
    ///
    /// # Panics
    /// Where the container fails or prints no report.
    #[track_caller]
    pub fn report(&mut self, paths: &[&str]) -> Report {
        let args: Vec<&str> = std::iter::once("report")
            .chain(paths.iter().copied())
            .collect();
        self.probe(&args);
        Report::parse(&self.run().success().stdout)
    }

    /// `create`s the container and remembers to reap it.
    ///
    /// # Panics
    /// Where `create` fails.
    #[track_caller]
    pub fn create(&self) -> Container {
        self.launch("create", &[])
    }

    /// `create`s and `start`s the container.
    ///
    /// # Panics
    /// Where either fails.
    #[track_caller]
    pub fn start(&self) -> Container {
        let container = self.create();
        let _started = self.call("start", &[]).success();
        container
    }

    /// `create`, or `run --detach`, with a pid file.
    ///
    /// # Panics
    /// Where the command fails or leaves no pid.
    #[track_caller]
    pub fn launch(&self, subcommand: &str, args: &[&str]) -> Container {
        let pid_file = self.path().join("pid");
        let mut command = self.command(subcommand);
        command
            .args(args)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&self.id);
        let mut running = Running::start(&mut command);
        let status = wait_until(|| running.child.try_wait().expect("wait for a child"));
        let stderr = contents(&running.stderr);
        assert!(
            status.is_some_and(|status| status.success()),
            "{command:?}: {status:?}: {stderr}"
        );
        let pid = read_pid(&pid_file);
        self.processes.borrow_mut().push(pid);
        Container {
            pid,
            made_by: running,
        }
    }

    /// The OCI state.
    ///
    /// # Panics
    /// Where `state` fails or prints no JSON.
    #[track_caller]
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.call("state", &[]).success().stdout).expect("state prints JSON")
    }

    /// The status in the OCI state.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> String {
        self.state()["status"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until the OCI state says `status`.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn wait_for_status(&self, status: &str) {
        let found = wait_until(|| (self.status() == status).then_some(()));
        assert!(found.is_some(), "never {status}: {}", self.state());
    }

    /// Runs a program in the container: `exec OPTIONS.. ID ARGS..`.
    pub fn exec(&self, options: &[&str], args: &[&str]) -> Output {
        finish(self.command("exec").args(options).arg(&self.id).args(args))
    }

    /// Starts a program in the container: `exec --detach OPTIONS.. ID ARGS..`. Its exit is this process's to take, by
    /// [`wait_for`], and its container does not end before.
    ///
    /// # Panics
    /// Where exec fails or leaves no pid.
    #[track_caller]
    pub fn exec_detached(&self, options: &[&str], args: &[&str]) -> Pid {
        let pid_file = self.path().join("exec-pid");
        let mut command = self.command("exec");
        command
            .arg("--detach")
            .arg("--pid-file")
            .arg(&pid_file)
            .args(options)
            .arg(&self.id)
            .args(args);
        let _started = finish(&mut command).success();
        let pid = read_pid(&pid_file);
        self.processes.borrow_mut().push(pid);
        pid
    }

    /// The probe's report from inside the running container, by `exec`.
    ///
    /// # Panics
    /// Where exec fails or prints no report.
    #[track_caller]
    pub fn exec_report(&self, options: &[&str]) -> Report {
        Report::parse(&self.exec(options, &["/probe", "report"]).success().stdout)
    }

    /// A file of the container's cgroup on the v1 hierarchy of `controller`, without the newline.
    ///
    /// # Panics
    /// Where it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn cgroup_file(&self, controller: &str, file: &str) -> String {
        let path = self.cgroup(controller).join(file);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim_end()
            .to_owned()
    }

    /// The container's cgroup directory on the v1 hierarchy of `controller`.
    #[must_use]
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(&self.id)
    }

    /// Fails unless a command that failed undid all it did.
    ///
    /// # Panics
    /// Where the state directory or a cgroup is there.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert!(
            !self.state_directory().exists(),
            "{} is left",
            self.state_directory().display()
        );
        for controller in ["memory", "pids", "cpu", "devices", "freezer", "systemd"] {
            assert!(
                !self.cgroup(controller).exists(),
                "{} is left",
                self.cgroup(controller).display()
            );
        }
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        // Execs before inits: the init of a pid namespace does not end before all others in it have been reaped, and
        // those that were detached are this process's to reap.
        let processes = self.processes.take();
        for pid in processes.iter().rev() {
            if thread::panicking() && still_ours(*pid) {
                let _gone = kill(*pid, Signal::SIGKILL);
                reap(*pid);
            }
        }
        if self.state_directory().exists() {
            let output = self.call("delete", &["--force"]);
            assert!(
                thread::panicking() || output.code == 0,
                "delete --force {}: {output:?}",
                self.id
            );
        }
        for pid in processes {
            reap(pid);
        }
    }
}

/// Whether this is a child that has not been reaped: then its pid cannot be another process's.
fn still_ours(pid: Pid) -> bool {
    waitid(
        Id::Pid(pid),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
    )
    .is_ok()
}

/// Takes the exit of a container's init; one that was reaped before is fine.
fn reap(pid: Pid) -> Option<WaitStatus> {
    wait_until(|| match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(status) => Some(Some(status)),
        Err(_not_ours) => Some(None),
    })
    .flatten()
}

/// A container made by `create` or `run --detach`.
pub struct Container {
    /// The host's pid of its init.
    pub pid: Pid,
    made_by: Running,
}

impl Container {
    /// What it has written to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.made_by.stdout)
    }

    /// What it, and the command that made it, have written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        contents(&self.made_by.stderr)
    }

    /// Waits until stdout holds `text`.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let found = wait_until(|| self.stdout().contains(text).then_some(()));
        assert!(
            found.is_some(),
            "no {text:?} in {:?}; stderr {:?}",
            self.stdout(),
            self.stderr()
        );
    }

    /// Waits for its init to exit: the code, or 128 + n after signal n.
    ///
    /// # Panics
    /// Where it does not exit, or somebody else reaped it.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        wait_for(self.pid)
    }

    /// The report it printed.
    ///
    /// # Panics
    /// Where it printed none.
    #[must_use]
    #[track_caller]
    pub fn report(&self) -> Report {
        Report::parse(&self.stdout())
    }
}

fn read_pid(file: &Path) -> Pid {
    let text = fs::read_to_string(file).expect("read the pid file");
    Pid::from_raw(text.parse().expect("a pid file holds digits alone"))
}

/// Waits for a process a runtime left to this one: the code, or 128 + n after signal n.
///
/// # Panics
/// Where it does not exit, or somebody else reaped it.
#[track_caller]
pub fn wait_for(pid: Pid) -> i32 {
    match reap(pid) {
        Some(WaitStatus::Exited(_, code)) => code,
        Some(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        other => panic!("{pid}: {other:?}"),
    }
}

/// What the probe printed.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// # Panics
    /// Where `text` is not one JSON document.
    #[must_use]
    #[track_caller]
    pub fn parse(text: &str) -> Report {
        Report(
            serde_json::from_str(text)
                .unwrap_or_else(|error| panic!("no report ({error}): {text:?}")),
        )
    }

    /// What it says of a path it was asked about.
    #[must_use]
    pub fn path(&self, path: &str) -> &Value {
        &self.0["paths"][path]
    }

    /// The last mount on `destination`: the one that is seen there.
    ///
    /// # Panics
    /// Where nothing is mounted there.
    #[must_use]
    #[track_caller]
    pub fn mount(&self, destination: &str) -> &Value {
        self.find_mount(destination)
            .unwrap_or_else(|| panic!("no mount on {destination}: {}", self.0["mounts"]))
    }

    /// The last mount on `destination`, if there is one.
    #[must_use]
    pub fn find_mount(&self, destination: &str) -> Option<&Value> {
        self.0["mounts"]
            .as_array()?
            .iter()
            .rfind(|mount| mount["destination"] == destination)
    }

    /// Whether the mount on `destination` has this option (of the mount itself, not of its filesystem).
    #[must_use]
    #[track_caller]
    pub fn has_option(&self, destination: &str, option: &str) -> bool {
        self.mount(destination)["options"]
            .as_array()
            .is_some_and(|options| options.contains(&json!(option)))
    }

    /// The namespace of this kind, as `pid:[4026531836]`.
    #[must_use]
    pub fn namespace(&self, kind: &str) -> &str {
        self.0["namespaces"][kind].as_str().unwrap_or_default()
    }

    /// A line of `/proc/self/status`.
    #[must_use]
    pub fn status(&self, name: &str) -> &str {
        self.0["status"][name].as_str().unwrap_or_default()
    }
}

impl Deref for Report {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

fn make_rootfs(root: &Path) -> std::io::Result<()> {
    for directory in [
        "dev",
        "etc",
        "home/tester",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777))?;
    let probe = crate::binary("probe");
    // A link: the copy of a program would be open for writing while another test's thread forks, and could not be
    // executed as long as that child has the descriptor (ETXTBSY).
    if fs::hard_link(&probe, root.join("probe")).is_err() {
        fs::copy(&probe, root.join("probe"))?;
    }
    symlink("/probe", root.join("usr/bin/probe"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000::/home/tester:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\ntester:x:1000:\n")
}

/// What `runc spec` writes, with our root filesystem, the probe, no terminal, and a cgroup of the container's own.
fn default_spec(id: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/probe", "report"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities,
                "permitted": capabilities, "ambient": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "probe",
        "mounts": default_mounts(),
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn default_mounts() -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
          "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
    ])
}
