//! The store: by which names an image is found, what is shared, leased, freed, and what a restart makes of a damaged disk.

use std::fs;
use std::path::Path;

use corten_tests::image::Image;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Lab, dig, small_layer, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_every_form_of_its_names() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["team/app:v1", "team/app:v2"]);
    let image = lab.pull("team/app:v1").await.unwrap();
    lab.pull("team/app:v2").await.unwrap();
    assert_eq!(image.id, saved.id);
    let name = lab.registry.reference("team/app");
    let by_digest = format!("{name}@{}", saved.manifest);
    let forms = [
        format!("{name}:v1"),
        format!("{name}:v2"),
        by_digest.clone(),
        format!("{name}:v9@{}", saved.manifest),
        saved.id.to_string(),
        saved.id.hex().to_owned(),
        saved.id.hex()[..6].to_owned(),
        format!("sha256:{}", &saved.id.hex()[..12]),
    ];
    for form in forms {
        let found = lab.store().find(&form).unwrap();
        assert_eq!(found.expect(&form).id, saved.id);
    }
    for unknown in [
        format!("{name}:v3"),
        name.clone(),
        "0".repeat(64),
        "abcdef0123".to_owned(),
        "app:v1".to_owned(),
    ] {
        assert!(lab.store().find(&unknown).unwrap().is_none(), "{unknown}");
    }
    for malformed in ["", "A b", "a@sha256:12", &saved.id.hex()[..6].to_uppercase()] {
        assert!(lab.store().find(malformed).is_err(), "{malformed}");
    }
    let listed = lab.store().list();
    assert_eq!(listed.len(), 1, "one image, however many names");
    assert_eq!(listed[0].repo_tags, [format!("{name}:v1"), format!("{name}:v2")]);
    assert_eq!(listed[0].repo_digests, [by_digest]);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_all_names_and_frees_what_nobody_shares() {
    let lab = Lab::new();
    let shared = || small_layer("shared");
    let first = lab.serve(
        &Image::new().layer(shared()).layer(small_layer("first")),
        &["first:1", "first:2"],
    );
    lab.serve(
        &Image::new().layer(shared()).layer(small_layer("second")),
        &["second:1"],
    );
    for name in ["first:1", "first:2", "second:1"] {
        lab.pull(name).await.unwrap();
    }
    assert_eq!(lab.names("layers").len(), 3, "the shared layer is there once");
    lab.store().remove(&lab.registry.reference("first:1")).await.unwrap();
    assert!(lab.store().find(&lab.registry.reference("first:2")).unwrap().is_none());
    assert!(lab.store().find(first.id.as_str()).unwrap().is_none());
    wait_for("the first image's own layer to go", || lab.names("layers").len() == 2);
    assert!(lab.store().layer_path(&first.diff_ids[0]).join("shared").is_file());
    lab.store().remove(&lab.registry.reference("first:1")).await.unwrap();
    let second = lab.store().list()[0].id.clone();
    lab.store().remove(second.hex()).await.unwrap();
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_keeps_layers_whatever_becomes_of_the_image() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    lab.pull("a:1").await.unwrap();
    let lease = lab.store().lease(&saved.diff_ids).unwrap();
    lab.store().remove(saved.id.as_str()).await.unwrap();
    lab.store().sweep();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(lab.store().layer_path(&saved.diff_ids[0]).is_dir());
    let before = lab.registry.count("/blobs/");
    lab.pull("a:1").await.unwrap();
    assert_eq!(
        lab.registry.count("/blobs/"),
        before + 1,
        "the config only: the layer is here"
    );
    lab.store().remove(saved.id.as_str()).await.unwrap();
    drop(lease);
    lab.assert_empty();
    let error = lab.store().lease(&saved.diff_ids).unwrap_err().to_string();
    assert!(error.contains(saved.diff_ids[0].as_str()), "{error}");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_everything_and_drops_what_was_half_done() {
    let mut lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    let before = lab.pull("a:1").await.unwrap();
    let usage = lab.store().usage();
    let layers = lab.root().join("layers");
    fs::create_dir_all(layers.join("00.3.partial/fs/sub")).unwrap();
    fs::write(lab.root().join("images/x.json.partial"), "{").unwrap();
    lab.restart();
    let after = lab.store().list().remove(0);
    assert_eq!(
        serde_json::to_value(&*after).unwrap(),
        serde_json::to_value(&*before).unwrap()
    );
    assert_eq!(lab.store().usage(), usage);
    assert_eq!(lab.names("layers"), [saved.diff_ids[0].hex()]);
    assert_eq!(lab.names("images"), [format!("{}.json", saved.id.hex())]);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_quarantined_alone() {
    let mut lab = Lab::new();
    let mut ids = Vec::new();
    for name in ["bad-record", "bad-layer", "good"] {
        let saved = lab.serve(&Image::new().layer(small_layer(name)), &[&format!("{name}:1")]);
        lab.pull(&format!("{name}:1")).await.unwrap();
        ids.push(saved);
    }
    let record = lab.root().join("images").join(format!("{}.json", ids[0].id.hex()));
    fs::write(&record, "{ \"id\": ").unwrap();
    fs::remove_file(
        lab.root()
            .join("layers")
            .join(ids[1].diff_ids[0].hex())
            .join("layer.json"),
    )
    .unwrap();
    lab.restart();
    let left: Vec<_> = lab.store().list().iter().map(|image| image.id.clone()).collect();
    assert_eq!(left, [ids[2].id.clone()]);
    let mut expected = vec![
        format!("image-{}.json", ids[0].id.hex()),
        format!("image-{}.json", ids[1].id.hex()),
        format!("layer-{}", ids[1].diff_ids[0].hex()),
    ];
    expected.sort();
    assert_eq!(lab.names("quarantine"), expected);
    lab.store().sweep();
    wait_for("the layer without an image to go", || lab.names("layers").len() == 1);
    for name in ["bad-record:1", "bad-layer:1"] {
        lab.pull(name).await.unwrap();
    }
    assert_eq!(lab.store().list().len(), 3, "the next pull repairs");
    lab.finish();
}

/// Makes `path` a mount point: it can be neither renamed nor removed.
fn bind(path: &Path) {
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// A tree that recursion could not remove, and one that nothing can: neither keeps the store from its other images.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_do_not_keep_a_store_from_opening() {
    let mut lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["a:1"]);
    lab.pull("a:1").await.unwrap();
    let layers = lab.root().join("layers");
    let hex = saved.diff_ids[0].hex();
    let (deep, busy) = (layers.join("deep.partial"), layers.join(format!("{hex}.0.partial")));
    dig(&deep, 20_000);
    fs::create_dir(&busy).unwrap();
    // What is mounted there makes its removal fail.
    bind(&busy);
    lab.restart();
    assert!(!deep.exists() && busy.exists());
    assert_eq!(lab.store().list().len(), 1);
    // The name of the next removal's own is taken.
    lab.store().remove(&lab.registry.reference("a:1")).await.unwrap();
    assert!(!layers.join(hex).exists());
    umount2(&busy, MntFlags::MNT_DETACH).unwrap();
    lab.restart();
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_freed_holds_back_no_other() {
    let lab = Lab::new();
    let image = Image::new().layer(small_layer("busy")).layer(small_layer("free"));
    let saved = lab.serve(&image, &["a:1"]);
    lab.pull("a:1").await.unwrap();
    let busy = lab.store().layer_path(&saved.diff_ids[0]);
    let busy = busy.parent().unwrap();
    bind(busy);
    let error = lab.store().remove(&lab.registry.reference("a:1")).await.unwrap_err();
    assert!(format!("{error:#}").contains("rename to"), "{error:#}");
    umount2(busy, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(lab.names("layers"), [saved.diff_ids[0].hex()]);
    lab.store().sweep();
    wait_for("what was busy", || lab.names("layers").is_empty());
    lab.finish();
}
