//! Containers from a checkpoint: what comes from the archive (files, the name of an image) and what never does; harness H7.
//! The runtime is the stand-in of `checkpoint`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use corten_proto::cri;
use corten_tests::image::{Image, Layer, Saved, blob_path, descriptor, save_document};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{Container, Pod, container, image};
use serde_json::{Value, json};
use tonic::Code;

use crate::checkpoint::{COUNT, assert_goes_on, assert_refused, checkpoint, count_of, files, node, place};
use crate::checkpoint_images::allow_images;
use crate::lost::wait_for;

/// The configuration of a container from this archive.
pub(crate) fn restored(name: &str, archive: &Path) -> cri::ContainerConfig {
    cri::ContainerConfig {
        image: Some(image(&archive.display().to_string())),
        ..container(name, &["sh", "-c", COUNT])
    }
}

/// A checkpoint of a counter that has reached at least three, and has removed a file of its image; how far it was before.
pub(crate) fn counted(node: &Node, pod: &Pod<'_>, location: &Path) -> i64 {
    let counter = pod.sh("counter", COUNT);
    counter.exec_sh("rm /bin/vi; ln -s /etc /link; echo more >/etc/more");
    wait_for("it counts", || count_of(&counter) >= 3);
    let count = count_of(&counter);
    checkpoint(node, &counter.id, location).expect("CheckpointContainer");
    counter.remove();
    count
}

/// Writes an archive of these files, those of `links` being symbolic links.
pub(crate) fn write(path: &Path, files: &BTreeMap<String, Vec<u8>>, links: &[(&str, &str)]) {
    let mut layer = Layer::new();
    for (name, content) in files {
        if links.iter().any(|(link, _)| link == name) {
            continue;
        }
        layer = match name.strip_suffix('/') {
            Some(name) => layer.dir(name, 0o700),
            None => layer.file(name, 0o600, content),
        };
    }
    for (name, target) in links {
        layer = layer.symlink(name, target);
    }
    fs::write(path, layer.into_tar()).unwrap();
}

/// The specification without what must differ between two containers.
fn spec(container: &Container<'_>) -> Value {
    let text = container.info()["runtimeSpec"].to_string().replace(&container.id, "ID");
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        // By descriptors of the server, which are others each time.
        namespace.as_object_mut().unwrap().remove("path");
    }
    for name in ["container-name", "image-name"] {
        spec["annotations"][format!("io.kubernetes.cri.{name}")] = Value::Null;
    }
    spec
}

#[test]
fn a_counter_goes_on_in_a_new_container() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    let before = counted(&node, &pod, &location);
    let new = pod.create(restored("new", &location));
    let status = new.status();
    assert_eq!(status.state(), cri::ContainerState::ContainerCreated);
    assert_eq!(new.pid(), 0, "nothing of it runs");
    assert!(!node.dir().join("restored").exists());
    new.start();
    assert_eq!(fs::read_to_string(node.dir().join("restored")).unwrap(), "image\n");
    assert_eq!(new.status().state(), cri::ContainerState::ContainerRunning);
    assert!(new.pid() > 0 && new.status().started_at > 0);
    assert!(count_of(&new) >= before, "on from where it was");
    assert_goes_on(&new);
    assert_eq!(
        new.exec_sh("ls /bin/vi 2>/dev/null; readlink /link; cat /etc/more"),
        "/etc\nmore\n"
    );
    // It is one like every other: saved again, stopped, removed.
    let again = location.with_file_name("again.tar");
    checkpoint(&node, &new.id, &again).expect("CheckpointContainer");
    new.stop(0);
    assert_eq!(new.status().exit_code, 137);
    new.remove();
    let third = pod.start(restored("third", &again));
    assert_goes_on(&third);
    assert_eq!(third.status().image_id, node.pull(BUSYBOX));
}

