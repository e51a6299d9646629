//! Checkpoints that come as images: only where the configuration has it, only over an image named by its digest, and never
//! because somebody has annotated an image of others. The runtime is the stand-in of `checkpoint`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use corten_proto::cri;
use corten_tests::image::busybox;
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use serde_json::json;
use tonic::Code;

use crate::checkpoint::{COUNT, assert_goes_on, assert_refused, files, node, place};
use crate::checkpoint_restore::{annotated, checkpoint_image, counted, restored, write};

/// What CRI-O marks its checkpoints with.
const ANNOTATION: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";

/// Starts the server anew with restores from images.
pub(crate) fn allow_images(node: &Node) {
    let file = File::options().append(true).open(node.dir().join("config.toml"));
    writeln!(file.unwrap(), "[checkpoint]\nrestore_from_images = true").unwrap();
    node.stop_server();
    node.launch().unwrap();
}

/// The configuration of a container of this image.
fn of_image(name: &str, of: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        image: Some(image(of)),
        ..container(name, &["sh", "-c", COUNT])
    }
}

#[test]
fn a_checkpoint_image_needs_the_configuration() {
    let node = node();
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let name = checkpoint_image(&node, &location, Some(ANNOTATION));
    node.pull(&name);
    let before = node.pod_files();
    let request = pod.create_request(&of_image("new", &name));
    let answer = node.cri.create_container(request.clone());
    assert_refused(answer, Code::FailedPrecondition, "checkpoint.restore_from_images");
    assert_eq!(node.pod_files(), before);
    assert_goes_on(&pod.start(restored("archive", &location)));
    allow_images(&node);
    node.cri.create_container(request).expect("CreateContainer");
}

#[test]
fn a_checkpoint_image_names_its_base_by_digest() {
    let node = node();
    allow_images(&node);
    let location = place(&node).join("counter.tar");
    let pod = node.pod("p");
    counted(&node, &pod, &location);
    let mut all = files(&location);
    let id = node.pull(BUSYBOX);
    let by_tag = location.with_file_name("tag.tar");
    for wanted in [BUSYBOX, &id[..20]] {
        let config = json!({ "rootfsImageName": wanted, "rootfsImageRef": wanted });
        all.insert("config.dump".to_owned(), config.to_string().into_bytes());
        write(&by_tag, &all, &[]);
        let name = checkpoint_image(&node, &by_tag, Some(ANNOTATION));
        node.pull(&name);
        let answer = node.cri.create_container(pod.create_request(&of_image("new", &name)));
        assert_refused(answer, Code::InvalidArgument, "by digest");
    }
    // Who has put an archive on the node is asked for no more.
    pod.create(restored("archive", &by_tag));
}

#[test]
fn a_strangers_annotation_takes_no_image_from_others() {
    let node = node();
    allow_images(&node);
    let dir = node.dir().join("images");
    let program = Path::new("/bin/busybox");
    let saved = busybox(program).unwrap().save(&dir, &["busybox:latest"]).unwrap();
    // The first that the node hears of the image is the stranger's manifest.
    let stranger = annotated(&node, &saved, Some(ANNOTATION));
    assert_eq!(node.pull(&stranger), saved.id.to_string());
    assert_eq!(node.pull(BUSYBOX), saved.id.to_string());
    node.pull(&stranger);
    node.kill_server();
    node.launch().unwrap();
    let pod = node.pod("p");
    for (name, of) in [("tag", BUSYBOX), ("id", &saved.id.to_string())] {
        assert_goes_on(&pod.start(of_image(name, of)));
    }
    assert!(!fs::exists(node.dir().join("restored")).unwrap());
}
