//! A container's root: what shows through the layers, and how many there may be.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use corten_cri::image::{Image, snapshot};
use corten_tests::image::{self, Layer};

use crate::{Lab, names, small_layer};

/// A mounted root, unmounted at the end.
struct Root {
    target: PathBuf,
    dir: PathBuf,
}

impl Root {
    fn mount(lab: &Lab, image: &Arc<Image>) -> Root {
        let base = lab.dir.path().join("container");
        let root = Root {
            target: base.join("rootfs"),
            dir: base.join("dir"),
        };
        for dir in [&root.target, &root.dir] {
            fs::create_dir_all(dir).unwrap();
        }
        snapshot::mount(lab.store(), &image.layers, &root.dir, &root.target).unwrap();
        root
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        snapshot::unmount(&self.target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_layers_hide_lower_ones() {
    let lab = Lab::new();
    let bottom = Layer::new()
        .dir("./", 0o755)
        .file("both", 0o644, b"bottom")
        .file("deleted", 0o644, b"bottom")
        .dir("opaque", 0o755)
        .file("opaque/below", 0o644, b"bottom")
        .dir("replaced", 0o755)
        .file("replaced/below", 0o644, b"bottom")
        .dir("merged", 0o755)
        .file("merged/below", 0o644, b"bottom");
    let top = Layer::new()
        .entry(&image::Entry {
            path: "./",
            kind: tar::EntryType::Directory,
            mode: 0o751,
            uid: 5,
            gid: 6,
            ..image::Entry::default()
        })
        .file("both", 0o644, b"top")
        .whiteout("", "deleted")
        .opaque("opaque")
        .file("opaque/above", 0o644, b"top")
        .whiteout("", "replaced")
        .dir("replaced", 0o755)
        .file("merged/above", 0o644, b"top");
    lab.serve(&image::Image::new().layer(bottom).layer(top), &["a:1"]);
    let image = lab.pull("a:1").await.unwrap();
    {
        let root = Root::mount(&lab, &image);
        let list = |dir: &str| names(&root.target.join(dir));
        assert_eq!(list(""), ["both", "merged", "opaque", "replaced"]);
        assert_eq!(fs::read(root.target.join("both")).unwrap(), b"top");
        assert_eq!(list("opaque"), ["above"]);
        assert!(
            list("replaced").is_empty(),
            "a whiteout before its directory hides what was below"
        );
        assert_eq!(list("merged"), ["above", "below"]);
        let top = fs::metadata(&root.target).unwrap();
        assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o751, 5, 6));
        fs::write(root.target.join("both"), "container").unwrap();
        fs::remove_file(root.target.join("merged/below")).unwrap();
        assert_eq!(fs::read(root.dir.join("upper/both")).unwrap(), b"container");
    }
    let layer = lab.store().layer_path(&image.layers[1]);
    assert_eq!(fs::read(layer.join("both")).unwrap(), b"top", "layers never change");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_127_layers_some_alike_or_none() {
    let lab = Lab::new();
    let mut image = image::Image::new();
    for number in 0..126 {
        image = image.layer(small_layer(&format!("file-{number:03}")));
    }
    // The first once more: overlayfs takes no directory twice.
    image = image.layer(small_layer("file-000"));
    lab.serve(&image, &["many:1"]);
    let many = lab.pull("many:1").await.unwrap();
    assert_eq!(many.layers.len(), 127);
    {
        let root = Root::mount(&lab, &many);
        assert_eq!(names(&root.target).len(), 126);
    }
    fs::remove_dir_all(lab.dir.path().join("container")).unwrap();
    lab.serve(&image::Image::new(), &["none:1"]);
    let none = lab.pull("none:1").await.unwrap();
    assert!(none.layers.is_empty() && none.size > 0);
    {
        let root = Root::mount(&lab, &none);
        assert!(names(&root.target).is_empty());
        fs::write(root.target.join("new"), "").unwrap();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_mounts_nothing() {
    let lab = Lab::new();
    let image = {
        lab.serve(&image::Image::new().layer(small_layer("a")), &["a:1"]);
        lab.pull("a:1").await.unwrap()
    };
    fs::remove_dir_all(lab.store().layer_path(&image.layers[0])).unwrap();
    let base = lab.dir.path().join("container");
    for dir in ["rootfs", "dir"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    let error = snapshot::mount(lab.store(), &image.layers, &base.join("dir"), &base.join("rootfs")).unwrap_err();
    assert!(format!("{error:#}").contains(image.layers[0].hex()), "{error:#}");
    lab.finish();
}
