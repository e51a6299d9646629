//! The images and layers of this node: in memory for every question, on disk for the next start.
//!
//! Two locks. `state` guards the maps and is held for look-ups and assignments only, and over the one rename that takes a
//! layer's name away. `writer` orders everything that
//! gives or takes a final name on disk (commit, publish, remove, sweep) and is held over that IO, never by a question.
//! Order: `writer` before `state`.
//!
//! What a dropped lease was the last to use is freed by one thread of the store's, so that dropping it costs nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use corten_proto::id::Digest;

use super::layer::Partial;
use super::pull::Pulls;
use super::record::{self, Image, PARTIAL};
use super::reference::{Reference, ReferenceError, Version};
use super::registry::RegistryConfigs;
use super::unpack::Usage;
use crate::tree;

/// Shortest beginning of an id that stands for the whole.
const MIN_ID_PREFIX: usize = 6;

/// The images and layers below one root directory.
pub struct ImageStore {
    inner: Arc<Inner>,
    pub(super) pulls: Pulls,
    sweeper: Option<JoinHandle<()>>,
}

struct Inner {
    root: PathBuf,
    state: Mutex<State>,
    /// Signalled when a layer may have become unused, and when the store closes.
    unused: Condvar,
    writer: Mutex<()>,
    next_partial: AtomicU64,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, Arc<Image>>,
    layers: HashMap<Digest, Layer>,
    /// Layers to be looked at by the sweeper.
    candidates: BTreeSet<Digest>,
    closing: bool,
}

struct Layer {
    usage: Usage,
    leases: usize,
}

/// Keeps layers while it lives, whatever becomes of their images.
#[must_use = "the layers are kept only while the lease lives"]
pub struct LayerLease {
    inner: Arc<Inner>,
    layers: Vec<Digest>,
}

impl std::fmt::Debug for LayerLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LayerLease").field(&self.layers).finish()
    }
}

impl ImageStore {
    /// Opens the store below `root`, which is made if it is missing: drops what an earlier server left half done, and
    /// moves what cannot be read to `quarantine/`.
    ///
    /// Layers without an image stay until [`ImageStore::sweep`], so that containers can lease theirs first.
    pub fn open(root: &Path, registries: RegistryConfigs) -> Result<Arc<ImageStore>> {
        let leftovers = record::prepare(root)?;
        let usages = record::load_layers(root)?;
        let images = record::load_images(root, &usages)?;
        let (images_here, layers_here) = (images.len(), usages.len());
        tracing::info!(images = images_here, layers = layers_here, leftovers, root = %root.display(), "images");
        let layers = usages
            .into_iter()
            .map(|(layer, usage)| (layer, Layer { usage, leases: 0 }))
            .collect();
        let state = State {
            images,
            layers,
            ..State::default()
        };
        let inner = Arc::new(Inner {
            root: root.to_owned(),
            state: Mutex::new(state),
            unused: Condvar::new(),
            writer: Mutex::new(()),
            next_partial: AtomicU64::new(0),
        });
        let swept = Arc::clone(&inner);
        let sweeper = std::thread::Builder::new()
            .name("layer-sweeper".into())
            .spawn(move || swept.sweep_until_closed());
        let sweeper = sweeper.context("start the layer sweeper")?;
        Ok(Arc::new(ImageStore {
            inner,
            pulls: Pulls::new(registries),
            sweeper: Some(sweeper),
        }))
    }

    /// The image of a name, a name with digest, an id with or without `sha256:`, or at least 6 digits of an id that
    /// begin no other.
    pub fn find(&self, reference_or_id: &str) -> Result<Option<Arc<Image>>, ReferenceError> {
        let state = self.inner.state();
        if let Some(id) = as_digest(reference_or_id) {
            return Ok(state.images.get(&id).cloned());
        }
        // A name may look like an id's beginning; a name that exists is what was meant.
        let named = self.candidates(reference_or_id);
        let found = named
            .iter()
            .flatten()
            .find_map(|reference| state.images.values().find(|image| image.has(reference)));
        let found = found.or_else(|| state.by_prefix(reference_or_id)).cloned();
        match (found, named) {
            (None, Err(error)) if !is_id_prefix(reference_or_id) => Err(error),
            (found, _) => Ok(found),
        }
    }

