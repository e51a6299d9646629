//! The ImageService's smaller duties: StreamImages, the verbose ImageStatus, runtime handlers, what a failed pull says.

use corten_proto::cri;
use corten_tests::image::{Image, Layer};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::image;
use corten_tests::registry::{Access, Fault};
use serde_json::Value;
use tonic::Code;

fn filter(name: &str) -> Option<cri::ImageFilter> {
    Some(cri::ImageFilter {
        image: Some(image(name)),
    })
}

#[test]
fn the_stream_of_images_is_the_list() {
    let node = Node::start();
    let stream = |filter| node.cri.stream_images(cri::StreamImagesRequest { filter }).unwrap();
    assert_eq!(stream(None), None, "no message for an empty list");
    let other = Image::new().layer(Layer::new().file("x", 0o644, b"x"));
    other.save(&node.dir().join("images"), &["other:1"]).unwrap();
    node.pull(BUSYBOX);
    node.pull("127.0.0.1:5000/other:1");
    let list = |filter| node.cri.list_images(cri::ListImagesRequest { filter }).unwrap().images;
    let streamed = stream(None).expect("two images fit one message").images;
    assert_eq!(streamed, list(None));
    assert_eq!(streamed.len(), 2);
    let one = stream(filter(BUSYBOX)).expect("one image").images;
    assert_eq!((one.len(), one.clone()), (1, list(filter(BUSYBOX))));
    assert_eq!(stream(filter("absent:1")), None);
}

#[test]
fn a_verbose_status_is_json() {
    let node = Node::start();
    let status = |name: &str, verbose| {
        let request = cri::ImageStatusRequest {
            image: Some(image(name)),
            verbose,
        };
        node.cri.image_status(request).unwrap()
    };
    assert_eq!(status(BUSYBOX, true), cri::ImageStatusResponse::default());
    let id = node.pull(BUSYBOX);
    assert!(status(BUSYBOX, false).info.is_empty());
    for name in [BUSYBOX, &id] {
        let reply = status(name, true);
        assert_eq!(reply.info.len(), 1, "{:?}", reply.info.keys());
        let info: Value = serde_json::from_str(&reply.info["info"]).unwrap();
        assert_eq!(info["imageSpec"]["os"], "linux");
        assert_eq!(info["size"], reply.image.unwrap().size);
        let layers = info["layers"].as_array().unwrap();
        assert_eq!(layers[0]["diffID"], info["imageSpec"]["rootfs"]["diff_ids"][0]);
        assert!(layers[0]["size"].as_u64().unwrap() > 100_000);
    }
}

#[test]
fn an_image_for_an_unknown_handler_is_not_pulled() {
    let node = Node::start();
    let pull = |handler: &str| {
        let mut image = image(BUSYBOX);
        image.runtime_handler = handler.to_owned();
        let request = cri::PullImageRequest {
            image: Some(image),
            ..cri::PullImageRequest::default()
        };
        node.cri.pull_image(request)
    };
    let error = pull("no-such-handler").unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let text = error.message();
    assert!(
        text.contains("image.runtime_handler") && text.contains("no-such-handler"),
        "{text}"
    );
    assert!(node.registry().requests().is_empty());
    pull("corten").unwrap();
}

#[test]
fn a_failed_pull_says_what_of_which_image_and_where() {
    let node = Node::start();
    let images = node.dir().join("images");
    let layer = Image::new()
        .layer(Layer::new().file("x", 0o644, b"x"))
        .save(&images, &["a:1"])
        .unwrap();
    let (manifest, blob) = ("/manifests/1".to_owned(), format!("/blobs/{}", layer.blobs[0]));
    let config = format!("/blobs/{}", layer.id);
    let cases = [
        (&manifest, Fault::Status(404), Code::NotFound, "", "/manifests/1"),
        (
            &manifest,
            Fault::Status(403),
            Code::PermissionDenied,
            "",
            "/manifests/1",
        ),
        (
            &manifest,
            Fault::Status(500),
            Code::Unknown,
            "RegistryUnavailable: ",
            "/manifests/1",
        ),
        (
            &manifest,
            Fault::ContentType("text/html".into()),
            Code::FailedPrecondition,
            "",
            "text/html",
        ),
        (&config, Fault::Corrupt, Code::FailedPrecondition, "", "config sha256:"),
        (&blob, Fault::Corrupt, Code::FailedPrecondition, "", "layer sha256:"),
        (
            &blob,
            Fault::Status(500),
            Code::Unknown,
            "RegistryUnavailable: ",
            "layer sha256:",
        ),
    ];
    for (part, fault, code, prefix, says) in cases {
        node.registry().fail(part, Some(fault.clone()));
        let request = cri::PullImageRequest {
            image: Some(image("127.0.0.1:5000/a:1")),
            ..cri::PullImageRequest::default()
        };
        let error = node.cri.pull_image(request).expect_err(says);
        node.registry().fail(part, None);
        let text = error.message();
        assert_eq!(error.code(), code, "{fault:?}: {text}");
        assert!(
            text.starts_with(&format!("{prefix}pull 127.0.0.1:5000/a:1: ")),
            "{fault:?}: {text}"
        );
        assert!(text.contains(says), "{fault:?}: {text} should say {says:?}");
    }
}

#[test]
fn a_refused_login_does_not_show_the_password() {
    let node = Node::start();
    node.registry().require(Access::Login("me".into(), "secret".into()));
    let auth = Some(cri::AuthConfig {
        username: "me".into(),
        password: "wrong-secret".into(),
        ..cri::AuthConfig::default()
    });
    let request = cri::PullImageRequest {
        image: Some(image(BUSYBOX)),
        auth,
        ..cri::PullImageRequest::default()
    };
    let error = node.cri.pull_image(request).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(!error.message().contains("secret"), "{error}");
}
