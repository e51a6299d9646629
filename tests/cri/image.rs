//! PullImage, ListImages, ImageStatus, RemoveImage, ImageFsInfo.

use std::fs;

use corten_proto::cri;
use corten_tests::image::{Format, Image, Layer};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};

fn status(node: &Node, reference: &str) -> Option<cri::Image> {
    let request = cri::ImageStatusRequest {
        image: Some(image(reference)),
        verbose: false,
    };
    node.cri.image_status(request).expect("ImageStatus").image
}

fn list(node: &Node) -> Vec<cri::Image> {
    node.cri
        .list_images(cri::ListImagesRequest::default())
        .expect("ListImages")
        .images
}

fn remove(node: &Node, reference: &str) {
    let request = cri::RemoveImageRequest {
        image: Some(image(reference)),
    };
    node.cri.remove_image(request).expect("RemoveImage");
}

fn used_bytes(node: &Node) -> u64 {
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).expect("ImageFsInfo");
    let filesystem = reply.image_filesystems.first().expect("an image filesystem");
    filesystem.used_bytes.expect("kubelet dereferences used_bytes").value
}

#[test]
fn a_pulled_image_is_known_by_every_name() {
    let node = Node::start();
    assert_eq!(
        status(&node, BUSYBOX),
        None,
        "an unknown image is an empty answer, not an error"
    );
    let id = node.pull(BUSYBOX);
    let found = status(&node, BUSYBOX).expect("it is here now");
    assert_eq!(found.id, id);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(found.repo_tags, [BUSYBOX]);
    assert_eq!(found.repo_digests.len(), 1);
    assert!(
        found.repo_digests[0].starts_with("127.0.0.1:5000/busybox@sha256:"),
        "{found:?}"
    );
    assert!(found.size > 100_000, "{}", found.size);
    let bare = id.trim_start_matches("sha256:");
    for name in [
        id.as_str(),
        bare,
        &bare[..12],
        &found.repo_digests[0],
        "127.0.0.1:5000/busybox",
    ] {
        assert_eq!(status(&node, name).map(|image| image.id), Some(id.clone()), "{name}");
    }
    assert_eq!(list(&node).len(), 1);
    assert_eq!(node.pull(BUSYBOX), id, "a second pull finds the same");
    assert_eq!(node.pull(&found.repo_digests[0]), id, "by digest too");
}

#[test]
fn both_forms_of_manifest_are_understood() {
    let node = Node::start();
    let images = node.dir().join("images");
    for (name, format) in [("oci:1", Format::Oci), ("docker:1", Format::Docker)] {
        let mut built = Image::new().layer(Layer::new().file("name", 0o644, name.as_bytes()));
        built.format = format;
        built.config = serde_json::json!({ "User": "1000:1000", "Cmd": ["/name"] });
        let saved = built.save(&images, &[name]).unwrap();
        let reference = format!("127.0.0.1:5000/{name}");
        assert_eq!(node.pull(&reference), saved.id.to_string());
        let found = status(&node, &reference).expect("pulled");
        assert_eq!(found.uid.expect("User is a number").value, 1000);
    }
    assert_eq!(list(&node).len(), 2);
}

#[test]
fn the_list_can_be_filtered() {
    let node = Node::start();
    let images = node.dir().join("images");
    let other = Image::new().layer(Layer::new().file("x", 0o644, b"x"));
    other.save(&images, &["other:1"]).unwrap();
    node.pull(BUSYBOX);
    let other = node.pull("127.0.0.1:5000/other:1");
    let filter = Some(cri::ImageFilter {
        image: Some(image("127.0.0.1:5000/other:1")),
    });
    let found = node.cri.list_images(cri::ListImagesRequest { filter }).unwrap().images;
    assert_eq!(found.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [other]);
    let filter = Some(cri::ImageFilter {
        image: Some(image("127.0.0.1:5000/absent:1")),
    });
    assert!(
        node.cri
            .list_images(cri::ListImagesRequest { filter })
            .unwrap()
            .images
            .is_empty()
    );
}

#[test]
fn removal_takes_every_name_and_the_space() {
    let node = Node::start();
    let images = node.dir().join("images");
    let built = Image::new().layer(Layer::new().file("zeros", 0o644, &vec![0; 1 << 20]));
    built.save(&images, &["twice:1", "twice:2"]).unwrap();
    let before = used_bytes(&node);
    let id = node.pull("127.0.0.1:5000/twice:1");
    assert_eq!(node.pull("127.0.0.1:5000/twice:2"), id);
    let found = status(&node, &id).expect("pulled");
    assert_eq!(found.repo_tags.len(), 2, "{found:?}");
    assert!(used_bytes(&node) >= before + (1 << 20));
    remove(&node, "127.0.0.1:5000/twice:1");
    assert!(list(&node).is_empty(), "kubelet expects one removal to take all tags");
    assert_eq!(status(&node, "127.0.0.1:5000/twice:2"), None);
    assert_eq!(used_bytes(&node), before);
    remove(&node, "127.0.0.1:5000/twice:1");
    let layers = fs::read_dir(node.dir().join("lib/layers")).unwrap();
    assert_eq!(layers.count(), 0, "no layer stays behind");
}

#[test]
fn an_image_in_use_can_be_removed_and_its_container_runs_on() {
    let node = Node::start();
    let pod = node.pod("in-use");
    let container = pod.start(container("main", &["sleep", "1000"]));
    remove(&node, BUSYBOX);
    assert_eq!(container.exec_sh("cat /etc/hostname").trim(), "in-use");
    container.stop(0);
    container.remove();
}

#[test]
fn image_filesystem_usage_has_all_that_kubelet_reads() {
    let node = Node::start();
    node.pull(BUSYBOX);
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).unwrap();
    for filesystem in reply.image_filesystems.iter().chain(&reply.container_filesystems) {
        assert!(
            filesystem.timestamp > 1_600_000_000_000_000_000,
            "nanoseconds: {filesystem:?}"
        );
        let mountpoint = &filesystem.fs_id.as_ref().expect("fs_id").mountpoint;
        assert!(std::path::Path::new(mountpoint).is_dir(), "{filesystem:?}");
        assert!(filesystem.used_bytes.is_some() && filesystem.inodes_used.is_some());
    }
    assert!(used_bytes(&node) > 100_000);
    assert!(!reply.container_filesystems.is_empty(), "kubelet wants both lists");
}

#[test]
fn images_survive_a_restart() {
    let node = Node::start();
    let id = node.pull(BUSYBOX);
    let before = list(&node);
    let used = used_bytes(&node);
    node.stop_server();
    node.launch().unwrap();
    assert_eq!(list(&node), before);
    assert_eq!(used_bytes(&node), used);
    assert_eq!(status(&node, &id), before.first().cloned());
}