    /// Every image, each once, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.state().images.values().cloned().collect()
    }

    /// Removes an image under all of its names, and its layers that no other image and no lease has. Unknown images are
    /// gone already.
    pub async fn remove(&self, reference_or_id: &str) -> Result<()> {
        let Some(image) = self.find(reference_or_id)? else {
            return Ok(());
        };
        let inner = Arc::clone(&self.inner);
        let removing = tokio::task::spawn_blocking(move || inner.remove(&image.id));
        removing.await.context("remove an image: the task ended")?
    }

    /// Keeps `layers` until the lease is dropped; an error names the first that is not here.
    pub fn lease(&self, layers: &[Digest]) -> Result<LayerLease> {
        self.inner.lease(layers)
    }

    /// What all layers take: bytes and inodes. Accounted when a layer is unpacked.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let state = self.inner.state();
        state.layers.values().fold((0, 0), |(bytes, inodes), layer| {
            (bytes + layer.usage.bytes, inodes + layer.usage.inodes)
        })
    }

    /// Frees, soon, every layer that no image and no lease has: after a start, when containers have leased theirs. What
    /// there is of it was left by a server that was killed, and is reported.
    pub fn sweep(&self) {
        let mut state = self.inner.state();
        let unused: BTreeSet<Digest> = state.layers.keys().filter(|it| !state.is_used(it)).cloned().collect();
        if !unused.is_empty() {
            let sizes = unused.iter().filter_map(|layer| state.layers.get(layer));
            let bytes: u64 = sizes.map(|layer| layer.usage.bytes).sum();
            tracing::info!(
                layers = unused.len(),
                bytes,
                "removing layers that no image and no container has"
            );
        }
        state.candidates.extend(unused);
        self.inner.unused.notify_all();
    }

    /// The directory images and layers are below.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// A layer's files, whether or not they are there.
    #[must_use]
    pub fn layer_path(&self, layer: &Digest) -> PathBuf {
        self.inner.layer_dir(layer).join("fs")
    }

    /// A new directory for a layer that is being unpacked.
    pub(super) fn partial(&self, layer: &Digest) -> Result<Partial> {
        Partial::create(self.inner.partial_path(layer))
    }

    /// Gives an unpacked and verified layer its name. Blocks on the disk.
    pub(super) fn commit(&self, layer: &Digest, partial: &Partial, usage: Usage) -> Result<LayerLease> {
        self.inner.commit(layer, partial, usage)
    }

    /// Records `image`, whose layers the caller has leased, and gives it `reference`'s name. Blocks on the disk.
    pub(super) fn publish(&self, image: Image, reference: &Reference, manifest: &Digest) -> Result<Arc<Image>> {
        self.inner.publish(image, reference, manifest)
    }

    /// Records an image of an archive, whose layers the caller has leased, under all of `names`. Blocks on the disk.
    pub(super) fn publish_import(
        &self,
        image: Image,
        names: &[Reference],
        manifest: Option<&Digest>,
    ) -> Result<Arc<Image>> {
        self.inner.publish_import(image, names, manifest)
    }

    /// What is known of every layer.
    pub(super) fn layer_usages(&self) -> Vec<(Digest, Usage)> {
        let state = self.inner.state();
        let usages = state.layers.iter().map(|(layer, known)| (layer.clone(), known.usage));
        usages.collect()
    }

    /// What `layers` take together, each counted once.
    #[must_use]
    pub fn layers_size(&self, layers: &[Digest]) -> u64 {
        let state = self.inner.state();
        let distinct: BTreeSet<&Digest> = layers.iter().collect();
        distinct
            .into_iter()
            .filter_map(|layer| state.layers.get(layer))
            .map(|layer| layer.usage.bytes)
            .sum()
    }
}

impl Drop for ImageStore {
    fn drop(&mut self) {
        self.inner.state().closing = true;
        self.inner.unused.notify_all();
        if let Some(sweeper) = self.sweeper.take()
            && sweeper.join().is_err()
        {
            tracing::error!("the layer sweeper panicked");
        }
    }
}

