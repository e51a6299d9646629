//! Manifests of images, as a registry may send them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corten_cri::image::fuzzing::image_manifest(data));
