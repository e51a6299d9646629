//! Whole layers, unpacked into a directory of `$CORTEN_FUZZ_DIR`, which should be a tmpfs.
//!
//! Bytes changed at random leave no archive: headers have sums, and stand at multiples of 512. So most changes here are
//! those of one field or of whole blocks, and every header gets a sum that fits.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

const BLOCK: usize = 512;

/// Offset and length of a header's fields: name, mode, uid, gid, size, mtime, type, link, magic, device, prefix.
const FIELDS: [(usize, usize); 12] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (337, 8),
    (345, 155),
];

const TYPES: &[u8] = b"\x0001234567gxLKS";

fuzz_target!(|data: &[u8]| corten_cri::image::fuzzing::tar_apply(dir(), data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = change(data, size, max_size, seed as usize);
    for block in data[..size].chunks_exact_mut(BLOCK) {
        if is_header(block) {
            sum_up(block);
        }
    }
    size
});

/// A directory of this process alone.
fn dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let base = std::env::var_os("CORTEN_FUZZ_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = base.join(std::process::id().to_string()).join("around");
        std::fs::create_dir_all(&dir).expect("create a directory of our own");
        dir
    })
}

/// Changes an archive, and returns its new length.
fn change(data: &mut [u8], size: usize, max_size: usize, seed: usize) -> usize {
    let (choice, seed) = (seed % 8, seed / 8);
    let blocks = size / BLOCK;
    if blocks < 2 || choice == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let (from, to) = (seed % blocks * BLOCK, seed / blocks % blocks * BLOCK);
    match choice {
        // A block twice, gone, or in the place of another.
        1 if size + BLOCK <= max_size => {
            data.copy_within(to..size, to + BLOCK);
            let from = if from < to { from } else { from + BLOCK };
            data.copy_within(from..from + BLOCK, to);
            size + BLOCK
        }
        2 => {
            data.copy_within(from + BLOCK..size, from);
            size - BLOCK
        }
        3 => {
            data.copy_within(from..from + BLOCK, to);
            size
        }
        _ => {
            let block = &mut data[from..from + BLOCK];
            match is_header(block) {
                true => change_field(block, seed / blocks),
                // Content, or records of PAX.
                false => drop(fuzzer_mutate(block, BLOCK, BLOCK)),
            }
            size
        }
    }
}

/// Changes a field of a header.
fn change_field(header: &mut [u8], seed: usize) {
    let (offset, length) = FIELDS[seed % FIELDS.len()];
    let seed = seed / FIELDS.len();
    let field = &mut header[offset..offset + length];
    if length == 1 {
        field[0] = TYPES[seed % TYPES.len()];
        return;
    }
    let text = field.iter().position(|byte| *byte == 0).unwrap_or(length);
    let text = fuzzer_mutate(field, text, length);
    field[text..].fill(0);
}

fn is_header(block: &[u8]) -> bool {
    &block[257..262] == b"ustar"
}

fn sum_up(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