impl Image {
    fn has(&self, reference: &Reference) -> bool {
        let name = reference.to_string();
        match &reference.version {
            Version::Tag(_) => self.repo_tags.contains(&name),
            Version::Digest(_) => self.repo_digests.contains(&name),
        }
    }
}

impl State {
    fn by_prefix(&self, text: &str) -> Option<&Arc<Image>> {
        if !is_id_prefix(text) {
            return None;
        }
        let mut matching = self.images.iter().filter(|(id, _)| begins(id, text));
        match (matching.next(), matching.next()) {
            (Some((_, image)), None) => Some(image),
            _ => None,
        }
    }

    fn is_used(&self, layer: &Digest) -> bool {
        self.layers.get(layer).is_some_and(|known| known.leases > 0)
            || self.images.values().any(|image| image.layers.contains(layer))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section is a few assignments that cannot panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        // Guards no data; the disk is consistent after every single step.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_dir(&self, layer: &Digest) -> PathBuf {
        self.root.join("layers").join(layer.hex())
    }

    /// A name nobody else uses: two pulls may unpack one layer where the first was just given up.
    fn partial_path(&self, layer: &Digest) -> PathBuf {
        loop {
            let number = self.next_partial.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}.{number}{PARTIAL}", layer.hex());
            let path = self.root.join("layers").join(name);
            // Taken: what an earlier server left and a start could not remove.
            if path.symlink_metadata().is_err() {
                return path;
            }
        }
    }

    fn lease(self: &Arc<Self>, layers: &[Digest]) -> Result<LayerLease> {
        let mut state = self.state();
        for layer in layers {
            ensure!(state.layers.contains_key(layer), "layer {layer} is not on this node");
        }
        for layer in layers {
            state.layers.entry(layer.clone()).and_modify(|known| known.leases += 1);
        }
        Ok(LayerLease {
            inner: Arc::clone(self),
            layers: layers.to_vec(),
        })
    }

    fn commit(self: &Arc<Self>, layer: &Digest, partial: &Partial, usage: Usage) -> Result<LayerLease> {
        record::save_layer(partial.path(), usage)?;
        // One sync for thousands of files, before the name that says they are whole.
        let dir = fs::File::open(partial.path()).with_context(|| format!("open {}", partial.path().display()))?;
        rustix::fs::syncfs(&dir).context("syncfs of a layer")?;
        let _writer = self.writer();
        if let Ok(lease) = self.lease(std::slice::from_ref(layer)) {
            return Ok(lease);
        }
        let path = self.layer_dir(layer);
        // Synced before any record can name it.
        record::give_name(partial.path(), &path, || record::sync_dir(&self.root.join("layers")))?;
        self.state().layers.insert(layer.clone(), Layer { usage, leases: 0 });
        self.lease(std::slice::from_ref(layer))
    }

    fn publish(&self, image: Image, reference: &Reference, manifest: &Digest) -> Result<Arc<Image>> {
        let _writer = self.writer();
        let known = self.state().images.get(&image.id).cloned();
        let mut image = image.joined(known.as_deref());
        add(&mut image.repo_digests, reference.at(manifest));
        if matches!(reference.version, Version::Tag(_)) {
            let tag = reference.to_string();
            // The new holder first: at no time is the tag nowhere.
            add(&mut image.repo_tags, tag.clone());
            image.save(&self.root)?;
            self.take_tag(&tag, &image.id)?;
        } else {
            image.save(&self.root)?;
        }
        let image = Arc::new(image);
        self.state().images.insert(image.id.clone(), Arc::clone(&image));
        Ok(image)
    }

    fn publish_import(&self, image: Image, names: &[Reference], manifest: Option<&Digest>) -> Result<Arc<Image>> {
        let _writer = self.writer();
        let known = self.state().images.get(&image.id).cloned();
        let mut image = image.joined(known.as_deref());
        for name in names {
            if let Some(manifest) = manifest {
                add(&mut image.repo_digests, name.at(manifest));
            }
            add(&mut image.repo_tags, name.to_string());
        }
        // The new holder first: at no time is a tag nowhere.
        image.save(&self.root)?;
        for name in names {
            self.take_tag(&name.to_string(), &image.id)?;
        }
        let image = Arc::new(image);
        self.state().images.insert(image.id.clone(), Arc::clone(&image));
        Ok(image)
    }

    /// Takes a tag from the image that had it: the registry moved it.
    fn take_tag(&self, tag: &String, new_holder: &Digest) -> Result<()> {
        let holder = |image: &&Arc<Image>| image.id != *new_holder && image.repo_tags.contains(tag);
        let Some(before) = self.state().images.values().find(holder).cloned() else {
            return Ok(());
        };
        let mut before = Image::clone(&before);
        before.repo_tags.retain(|known| known != tag);
        before.save(&self.root)?;
        self.state().images.insert(before.id.clone(), Arc::new(before));
        Ok(())
    }

    /// Frees the space before it returns: the kubelet removes images because the disk is full, and looks again.
    fn remove(&self, id: &Digest) -> Result<()> {
        let removed = {
            let _writer = self.writer();
            record::remove(&self.root, id)?;
            self.state().images.remove(id)
        };
        // Each, whatever becomes of the others: the image is gone, and nobody will ask for its layers again.
        let layers = removed.iter().flat_map(|image| &image.layers);
        let failed: Vec<String> = layers
            .filter_map(|layer| self.free(layer).err())
            .map(|error| format!("{error:#}"))
            .collect();
        ensure!(failed.is_empty(), "free the image's layers: {}", failed.join("; "));
        Ok(())
    }

    fn sweep_until_closed(&self) {
        while let Some(layer) = self.next_candidate() {
            if let Err(error) = self.free(&layer) {
                tracing::warn!(%layer, error = format!("{error:#}"), "free a layer");
            }
        }
    }

    fn next_candidate(&self) -> Option<Digest> {
        let mut state = self.state();
        loop {
            if state.closing {
                return None;
            }
            if let Some(layer) = state.candidates.pop_first() {
                return Some(layer);
            }
            state = self.unused.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes a layer unless something uses it.
    fn free(&self, layer: &Digest) -> Result<()> {
        let path = self.partial_path(layer);
        {
            // A pull of the same layer must not find the old directory in its way, nor a lease find it gone.
            let _writer = self.writer();
            let mut state = self.state();
            if state.is_used(layer) || !state.layers.contains_key(layer) {
                return Ok(());
            }
            fs::rename(self.layer_dir(layer), &path).with_context(|| format!("rename to {}", path.display()))?;
            state.layers.remove(layer);
        }
        tree::remove(&path)
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        for layer in self.layers.drain(..) {
            let Some(known) = state.layers.get_mut(&layer) else {
                continue;
            };
            known.leases -= 1;
            if known.leases == 0 {
                state.candidates.insert(layer);
            }
        }
        self.inner.unused.notify_all();
    }
}

/// Adds to a sorted list without duplicates.
fn add(list: &mut Vec<String>, item: String) {
    if let Err(position) = list.binary_search(&item) {
        list.insert(position, item);
    }
}

fn as_digest(text: &str) -> Option<Digest> {
    text.parse().ok().or_else(|| Digest::from_hex(text))
}

/// Whether an id begins with `text`, which may leave out the algorithm but not name another.
fn begins(id: &Digest, text: &str) -> bool {
    id.as_str().starts_with(text) || id.hex().starts_with(text)
}

fn is_id_prefix(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    (MIN_ID_PREFIX..=64).contains(&digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_is_of_the_algorithm_it_names() {
        let (short, long) = (Digest::from_sha256(&[0xab; 32]), Digest::from_sha512(&[0xab; 64]));
        for text in ["sha256:ababab", "ababab"] {
            assert!(is_id_prefix(text) && begins(&short, text), "{text}");
        }
        assert!(begins(&long, "ababab"));
        assert!(!begins(&long, "sha256:ababab"));
        assert!(!begins(&short, "sha256:bababa") && !begins(&short, "bababa"));
    }
}
