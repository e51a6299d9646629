//! The files that tell which hosts serve a registry.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| corten_cri::image::registry::fuzzing::hosts_toml(text));
