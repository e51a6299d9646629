//! Layers that are made to break out, to lie or to wear the node out: each is refused, and nothing of it stays.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use corten_cri::image::{Cause, Credentials, ImageStore};
use corten_tests::image::{self, Entry, Image, Layer, Packing};
use corten_tests::registry::{Fault, Registry};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tar::EntryType;

use crate::{Lab, large_layer, small_layer, wait_for};

/// Pulls an image of this one archive, expects a refusal that says `says`, and nothing kept.
async fn refused(lab: &Lab, name: &str, tar: Vec<u8>, says: &str) {
    lab.serve(&Image::new().archive(tar), &["bad:1"]);
    let error = lab.pull("bad:1").await.expect_err(name);
    assert_eq!(error.cause, Cause::Refused, "{name}: {error}");
    let text = error.to_string();
    assert!(
        text.contains(says) && text.contains("bad:1"),
        "{name}: {text:?} should say {says:?}"
    );
    assert!(!text.contains('\n'), "{name}: one line");
    lab.assert_empty();
}

/// Each layer is refused with a text that says the rule.
async fn all_refused(lab: &Lab, table: Vec<(&str, Layer, &str)>) {
    for (name, layer, says) in table {
        refused(lab, name, layer.into_tar(), says).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_break_the_rules_are_refused() {
    let lab = Lab::new();
    let file = |path: &str| Layer::new().file(path, 0o644, b"");
    let no_way_up = "must not hold \"..\"";
    let table = vec![
        ("up", file("../escape"), no_way_up),
        ("up inside", file("a/../../escape"), no_way_up),
        ("up at the end", Layer::new().dir("a/..", 0o777), no_way_up),
        ("whiteout of ..", Layer::new().whiteout("a", "."), "must name a file"),
        (
            "whiteout of nothing",
            Layer::new().whiteout("a", ""),
            "must name a file",
        ),
        ("aufs metadata", file(".wh..wh.aufs"), "aufs"),
        ("below a whiteout", file("a/.wh.b/c"), "named like a whiteout"),
        ("root is a file", file("."), "root must be a directory"),
        ("file or directory", file("a/"), "ends in /"),
        ("long component", file(&"x".repeat(256)), "bad:1"),
        ("long path", file(&format!("{}x", "x/".repeat(2500))), "4095 bytes"),
    ];
    all_refused(&lab, table).await;
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_lead_out_are_refused() {
    let lab = Lab::new();
    let tripwire = lab.dir.path().join("tripwire");
    fs::write(&tripwire, "untouched").unwrap();
    let outside = tripwire.to_str().unwrap();
    let through = format!("out{outside}");
    let table = vec![
        (
            "hard link up",
            Layer::new().hard_link("a", "../../etc/passwd"),
            "must not hold",
        ),
        (
            "hard link outside",
            Layer::new().hard_link("a", outside),
            "hard link to",
        ),
        (
            "hard link through a link",
            Layer::new().symlink("out", "/").hard_link("a", &through),
            "hard link to",
        ),
        (
            "hard link to a directory",
            Layer::new().dir("d", 0o755).hard_link("a", "d"),
            "hard link to",
        ),
        (
            "file below a file",
            Layer::new().file("f", 0o644, b"").file("f/g", 0o644, b""),
            "its directory",
        ),
        (
            "file below a dangling link",
            Layer::new().symlink("l", "/nowhere").file("l/g", 0o644, b""),
            "leads nowhere",
        ),
        (
            "file below a loop",
            Layer::new().symlink("l", "l").file("l/g", 0o644, b""),
            "its directory",
        ),
        ("link to nothing", Layer::new().symlink("l", ""), "symlinkat"),
        (
            "endless link",
            Layer::new().symlink("l", &"x".repeat(5000)),
            "4095 bytes",
        ),
    ];
    all_refused(&lab, table).await;
    assert_eq!(fs::read_to_string(&tripwire).unwrap(), "untouched");
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_break_the_rules_are_refused() {
    let lab = Lab::new();
    let kind = |kind| {
        let entry = Entry {
            path: "a",
            kind,
            ..Entry::default()
        };
        Layer::new().entry(&entry)
    };
    let pax = |key: &str, value: &[u8]| {
        let pax: &[(&str, &[u8])] = &[(key, value)];
        let entry = Entry {
            path: "a",
            pax,
            ..Entry::default()
        };
        Layer::new().entry(&entry)
    };
    let overlay = "SCHILY.xattr.trusted.overlay";
    let table = vec![
        ("whiteout in disguise", kind(EntryType::Char), "0:0"),
        ("unknown type", kind(EntryType::new(b'Q')), "not supported"),
        ("sparse without a map", pax("GNU.sparse.major", b"1"), "sparse"),
        ("sparse of another form", pax("GNU.sparse.major", b"2"), "sparse"),
        ("redirect", pax(&format!("{overlay}.redirect"), b"/"), "trusted.overlay"),
        (
            "opaque by xattr",
            pax(&format!("{overlay}.opaque"), b"y"),
            "trusted.overlay",
        ),
        ("time", pax("mtime", b"soon"), "mtime"),
        ("uid", pax("uid", b"4294967295"), "uid"),
    ];
    all_refused(&lab, table).await;
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_are_none_are_refused() {
    let lab = Lab::new();
    let good = Layer::new().file("a", 0o644, &[7; 3000]).into_tar();
    refused(&lab, "text", b"this is not an archive at all".repeat(100), "checksum").await;
    refused(&lab, "cut inside a file", good[..1500].to_vec(), "").await;
    let mut checksum = good.clone();
    checksum[150] ^= 1;
    refused(&lab, "header checksum", checksum, "checksum").await;
    let comment = vec![b'x'; 3 << 20];
    let headers = Layer::new().entry(&Entry {
        path: "a",
        pax: &[("comment", &comment)],
        ..Entry::default()
    });
    refused(&lab, "endless headers", headers.into_tar(), "headers of more than").await;
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_calls_itself_gzip_must_be_gzip() {
    let lab = Lab::new();
    let mut image = Image::new().layer(Layer::new().file("a", 0o644, b"a"));
    image.packing = Packing::Plain;
    let saved = lab.serve(&image, &["plain:1"]);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(corten_tests::image::blob_path(&lab.served(), &saved.manifest)).unwrap())
            .unwrap();
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    corten_tests::image::save_document(&lab.served(), &manifest, &media_type, &["liar:1"]).unwrap();
    let error = lab.pull("liar:1").await.unwrap_err();
    assert_eq!(error.cause, Cause::Refused, "{error}");
    lab.assert_empty();
    lab.finish();
}

/// CVE-2026-95838's form: 20,000 opaque whiteouts of one directory must cost 20,000 small steps.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_opaque_whiteouts_take_linear_time() {
    let lab = Lab::new();
    let mut layer = Layer::new().dir("d", 0o755);
    for number in 0..2000 {
        layer = layer.file(&format!("d/{number}"), 0o644, b"");
    }
    for _ in 0..20_000 {
        layer = layer.opaque("d");
    }
    let started = std::time::Instant::now();
    let root = lab.unpack(layer).await;
    assert!(started.elapsed().as_secs() < 20, "took {:?}", started.elapsed());
    assert_eq!(crate::names(&root.join("d")).len(), 2000);
    lab.finish();
}

/// CVE-2026-114236's form: a layer that fails must give back what it had opened.
#[tokio::test(flavor = "multi_thread")]
async fn failed_layers_keep_no_descriptor() {
    let lab = Lab::new();
    lab.serve(&Image::new().layer(Layer::new().file("../a", 0o644, b"")), &["bad:1"]);
    let open = || {
        let root = lab.root();
        let links = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|target| target.starts_with(&root)).count()
    };
    for _ in 0..50 {
        lab.pull("bad:1").await.unwrap_err();
    }
    assert_eq!(open(), 0);
    lab.assert_empty();
    lab.finish();
}

fn read_json(lab: &Lab, digest: &corten_proto::id::Digest) -> Value {
    let content = fs::read(image::blob_path(&lab.served(), digest)).unwrap();
    serde_json::from_slice(&content).unwrap()
}

/// Serves `manifest` as `name`.
fn serve_manifest(lab: &Lab, manifest: &Value, name: &str) {
    let media_type = manifest["mediaType"].as_str().unwrap();
    image::save_document(&lab.served(), manifest, media_type, &[name]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_claims_a_layer_of_others_holds_none_of_them_up() {
    let mut lab = Lab::new();
    let good = lab.serve(&Image::new().layer(small_layer("popular")), &["good:1"]);
    // Another registry's image: the same config, and so the same diff id, with a blob that never comes to its end.
    let other = lab.serve(&Image::new().layer(large_layer("other", 8)), &["other:1"]);
    let mut claim = read_json(&lab, &good.manifest);
    claim["layers"] = read_json(&lab, &other.manifest)["layers"].clone();
    serve_manifest(&lab, &claim, "claim:1");
    let slow = Registry::start(&lab.served()).unwrap();
    slow.fail("/blobs/", Some(Fault::Slow(Duration::from_millis(200))));
    slow.fail(good.id.as_str(), None);
    let mut configs = lab.configs();
    let plain = configs.by_name.values().next().unwrap().clone();
    configs.by_name.insert(slow.address().to_string(), plain);
    lab.store = None;
    lab.store = Some(ImageStore::open(&lab.root(), configs).unwrap());

    let (store, reference) = (Arc::clone(lab.store()), slow.reference("claim:1"));
    let claiming = tokio::spawn(async move { store.pull(&reference, Credentials::Anonymous).await });
    wait_for("the download", || slow.count(other.blobs[0].as_str()) == 1);
    let pulled = tokio::time::timeout(Duration::from_secs(10), lab.pull("good:1")).await;
    assert_eq!(pulled.expect("it waits for the other").unwrap().id, good.id);
    assert!(!claiming.is_finished());
    claiming.abort();
    drop(claiming.await);
    drop(slow);
    wait_for("the end of the download", || lab.names("layers").len() == 1);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_of_another_pull_is_not_shared() {
    let lab = Lab::new();
    let good = lab.serve(&Image::new().layer(large_layer("popular", 2)), &["good:1"]);
    let mut claim = read_json(&lab, &good.manifest);
    // It fails at the end of the download, when the other waits for it already.
    let size = claim["layers"][0]["size"].as_u64().unwrap();
    claim["layers"][0]["size"] = (size + 1).into();
    serve_manifest(&lab, &claim, "claim:1");
    let blob = good.blobs[0].as_str();
    lab.registry.fail(blob, Some(Fault::Slow(Duration::from_millis(3))));

    let (store, reference) = (Arc::clone(lab.store()), lab.registry.reference("claim:1"));
    let claiming = tokio::spawn(async move { store.pull(&reference, Credentials::Anonymous).await });
    wait_for("the download", || lab.registry.count(blob) == 1);
    assert_eq!(lab.pull("good:1").await.unwrap().id, good.id);
    let error = claiming.await.unwrap().unwrap_err();
    assert_eq!(error.cause, Cause::Refused, "{error}");
    assert_eq!(lab.registry.count(blob), 2);
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_known_config_is_checked_too() {
    let lab = Lab::new();
    let good = lab.serve(&Image::new().layer(small_layer("a")), &["good:1"]);
    lab.pull("good:1").await.unwrap();
    let mut claim = read_json(&lab, &good.manifest);
    claim["config"]["size"] = json!(u64::MAX);
    serve_manifest(&lab, &claim, "claim:1");
    let error = lab.pull("claim:1").await.unwrap_err();
    assert_eq!(error.cause, Cause::Refused, "{error}");
    assert!(error.to_string().contains("at most 4194304"), "{error}");
    lab.finish();
}

/// Layers of `levels` directories: links shorten the names, so that none is as long as its way.
fn deep_layer(levels: usize) -> Layer {
    let step = "d/".repeat(100);
    let mut layer = Layer::new();
    let mut made = 0;
    while made < levels {
        // `s0 -> d/d/..`, `s0/s1 -> d/d/..`: each link is at the end of the one before.
        let number = made / 100;
        let at = match number {
            0 => String::new(),
            number => format!("s{}/", number - 1),
        };
        let count = (levels - made).min(100);
        layer = layer.dir(&format!("{at}{}", "d/".repeat(count)), 0o755);
        layer = layer.symlink(&format!("s{number}"), &format!("{at}{step}"));
        made += count;
    }
    layer
}

/// What can be made by links only: 512 levels are applied and removed again, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn directories_deeper_than_any_image_has_are_refused() {
    let lab = Lab::new();
    refused(&lab, "deep", deep_layer(513).into_tar(), "more than 512 levels").await;
    let name_alone = Layer::new().file(&format!("{}file", "d/".repeat(513)), 0o644, b"");
    refused(&lab, "deep by name", name_alone.into_tar(), "more than 512 levels").await;
    lab.unpack(deep_layer(512)).await;
    lab.store().remove(&lab.registry.reference("a:1")).await.unwrap();
    lab.assert_empty();
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_do_not_make_long_messages() {
    let lab = Lab::new();
    let long = "\u{e4}".repeat(2000);
    let layers = [
        Layer::new().file(&long, 0o644, b""),
        Layer::new().hard_link("a", &format!("{}x", "d/".repeat(2000))),
        Layer::new().entry(&Entry {
            path: "a",
            pax: &[("mtime", long.as_bytes())],
            ..Entry::default()
        }),
    ];
    for layer in layers {
        lab.serve(&Image::new().layer(layer), &["bad:1"]);
        let error = lab.pull("bad:1").await.unwrap_err();
        assert_eq!(error.cause, Cause::Refused, "{error}");
        let text = error.to_string();
        assert!(text.chars().count() < 800 && text.contains('\u{2026}'), "{text}");
    }
    lab.finish();
}

/// A few kilobytes that become more than there is room for: refused while there still is some.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_leaves_some_of_the_disk_free() {
    let mut lab = Lab::new();
    lab.store = None;
    // At 128 MiB, where the unpacker looks, less than a 20th of this is left.
    let root = lab.root();
    mount(Some("none"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=133m")).unwrap();
    lab.restart();
    lab.serve(
        &Image::new().layer(Layer::new().file("zeros", 0o644, &vec![0; 160 << 20])),
        &["a:1"],
    );
    let error = lab.pull("a:1").await.unwrap_err();
    assert_eq!(error.cause, Cause::Local, "{error}");
    assert!(error.to_string().contains("of the disk free"), "{error}");
    lab.assert_empty();
    lab.store = None;
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    lab.finish();
}
