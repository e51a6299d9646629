//! CheckpointContainer: the archive, its errors, and that the container goes on whatever happens.
//!
//! CRIU does not work with every kernel. Here `/bin/true` says that it does, and a script stands before `corten` that takes
//! `checkpoint` and `restore` on itself: the first leaves an image, the second begins the container anew. All else is
//! real: the pause, the root, the archive, the shim, the specification. `checkpoint_criu` is for CRIU itself.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use corten_proto::cri;
use corten_tests::binary;
use corten_tests::image::Layer;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, container, image};
use serde_json::Value;
use tonic::{Code, Status};

use crate::lost::wait_for;

/// The stand-in for CRIU's part of `corten`. It notes every call in `calls`, fails at what `fails-VERB` is there for, and waits
/// while `waits-VERB` is.
const RUNTIME: &str = r#"
VERB=
for word; do
    case $word in create|start|kill|delete|exec|update|checkpoint|restore|pause|resume|features) VERB=$word; break;; esac
done
case $VERB in checkpoint|restore|pause|resume) echo "$VERB" >>"$DIR/calls";; esac
if [ -e "$DIR/fails-$VERB" ]; then echo "told to fail" >&2; exit 1; fi
while [ -e "$DIR/waits-$VERB" ]; do sleep 0.05; done
value() { shift; while [ $# -gt 0 ]; do [ "$1" = "$OPTION" ] && { printf %s "$2"; return; }; shift; done; }
case $VERB in
checkpoint)
    OPTION=--image-path; IMAGES=$(value x "$@")
    OPTION=--work-path; WORK=$(value x "$@")
    echo image >"$IMAGES/inventory.img"
    echo log >"$WORK/dump.log"
    exit;;
restore)
    OPTION=--image-path; IMAGES=$(value x "$@")
    cat "$IMAGES/inventory.img" >"$DIR/restored" || exit 1
    OPTION=--root; ROOT=$(value x "$@")
    OPTION=--bundle; BUNDLE=$(value x "$@")
    OPTION=--pid-file; PID=$(value x "$@")
    for ID; do :; done
    "$CORTEN" --root "$ROOT" create --bundle "$BUNDLE" --pid-file "$PID" "$ID" && exec "$CORTEN" --root "$ROOT" start "$ID";;
esac
exec "$CORTEN" "$@"
"#;

/// A node on which checkpoints work, in this sense.
pub(crate) fn node() -> Node {
    node_with_criu("/bin/true")
}

/// A node with this program as CRIU.
fn node_with_criu(criu: &str) -> Node {
    Node::with(|config| {
        let root = config["root"].as_str().unwrap().to_owned();
        let dir = Path::new(&root).parent().unwrap();
        let (script, corten) = (dir.join("runtime.sh"), binary("corten"));
        let text = format!(
            "#!/bin/sh\nDIR={}\nCORTEN={}\n{RUNTIME}",
            dir.display(),
            corten.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let path = toml::Value::String(script.display().to_string());
        let runtime = toml::Table::from_iter([("path".to_owned(), path)]);
        let runtimes = toml::Table::from_iter([("wrapped".to_owned(), runtime.into())]);
        config.insert("runtimes".to_owned(), runtimes.into());
        config.insert("default_runtime".to_owned(), "wrapped".into());
        config.insert("criu".to_owned(), criu.into());
    })
}

/// Counts in a file, on from what is there.
pub(crate) const COUNT: &str = "n=$(cat /count 2>/dev/null || echo 0); while :; do n=$((n + 1)); echo $n >/count.new; mv /count.new /count; sleep 0.1; done";

pub(crate) fn count_of(container: &Container<'_>) -> i64 {
    container
        .exec_sh("cat /count 2>/dev/null || echo 0")
        .trim()
        .parse()
        .unwrap_or(0)
}

/// A directory of the node for archives, empty.
pub(crate) fn place(node: &Node) -> PathBuf {
    let place = node.dir().join("checkpoints");
    fs::create_dir(&place).unwrap();
    place
}

pub(crate) fn checkpoint(node: &Node, id: &str, location: &Path) -> Result<(), Status> {
    let request = cri::CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.display().to_string(),
        timeout: 0,
    };
    node.cri.checkpoint_container(request).map(drop)
}

/// The files of an archive; a directory ends in `/`.
pub(crate) fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(archive).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, content)
    });
    entries.collect()
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn calls(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.dir().join("calls")).unwrap_or_default();
    fs::remove_file(node.dir().join("calls")).ok();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
