//! What content is accepted and how it is checked: packings, digests, sizes, documents.

use std::fs;
use std::io::Write;

use corten_cri::image::Cause;
use corten_proto::id::{Algorithm, Digest};
use corten_tests::image::{self, Format, Image, Layer, Packing, Saved, blob_path, write_blob};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::{Lab, large_layer, small_layer};

fn document(lab: &Lab, digest: &Digest) -> Value {
    serde_json::from_slice(&fs::read(blob_path(&lab.served(), digest)).unwrap()).unwrap()
}

/// Serves `saved` as `name` after `change` has been at its manifest.
fn serve_changed(lab: &Lab, saved: &Saved, name: &str, change: impl FnOnce(&mut Value)) {
    let mut manifest = document(lab, &saved.manifest);
    change(&mut manifest);
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    image::save_document(&lab.served(), &manifest, &media_type, &[name]).unwrap();
}

/// Serves an image whose one layer is `archive`, but packed as `blob`.
fn serve_packed(lab: &Lab, archive: Vec<u8>, media_type: &str, blob: &[u8], name: &str) -> Saved {
    let saved = lab.serve(&Image::new().archive(archive), &["packed:0"]);
    let digest = write_blob(&lab.served(), blob).unwrap();
    serve_changed(lab, &saved, name, |manifest| {
        manifest["layers"] = json!([image::descriptor(media_type, &digest, blob.len())]);
    });
    saved
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_packing_and_digest() {
    let lab = Lab::new();
    let mut number = 0;
    for format in [Format::Oci, Format::Docker] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                number += 1;
                let (name, file) = (format!("all:{number}"), format!("file-{number}"));
                let mut image = Image::new().layer(small_layer(&file)).layer(large_layer(&file, 3));
                (image.format, image.packing, image.algorithm) = (format, packing, algorithm);
                let saved = lab.serve(&image, &[&name]);
                let pulled = lab.pull(&name).await.unwrap();
                assert_eq!(pulled.id, saved.id, "the id is the config's digest");
                assert_eq!(pulled.id.algorithm(), algorithm);
                let [small, large] = [0, 1].map(|layer| lab.store().layer_path(&saved.diff_ids[layer]).join(&file));
                assert_eq!(fs::read(small).unwrap(), file.as_bytes());
                assert_eq!(fs::metadata(large).unwrap().len(), 3 << 20);
                // By digest too: of a manifest that is digested by SHA-512, for example.
                let by_digest = format!("all@{}", saved.manifest);
                assert_eq!(lab.pull(&by_digest).await.unwrap().id, saved.id);
            }
        }
    }
    lab.finish();
}

