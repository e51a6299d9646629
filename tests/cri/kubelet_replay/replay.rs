//! A kubelet with one recorded mind, in front of our server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use corten_tests::node::{BUSYBOX, Node};
use corten_tests::{cgroup, image};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use super::calls::call;
use super::compare::compare;
use super::recorded::{Call, from_json, messages, recorded, to_json};

/// The image's id there.
const IMAGE: &str = "sha256:81720dabd6be57b3a7875106e31c178e560315d797dfd3d97e281fd1e590d397";

/// Another image there, which is used as a volume.
const VOLUME: &str = "sha256:b99a1c84787c930cf653935cedd31086098efd90b738cee0475bae22284eec59";

/// The pod that was there before, and its containers.
const EARLIER: [&str; 3] = [
    "810e2ac1268c2c129326e4ee238f59e40805098a175c0f1f1c938199834e7dfe",
    "d919d210be958c0a0a60fac11692e7d3a2b65183a5b5442917b693e192925740",
    "1456a16a809f4c26a154da1ad18161107b8a4f2008203f076f06fc204708b48e",
];

/// The pod of line 60, and its containers.
const POD: &str = "1a60f9bf832099ed35029f0d9419cebcd2efb81d161bae5e2c69c98bfd1b2e12";
const CONTAINER: &str = "9f8709ce6e09ac8c5152db5096f2967889455595b62c5263eb5d73f4fcae8f4a";

/// The recording, as far as it has been replayed.
pub(super) struct Replay<'n> {
    node: &'n Node,
    calls: Vec<Call>,
    /// Names of there, and what they are here.
    names: BTreeMap<String, String>,
    /// The cgroups that kubelet makes for pods.
    pod_cgroups: Vec<String>,
    /// Directories that containers share mounts with.
    shared: Vec<PathBuf>,
    /// What was answered differently.
    differences: Vec<String>,
}

impl<'n> Replay<'n> {
    /// A kubelet whose image is there already.
    #[track_caller]
    pub(super) fn new(node: &'n Node) -> Self {
        let here = node.dir().display();
        let mut volume = image::busybox(Path::new("/bin/busybox")).unwrap();
        volume.config["Cmd"] = json!(["true"]);
        volume.save(&node.dir().join("images"), &["volume:1"]).unwrap();
        let names = [
            (IMAGE.to_owned(), node.pull(BUSYBOX)),
            ("lab.local/busybox:1".to_owned(), BUSYBOX.to_owned()),
            // The other runtime named an image by another of its tags, which kubelet does not want.
            ("docker.io/library/busybox:1.36".to_owned(), BUSYBOX.to_owned()),
            (VOLUME.to_owned(), node.pull("127.0.0.1:5000/volume:1")),
            ("/var/lib/cni".to_owned(), format!("{here}/shared")),
            ("/etc/cni/net.d".to_owned(), format!("{here}/cni")),
            ("/var/log/pods".to_owned(), format!("{here}/logs")),
            ("/var/lib/kubelet".to_owned(), format!("{here}/kubelet")),
            ("/kubepods".to_owned(), format!("/{}/kubepods", node.marker())),
        ];
        Replay {
            node,
            calls: recorded(),
            names: names.into(),
            pod_cgroups: Vec::new(),
            shared: Vec::new(),
            differences: Vec::new(),
        }
    }

    /// Makes the call of a line, and holds the answer against the recorded one.
    #[track_caller]
    pub(super) fn call(&mut self, line: usize) {
        let Call {
            method,
            request,
            response,
            ..
        } = &self.calls[line - 1];
        let (method, request, response) = (method.clone(), self.here(request), response.clone());
        let answer = self.make(&format!("line {line}: {method}"), &method, &request);
        for id in ["pod_sandbox_id", "container_id"] {
            if let (Some(there), Some(here)) = (response[id].as_str(), answer[id].as_str()) {
                self.names.insert(there.to_owned(), here.to_owned());
            }
        }
        let mut found = Vec::new();
        compare("", &self.here(&response), &answer, &mut found);
        let found = found.iter().map(|what| format!("line {line}: {method}: {what}"));
        self.differences.extend(found);
    }

    /// A message with the names of here.
    fn here(&self, message: &Value) -> Value {
        let text = message.to_string();
        let text = self
            .names
            .iter()
            .fold(text, |text, (there, here)| text.replace(there, here));
        serde_json::from_str(&text).expect("names have nothing that JSON escapes")
    }

    #[track_caller]
    fn make(&mut self, what: &str, method: &str, request: &Value) -> Value {
        self.prepare(method, request);
        let request = from_json(messages(method).0, request);
        let answer = call(&self.node.cri, method, &request);
        to_json(&answer.unwrap_or_else(|status| panic!("{what}: {status}\n{}", self.differences.join("\n"))))
    }