pub(crate) fn assert_refused(answer: Result<impl Sized, Status>, code: Code, words: &str) {
    let status = answer.err().unwrap_or_else(|| panic!("{words}: not refused"));
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{words} in {status}");
}

/// Whether its processes run: a held one answers no exec.
#[track_caller]
pub(crate) fn assert_goes_on(container: &Container<'_>) {
    let before = count_of(container);
    wait_for("it counts on", || count_of(container) > before);
}

#[test]
fn an_archive_has_what_the_field_knows_and_the_container_goes_on() {
    let node = node();
    let place = place(&node);
    let pod = node.pod("p");
    let counter = pod.sh("counter", &format!("echo hello; {COUNT}"));
    counter.exec_sh(
        "rm /bin/vi; mkdir /added; echo text >/added/file; rm -r /var && mkdir /var; nc -lU /socket & sleep 0.2",
    );
    counter.wait_output("hello");
    let location = place.join("counter.tar");
    fs::write(&location, vec![b'x'; 4 << 20]).unwrap();
    checkpoint(&node, &counter.id, &location).expect("CheckpointContainer");
    assert_goes_on(&counter);
    assert_eq!(calls(&node), ["pause", "checkpoint", "resume"]);
    assert_eq!(names(&place), ["counter.tar"], "nothing else stays");
    assert_eq!(fs::metadata(&location).unwrap().permissions().mode() & 0o777, 0o600);

    let files = files(&location);
    let expected = [
        "bind.mounts",
        "checkpoint/",
        "checkpoint/inventory.img",
        "config.dump",
        "container.log",
        "deleted.files",
        "dump.log",
        "network.status",
        "rootfs-diff.tar",
        "spec.dump",
        "status.dump",
    ];
    assert_eq!(files.keys().collect::<Vec<_>>(), expected);
    let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
    let config = json("config.dump");
    assert_eq!(
        (&config["id"], &config["name"]),
        (&counter.id.clone().into(), &"counter".into())
    );
    assert_eq!(config["rootfsImageName"], "127.0.0.1:5000/busybox:latest");
    assert_eq!(config["rootfsImage"], counter.status().image_id);
    assert_eq!(
        json("spec.dump")["annotations"]["io.kubernetes.cri.container-name"],
        "counter"
    );
    assert!(json("status.dump")["StartedAt"].as_i64().unwrap() > 0);
    assert_eq!(json("network.status")["ips"][0]["address"], format!("{}/16", pod.ip()));
    assert!(String::from_utf8_lossy(&files["container.log"]).contains("stdout F hello"));
    let deleted = json("deleted.files");
    let deleted: Vec<_> = deleted
        .as_array()
        .unwrap()
        .iter()
        .map(|path| path.as_str().unwrap())
        .collect();
    assert!(deleted.contains(&"/bin/vi"), "{deleted:?}");

    fs::write(place.join("diff.tar"), &files["rootfs-diff.tar"]).unwrap();
    let diff = self::files(&place.join("diff.tar"));
    assert_eq!(diff["added/file"], b"text\n");
    assert!(diff.contains_key("count"), "{:?}", diff.keys());
    assert!(
        !diff.keys().any(|name| name.contains(".wh.") || name.contains("socket")),
        "{:?}",
        diff.keys()
    );
}

#[test]
fn a_wrong_request_is_refused_before_anything_is_held() {
    let node = node();
    let place = place(&node);
    let pod = node.pod("p");
    let counter = pod.sh("counter", COUNT);
    let waiting = pod.create(container("waiting", &["true"]));
    symlink("/etc/passwd", place.join("link")).unwrap();
    fs::create_dir(place.join("directory")).unwrap();
    let at = |name: &str| checkpoint(&node, &counter.id, &place.join(name));
    assert_refused(at("none/a.tar"), Code::InvalidArgument, "its directory must exist");
    assert_refused(at("link"), Code::InvalidArgument, "or be a regular file");
    assert_refused(at("directory"), Code::InvalidArgument, "or be a regular file");
    assert_refused(at("../a.tar"), Code::InvalidArgument, "location");
    for location in ["", "a.tar", "/"] {
        let answer = checkpoint(&node, &counter.id, Path::new(location));
        assert_refused(answer, Code::InvalidArgument, "location");
    }
    let negative = cri::CheckpointContainerRequest {
        container_id: counter.id.clone(),
        location: place.join("a.tar").display().to_string(),
        timeout: -1,
    };
    let negative = node.cri.checkpoint_container(negative);
    assert_refused(negative, Code::InvalidArgument, "timeout \"-1\"");
    assert_refused(checkpoint(&node, "none", &place.join("a.tar")), Code::NotFound, "none");
    let waiting = checkpoint(&node, &waiting.id, &place.join("a.tar"));
    assert_refused(waiting, Code::FailedPrecondition, "CONTAINER_CREATED");
    counter.stop(0);
    assert_refused(at("a.tar"), Code::FailedPrecondition, "CONTAINER_EXITED");
    assert_eq!(calls(&node), [] as [&str; 0]);
    assert_eq!(names(&place), ["directory", "link"]);
    assert!(fs::read_to_string("/etc/passwd").unwrap().contains("root"));
}

