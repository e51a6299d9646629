//! A node under test: `corten-cri` with directories, a network and a registry of its own.
//!
//! ```text
//! /tmp/ct-XXXXXX/            the name is the marker that the leak check looks for
//!   config.toml  cri.log     the server's configuration, and what it wrote to stderr
//!   lib/  run/               its `root` and `state`; short names, as a unix socket's path has 107 bytes
//!   cni/  leases/            CNI configuration, and host-local's record of addresses
//!   images/                  the layout that the registry serves; busybox:latest is in it
//!   logs/POD/                where pods log, as under the kubelet's /var/log/pods
//! /sys/fs/cgroup/*/ct-XXXXXX every cgroup of the node
//! ```
//! The server runs in a network namespace of its own, which stands for the host's: bridge, addresses, ports and rules
//! of two nodes never meet. `Drop` removes the pods through the CRI, ends the server, and fails the test if anything
//! is left; after a failed test it prints the server's log and cleans up by force.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use corten_proto::cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::cri::Cri;
use crate::leak::{self, Watch};
use crate::netns::Netns;
use crate::registry::Registry;
use crate::{binary, image};

/// The image every node's registry has, as a CRI client names it. Each node's loopback is its own, so is the port.
pub const BUSYBOX: &str = "127.0.0.1:5000/busybox:latest";

/// How long the server may take to answer after its start, and to end after SIGTERM.
const SERVER: Duration = Duration::from_secs(20);

/// Where there is no CNI configuration.
const ABSENT: &str = "no-cni";

/// Between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(10);

/// A running server and everything around it.
pub struct Node {
    /// A client of it.
    pub cri: Cri,
    /// The network that the server takes for the host's.
    pub network: Netns,
    /// What the end of the test looks for.
    pub watch: Watch,
    server: Mutex<Option<Child>>,
    registry: Option<Registry>,
    // Last: a field's drop follows the ones above.
    dir: TempDir,
}