    /// What kubelet does before a call: cgroups of pods, files for mounts, directories for logs.
    fn prepare(&mut self, method: &str, request: &Value) {
        if let Some(parent) = request["config"]["linux"]["cgroup_parent"].as_str() {
            self.make_cgroup(parent);
        }
        if let Some(logs) = request["config"]["log_directory"].as_str() {
            fs::create_dir_all(logs).unwrap();
        }
        let mounts = request["config"]["mounts"].as_array();
        for mount in mounts.into_iter().flatten() {
            let Some(path) = mount["host_path"].as_str().map(Path::new) else {
                continue;
            };
            if mount["propagation"] == "PROPAGATION_BIDIRECTIONAL" {
                self.share(path);
            } else if path.components().any(|part| part.as_os_str() == "volumes") {
                fs::create_dir_all(path).unwrap();
            } else if !path.is_dir() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::File::options().create(true).append(true).open(path).unwrap();
            }
        }
        if method == "CreateContainer" {
            let logs = Path::new(request["sandbox_config"]["log_directory"].as_str().unwrap());
            fs::create_dir_all(logs.join(request["config"]["metadata"]["name"].as_str().unwrap())).unwrap();
        }
    }

    /// Makes a directory a mount that is shared, as an administrator has /var.
    fn share(&mut self, path: &Path) {
        let none = None::<&str>;
        fs::create_dir_all(path).unwrap();
        mount(Some(path), path, none, MsFlags::MS_BIND, none).unwrap();
        self.shared.push(path.to_owned());
        mount(none, path, none, MsFlags::MS_SHARED, none).unwrap();
    }

    fn make_cgroup(&mut self, path: &str) {
        for controller in ["cpu", "memory", "pids", "devices", "freezer"] {
            let dir = cgroup::directory(controller, path);
            // A controller that this machine does not have.
            if dir.ancestors().nth(path.matches('/').count()).is_some_and(Path::exists) {
                fs::create_dir_all(&dir).unwrap();
            }
        }
        self.pod_cgroups.push(path.to_owned());
    }

    /// Stops containers at once, each in a call of its own.
    #[track_caller]
    pub(super) fn stops(&mut self, lines: &[usize]) {
        let requests: Vec<Value> = lines
            .iter()
            .map(|line| self.here(&self.calls[line - 1].request))
            .collect();
        let cri = &self.node.cri;
        thread::scope(|scope| {
            let calls: Vec<_> = requests
                .iter()
                .map(|request| {
                    let request = from_json(messages("StopContainer").0, request);
                    scope.spawn(move || call(cri, "StopContainer", &request))
                })
                .collect();
            for stop in calls {
                stop.join().expect("a call does not panic").expect("StopContainer");
            }
        });
    }

    /// The pod that kubelet found at its start.
    #[track_caller]
    pub(super) fn earlier_pod(&mut self) {
        for (line, id) in [(60, EARLIER[0]), (64, EARLIER[1]), (69, EARLIER[2])] {
            let Call { method, request, .. } = &self.calls[line - 1];
            let method = method.clone();
            let text = request
                .to_string()
                .replace("2026-11-22T13:24:40.702643912Z", "2026-11-22T13:23:14.509972374Z");
            // Names of files for termination messages are new each time.
            let text = text.replace("2f5ef394", "6511f0a0").replace("9ddfa29c", "5ca73073");
            let mut request: Value = serde_json::from_str(&text.replace(POD, EARLIER[0])).unwrap();
            for config in ["config", "sandbox_config"] {
                let metadata = request.pointer_mut(&format!("/{config}/metadata"));
                if let Some(metadata) = metadata.and_then(Value::as_object_mut) {
                    metadata.remove("attempt");
                }
            }
            let request = self.here(&request);
            let answer = self.make("the earlier pod", &method, &request);
            let key = if line == 60 { "pod_sandbox_id" } else { "container_id" };
            let here = answer[key].as_str().unwrap().to_owned();
            self.names.insert(id.to_owned(), here.clone());
            if line != 60 {
                self.make("the earlier pod", "StartContainer", &json!({ "container_id": here }));
            }
        }
    }

    /// A probe, as often as kubelet would until it succeeds.
    #[track_caller]
    pub(super) fn wait_for_probe(&mut self, line: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let request = self.here(&self.calls[line - 1].request);
        while self.make("a probe", "ExecSync", &request) != json!({}) {
            assert!(Instant::now() < deadline, "the probe never succeeds");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pod's first container gets more of everything, in place.
    #[track_caller]
    pub(super) fn resize(&mut self) {
        let wanted = json!({
            "cpu_period": "100000",
            "cpu_quota": "80000",
            "cpu_shares": "102",
            "memory_limit_in_bytes": "100663296",
        });
        let pod = self.here(&json!({ "pod_sandbox_id": POD, "overhead": {}, "resources": wanted }));
        self.make("resize", "UpdatePodSandboxResources", &pod);
        let container = self.here(&json!({ "container_id": CONTAINER, "linux": wanted }));
        self.make("resize", "UpdateContainerResources", &container);
        let asked = self.here(&json!({ "container_id": CONTAINER }));
        let status = self.make("resize", "ContainerStatus", &asked);
        let mut differences = Vec::new();
        compare("", &wanted, &status["status"]["resources"]["linux"], &mut differences);
        assert!(differences.is_empty(), "{differences:?}: {status}");
    }

    /// The end: nothing was answered differently. Removes what kubelet made for the pods: mounts, and cgroups, which it
    /// cannot while a runtime's are in them.
    #[track_caller]
    pub(super) fn finish(&mut self) {
        for path in std::mem::take(&mut self.shared) {
            umount(&path).unwrap();
        }
        for path in std::mem::take(&mut self.pod_cgroups) {
            let own = format!("/{}", self.node.marker());
            for dir in Path::new(&path).ancestors().map(|dir| dir.display().to_string()) {
                if dir.len() > own.len() {
                    corten_tests::leak::remove_cgroup(&dir);
                }
            }
        }
        let differences = self.differences.join("\n  ");
        assert!(differences.is_empty(), "answered differently:\n  {differences}");
    }
}
