//! `regex` by its authors' small sibling, in the place of the crate of this name (`[patch.crates-io]` in the workspace).
//!
//! oci-spec matches two short patterns with it. The real crate is fast on texts that nobody here has, and is 1 MB of a
//! binary: a quarter of `corten`, of which a copy is made for each container where it cannot run from an overlay (0.7 ms).

pub use regex_lite::*;
