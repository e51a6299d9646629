//! `corten-cri image`: pull, list, inspect, remove, check, prune.

use std::fs;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::image::{Image, Layer, Packing, blob_path, descriptor, save_document, write_blob};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod::{container, image};
use corten_tests::registry::{Access, Fault};
use serde_json::Value;

/// Serves an image of one small layer, unlike any other, as `name`.
fn serve(node: &Node, name: &str) -> String {
    let built = Image::new().layer(Layer::new().file("name", 0o644, name.as_bytes()));
    let saved = built.save(&node.dir().join("images"), &[name]).unwrap();
    saved.id.to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn an_image_comes_is_shown_and_goes() {
    let node = Node::start();
    let output = node.image_output(&["pull", BUSYBOX]);
    let (stdout, stderr) = (
        output.stdout.clone(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{stderr}");
    let id = String::from_utf8(stdout).unwrap();
    let id = id.strip_suffix(&format!(" {BUSYBOX}\n")).expect("the id and the name");
    assert!(
        stderr.contains("(1 of 1)"),
        "no terminal, a line for every layer: {stderr}"
    );

    let table = node.image(&["list"]);
    let row = format!("{BUSYBOX}  {}", &id["sha256:".len()..][..12]);
    assert!(table.starts_with("IMAGE ") && table.contains(&row), "{table}");
    let listed = json(&node.image(&["list", "--output", "json"]));
    assert_eq!(listed["images"][0]["id"], id);
    let filtered = json(&node.image(&["list", "absent:1", "--output=json"]));
    assert_eq!(filtered["images"], Value::Array(Vec::new()));

    let shown = json(&node.image(&["inspect", BUSYBOX]));
    assert_eq!(shown["status"]["id"], id);
    let info = &shown["info"]["info"];
    assert_eq!(info["imageSpec"]["config"]["Cmd"], serde_json::json!(["sh"]));
    assert!(info["layers"][0]["size"].as_u64().unwrap() > 100_000, "{info}");
    assert_eq!(info["size"], shown["status"]["size"]);
    let name = shown["status"]["repo_digests"][0].as_str().unwrap();
    assert_eq!(info["policy"][name], "there was no policy");
    let page = node.image(&["inspect", "--output", "table", &id["sha256:".len()..][..12]]);
    assert!(page.contains(BUSYBOX) && page.contains("layer"), "{page}");

    assert_eq!(node.image(&["remove", BUSYBOX]), format!("{BUSYBOX}\n"));
    assert_eq!(node.image(&["list"]).lines().count(), 1, "the header alone");
    let refusal = node.image_refused(&["inspect", BUSYBOX]);
    assert!(refusal.contains("no such image"), "{refusal}");
}

#[test]
fn a_failure_is_told_in_one_line() {
    let node = Node::start();
    let refusal = node.image_refused(&["pull", "127.0.0.1:5000/absent:1"]);
    assert!(
        refusal.contains("pull 127.0.0.1:5000/absent:1: ") && refusal.contains("404"),
        "{refusal}"
    );
    assert_eq!(
        refusal.lines().last().map(|line| line.starts_with("corten-cri: ")),
        Some(true)
    );
    let refusal = node.image_refused(&["pull", "not a name"]);
    assert!(refusal.contains("image repository"), "{refusal}");
    node.stop_server();
    let refusal = node.image_refused(&["list"]);
    assert!(
        refusal.contains("no server answers at") && refusal.contains("corten.sock"),
        "{refusal}"
    );
    node.launch().unwrap();
}

#[test]
fn a_login_is_read_from_stdin() {
    let node = Node::start();
    node.registry().require(Access::Login("me".into(), "pass word".into()));
    let refusal = node.image_refused(&["pull", BUSYBOX]);
    assert!(refusal.contains("401"), "{refusal}");
    let file = node.dir().join("password");
    fs::write(&file, "pass word\n").unwrap();
    node.image_from(&["pull", "--user", "me", BUSYBOX], fs::File::open(&file).unwrap());
    fs::write(&file, "other\n").unwrap();
    let wrong = node
        .image_command(&["pull", "--user", "me", BUSYBOX])
        .stdin(fs::File::open(&file).unwrap())
        .output();
    let wrong = String::from_utf8(wrong.unwrap().stderr).unwrap();
    assert!(wrong.contains("401") && !wrong.contains("other"), "{wrong}");
}

#[test]
fn a_pull_shows_how_far_it_is() {
    let node = Node::start();
    let noise: Vec<u8> = (0..600_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let built = Image::new().layer(Layer::new().file("noise", 0o644, &noise));
    let saved = built.save(&node.dir().join("images"), &["slow:1"]).unwrap();
    let blob = saved.blobs[0].to_string();
    node.registry()
        .fail(&blob, Some(Fault::Slow(Duration::from_millis(20))));
    let name = "127.0.0.1:5000/slow:1";
    let mut pull = node
        .image_command(&["pull", name])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let request = || cri::ImageStatusRequest {
        image: Some(image(name)),
        verbose: true,
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let seen = loop {
        let answer = node.cri.image_status(request()).unwrap();
        let progress = answer.info.get("progress").map(|text| json(text));
        if let Some(progress) = progress.filter(|it| it["layers"][0]["received"].as_u64() > Some(0)) {
            assert_eq!(answer.image, None, "it is not here yet");
            break progress;
        }
        assert!(Instant::now() < deadline, "no progress is shown");
        std::thread::sleep(Duration::from_millis(10));
    };
    let layer = &seen["layers"][0];
    assert_eq!(
        (seen["stage"].as_str(), layer["digest"].as_str()),
        (Some("layers"), Some(blob.as_str()))
    );
    assert_eq!(layer["done"], false);
    assert!(layer["received"].as_u64() < layer["size"].as_u64(), "{layer}");
    assert!(pull.wait().unwrap().success());
    assert!(!node.cri.image_status(request()).unwrap().info.contains_key("progress"));
    let log = node.server_log();
    for line in ["pull begins", "layer ready", "pull done"] {
        assert!(log.contains(line), "{line} is missing in {log}");
    }
    assert!(
        log.contains(&format!("bytes={}", layer["size"])) && log.contains("seconds="),
        "{log}"
    );
}

#[test]
fn layers_of_one_content_are_done_together() {
    let node = Node::start();
    let dir = node.dir().join("images");
    let layer = || Layer::new().file("same", 0o644, b"same");
    let saved = Image::new()
        .layer(layer())
        .layer(layer())
        .save(&dir, &["same:1"])
        .unwrap();
    let mut manifest = json(&fs::read_to_string(blob_path(&dir, &saved.manifest)).unwrap());
    let tar = layer().into_tar();
    let plain = write_blob(&dir, &tar).unwrap();
    manifest["layers"][1] = descriptor("application/vnd.oci.image.layer.v1.tar", &plain, tar.len());
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    save_document(&dir, &manifest, manifest_type, &["two:1"]).unwrap();
    let pulled = node.image_output(&["pull", "127.0.0.1:5000/two:1"]);
    let told = String::from_utf8(pulled.stderr).unwrap();
    assert!(told.contains("(2 of 2)"), "{told}");
}

#[test]
fn a_short_name_is_told_for_what_it_means() {
    let node = Node::with(|config| {
        let pull = config["pull"].as_table_mut().expect("a table");
        let alias = toml::Table::from_iter([("tool".to_owned(), "127.0.0.1:5000/large".into())]);
        pull.insert("short_names".to_owned(), alias.into());
    });
    let mut built = Image::new().layer(Layer::new().file("large", 0o644, &vec![b'x'; 2 << 20]));
    built.packing = Packing::Plain;
    built.save(&node.dir().join("images"), &["large:1"]).unwrap();
    let slow = Fault::Slow(Duration::from_millis(20));
    node.registry().fail("/blobs/", Some(slow));
    let pull = node
        .image_command(&["pull", "tool:1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let request = || cri::ImageStatusRequest {
        image: Some(image("tool:1")),
        verbose: true,
    };
    let end = Instant::now() + Duration::from_secs(10);
    while !node.cri.image_status(request()).unwrap().info.contains_key("progress") {
        assert!(Instant::now() < end, "no progress");
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = pull.wait_with_output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(stdout.ends_with(" 127.0.0.1:5000/large:1\n"), "{stdout}");
    assert!(stderr.contains("(1 of 1)"), "{stderr}");
}

#[test]
fn prune_takes_what_nobody_uses() {
    let node = Node::start();
    let old = serve(&node, "moving:1");
    node.pull("127.0.0.1:5000/moving:1");
    let pod = node.pod("user");
    let running = pod.start(container("main", &["sleep", "1000"]));
    serve(&node, "other:1");
    node.pull("127.0.0.1:5000/other:1");
    // The tag moves: the old image has none left.
    let built = Image::new().layer(Layer::new().file("name", 0o644, b"new"));
    built.save(&node.dir().join("images"), &["moving:1"]).unwrap();
    node.pull("127.0.0.1:5000/moving:1");
    let count = || {
        json(&node.image(&["list", "--output=json"]))["images"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count(), 4);
    let would = node.image(&["prune", "--dry-run"]);
    assert!(would.starts_with(&old) && would.lines().count() == 1, "{would}");
    assert_eq!(count(), 4, "nothing was removed");
    let pruned = node.image(&["prune"]);
    assert!(pruned.starts_with(&old) && pruned.contains("freed "), "{pruned}");
    assert_eq!(count(), 3);
    node.image(&["prune", "--all"]);
    let left = json(&node.image(&["list", "--output=json"]));
    assert_eq!(left["images"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["images"][0]["repo_tags"][0], BUSYBOX, "a container uses it");
    running.stop(0);
    running.remove();
    node.image(&["prune", "--all"]);
    assert_eq!(count(), 0);
    assert_eq!(fs::read_dir(node.dir().join("lib/layers")).unwrap().count(), 0);
}

#[test]
fn check_tells_what_is_wrong() {
    let node = Node::start();
    node.pull(BUSYBOX);
    serve(&node, "other:1");
    node.pull("127.0.0.1:5000/other:1");
    let sound = node.image(&["check"]);
    assert!(sound.starts_with("2 images, 2 layers, "), "{sound}");
    let report = json(&node.image(&["check", "--output=json"]));
    assert_eq!(report["findings"], Value::Array(Vec::new()));

    let lib = node.dir().join("lib");
    let layers = |name: &str| {
        let shown = json(&node.image(&["inspect", name]));
        shown["info"]["info"]["layers"][0]["path"].as_str().unwrap().to_owned()
    };
    let (busybox, other) = (layers(BUSYBOX), layers("127.0.0.1:5000/other:1"));
    fs::write(lib.join("layers/stray"), "").unwrap();
    fs::write(lib.join("quarantine/old"), "").unwrap();
    fs::remove_file(format!("{busybox}/etc/passwd")).unwrap();
    fs::remove_dir_all(&other).unwrap();
    let output = node.image_output(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        format!("error: {}: is no part of the store", lib.join("layers/stray").display()),
        format!("error: sha256:{}: {other} is missing", saved_hex(&other)),
        format!("note: sha256:{}: has ", saved_hex(&busybox)),
        format!("note: {}: was unusable", lib.join("quarantine/old").display()),
    ] {
        assert!(text.contains(&line), "{line} is missing in {text}");
    }
    assert!(String::from_utf8(output.stderr).unwrap().contains("2 errors"));
    fs::remove_file(lib.join("layers/stray")).unwrap();
}

/// The digits in the path of a layer's files.
fn saved_hex(files: &str) -> &str {
    files
        .strip_suffix("/fs")
        .and_then(|dir| dir.rsplit('/').next())
        .expect("LAYERS/HEX/fs")
}
