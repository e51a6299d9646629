//! Layers like those of real images, and the same at every run: sizes and bytes come from a generator with a seed.

use corten_tests::image::Layer;
use corten_tests::random::Random;

/// Files of a large layer by how much of it they make up, in percent: (share, smallest, largest).
const SIZES: [(usize, usize, usize); 4] = [
    (5, 100, 4 << 10),
    (20, 4 << 10, 64 << 10),
    (35, 64 << 10, 1 << 20),
    (40, 1 << 20, 24 << 20),
];

/// A layer of `bytes` in files of all sizes, as packages of a distribution have them: sources, libraries, programs.
pub(crate) fn large_layer(number: u64, bytes: usize) -> Layer {
    let mut random = Random::new(number * 2 + 1);
    let mut layer = Layer::new();
    for (class, (share, smallest, largest)) in SIZES.into_iter().enumerate() {
        let mut left = bytes / 100 * share;
        let mut file = 0;
        while left > 0 {
            if file % 40 == 0 {
                layer = layer.dir(&format!("usr/l{number}/c{class}/d{}", file / 40), 0o755);
            }
            let size = random.between(smallest, largest).min(left);
            let name = format!("usr/l{number}/c{class}/d{}/f{file}", file / 40);
            layer = layer.file(&name, 0o644, &content(&mut random, size));
            left -= size;
            file += 1;
        }
    }
    layer
}

/// A layer of `files` small ones, as an interpreter's packages have them: 200 B to 8 KiB, 30 to a directory.
pub(crate) fn small_layer(number: u64, files: usize) -> Layer {
    let mut random = Random::new(number * 2 + 1001);
    let mut layer = Layer::new();
    for file in 0..files {
        if file % 30 == 0 {
            layer = layer.dir(&format!("lib/p{number}/m{}", file / 30), 0o755);
        }
        let size = random.between(200, 8 << 10);
        let name = format!("lib/p{number}/m{}/f{file}", file / 30);
        layer = layer.file(&name, 0o644, &content(&mut random, size));
    }
    layer
}

/// Content that gzip makes about 2.5 times smaller, as programs and texts are: a third of noise, the rest short copies
/// of what came before, as code repeats its instructions and text its words.
fn content(random: &mut Random, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 64);
    while bytes.len() < size {
        let choice = random.next();
        if bytes.len() < 64 || choice % 100 < 45 {
            // Few letters are frequent, as in code and text.
            let noise = random.next().to_le_bytes();
            bytes.extend(
                noise
                    .iter()
                    .map(|byte| if choice & 256 == 0 { *byte } else { byte & 0x3f }),
            );
        } else {
            let length = random.between(4, 28);
            let back = random.between(1, bytes.len().min(16 << 10));
            let start = bytes.len() - back;
            for place in 0..length {
                bytes.push(bytes[start + place]);
            }
        }
    }
    bytes.truncate(size);
    bytes
}
