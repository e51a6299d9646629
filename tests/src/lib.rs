//! What the integration tests share: bundles, images, a registry, a running node, and the check that nothing is left.
//!
//! The tests drive the real binaries and need root. Nothing here stands in for a part of Corten: fakes are at process
//! boundaries only (a registry, a CNI plugin, an OCI runtime script).

use std::path::PathBuf;

pub mod bundle;
pub mod cgroup;
pub mod collector;
pub mod cri;
pub mod crictl;
pub mod exposition;
pub mod image;
pub mod image_cli;
pub mod leak;
pub mod netns;
pub mod node;
pub mod pod;
pub mod proxy;
pub mod random;
pub mod registry;
pub mod shim;
pub mod spdy;
pub mod stream;
pub mod table;
pub mod why;

/// Path of a binary of this workspace (`corten`, `corten-shim`, `corten-cri`, `probe`), built in the same profile as
/// the test that asks: it lies beside the directory of the test binary.
///
/// # Panics
/// Where the binary has not been built; `cargo build --workspace` does.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has an executable");
    let profile = test.ancestors().nth(2).expect("cargo puts tests in PROFILE/deps");
    let path = profile.join(name);
    assert!(path.exists(), "{}: run `cargo build --workspace` first", path.display());
    path
}