#[test]
fn where_criu_does_not_work_every_call_tells_the_reason() {
    for (criu, words) in [
        ("/bin/false", "criu check: exit status: 1"),
        ("/nowhere/criu", "/nowhere/criu"),
    ] {
        let node = node_with_criu(criu);
        let place = place(&node);
        let pod = node.pod("p");
        let counter = pod.sh("counter", COUNT);
        let answer = checkpoint(&node, &counter.id, &place.join("a.tar"));
        assert_refused(answer, Code::FailedPrecondition, words);
        let whole_pod = node.cri.checkpoint_pod(cri::CheckpointPodRequest {
            pod_sandbox_id: pod.id.clone(),
            output_path: place.display().to_string(),
            container_ids: vec![counter.id.clone()],
            options: Default::default(),
        });
        assert_refused(whole_pod, Code::FailedPrecondition, words);
        let archive = node.dir().join("a.tar");
        let config = format!(r#"{{"rootfsImageName":"{BUSYBOX}"}}"#);
        let layer = Layer::new().dir("checkpoint", 0o700);
        let layer = layer.file("checkpoint/inventory.img", 0o600, b"x");
        let layer = layer.file("config.dump", 0o600, config.as_bytes());
        fs::write(&archive, layer.into_tar()).unwrap();
        let config = cri::ContainerConfig {
            image: Some(image(&archive.display().to_string())),
            ..container("restored", &["true"])
        };
        let restored = node.cri.create_container(pod.create_request(&config));
        assert_refused(restored, Code::FailedPrecondition, words);
        let status = node.cri.status(cri::StatusRequest { verbose: true }).unwrap();
        let info: Value = serde_json::from_str(&status.info["checkpoint"]).unwrap();
        assert_eq!(info["criu"], false, "{info}");
        assert!(info["problem"].as_str().unwrap().contains(words), "{info}");
        assert_goes_on(&counter);
        assert_eq!(names(&place), [] as [&str; 0]);
    }
}

#[test]
fn a_handler_whose_runtime_cannot_is_refused() {
    let node = Node::with(|config| {
        let path = toml::Value::String("/usr/bin/crun".to_owned());
        let runtime = toml::Table::from_iter([("path".to_owned(), path)]);
        let runtimes = toml::Table::from_iter([("featureless".to_owned(), runtime.into())]);
        config.insert("runtimes".to_owned(), runtimes.into());
        config.insert("criu".to_owned(), "/bin/true".into());
    });
    let status = node.cri.status(cri::StatusRequest { verbose: true }).unwrap();
    let handlers: Value = serde_json::from_str(&status.info["handlers"]).unwrap();
    assert_eq!(handlers["corten"]["checkpoint"], true, "{handlers}");
    if handlers["featureless"]["checkpoint"] == true {
        eprintln!("SKIP: this crun says that it can checkpoint");
        return;
    }
    let missing = node.cri.restore_pod(cri::RestorePodRequest {
        checkpoint_path: node.dir().display().to_string(),
        runtime_handler: "featureless".to_owned(),
        ..Default::default()
    });
    assert_refused(missing, Code::InvalidArgument, "config");
}

#[test]
fn every_failure_lets_the_container_go_on_and_leaves_nothing() {
    let node = node();
    let place = place(&node);
    let counter = node.pod("p").sh("counter", COUNT);
    fs::write(place.join("a.tar"), "the older one").unwrap();
    for (verb, expected) in [("pause", 2), ("checkpoint", 3)] {
        let switch = node.dir().join(format!("fails-{verb}"));
        fs::write(&switch, "").unwrap();
        assert_refused(
            checkpoint(&node, &counter.id, &place.join("a.tar")),
            Code::Internal,
            "told to fail",
        );
        fs::remove_file(switch).unwrap();
        let calls = calls(&node);
        assert_eq!(
            (calls.len(), calls.last().map(String::as_str)),
            (expected, Some("resume")),
            "{calls:?}"
        );
        assert_goes_on(&counter);
        assert_eq!(names(&place), ["a.tar"]);
        assert_eq!(fs::read(place.join("a.tar")).unwrap(), b"the older one");
    }
    // A second that is too short.
    let switch = node.dir().join("waits-checkpoint");
    fs::write(&switch, "").unwrap();
    let short = node.cri.checkpoint_container(cri::CheckpointContainerRequest {
        container_id: counter.id.clone(),
        location: place.join("a.tar").display().to_string(),
        timeout: 1,
    });
    assert_refused(short, Code::DeadlineExceeded, "not done in 1 s");
    fs::remove_file(switch).unwrap();
    assert_goes_on(&counter);
    assert_eq!(names(&place), ["a.tar"]);
    checkpoint(&node, &counter.id, &place.join("a.tar")).expect("nothing is in the way of the next");
}

#[test]
fn a_server_that_is_killed_in_the_middle_lets_the_container_go_on_when_it_is_back() {
    let node = node();
    let place = place(&node);
    let counter = node.pod("p").sh("counter", COUNT);
    let switch = node.dir().join("waits-checkpoint");
    fs::write(&switch, "").unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| checkpoint(&node, &counter.id, &place.join("a.tar")));
        wait_for("the dump has begun", || {
            fs::read_to_string(node.dir().join("calls")).is_ok_and(|calls| calls.contains("checkpoint"))
        });
        node.kill_server();
        call.join().unwrap().expect_err("the server has gone");
    });
    fs::remove_file(switch).unwrap();
    node.launch().unwrap();
    assert_goes_on(&counter);
    assert_eq!(names(&place), [] as [&str; 0]);
    checkpoint(&node, &counter.id, &place.join("a.tar")).expect("CheckpointContainer");
}