/// Layers and images of either algorithm are found again by the next server.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_images_of_either_digest() {
    let mut lab = Lab::new();
    let mut ids = Vec::new();
    for (algorithm, name) in [(Algorithm::Sha256, "a:1"), (Algorithm::Sha512, "b:1")] {
        let mut image = Image::new().layer(small_layer(name));
        image.algorithm = algorithm;
        ids.push(lab.serve(&image, &[name]).id);
        lab.pull(name).await.unwrap();
    }
    lab.restart();
    for id in &ids {
        for text in [id.as_str(), id.hex(), &id.hex()[..12]] {
            assert_eq!(lab.store().find(text).unwrap().unwrap().id, *id, "{text}");
        }
    }
    assert!(lab.names("quarantine").is_empty());
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_in_several_gzip_members_or_zstd_frames() {
    let lab = Lab::new();
    let archive = small_layer("in-parts").into_tar();
    let (first, second) = archive.split_at(700);
    let members = [gzip(first), gzip(b""), gzip(second)].concat();
    let frames = [
        zstd::encode_all(first, 1).unwrap(),
        zstd::encode_all(second, 19).unwrap(),
    ]
    .concat();
    for (media_type, blob, name) in [(GZIP, members, "gzip:1"), (ZSTD, frames, "zstd:1")] {
        let saved = serve_packed(&lab, archive.clone(), media_type, &blob, name);
        lab.pull(name).await.unwrap();
        let file = lab.store().layer_path(&saved.diff_ids[0]).join("in-parts");
        assert_eq!(fs::read(file).unwrap(), b"in-parts");
        lab.store().remove(saved.id.as_str()).await.unwrap();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_packings_are_refused() {
    let lab = Lab::new();
    let archive = large_layer("broken", 1).into_tar();
    let (gzipped, zstded) = (gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap());
    let flipped = |mut blob: Vec<u8>| {
        let middle = blob.len() / 2;
        blob[middle] ^= 0x55;
        blob
    };
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(24).unwrap();
    window.include_contentsize(false).unwrap();
    for _ in 0..20 {
        window.write_all(&archive).unwrap();
    }
    let table = [
        ("gzip is zstd", GZIP, zstded.clone(), "gzip"),
        ("zstd is gzip", ZSTD, gzipped.clone(), ""),
        ("gzip cut", GZIP, gzipped[..gzipped.len() - 9].to_vec(), ""),
        ("zstd cut", ZSTD, zstded[..zstded.len() - 9].to_vec(), "incomplete"),
        ("gzip flipped", GZIP, flipped(gzipped.clone()), ""),
        ("gzip with a tail", GZIP, [gzipped, b"tail".to_vec()].concat(), ""),
        ("zstd with a tail", ZSTD, [zstded, b"tail".to_vec()].concat(), ""),
        ("zstd window", ZSTD, window.finish().unwrap(), "window"),
        ("nothing", GZIP, Vec::new(), ""),
    ];
    for (name, media_type, blob, says) in table {
        serve_packed(&lab, archive.clone(), media_type, &blob, "bad:1");
        let error = lab.pull("bad:1").await.expect_err(name);
        assert_eq!(error.cause, Cause::Refused, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        lab.assert_empty();
    }
    lab.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_types_of_descriptors_are_checked() {
    let lab = Lab::new();
    let saved = lab.serve(&Image::new().layer(small_layer("a")), &["good:1"]);
    type Change = fn(&mut Value);
    let changes: [(&str, Change, &str); 8] = [
        (
            "config larger",
            |it| it["config"]["size"] = 1_000.into(),
            "its descriptor says 1000",
        ),
        (
            "config smaller",
            |it| it["config"]["size"] = 10.into(),
            "larger than 10 bytes",
        ),
        (
            "config elsewhere",
            |it| it["config"]["digest"] = it["layers"][0]["digest"].clone(),
            "config",
        ),
        (
            "layer larger",
            |it| it["layers"][0]["size"] = 100_000.into(),
            "before the 100000",
        ),
        (
            "layer smaller",
            |it| it["layers"][0]["size"] = 10.into(),
            "larger than the 10 bytes",
        ),
        (
            "digest of no form",
            |it| it["layers"][0]["digest"] = "sha256:../../x".into(),
            "digest",
        ),
        (
            "digest of no algorithm",
            |it| it["layers"][0]["digest"] = "md5:0123".into(),
            "digest",
        ),
        (
            "a layer too many",
            |it| it["layers"] = json!([it["layers"][0], it["layers"][0]]),
            "1 diff_ids for 2",
        ),
    ];
    for (name, change, says) in changes {
        serve_changed(&lab, &saved, "bad:1", change);
        let error = lab.pull("bad:1").await.expect_err(name);
        assert_eq!(error.cause, Cause::Refused, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        lab.assert_empty();
    }
    let size = fs::read(blob_path(&lab.served(), &saved.manifest)).unwrap().len();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entry = image::descriptor("application/vnd.oci.image.manifest.v1+json", &saved.manifest, size + 1);
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [entry] });
    image::save_document(&lab.served(), &index, media_type, &["index:1"]).unwrap();
    let error = lab.pull("index:1").await.unwrap_err().to_string();
    assert!(error.contains("its descriptor says"), "{error}");
    lab.finish();
}

/// A bomb of 100,000 to one, the form only zstd has: refused long before it has filled the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_not_grow_without_bound() {
    let lab = Lab::new();
    let size = 1u64 << 30;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(header.as_bytes()).unwrap();
    for _ in 0..size >> 20 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    serve_packed(&lab, Layer::new().into_tar(), ZSTD, &bomb, "bomb:1");
    let error = lab.pull("bomb:1").await.unwrap_err();
    assert_eq!(error.cause, Cause::Refused, "{error}");
    assert!(error.to_string().contains("1100 times"), "{error}");
    lab.assert_empty();
    lab.finish();
}
