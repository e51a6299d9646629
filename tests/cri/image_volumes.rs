//! Image volumes: mounts whose source is an image.

use std::fs;

use corten_proto::cri;
use corten_tests::image::{Image, Layer};
use corten_tests::node::Node;
use corten_tests::pod::{container, image};

const MODELS: &str = "127.0.0.1:5000/models:1";

/// Serves and pulls an image of data, which has no program.
fn pull_models(node: &Node) -> String {
    let layer = Layer::new()
        .dir("models", 0o755)
        .file("models/weights", 0o644, b"weights")
        .symlink("latest", "/models");
    let built = Image::new().layer(layer);
    built.save(&node.dir().join("images"), &["models:1"]).unwrap();
    node.pull(MODELS)
}

fn volume(path: &str, sub_path: &str, id: &str) -> cri::Mount {
    cri::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: id.to_owned(),
            user_specified_image: MODELS.to_owned(),
            ..Default::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

#[test]
fn a_container_reads_images_and_parts_of_them() {
    let node = Node::start();
    let id = pull_models(&node);
    let pod = node.pod("volumes");
    let mut config = container("main", &["sleep", "1000"]);
    config.mounts = vec![
        volume("/whole", "", &id),
        volume("/part", "latest", &id),
        volume("/file", "models/weights", &id),
    ];
    let container = pod.start(config);
    let read = "cat /whole/models/weights /part/weights /file";
    assert_eq!(container.exec_sh(read), "weightsweightsweights");
    for place in ["/whole/new", "/part/new", "/file"] {
        let script = format!("(echo x >{place}) 2>&1 || true");
        assert!(container.exec_sh(&script).contains("Read-only file system"), "{place}");
    }
    let mounts = container.status().mounts;
    let shown = mounts[0].image.as_ref().expect("an image volume");
    assert!(
        shown.image_ref.starts_with("127.0.0.1:5000/models@sha256:"),
        "{shown:?}"
    );
    assert_eq!(shown.image, id);

    let listed = || node.image(&["list"]).lines().count();
    node.image(&["prune", "--all"]);
    assert_eq!(listed(), 3, "the header, busybox and what is mounted");

    // Removed and restarted: the container's volumes stay.
    let request = cri::RemoveImageRequest {
        image: Some(image(MODELS)),
    };
    node.cri.remove_image(request).unwrap();
    node.kill_server();
    node.launch().unwrap();
    assert_eq!(container.exec_sh(read), "weightsweightsweights");
    let layers = || fs::read_dir(node.dir().join("lib/layers")).unwrap().count();
    assert_eq!(layers(), 2, "busybox's layer and the volume's");
    container.stop(0);
    container.remove();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while layers() > 1 {
        assert!(std::time::Instant::now() < end, "the last user has gone");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    pod.remove();
    node.assert_no_pods_left();
}

#[test]
fn what_cannot_be_mounted_is_said_and_undone() {
    let node = Node::start();
    let id = pull_models(&node);
    let pod = node.pod("refused");
    let absent = format!("sha256:{}", "0".repeat(64));
    for (mount, cause) in [
        (volume("/x", "absent", &id), "no such path"),
        (volume("/x", "", &absent), "no such image"),
    ] {
        let mut config = container("main", &["sleep", "1000"]);
        config.mounts = vec![volume("/fine", "", &id), mount];
        let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
        let message = error.message();
        assert!(message.starts_with("ImageVolumeMountFailed: mounts[1]"), "{message}");
        assert!(message.contains(cause), "{message}");
    }
    let mut writable = volume("/x", "", &id);
    writable.readonly = false;
    let mut config = container("main", &["sleep", "1000"]);
    config.mounts = vec![writable];
    let error = node.cri.create_container(pod.create_request(&config)).unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    pod.remove();
    node.assert_no_pods_left();
}
