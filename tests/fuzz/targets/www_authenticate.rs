//! What registries demand in `WWW-Authenticate`, a header a line.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corten_cri::image::registry::fuzzing::www_authenticate(data));
