//! crictl as a person runs it, against the server of a [`Node`].
//!
//! The program is `target/tools/crictl`, at the version that hack/tools/go.mod pins; hack/test.sh builds it. A test that
//! cannot have it fails.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use serde::Serialize;
use serde_json::Value;

use crate::node::Node;

/// Longest wait for something that is to be printed, or for the end of a program that is expected to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(10);

/// Where crictl is: in `tools` of the directory that cargo builds in.
///
/// # Panics
/// Where it has not been built.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has an executable");
    let found = test
        .ancestors()
        .map(|dir| dir.join("tools/crictl"))
        .find(|path| path.exists());
    found.expect("no target/tools/crictl: hack/test.sh builds it")
}

impl Node {
    /// The arguments that lead crictl to this node.
    fn crictl_endpoint(&self) -> [String; 4] {
        // An empty configuration: this machine's /etc/crictl.yaml may name another runtime.
        let config = self.dir().join("crictl.yaml");
        fs::write(&config, "").expect("write crictl.yaml");
        let socket = format!("unix://{}", self.dir().join("run/corten.sock").display());
        let config = config.display().to_string();
        ["--config".to_owned(), config, "--runtime-endpoint".to_owned(), socket]
    }

    /// The command, ready to run in the node's network.
    fn crictl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(self.crictl_endpoint())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs it, whatever comes of it.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[must_use]
    pub fn crictl_output(&self, arguments: &[&str]) -> Output {
        let mut command = self.crictl_command(arguments);
        let output = self.network.enter(|| command.output());
        output.expect("execute crictl")
    }

    /// Runs it and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn crictl(&self, arguments: &[&str]) -> String {
        let output = self.crictl_output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it and returns the document it printed.
    ///
    /// # Panics
    /// If it fails, or prints anything else.
    #[track_caller]
    pub fn crictl_json(&self, arguments: &[&str]) -> Value {
        let printed = self.crictl(arguments);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    }

    /// Runs it with `input` as stdin, to its end, and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn crictl_with_input(&self, arguments: &[&str], input: &str) -> String {
        let file = self.dir().join("crictl.in");
        fs::write(&file, input).expect("write crictl's input");
        let mut command = self.crictl_command(arguments);
        command.stdin(File::open(&file).expect("open crictl's input"));
        let output = self.network.enter(|| command.output()).expect("execute crictl");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Starts it and lets it run.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[track_caller]
    pub fn crictl_start(&self, arguments: &[&str]) -> Running {
        self.run_in_background(self.crictl_command(arguments))
    }

    /// Starts it at a terminal and lets it run; script(1) makes the terminal, and its stdin is what is typed.
    ///
    /// # Panics
    /// If it cannot be executed.
    #[track_caller]
    pub fn crictl_at_a_terminal(&self, arguments: &[&str]) -> Running {
        let mut words = vec![program().display().to_string()];
        words.extend(self.crictl_endpoint());
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &quoted.join(" "), "/dev/null"]);
        command.stdin(Stdio::piped());
        self.run_in_background(command)
    }

    #[track_caller]
    fn run_in_background(&self, mut command: Command) -> Running {
        let output = tempfile::NamedTempFile::new_in(self.dir()).expect("a file for the output");
        let file = output.reopen().expect("open the file for the output");
        command.stderr(file.try_clone().expect("duplicate a descriptor"));
        command.stdout(file);
        let child = self.network.enter(|| command.spawn()).expect("execute crictl");
        Running { child, output }
    }

    /// Writes a request's part as a file, as crictl reads them.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn request_file<T: Serialize>(&self, name: &str, part: &T) -> String {
        let path = self.dir().join(name);
        let content = serde_json::to_vec_pretty(part).expect("requests are JSON");
        fs::write(&path, content).expect("write the request");
        path.display().to_string()
    }

    /// The files of a pod and of a container in it.
    ///
    /// # Panics
    /// If they cannot be written.
    #[track_caller]
    pub fn request_files(&self, pod: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> [String; 2] {
        [
            self.request_file("pod.json", pod),
            self.request_file("container.json", container),
        ]
    }
}

/// A crictl that runs; it ends with this value.
pub struct Running {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Running {
    /// What it has printed so far.
    ///
    /// # Panics
    /// If the file cannot be read.
    #[must_use]
    pub fn printed(&self) -> String {
        text(&fs::read(self.output.path()).expect("read crictl's output"))
    }

    /// Waits until it has printed `wanted`.
    ///
    /// # Panics
    /// If it does not within 20 seconds.
    #[track_caller]
    pub fn wait_for(&self, wanted: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.printed().contains(wanted) {
            assert!(Instant::now() < deadline, "no {wanted:?} in {:?}", self.printed());
            thread::sleep(POLL);
        }
    }

    /// Types at its terminal.
    ///
    /// # Panics
    /// If it has none, or has gone.
    pub fn type_in(&mut self, keys: &str) {
        use std::io::Write as _;
        let stdin = self.child.stdin.as_mut().expect("it runs at a terminal");
        stdin.write_all(keys.as_bytes()).expect("type");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it has not ended within 20 seconds.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "still running: {:?}", self.printed());
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failure means that it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
