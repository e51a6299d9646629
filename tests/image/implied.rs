//! Directories that a layer has files in and no entry for: the layers below tell their attributes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use corten_cri::image::snapshot::{self, Snapshotter, Volume};
use corten_tests::image::{Entry, Image, Layer};
use tar::EntryType;

use crate::Lab;
use crate::snapshot::{Mapped, Root, WAYS, snapshots};

/// A directory unlike any that is made on the way.
fn special(layer: Layer, path: &str, gid: u64) -> Layer {
    layer.entry(&Entry {
        path,
        kind: EntryType::Directory,
        mode: 0o1770,
        uid: 7,
        gid,
        pax: &[("mtime", b"1000000000.5"), ("SCHILY.xattr.user.note", b"lower")],
        ..Entry::default()
    })
}

/// Mode, owner, group, time and xattr of a directory.
fn attributes(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).unwrap();
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(path, "user.note", &mut value[..]).unwrap_or(0);
    format!(
        "{:o} {}:{} {}.{} {}",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        String::from_utf8_lossy(&value[..length])
    )
}

/// Layers in which what is implied lies above what has an entry, in every way there is.
fn image() -> Image {
    let file = |layer: Layer, path: &str| layer.file(path, 0o644, b"x");
    let mut bottom = Layer::new();
    for (gid, path) in (8..).zip(["a", "a/b", "hidden", "opaque", "opaque/in", "both", "late", "a/b/deep"]) {
        bottom = special(bottom, path, gid);
    }
    let bottom = bottom.file("a/b/old", 0o644, b"old");
    // Nothing of it says anything of `a`, and another layer lies between.
    let middle = file(Layer::new(), "other/f");
    let middle = middle.whiteout("", "hidden").opaque("opaque");
    let upper = file(Layer::new(), "a/b/new");
    let upper = file(file(upper, "hidden/f"), "opaque/in/f");
    let upper = special(file(upper, "both/f"), "both", 100);
    let upper = file(special(upper, "late", 101), "late/f");
    // One that is made by way of a link.
    let upper = file(file(upper.symlink("way", "a/b"), "way/deep/f"), "only/here/f");
    let top = file(Layer::new(), "a/top");
    Image::new().layer(bottom).layer(middle).layer(upper).layer(top)
}

/// What becomes of each; `base` is the host's id of 0.
fn expected(base: u32) -> Vec<(&'static str, String)> {
    let lower = |gid: u32| format!("1770 {}:{} 1000000000.500000000 lower", base + 7, base + gid);
    vec![
        ("a", lower(8)),
        ("a/b", lower(9)),
        ("a/b/deep", lower(15)),
        ("both", lower(100)),
        ("late", lower(101)),
        ("opaque", lower(11)),
    ]
}

fn check(root: &Path, base: u32, case: &str) {
    for (path, attributes_of) in expected(base) {
        assert_eq!(attributes(&root.join(path)), attributes_of, "{case}: {path}");
    }
    // What was deleted in between, or is nowhere below, tells nothing.
    for path in ["hidden", "opaque/in", "other", "only", "only/here"] {
        let found = attributes(&root.join(path));
        assert!(
            found.starts_with(&format!("755 {base}:{base} ")),
            "{case}: {path}: {found}"
        );
    }
    assert_eq!(crate::names(&root.join("a/b")), ["deep", "new", "old"], "{case}");
    assert_eq!(crate::names(&root.join("a")), ["b", "top"], "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_layer_below_tells() {
    let mut lab = Lab::new();
    let saved = lab.serve(&image(), &["a:1"]);
    let pulled = lab.pull("a:1").await.unwrap();
    let has_list = |number: usize| {
        let list = lab
            .store()
            .layer_path(&saved.diff_ids[number])
            .with_file_name("implied.json");
        list.exists()
    };
    assert_eq!(
        [0, 1, 2, 3].map(has_list),
        [false, true, true, true],
        "most layers have no list"
    );
    // What is known after a restart is what the layers' directories say.
    lab.restart();
    for way in WAYS {
        let root = Root::mount_by(&lab, &pulled, way, None);
        check(&root.target, 0, &format!("{way:?}"));
    }
    let mapped = Mapped::start();
    let root = Root::mount_by(&lab, &pulled, Snapshotter::Overlayfs, Some(&mapped.namespace()));
    check(&root.target, 100_000, "mapped");
    drop((root, mapped));
    for (number, way) in WAYS.into_iter().enumerate() {
        let view = Volume {
            layers: &pulled.layers,
            dir: &lab.dir.path().join(format!("view-{number}")),
            sub_path: "",
            user_namespace: None,
        };
        let shown = snapshots(&lab, way).view(&view).unwrap();
        check(&shown, 0, &format!("view, {way:?}"));
        assert!(fs::write(shown.join("a/new"), "").is_err(), "read-only");
        snapshot::unmount(&shown).unwrap();
    }
    lab.finish();
}
