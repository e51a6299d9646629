//! How far the pulls and imports under way are: counters that whoever wants to know may read at any time.
//!
//! The counter of a layer is found by the digest of its packed form, so that pulls which share a download share its
//! counter too. Nothing here is kept longer than what it tells about: the lists hold weak references.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use corten_proto::id::Digest;
use serde::Serialize;

use super::error::PullError;
use super::manifest::Descriptor;
use super::reference::Reference;
use crate::telemetry::call::{Call, Ended};

/// What is under way.
#[derive(Default)]
pub(super) struct Board {
    pulls: Mutex<HashMap<Reference, Weak<Progress>>>,
    layers: Mutex<HashMap<Digest, Weak<LayerProgress>>>,
}

impl Board {
    /// Notes that a pull of `reference` begins; it is listed while the returned value lives.
    pub(super) fn start(&self, reference: &Reference) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(&reference.to_string()));
        insert(&self.pulls, reference.clone(), &progress);
        progress
    }

    /// How far the pull of `reference` is, if there is one.
    pub(super) fn find(&self, reference: &Reference) -> Option<Arc<Progress>> {
        lookup(&self.pulls, reference)
    }

    /// The counter of a layer, everybody's the same.
    pub(super) fn layer(&self, blob: &Digest, size: u64) -> Arc<LayerProgress> {
        lookup(&self.layers, blob).unwrap_or_else(|| {
            let layer = Arc::new(LayerProgress::new(blob.clone(), size));
            insert(&self.layers, blob.clone(), &layer);
            layer
        })
    }

    /// Notes that the layers of `image` all have their place.
    pub(super) fn finish<'a>(&self, blobs: impl Iterator<Item = &'a Descriptor>, image: &str) {
        for blob in blobs {
            self.layer(&blob.digest, blob.size).finish(image);
        }
    }
}

fn lookup<K: Eq + Hash, T>(map: &Mutex<HashMap<K, Weak<T>>>, key: &K) -> Option<Arc<T>> {
    // Every critical section here leaves the map whole, whatever panics.
    let map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.get(key).and_then(Weak::upgrade)
}

fn insert<K: Eq + Hash, T>(map: &Mutex<HashMap<K, Weak<T>>>, key: K, value: &Arc<T>) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.retain(|_, known| known.strong_count() > 0);
    map.insert(key, Arc::downgrade(value));
}

/// How far one pull or import is.
#[derive(Debug)]
pub struct Progress {
    image: String,
    started: Instant,
    /// Whose stages these are.
    call: Arc<Call>,
    stage: Mutex<Stage>,
    layers: OnceLock<Vec<Arc<LayerProgress>>>,
}

/// What goes on, and since when.
#[derive(Clone, Copy, Debug)]
struct Stage {
    name: &'static str,
    since: Instant,
}

impl Stage {
    fn new(name: &'static str) -> Self {
        let since = Instant::now();
        Stage { name, since }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new("")
    }
}

impl Progress {
    /// Something that the present call begins now and that is about `image`.
    #[must_use]
    pub fn new(image: &str) -> Self {
        Progress {
            image: image.to_owned(),
            started: Instant::now(),
            call: Call::current().unwrap_or_default(),
            stage: Mutex::new(Stage::new("start")),
            layers: OnceLock::new(),
        }
    }

    /// What it is about.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// Says what goes on from now on.
    pub(super) fn stage(&self, stage: &'static str) {
        let new = Stage::new(stage);
        let old = std::mem::replace(&mut *self.stage.lock().unwrap_or_else(PoisonError::into_inner), new);
        self.ended(old);
    }

    fn ended(&self, stage: Stage) {
        self.call.stage_ended(&Ended {
            name: stage.name,
            what: &self.image,
            number: self.call.next_number(),
            around: 0,
            since: stage.since,
        });
    }

    /// Says which layers there will be, bottom first. The first word counts.
    pub(super) fn layers(&self, layers: Vec<Arc<LayerProgress>>) {
        drop(self.layers.set(layers));
    }

