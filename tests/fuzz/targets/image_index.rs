//! Indexes and manifest lists, and the choice of an image from them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corten_cri::image::fuzzing::image_index(data));
