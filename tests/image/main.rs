//! Images through the store itself, with a registry on loopback: what a pull leaves on disk, what it refuses, and what is
//! shared and freed. `tests/cri` covers the same calls through a running server.

// In the functions the tests share, as in the tests themselves: what cannot be done ends the test.
#![allow(clippy::unwrap_used)]

mod auth;
mod content;
mod corpus;
mod debian;
mod hostile;
mod hostile_registry;
mod implied;
mod mirror;
mod proxy;
mod pull;
mod quota;
mod resume;
mod snapshot;
mod store;
mod umoci;
mod unpack;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_cri::image::{Credentials, Image, ImageStore, PullError, RegistryConfig, RegistryConfigs};
use corten_tests::image::{self, Layer, Saved};
use corten_tests::leak;
use corten_tests::registry::Registry;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

/// A registry, and a store that may ask it.
struct Lab {
    watch: leak::Watch,
    registry: Registry,
    store: Option<Arc<ImageStore>>,
    /// The layout that the registry serves is `served`, the store's root `store`.
    dir: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::Builder::new().prefix("corten-image-").tempdir().unwrap();
        let watch = leak::Watch::new([dir.path().to_str().unwrap()]);
        fs::create_dir(dir.path().join("served")).unwrap();
        let registry = Registry::start(&dir.path().join("served")).unwrap();
        let mut lab = Lab {
            watch,
            registry,
            store: None,
            dir,
        };
        lab.restart();
        lab
    }

    /// Opens the store anew, as a server that starts does.
    fn restart(&mut self) {
        self.store = None;
        self.store = Some(ImageStore::open(&self.root(), self.configs()).unwrap());
    }

    fn configs(&self) -> RegistryConfigs {
        let plain = RegistryConfig {
            plain_http: true,
            ..RegistryConfig::default()
        };
        RegistryConfigs::from([(self.registry.address().to_string(), plain)])
    }

    fn store(&self) -> &Arc<ImageStore> {
        self.store.as_ref().unwrap()
    }

    /// Another store, with this configuration.
    fn store_with(&self, name: &str, configs: RegistryConfigs) -> Arc<ImageStore> {
        ImageStore::open(&self.dir.path().join(name), configs).unwrap()
    }

    /// A configuration of nothing but a directory of hosts.toml files.
    fn hosts_dir(&self) -> RegistryConfigs {
        let mut configs = RegistryConfigs::from([]);
        configs.pull.hosts_dirs = vec![self.dir.path().join("certs.d")];
        configs
    }

    /// Writes the hosts.toml of `registry`.
    fn write_hosts(&self, registry: &str, text: &str) {
        let dir = self.dir.path().join("certs.d").join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn served(&self) -> PathBuf {
        self.dir.path().join("served")
    }

    fn serve(&self, image: &image::Image, names: &[&str]) -> Saved {
        image.save(&self.served(), names).unwrap()
    }

    /// Serves an image of one layer as `a:1`, pulls it, and returns the layer's directory.
    async fn unpack(&self, layer: Layer) -> PathBuf {
        let saved = self.serve(&image::Image::new().layer(layer), &["a:1"]);
        self.pull("a:1").await.unwrap();
        self.store().layer_path(&saved.diff_ids[0])
    }

    async fn pull(&self, name: &str) -> Result<Arc<Image>, PullError> {
        self.store()
            .pull(&self.registry.reference(name), Credentials::Anonymous)
            .await
    }

    /// Asserts that the store holds nothing at all, not even half a layer.
    fn assert_empty(&self) {
        assert!(self.store().list().is_empty());
        // An unpacker whose pull was given up ends with its next read.
        wait_for("an empty store", || {
            self.names("layers").is_empty() && self.names("images").is_empty()
        });
        assert_eq!(self.store().usage(), (0, 0));
    }

    /// Names in a directory of the store, sorted.
    fn names(&self, dir: &str) -> Vec<String> {
        names(&self.root().join(dir))
    }

    /// The end of a test that has stores or registries besides: they go first.
    fn finish_with<T>(self, others: T) {
        drop(others);
        self.finish();
    }

    /// The end of every test: nothing mounted, no process, no directory left.
    fn finish(self) {
        drop(self.store);
        drop(self.registry);
        self.dir.close().unwrap();
        self.watch.assert_clean();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Makes `levels` directories, each in the one before.
fn dig(top: &Path, levels: usize) {
    fs::create_dir(top).unwrap();
    let open = |dir: &OwnedFd, name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap()
    };
    let mut dir = OwnedFd::from(fs::File::open(top).unwrap());
    for _ in 0..levels {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = open(&dir, "d");
    }
}

/// Waits up to five seconds.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A layer of one small file, named after `name` and unlike any other.
fn small_layer(name: &str) -> Layer {
    Layer::new().file(name, 0o644, name.as_bytes())
}

/// A layer of `mebibytes` that no packing makes smaller.
fn large_layer(name: &str, mebibytes: usize) -> Layer {
    let mut seed = name.bytes().fold(1u64, |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(u64::from(byte) + 1)
    });
    let mut content = Vec::with_capacity(mebibytes << 20);
    while content.len() < mebibytes << 20 {
        // xorshift64: no order for gzip to find.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        content.extend_from_slice(&seed.to_le_bytes());
    }
    Layer::new().file(name, 0o644, &content)
}
