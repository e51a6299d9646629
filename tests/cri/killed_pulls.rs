//! kill -9 at random moments of three pulls at once: after each restart nothing is half there, a pull succeeds, and removal
//! gives all space back.
//!
//! `CORTEN_KILLS=100` kills a hundred times; ten without it. What the kills hit is printed in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use corten_proto::cri;
use corten_tests::image::{Image, Layer};
use corten_tests::node::Node;
use corten_tests::pod::image;
use corten_tests::random::Random;
use corten_tests::registry::Fault;

const IMAGES: [&str; 3] = ["first", "second", "third"];

/// Between two pieces of 16 KiB of a blob: a layer takes about half a second.
const DRIP: Duration = Duration::from_millis(4);

/// Bytes of the large file in every layer, and how many small ones there are.
const LARGE: usize = 1 << 20;
const SMALL: usize = 200;

/// What the kills hit.
#[derive(Debug, Default)]
struct Hits {
    with_partial_layers: usize,
    partial_layers: usize,
    before_any_image: usize,
    between_images: usize,
    after_all_images: usize,
}

fn reference(name: &str) -> String {
    format!("127.0.0.1:5000/{name}:1")
}

/// A layer that is told by `seed`.
fn layer(seed: u64) -> Layer {
    let mut random = Random::new(seed);
    let content: Vec<u8> = (0..LARGE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut layer = Layer::new()
        .dir("etc", 0o755)
        .file(&format!("large-{seed}"), 0o644, &content);
    for number in 0..SMALL {
        layer = layer.file(
            &format!("etc/{seed}-{number}"),
            0o600,
            format!("{seed} {number}").as_bytes(),
        );
    }
    layer
}

/// Three images that have their lowest layer in common.
fn serve_images(node: &Node) {
    for (number, name) in (1..).zip(IMAGES) {
        let built = Image::new()
            .layer(layer(1))
            .layer(layer(10 * number))
            .layer(layer(10 * number + 1));
        built.save(&node.dir().join("images"), &[&format!("{name}:1")]).unwrap();
    }
    node.registry().fail("/blobs/", Some(Fault::Slow(DRIP)));
}

/// Pulls the three at once; how long they took, if all succeeded.
fn pull_all(node: &Node) -> Option<Duration> {
    let begin = Instant::now();
    let pulls = IMAGES.map(|name| {
        let client = node.cri.clone();
        thread::spawn(move || {
            let request = cri::PullImageRequest {
                image: Some(image(&reference(name))),
                ..Default::default()
            };
            client.pull_image(request).is_ok()
        })
    });
    let succeeded = pulls.map(|pull| pull.join().unwrap());
    succeeded.iter().all(|&succeeded| succeeded).then(|| begin.elapsed())
}

fn list(node: &Node) -> Vec<cri::Image> {
    let request = cri::ListImagesRequest::default();
    node.cri.list_images(request).expect("ListImages").images
}

/// Bytes and inodes of images by ImageFsInfo.
fn used(node: &Node) -> (u64, u64) {
    let reply = node.cri.image_fs_info(cri::ImageFsInfoRequest {}).expect("ImageFsInfo");
    let filesystem = &reply.image_filesystems[0];
    let (bytes, inodes) = (filesystem.used_bytes, filesystem.inodes_used);
    (bytes.expect("bytes").value, inodes.expect("inodes").value)
}

fn remove_all(node: &Node) {
    for image in list(node) {
        let image = Some(cri::ImageSpec {
            image: image.id,
            ..Default::default()
        });
        node.cri
            .remove_image(cri::RemoveImageRequest { image })
            .expect("RemoveImage");
    }
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        }
    }
    found
}

/// What the image store has on disk, by path.
fn stored(node: &Node) -> Vec<PathBuf> {
    let dirs = ["images", "layers", "quarantine"].map(|name| node.dir().join("lib").join(name));
    dirs.iter().flat_map(|dir| files(dir)).collect()
}

fn partial_layers(node: &Node) -> usize {
    let entries = fs::read_dir(node.dir().join("lib/layers")).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
        .count()
}

fn wait_for_no_partial_layer(node: &Node) {
    let end = Instant::now() + Duration::from_secs(5);
    while partial_layers(node) > 0 {
        assert!(Instant::now() < end, "half layers after the restart");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Every layer on disk holds all of its files, with all of their content.
fn assert_layers_whole(node: &Node, expected: usize) {
    let layers: Vec<_> = fs::read_dir(node.dir().join("lib/layers")).unwrap().flatten().collect();
    assert_eq!(layers.len(), expected, "{layers:?}");
    for layer in layers {
        let found = files(&layer.path().join("fs"));
        // The directory etc, and the large file.
        assert_eq!(found.len(), SMALL + 2, "{}", layer.path().display());
        let total: u64 = found
            .iter()
            .map(|path| path.metadata().unwrap())
            .filter(|it| it.is_file())
            .map(|it| it.len())
            .sum();
        assert!(total > LARGE as u64, "{total} bytes in {}", layer.path().display());
    }
}

/// One kill, and all that must hold after it.
fn round(node: &Node, moment: Duration, hits: &mut Hits) {
    thread::scope(|scope| {
        let pulls = scope.spawn(|| pull_all(node));
        thread::sleep(moment);
        node.kill_server();
        pulls.join().unwrap();
    });
    let partial = partial_layers(node);
    hits.partial_layers += partial;
    hits.with_partial_layers += usize::from(partial > 0);
    node.launch().unwrap();
    // Half layers went before the server answered; whole ones of no image are being removed.
    wait_for_no_partial_layer(node);
    assert!(files(&node.dir().join("lib/quarantine")).is_empty(), "nothing was torn");
    match list(node).len() {
        0 => hits.before_any_image += 1,
        3 => hits.after_all_images += 1,
        _ => hits.between_images += 1,
    }
    node.registry().fail("/blobs/", None);
    assert!(pull_all(node).is_some(), "a pull after the restart");
    assert_eq!(list(node).len(), 3);
    assert_layers_whole(node, 7);
    remove_all(node);
    assert!(list(node).is_empty());
    assert_eq!(used(node), (0, 0), "by the accounts");
    let left = stored(node);
    assert!(left.is_empty(), "left after the removal: {left:?}");
    node.registry().fail("/blobs/", Some(Fault::Slow(DRIP)));
}

#[test]
fn a_server_killed_in_pulls_leaves_nothing_half_there() {
    let kills = std::env::var("CORTEN_KILLS").map_or(10, |kills| kills.parse().expect("CORTEN_KILLS is a number"));
    let node = Node::start();
    serve_images(&node);
    let whole = pull_all(&node).expect("undisturbed pulls");
    remove_all(&node);
    let ((mut random, seed), mut hits) = (Random::of_now(), Hits::default());
    println!("seed {seed}; three pulls take {} ms", whole.as_millis());
    for _ in 0..kills {
        // A little beyond the end, where the last record is written.
        let moment = random.below(whole.mul_f64(1.1));
        round(&node, moment, &mut hits);
    }
    println!("{kills} kills: {hits:?}");
    assert!(hits.partial_layers > 0, "the kills hit no pull: {hits:?}");
}