    /// Says in the log what became of it, after how many bytes and seconds.
    pub(super) fn log_end(&self, what: &str, image: &str, outcome: Result<&Digest, &PullError>) {
        let layers = self.layers.get().into_iter().flatten();
        let bytes: u64 = layers.map(|layer| layer.received.load(Ordering::Relaxed)).sum();
        let seconds = format_args!("{:.3}", self.started.elapsed().as_secs_f32());
        match outcome {
            Ok(id) => tracing::info!(image, %id, bytes, %seconds, "{what} done"),
            Err(error) => tracing::info!(image, %error, bytes, %seconds, "{what} failed"),
        }
    }

    /// How far it is at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let layers = self.layers.get().into_iter().flatten();
        Snapshot {
            stage: self.stage.lock().unwrap_or_else(PoisonError::into_inner).name,
            layers: layers.map(|layer| layer.snapshot()).collect(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let last = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended(last);
    }
}

/// How far one layer is.
#[derive(Debug)]
pub(super) struct LayerProgress {
    digest: Digest,
    size: u64,
    received: AtomicU64,
    done: AtomicBool,
    began: Instant,
}

impl LayerProgress {
    pub(super) fn new(digest: Digest, size: u64) -> Self {
        LayerProgress {
            digest,
            size,
            received: AtomicU64::new(0),
            done: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    /// Notes that an attempt has come to `bytes`. A later attempt that begins anew takes nothing back.
    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_max(bytes.min(self.size), Ordering::Relaxed);
    }

    /// Notes that the layer has its place in the store, and says so in the log, once.
    pub(super) fn finish(&self, image: &str) {
        if self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let bytes = self.received.load(Ordering::Relaxed);
        let seconds = format_args!("{:.3}", self.began.elapsed().as_secs_f32());
        tracing::info!(image, layer = %self.digest, bytes, %seconds, "layer ready");
    }

    fn snapshot(&self) -> LayerSnapshot {
        let (received, done) = (self.received.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        LayerSnapshot {
            digest: self.digest.clone(),
            size: self.size,
            received,
            done,
            present: done && received == 0,
        }
    }
}

/// How far a pull or an import was at one moment; the form that ImageStatus shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// What goes on.
    pub stage: &'static str,
    /// Its layers, bottom first.
    pub layers: Vec<LayerSnapshot>,
}

/// How far a layer was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerSnapshot {
    /// Digest of its packed form.
    pub digest: Digest,
    /// Bytes of its packed form.
    pub size: u64,
    /// How many of them have come.
    pub received: u64,
    /// It has its place in the store.
    pub done: bool,
    /// It had it before.
    pub present: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn what_ended_is_forgotten() {
        let board = Board::default();
        let pull = board.start(&reference("a.example/a:1"));
        assert_eq!(
            board.find(&reference("a.example/a:1")).unwrap().snapshot().stage,
            "start"
        );
        assert!(board.find(&reference("a.example/a:2")).is_none());
        drop(pull);
        assert!(board.find(&reference("a.example/a:1")).is_none());
        let other = board.start(&reference("a.example/b:1"));
        assert_eq!(board.pulls.lock().unwrap().len(), 1, "no old names");
        drop(other);
    }

    #[test]
    fn a_layer_counts_forwards_and_never_past_its_size() {
        let board = Board::default();
        let digest = Digest::from_sha256(&[1; 32]);
        let layer = board.layer(&digest, 100);
        for (bytes, shown) in [(10, 10), (5, 10), (60, 60), (1000, 100)] {
            layer.received(bytes);
            let seen = board.layer(&digest, 100).snapshot();
            assert_eq!((seen.received, seen.done), (shown, false));
        }
        layer.finish("a");
        assert!(layer.snapshot().done && !layer.snapshot().present);
        let found = LayerProgress::new(digest, 100);
        found.finish("a");
        assert!(found.snapshot().present);
    }
}