impl Node {
    /// Starts a node that has pulled nothing yet.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start() -> Node {
        Node::with(|_| {})
    }

    /// Starts a node whose configuration `change` has adapted.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn with(change: impl FnOnce(&mut toml::Table)) -> Node {
        let node = Node::prepare(change).expect("prepare a node");
        node.launch().expect("start corten-cri");
        node
    }

    /// Starts a node without CNI configuration, whose pods get the built-in network.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn with_builtin_network(change: impl FnOnce(&mut toml::Table)) -> Node {
        Node::with(|config| {
            let root = config["root"].as_str().expect("a path");
            let absent = Path::new(root).with_file_name(ABSENT);
            config["cni"]["conf_dir"] = absent.display().to_string().into();
            config["network"]["builtin"] = true.into();
            change(config);
        })
    }

    /// The directory where a node with the built-in network looks for CNI configurations, which is not there; those of
    /// other nodes are in `cni`, here too.
    pub fn absent_conf_dir(&self) -> PathBuf {
        self.dir.path().join(ABSENT)
    }

    fn prepare(change: impl FnOnce(&mut toml::Table)) -> Result<Node> {
        let dir = tempfile::Builder::new().prefix("ct-").tempdir_in("/tmp")?;
        let marker = dir.path().file_name().context("a temporary directory has a name")?;
        let watch = Watch::new([marker.to_string_lossy()]);
        for name in ["cni", "leases", "images", "logs"] {
            fs::create_dir(dir.path().join(name))?;
        }
        write_cni_config(dir.path())?;
        let mut config = config(dir.path(), &marker.to_string_lossy())?;
        change(&mut config);
        fs::write(dir.path().join("config.toml"), toml::to_string(&config)?)?;
        let images = dir.path().join("images");
        image::busybox(Path::new("/bin/busybox"))?.save(&images, &["busybox:latest"])?;
        let network = Netns::new()?;
        let registry = network.enter(|| Registry::listen(([127, 0, 0, 1], 5000).into(), &images))?;
        Ok(Node {
            cri: Cri::new(&dir.path().join("run/corten.sock"))?,
            network,
            watch,
            server: Mutex::new(None),
            registry: Some(registry),
            dir,
        })
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// If it exits first, or takes longer than 20 seconds.
    pub fn launch(&self) -> Result<()> {
        self.launch_by(&[])
    }

    /// The same by a program that becomes the server: `parent` with the server's command line behind it.
    ///
    /// # Errors
    /// See [`Node::launch`].
    pub fn launch_by(&self, parent: &[&str]) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("cri.log"))?;
        let own = binary("corten-cri");
        let mut words: Vec<&OsStr> = parent.iter().map(OsStr::new).collect();
        words.push(own.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.arg("--config").arg(self.dir.path().join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = self.network.enter(|| command.spawn()).context("spawn corten-cri")?;
        let mut running = self.server();
        let server = running.insert(server);
        let deadline = Instant::now() + SERVER;
        while let Err(status) = self.cri.version(cri::VersionRequest::default()) {
            if let Some(exit) = server.try_wait()? {
                bail!(
                    "corten-cri ended early: {exit}\n{}",
                    tail(&self.dir.path().join("cri.log"))
                );
            }
            if Instant::now() > deadline {
                bail!("corten-cri does not answer: {status}");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills the server as a crash would.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_server(&self) {
        let mut server = self.server().take().expect("the server runs");
        server.kill().expect("SIGKILL to our child");
        server.wait().expect("wait for our child");
    }

    /// Ends the server as an administrator would; the pods stay.
    ///
    /// # Panics
    /// If it does not end within 20 seconds, or with another code than 0.
    pub fn stop_server(&self) {
        if let Err(error) = self.end_server() {
            panic!("{error:#}");
        }
    }

    fn end_server(&self) -> Result<()> {
        let Some(mut server) = self.server().take() else {
            return Ok(());
        };
        kill(pid_of(&server), Signal::SIGTERM)?;
        let deadline = Instant::now() + SERVER;
        loop {
            match server.try_wait()? {
                Some(exit) if exit.success() => return Ok(()),
                Some(exit) => bail!("corten-cri after SIGTERM: {exit}"),
                None if Instant::now() > deadline => {
                    server.kill()?;
                    server.wait()?;
                    bail!("corten-cri ignores SIGTERM");
                }
                None => thread::sleep(POLL),
            }
        }
    }

    /// The server's process, while it runs. A failed assertion elsewhere does not make it unusable.
    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host pid of the server.
    ///
    /// # Panics
    /// If it does not run.
    pub fn server_pid(&self) -> i32 {
        pid_of(self.server().as_ref().expect("the server runs")).as_raw()
    }

    /// Serves `images/` on 127.0.0.1:5000 of the node's network.
    ///
    /// # Panics
    /// Never: it goes with the node.
    pub fn registry(&self) -> &Registry {
        self.registry.as_ref().expect("the registry goes with the node")
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The name that all of the node's cgroups, mounts and processes carry.
    pub fn marker(&self) -> String {
        let name = self.dir.path().file_name().expect("a temporary directory has a name");
        name.to_string_lossy().into_owned()
    }

    /// What the server has written to its log so far.
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("cri.log")).unwrap_or_default()
    }

    /// Files of the node's directories that belong to a pod or a container; none once all are removed. The runtime's compiled
    /// seccomp filters belong to nobody.
    pub fn pod_files(&self) -> Vec<String> {
        let dirs = [
            "lib/sandboxes",
            "lib/containers",
            "run/sandboxes",
            "run/containers",
            "run/runtime",
            "run/netns",
        ];
        dirs.iter()
            .flat_map(|name| {
                let entries = fs::read_dir(self.dir.path().join(name)).into_iter().flatten().flatten();
                entries
                    .filter(|entry| entry.file_name() != "@seccomp")
                    .map(|entry| format!("file {}", entry.path().display()))
            })
            .collect()
    }

    /// Addresses that host-local holds for pods, one file each.
    pub fn leases(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("leases/ct"))
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    /// Everything of pods that exists outside the server: files, mounts, cgroups, processes, links, addresses. The
    /// server itself and its listening socket do not count.
    pub fn pods_left(&self) -> Vec<String> {
        let own = self.server().as_ref().map(pid_of);
        let parent = format!("/{}", self.marker());
        let mut left = self.watch.left();
        let is_own = |line: &str| {
            own.is_some_and(|pid| {
                line.starts_with(&format!("process {pid} ")) || line.starts_with(&format!("child {pid} "))
            })
        };
        left.retain(|line| !is_own(line));
        left.retain(|line| !(line.starts_with("cgroup") && line.ends_with(&parent)));
        left.extend(self.pod_files());
        left.extend(self.leases().into_iter().map(|address| format!("address {address}")));
        let links = self.network.enter(leak::links);
        left.extend(
            links
                .into_iter()
                .filter(|link| link.starts_with("veth"))
                .map(|link| format!("link {link}")),
        );
        left
    }

    /// Waits until nothing of any pod is left.
    ///
    /// # Panics
    /// If something is after five seconds; the message lists it.
    #[track_caller]
    pub fn assert_no_pods_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.pods_left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n  {}", left.join("\n  "));
            thread::sleep(POLL);
        }
    }

    /// Stops and removes every pod through the CRI.
    fn remove_pods(&self) -> Result<(), tonic::Status> {
        for sandbox in self.cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items {
            let pod_sandbox_id = sandbox.id.clone();
            self.cri
                .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id })?;
            let pod_sandbox_id = sandbox.id;
            self.cri
                .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })?;
        }
        Ok(())
    }

    /// The orderly end; what is left after it is the test's failure.
    fn finish(&self) -> Result<()> {
        if self.server().is_some() {
            self.remove_pods().context("remove the pods")?;
            self.assert_no_pods_left();
        }
        self.end_server()?;
        leak::remove_cgroup(&format!("/{}", self.marker()));
        self.watch.assert_clean();
        Ok(())
    }

    /// Ends and removes whatever carries the marker, by force.
    fn tear_down(&self) {
        if let Some(mut server) = self.server().take() {
            // A failure means that it is gone already.
            server.kill().ok();
            server.wait().ok();
        }
        let marker = self.marker();
        leak::kill_marked(&marker);
        leak::unmount_marked(&marker);
        leak::remove_marked_cgroups(&marker);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends by a connection to itself, which exists in this network only.
        let registry = self.registry.take();
        self.network.enter(|| drop(registry));
        if thread::panicking() {
            eprintln!("--- corten-cri\n{}", tail(&self.dir.path().join("cri.log")));
            for log in shim_logs(self.dir.path()) {
                eprintln!("--- {}\n{}", log.display(), tail(&log));
            }
            self.tear_down();
            return;
        }
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()));
        if !matches!(finished, Ok(Ok(()))) {
            eprintln!("--- corten-cri\n{}", tail(&self.dir.path().join("cri.log")));
            self.tear_down();
        }
        match finished {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("end of the node: {error:#}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The server's configuration, all directories below `dir`.
fn config(dir: &Path, marker: &str) -> Result<toml::Table> {
    let dir = dir.display();
    let text = format!(
        r#"
        root = "{dir}/lib"
        state = "{dir}/run"
        listen = "{dir}/run/corten.sock"
        netns_dir = "{dir}/run/netns"
        cgroup_parent = "/{marker}"

        [network]
        builtin = false

        [cni]
        conf_dir = "{dir}/cni"
        bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]

        [pull]
        hosts_dirs = ["{dir}/certs.d"]
        auth_file = "{dir}/auth.json"

        [registries."127.0.0.1:5000"]
        plain_http = true
        "#
    );
    toml::from_str(&text).context("our own configuration")
}

/// A bridge with addresses from host-local, and host ports.
fn write_cni_config(dir: &Path) -> Result<()> {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "ct",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join("leases"),
                    "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(dir.join("cni/10-ct.conflist"), config.to_string())?;
    Ok(())
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("a pid is a positive i32"))
}

/// The last 60 lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn shim_logs(dir: &Path) -> Vec<PathBuf> {
    let sandboxes = fs::read_dir(dir.join("run/sandboxes")).into_iter().flatten().flatten();
    sandboxes
        .map(|sandbox| sandbox.path().join("shim.log"))
        .filter(|log| log.exists())
        .collect()
}
