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

mod command;
mod container;
mod report;
mod spec;
pub mod user;

pub use command::{Output, Running, finish, wait_until};
pub use container::{Container, wait_for};
pub use report::Report;
pub use spec::default_spec;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use command::contents;
use container::{read_pid, reap, still_ours};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use spec::make_rootfs;
use tempfile::TempDir;
use user::{Caller, Home};

use crate::cgroup;

/// The OCI runtimes every test runs against: ours, and runc as the control that the test itself is right.
pub const RUNTIMES: [&str; 2] = ["corten", "runc"];

/// An OCI runtime with a state directory of its own.
pub struct Runtime {
    name: &'static str,
    binary: PathBuf,
    root: TempDir,
    marker: String,
    /// Of the ordinary user it is run as.
    home: Option<Home>,
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
        Runtime::find_as(Caller::Root, name)
    }

    /// The same, to be run by this user. Every bundle is then the user's, and its specification one that such a user can
    /// ask for.
    ///
    /// # Panics
    /// As [`Runtime::find`].
    #[must_use]
    pub fn find_as(caller: Caller, name: &'static str) -> Option<Runtime> {
        static SUBREAPER: Once = Once::new();
        SUBREAPER.call_once(|| {
            nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER takes any process");
        });
        let binary = match name {
            "corten" => std::env::var_os("OCI_RUNTIME").map_or_else(|| crate::binary("corten"), PathBuf::from),
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
        let home = Home::new(caller, &marker).expect("make the user's files");
        if home.is_some() {
            user::give(root.path()).expect("give the state directory to the user");
        }
        Some(Runtime {
            name,
            binary,
            root,
            marker,
            home,
        })
    }

    /// Whether this is the runtime called `name`.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// Whether an ordinary user runs it.
    #[must_use]
    pub fn is_rootless(&self) -> bool {
        self.home.is_some()
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
        let mut command = self.program();
        command.arg("--root").arg(self.root.path());
        command
    }

    /// The command line of the program alone.
    #[must_use]
    pub fn program(&self) -> Command {
        let mut command = match &self.home {
            Some(home) => home.command(&self.binary),
            None => Command::new(&self.binary),
        };
        command.stdin(Stdio::null());
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
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("open the bundle to all");
        make_rootfs(&directory.path().join("rootfs")).expect("make the root filesystem");
        let mut spec = default_spec(&id);
        if let Some(home) = &runtime.home {
            home.adapt(&mut spec);
        }
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
        self.directory.path().join("rootfs").join(path.trim_start_matches('/'))
    }

    /// Where the runtime keeps this container's state.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.runtime.root().join(&self.id)
    }

    /// Lets the container run the probe with these arguments.
    pub fn probe(&mut self, args: &[&str]) -> &mut Self {
        let all: Vec<&str> = std::iter::once("/probe").chain(args.iter().copied()).collect();
        self.spec["process"]["args"] = json!(all);
        self
    }

    /// Puts a program of this workspace into the root, as `/NAME`.
    ///
    /// # Panics
    /// Where it cannot be put there.
    pub fn add_program(&self, name: &str) {
        spec::link_program(&self.rootfs("/"), name).expect("put a program into the root");
    }

    /// The mount entry for `destination`.
    ///
    /// # Panics
    /// Where there is none.
    pub fn mount(&mut self, destination: &str) -> &mut Value {
        let mounts = self.spec["mounts"].as_array_mut().expect("mounts are a list");
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
        self.namespaces().retain(|namespace| namespace["type"] != kind);
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
        fs::write(self.path().join("config.json"), self.spec.to_string()).expect("write config.json");
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
        // With what the test has put there since the last time.
        if self.runtime.is_rootless() {
            user::give(self.path()).expect("give the bundle to the user");
        }
        command
    }

    /// The command line up to the subcommand, with these global options.
    #[must_use]
    pub fn global(&self, options: &[&str]) -> Command {
        let mut command = self.runtime.command();
        command.args(options);
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
        let args: Vec<&str> = std::iter::once("report").chain(paths.iter().copied()).collect();
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
        self.launch_in(&[], subcommand, args)
    }

    /// The same, with variables in the command's environment.
    ///
    /// # Panics
    /// Where the command fails or leaves no pid.
    #[track_caller]
    pub fn launch_in(&self, environment: &[(&str, &str)], subcommand: &str, args: &[&str]) -> Container {
        let pid_file = self.path().join("pid");
        let mut command = self.command(subcommand);
        command.envs(environment.iter().copied());
        command.args(args).arg("--pid-file").arg(&pid_file).arg(&self.id);
        let mut running = Running::start(&mut command);
        let status = wait_until(|| running.child.try_wait().expect("wait for a child"));
        let stderr = contents(&running.stderr);
        assert!(
            status.is_some_and(|status| status.success()),
            "{command:?}: {status:?}: {stderr}"
        );
        let pid = read_pid(&pid_file);
        self.processes.borrow_mut().push(pid);
        Container { pid, made_by: running }
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
        self.state()["status"].as_str().unwrap_or_default().to_owned()
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

    /// Takes a process that a runtime has left to this one, to reap it with the bundle: the pid in `pid_file`.
    ///
    /// # Panics
    /// Where the file holds none.
    #[track_caller]
    pub fn adopt(&self, pid_file: &Path) -> Pid {
        let pid = read_pid(pid_file);
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

    /// A file of the container's cgroup, on v1 in the hierarchy of `controller`, without the newline.
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

    /// The container's cgroup directory, on v1 in the hierarchy of `controller`.
    #[must_use]
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        cgroup::directory(controller, &self.id)
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