#[test]
fn a_container_waits_for_its_restore_across_a_restart_and_can_be_stopped_and_removed() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let [waits, stopped, removed, failed] =
        ["waits", "stopped", "removed", "failed"].map(|name| pod.create(restored(name, &location)));
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(waits.status().state(), cri::ContainerState::ContainerCreated);
    waits.start();
    assert_goes_on(&waits);
    stopped.stop(10);
    let status = stopped.status();
    assert_eq!(
        (status.state(), status.exit_code),
        (cri::ContainerState::ContainerExited, 137)
    );
    removed.remove();
    fs::write(node.dir().join("fails-restore"), "").unwrap();
    let start = cri::StartContainerRequest {
        container_id: failed.id.clone(),
    };
    assert_refused(node.cri.start_container(start), Code::Internal, "told to fail");
    let status = failed.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("told to fail"), "{status:?}");
    pod.stop();
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn the_specification_is_the_requests_whatever_the_archive_says() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let mut all = files(&location);
    let mut dumped: Value = serde_json::from_slice(&all["spec.dump"]).unwrap();
    dumped["process"]["capabilities"] = json!({ "bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"] });
    dumped["process"]["noNewPrivileges"] = json!(false);
    dumped["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    dumped["mounts"] = json!([{ "destination": "/host", "type": "bind", "source": "/", "options": ["rbind"] }]);
    dumped["linux"]["devices"] = json!([{ "path": "/dev/mem", "type": "c", "major": 1, "minor": 1 }]);
    dumped["linux"]["seccomp"] = Value::Null;
    dumped["annotations"] =
        json!({ "cdi.k8s.io/x": "vendor.example/device=all", "io.kubernetes.cri-o.Volumes": "/:/host" });
    all.insert("spec.dump".to_owned(), dumped.to_string().into_bytes());
    all.insert(
        "bind.mounts".to_owned(),
        br#"[{"source":"/","destination":"/host"}]"#.to_vec(),
    );
    let mut config: Value = serde_json::from_slice(&all["config.dump"]).unwrap();
    config["name"] = json!("../../other");
    config["runtime"] = json!("/tmp/evil");
    all.insert("config.dump".to_owned(), config.to_string().into_bytes());
    let hostile = location.with_file_name("hostile.tar");
    write(&hostile, &all, &[]);

    let restricted = |mut config: cri::ContainerConfig| {
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.no_new_privs = true;
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.capabilities = Some(cri::Capability {
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        });
        security.seccomp = Some(cri::SecurityProfile::default());
        config
    };
    let plain = pod.create(restricted(container("plain", &["sh", "-c", COUNT])));
    let from = pod.create(restricted(restored("from", &hostile)));
    assert_eq!(spec(&from), spec(&plain));
    from.start();
    assert_eq!(spec(&from), spec(&plain), "what the runtime has got");
    let pid = from.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Uid:\t1000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!mounts.contains(" /host "), "{mounts}");
}

/// What is changed in an archive that is whole, and what the refusal says.
type Change = fn(&mut BTreeMap<String, Vec<u8>>) -> &'static [(&'static str, &'static str)];

/// Archives that are not what they should be.
const HOSTILE: [(&str, Change); 13] = [
    ("config.dump: must be a regular file", |_| {
        &[("config.dump", "/etc/passwd")]
    }),
    ("spec.dump: must be a regular file", |_| &[("spec.dump", "/etc/passwd")]),
    ("container.log: must be a regular file", |_| {
        &[("container.log", "/etc/shadow")]
    }),
    ("rootfs-diff.tar: must be a regular file", |_| {
        &[("rootfs-diff.tar", "/dev/zero")]
    }),
    ("checkpoint/pages-1.img: must be a regular file", |_| {
        &[("checkpoint/pages-1.img", "/etc/shadow")]
    }),
    ("inventory.img: missing", |files| {
        files.remove("checkpoint/inventory.img");
        &[]
    }),
    ("config.dump: missing", |files| {
        files.remove("config.dump");
        &[]
    }),
    ("decode config.dump", |files| {
        files.insert("config.dump".to_owned(), b"[1, 2".to_vec());
        &[]
    }),
    ("names no image", |files| {
        files.insert("config.dump".to_owned(), b"{}".to_vec());
        &[]
    }),
    ("decode deleted.files", |files| {
        files.insert("deleted.files".to_owned(), br#"{"a": 1}"#.to_vec());
        &[]
    }),
    ("..", |files| {
        files.insert("../outside".to_owned(), b"x".to_vec());
        &[]
    }),
    ("entry", |files| {
        let layer = Layer::new().file("../../../outside", 0o644, b"x");
        files.insert("rootfs-diff.tar".to_owned(), layer.into_tar());
        &[]
    }),
    ("without \"..\"", |files| {
        files.insert("deleted.files".to_owned(), br#"["/../../outside"]"#.to_vec());
        &[]
    }),
];

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let whole = files(&location);
    let outside = [node.dir().join("outside"), node.dir().join("lib/containers/outside")];
    let before = node.pod_files();
    for (words, change) in HOSTILE {
        let mut changed = whole.clone();
        let links = change(&mut changed);
        let hostile = location.with_file_name("hostile.tar");
        write(&hostile, &changed, links);
        let request = pod.create_request(&restored("hostile", &hostile));
        let status = node.cri.create_container(request).expect_err(words);
        assert!(status.message().contains(words), "{words} in {status}");
        assert!(!outside.iter().any(|path| path.exists()), "{words}");
        assert_eq!(node.pod_files(), before, "{words}");
    }
    // Things that are no archive at all.
    let other = |name: &str| location.with_file_name(name);
    symlink(&location, other("link")).unwrap();
    fs::create_dir(other("directory")).unwrap();
    fs::write(other("text"), "no archive").unwrap();
    for name in ["link", "directory", "text", "missing"] {
        let request = pod.create_request(&restored("hostile", &other(name)));
        assert_refused(
            node.cri.create_container(request),
            Code::InvalidArgument,
            "must be a checkpoint",
        );
        assert_eq!(node.pod_files(), before, "{name}");
    }
}

#[test]
fn links_in_the_changed_files_lead_nowhere_outside() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let host = node.dir().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "host").unwrap();
    let mut all = files(&location);
    let layer = Layer::new()
        .symlink("out", &host.display().to_string())
        .file("out/file", 0o644, b"changed")
        .symlink("up", "../../../../../../../..");
    all.insert("rootfs-diff.tar".to_owned(), layer.into_tar());
    let deleted = json!([
        host.join("file"),
        format!("/up{}", host.join("file").display()),
        "/out/file"
    ]);
    all.insert("deleted.files".to_owned(), deleted.to_string().into_bytes());
    let hostile = location.with_file_name("hostile.tar");
    write(&hostile, &all, &[]);
    // Taken or refused: nothing outside is touched.
    let request = pod.create_request(&restored("hostile", &hostile));
    let answer = node.cri.create_container(request);
    assert_eq!(fs::read(host.join("file")).unwrap(), b"host", "{answer:?}");
}

