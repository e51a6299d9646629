//! Images' configurations.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corten_cri::image::fuzzing::image_config(data));
