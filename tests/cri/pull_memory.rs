//! The memory and the threads that a pull or an import takes, whatever the image.

use std::fs;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::image::{Entry, Image, Layer, Packing, blob_path, save_document, write_blob};
use corten_tests::node::{BUSYBOX, Node};
use corten_tests::pod;
use serde_json::{Value, json};

/// Most memory above idle, in KiB.
const LIMIT_KIB: u64 = 64 << 10;

/// Two of each of the four layers that a server without configuration takes at once from a registry.
const THREADS: u64 = 8;

/// A number of the server's `/proc/PID/status`.
pub(crate) fn status(node: &Node, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", node.server_pid())).expect("a running server");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the key");
    let number = line.split_whitespace().next().expect("a value");
    number.parse().expect("a number")
}

/// Bytes that no packing makes smaller.
fn noise(seed: u64, mebibytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(mebibytes << 20);
    while bytes.len() < mebibytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// An image of eight layers, numbered from `first` so that it shares none with another: each of one large file or, with
/// `headers`, of many entries with large PAX records.
fn image(first: u64, packing: Packing, headers: bool) -> Image {
    let mut image = Image::new();
    image.packing = packing;
    for number in 0..8 {
        let mut layer = Layer::new();
        if headers {
            let comment = vec![b'x'; 900 << 10];
            for file in 0..20 {
                layer = layer.entry(&Entry {
                    path: &format!("{}/{file}", first + number),
                    pax: &[("comment", &comment)],
                    ..Entry::default()
                });
            }
        } else {
            layer = layer.file(&format!("f{number}"), 0o644, &noise(first + number, 20));
        }
        image = image.layer(layer);
    }
    image
}

#[test]
fn no_image_takes_more_than_64_mib() {
    let node = Node::start();
    let served = node.dir().join("images");
    let images = [
        ("zstd:1", image(0, Packing::Zstd, false)),
        ("gzip:1", image(8, Packing::Gzip, false)),
        ("headers:1", image(16, Packing::Gzip, true)),
    ];
    for (name, built) in images {
        built.save(&served, &[name]).unwrap();
        drop(built);
        // Each with a server of its own: the allocator keeps what an earlier pull took.
        node.stop_server();
        node.launch().unwrap();
        // The first pull reads certificates and starts the threads that stay.
        node.pull(BUSYBOX);
        let (idle, threads) = (status(&node, "VmRSS:"), status(&node, "Threads:"));
        fs::write(format!("/proc/{}/clear_refs", node.server_pid()), "5").unwrap();
        node.pull(&format!("127.0.0.1:5000/{name}"));
        let above = status(&node, "VmHWM:").saturating_sub(idle);
        println!("{name}: {above} KiB above {idle}");
        assert!(above < LIMIT_KIB, "{name}: {above} KiB above {idle}");
        // Threads for blocking work end ten seconds after it.
        let more = status(&node, "Threads:").saturating_sub(threads);
        assert!(more <= THREADS, "{name}: {more} threads more than {threads}");
    }
}

/// A small value can become a large structure: 4 MiB of `{}` as a config's history would be 145 MB.
#[test]
fn documents_of_many_small_values_are_refused_before_they_fill_the_memory() {
    let node = Node::start();
    let served = node.dir().join("images");
    let saved = Image::new()
        .layer(Layer::new().file("f", 0o644, b""))
        .save(&served, &["plain:1"])
        .unwrap();
    let read = |digest| -> Value { serde_json::from_slice(&fs::read(blob_path(&served, digest)).unwrap()).unwrap() };
    let (mut config, mut manifest) = (read(&saved.id), read(&saved.manifest));
    config["history"] = vec![json!({}); 1_390_000].into();
    let content = serde_json::to_vec(&config).unwrap();
    manifest["config"]["digest"] = json!(write_blob(&served, &content).unwrap());
    manifest["config"]["size"] = content.len().into();
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    save_document(&served, &manifest, &media_type, &["history:1"]).unwrap();
    manifest["layers"][0]["annotations"] = json!({ "many": vec![0; 1_900_000] });
    save_document(&served, &manifest, &media_type, &["annotations:1"]).unwrap();
    node.pull(BUSYBOX);
    let idle = status(&node, "VmRSS:");
    fs::write(format!("/proc/{}/clear_refs", node.server_pid()), "5").unwrap();
    for name in ["history:1", "annotations:1"] {
        let request = cri::PullImageRequest {
            image: Some(pod::image(&format!("127.0.0.1:5000/{name}"))),
            ..cri::PullImageRequest::default()
        };
        let error = node.cri.pull_image(request).unwrap_err();
        assert!(error.message().contains("more than 100000 values"), "{name}: {error}");
    }
    let above = status(&node, "VmHWM:").saturating_sub(idle);
    assert!(above < LIMIT_KIB, "{above} KiB above {idle}");
}

#[test]
fn as_many_layers_at_once_as_may_be() {
    let node = Node::with(|config| {
        let most = i64::try_from(corten_cri::image::MAX_LAYERS).unwrap();
        let pull = ["layers_at_once", "layers_of_a_registry"].map(|key| (key.to_owned(), most.into()));
        config.insert("pull".to_owned(), toml::Table::from_iter(pull).into());
    });
    let dir = node.dir().join("layout");
    let layer = |number: usize| Layer::new().file(&number.to_string(), 0o644, &vec![b'x'; 3 << 20]);
    let mut built = (0..60).map(layer).fold(Image::new(), Image::layer);
    // In several pieces, each of which needs a thread to be read.
    built.packing = Packing::Plain;
    built.save(&dir, &["a.example/many:1"]).unwrap();
    let mut import = node.image_command(&["import", dir.to_str().unwrap()]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = import.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            import.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}: the import stands still");
}