#[test]
fn names_in_an_archive_change_no_tag_and_pull_nothing() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let tags = || {
        let images = node.cri.list_images(cri::ListImagesRequest::default()).unwrap().images;
        let mut tags: Vec<_> = images
            .into_iter()
            .map(|image| (image.id, image.repo_tags, image.repo_digests))
            .collect();
        tags.sort();
        tags
    };
    let before = tags();
    let with = |name: &str, change: fn(&mut Value)| {
        let mut all = files(&location);
        let mut config: Value = serde_json::from_slice(&all["config.dump"]).unwrap();
        change(&mut config);
        all.insert("config.dump".to_owned(), config.to_string().into_bytes());
        let path = location.with_file_name("renamed.tar");
        write(&path, &all, &[]);
        node.cri.create_container(pod.create_request(&restored(name, &path)))
    };
    with("renamed", |config| {
        config["rootfsImageName"] = json!("registry.k8s.io/pause:3.10")
    })
    .expect("the digest says which it is");
    assert_eq!(tags(), before);
    let unknown = with("unknown", |config| {
        *config = json!({ "rootfsImageName": "127.0.0.1:5000/other:1", "rootfsImageRef": "../../etc" });
    });
    assert_refused(unknown, Code::NotFound, "127.0.0.1:5000/other:1");
    assert_eq!(tags(), before);
}

/// An image of one layer with an archive's files, marked by an annotation.
pub(crate) fn checkpoint_image(node: &Node, archive: &Path, annotation: Option<&str>) -> String {
    let saved = Image::new()
        .archive(fs::read(archive).unwrap())
        .save(&node.dir().join("images"), &["plain:1"])
        .unwrap();
    annotated(node, &saved, annotation)
}

/// Another manifest of an image, marked by an annotation.
pub(crate) fn annotated(node: &Node, saved: &Saved, annotation: Option<&str>) -> String {
    let dir = node.dir().join("images");
    let size = |digest| usize::try_from(fs::metadata(blob_path(&dir, digest)).unwrap().len()).unwrap();
    let annotations = annotation.map(|name| json!({ name: "counter" }));
    let document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &saved.id, size(&saved.id)),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &saved.blobs[0], size(&saved.blobs[0]))],
        "annotations": annotations,
    });
    save_document(
        &dir,
        &document,
        "application/vnd.oci.image.manifest.v1+json",
        &["checkpoint:1"],
    )
    .unwrap();
    "127.0.0.1:5000/checkpoint:1".to_owned()
}

#[test]
fn a_checkpoint_image_is_one_by_its_annotation() {
    let node = node();
    allow_images(&node);
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    let before = counted(&node, &pod, &location);
    let name = checkpoint_image(
        &node,
        &location,
        Some("io.kubernetes.cri-o.annotations.checkpoint.name"),
    );
    node.pull(&name);
    let config = |of: &str| cri::ContainerConfig {
        image: Some(image(&name)),
        ..container(of, &["sh", "-c", COUNT])
    };
    let new = pod.create(config("new"));
    // The layer stays as long as somebody is to be restored from it.
    node.cri
        .remove_image(cri::RemoveImageRequest {
            image: Some(image(&name)),
        })
        .unwrap();
    node.kill_server();
    node.launch().unwrap();
    new.start();
    assert!(count_of(&new) >= before);
    assert_goes_on(&new);
    assert_eq!(new.status().image_id, node.pull(BUSYBOX));
}

#[test]
fn an_archive_is_no_checkpoint_where_nothing_says_so() {
    let node = node();
    allow_images(&node);
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let name = checkpoint_image(&node, &location, None);
    node.pull(&name);
    let config = cri::ContainerConfig {
        image: Some(image(&name)),
        ..container("plain", &["sh", "-c", COUNT])
    };
    let answer = node.cri.create_container(pod.create_request(&config));
    let status = answer.expect_err("there is no shell in it");
    assert!(!status.message().contains("checkpoint"), "{status}");
    let path: PathBuf = node.dir().join("restored");
    assert!(!path.exists());
}
