//! Archives of images that are not what they should be, and clients that do not stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use corten_tests::image::{self, Image, Layer};
use corten_tests::image_cli::run;
use corten_tests::node::Node;
use serde_json::{Value, json};

use crate::image_archive::{assert_empty, at, layout};
use crate::pull_memory::status;

/// A tar archive of these files.
fn archive(node: &Node, files: &[(&str, &[u8])]) -> String {
    let layer = files
        .iter()
        .fold(Layer::new(), |layer, (name, content)| layer.file(name, 0o644, content));
    let path = at(node, "hostile.tar");
    fs::write(&path, layer.into_tar()).unwrap();
    path
}

/// The layout of an image of one layer, its files changed by `change`, as an archive.
fn changed(node: &Node, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>, &image::Saved)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let saved = Image::new()
        .layer(Layer::new().file("f", 0o644, b"content"))
        .save(dir.path(), &["a.example/a:1"]);
    let saved = saved.unwrap();
    let mut files = BTreeMap::new();
    let mut waiting = vec![dir.path().to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(dir.path()).unwrap().display().to_string();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    change(&mut files, &saved);
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    archive(node, &files)
}

fn blob(digest: &corten_proto::id::Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[test]
fn archives_without_an_image_are_refused() {
    let node = Node::start();
    let outside: &[u8] = br#"[{"Config":"../../etc/passwd","Layers":[]}]"#;
    let large = vec![b' '; 5 << 20];
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: &[(Files<'_>, &str)] = &[
        (&[("readme", b"hello")], "neither an OCI layout"),
        (&[("manifest.json", b"[]")], "0 images, must be 1 to 1000"),
        (&[("manifest.json", b"{")], "manifest.json: "),
        (&[("manifest.json", outside)], "it has no file"),
        (&[("manifest.json", &large)], "at most 4194304"),
        (&[("a", b"1"), ("./a", b"2")], "is in it twice"),
        (&[("oci-layout", b"{}"), ("index.json", b"{}")], "oci-layout: "),
    ];
    for (files, says) in cases {
        let refusal = node.image_refused(&["import", &archive(&node, files)]);
        assert!(refusal.contains(says), "{refusal} should say {says:?}");
    }
    let empty = at(&node, "empty.tar");
    fs::write(&empty, "").unwrap();
    assert!(
        node.image_refused(&["import", &empty])
            .contains("neither an OCI layout")
    );
    let no_layout = node.image_refused(&["import", node.dir().join("lib").to_str().unwrap()]);
    assert!(no_layout.contains("no OCI layout"), "{no_layout}");
    assert_empty(&node);
}

/// Images of docker save without layers, whose configs are as large as may be.
fn large_configs(node: &Node, entries: &[(&str, &str)]) -> String {
    let entry = |(config, tag): &(&str, &str)| json!({ "Config": config, "RepoTags": [tag], "Layers": [] });
    let list: Vec<Value> = entries.iter().map(entry).collect();
    let config = json!({
        "architecture": image::architecture(), "os": "linux", "author": "x".repeat(4_100_000),
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let (list, config) = (Value::from(list).to_string(), config.to_string());
    let names: BTreeSet<&str> = entries.iter().map(|(config, _)| *config).collect();
    let mut files = vec![("manifest.json", list.as_bytes())];
    files.extend(names.into_iter().map(|name| (name, config.as_bytes())));
    archive(node, &files)
}

#[test]
fn what_an_archive_repeats_takes_no_memory() {
    let node = Node::start();
    let tags: Vec<String> = (0..90).map(|number| format!("a.example/a:{number}")).collect();
    let same: Vec<(&str, &str)> = tags.iter().map(|tag| ("config.json", tag.as_str())).collect();
    let imported = node.image(&["import", &large_configs(&node, &same)]);
    assert_eq!(imported.lines().count(), tags.len(), "{imported}");
    let peak = status(&node, "VmHWM:");
    assert!(peak < 100 << 10, "{peak} KiB");

    let names: Vec<String> = (0..9).map(|number| format!("{number}.json")).collect();
    let others: Vec<(&str, &str)> = names
        .iter()
        .zip(&tags)
        .map(|(name, tag)| (name.as_str(), tag.as_str()))
        .collect();
    let refusal = node.image_refused(&["import", &large_configs(&node, &others)]);
    assert!(refusal.contains("configs of more than"), "{refusal}");
}

#[test]
fn layouts_whose_parts_do_not_agree_are_refused() {
    let node = Node::start();
    type Files = BTreeMap<String, Vec<u8>>;
    type Change = fn(&mut Files, &image::Saved);
    fn flip(files: &mut Files, digest: &corten_proto::id::Digest) {
        let content = files.get_mut(&blob(digest)).unwrap();
        *content.last_mut().unwrap() ^= 1;
    }
    fn append(files: &mut Files, digest: &corten_proto::id::Digest) {
        files.get_mut(&blob(digest)).unwrap().push(0);
    }
    let cases: &[(Change, &str)] = &[
        (
            |files, _| drop(files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"2"}"#.to_vec())),
            "version \"2\"",
        ),
        (
            |files, saved| drop(files.remove(&blob(&saved.blobs[0]))),
            "it has no file",
        ),
        (|files, saved| flip(files, &saved.blobs[0]), "has the digest"),
        (|files, saved| flip(files, &saved.manifest), "has the digest"),
        (|files, saved| flip(files, &saved.id), "has the digest"),
        (|files, saved| append(files, &saved.blobs[0]), "larger than"),
        (|files, saved| append(files, &saved.id), "its descriptor says"),
    ];
    for (change, says) in cases {
        let refusal = node.image_refused(&["import", &changed(&node, change)]);
        assert!(refusal.contains(says), "{refusal} should say {says:?}");
    }
    let digest = format!("a.example/a@sha256:{}", "ab".repeat(32));
    let named = node.image_refused(&["import", &changed(&node, |_, _| ()), "--name", &digest]);
    assert!(named.contains("must have a tag"), "{named}");
    assert_empty(&node);
}

#[test]
fn a_client_that_dies_leaves_nothing() {
    let node = Node::start();
    let (dir, _) = layout(&node, "a.example/a:1");
    let tar = run(
        "tar",
        &["-C", dir.to_str().unwrap(), "-cf", &at(&node, "whole.tar"), "."],
    );
    drop(tar);
    let content = fs::read(at(&node, "whole.tar")).unwrap();
    let mut client = node
        .image_command(&["import", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    client
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&content[..content.len() / 2])
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    client.kill().unwrap();
    client.wait().unwrap();
    assert_empty(&node);
    let descriptors = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", node.server_pid())).unwrap();
        fds.filter(|fd| {
            fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.to_string_lossy().contains("(deleted)"))
        })
        .count()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while descriptors() > 0 {
        assert!(Instant::now() < deadline, "the half archive is kept");
        std::thread::sleep(Duration::from_millis(10));
    }
}
