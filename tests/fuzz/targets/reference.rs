//! Images' names.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| corten_cri::image::fuzzing::reference(text));