#[test]
fn a_resume_that_fails_is_tried_until_the_container_goes_on() {
    let node = node();
    let place = place(&node);
    let counter = node.pod("p").sh("counter", COUNT);
    let switch = |verb: &str| node.dir().join(format!("fails-{verb}"));
    fs::write(switch("resume"), "").unwrap();
    fs::write(switch("checkpoint"), "").unwrap();
    let failed = checkpoint(&node, &counter.id, &place.join("a.tar")).expect_err("neither works");
    assert!(failed.message().contains("checkpoint"), "{failed}");
    assert!(failed.message().contains("resume"), "both are told: {failed}");
    let again = checkpoint(&node, &counter.id, &place.join("a.tar"));
    assert_refused(again, Code::FailedPrecondition, "not let it go on yet");
    fs::remove_file(switch("resume")).unwrap();
    fs::remove_file(switch("checkpoint")).unwrap();
    wait_for("it goes on", || {
        checkpoint(&node, &counter.id, &place.join("a.tar")).is_ok()
    });
    assert_goes_on(&counter);
    assert_eq!(names(&place), ["a.tar"]);
}

#[test]
fn a_stop_ends_a_checkpoint_and_then_the_container_by_its_signal() {
    let node = node();
    let place = place(&node);
    let pod = node.pod("p");
    let polite = pod.sh("polite", "trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done");
    fs::write(node.dir().join("waits-checkpoint"), "").unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| checkpoint(&node, &polite.id, &place.join("a.tar")));
        wait_for("the dump has begun", || {
            fs::read_to_string(node.dir().join("calls")).is_ok_and(|calls| calls.contains("checkpoint"))
        });
        polite.stop(10);
        assert_refused(call.join().unwrap(), Code::FailedPrecondition, "is being stopped");
    });
    assert_eq!(polite.status().exit_code, 7);
    assert_eq!(names(&place), [] as [&str; 0]);
}

#[test]
fn crictl_checkpoints_a_container() {
    let node = node();
    let place = place(&node);
    let counter = node.pod("p").sh("counter", COUNT);
    let location = place.join("a.tar").display().to_string();
    let printed = node.crictl(&["checkpoint", &format!("--export={location}"), &counter.id]);
    assert!(printed.contains(&counter.id), "{printed}");
    assert!(files(Path::new(&location)).contains_key("config.dump"));
    assert_goes_on(&counter);
}
