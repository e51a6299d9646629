//! The sandboxes and containers in memory. Lists and statuses are answered from here, without IO.
//!
//! A std mutex guards the maps and is never held over an await. Ids are looked up in full or by a unique prefix.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use corten_proto::cri;
use corten_proto::id::{ContainerId, SandboxId};

use crate::container::Container;
use crate::sandbox::Sandbox;

/// Everything the server knows about.
#[derive(Default)]
pub struct Store {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    last_created_at: i64,
}

/// What a look-up by id or prefix found.
#[derive(Debug)]
pub enum Lookup<T> {
    /// Exactly one.
    Found(T),
    /// None.
    Missing,
    /// A prefix of several.
    Ambiguous,
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// A time for a new object: now, in nanoseconds since the epoch, and later than every one before. The kubelet
    /// sorts by it.
    pub fn next_created_at(&self) -> i64 {
        let mut inner = self.inner();
        inner.last_created_at = now().max(inner.last_created_at + 1);
        inner.last_created_at
    }

    /// Makes a sandbox visible.
    pub fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        let mut inner = self.inner();
        inner.last_created_at = inner.last_created_at.max(sandbox.metadata.created_at);
        inner.sandboxes.insert(sandbox.id().to_string(), sandbox);
    }

    /// Makes a container visible.
    pub fn add_container(&self, container: Arc<Container>) {
        let mut inner = self.inner();
        inner.last_created_at = inner.last_created_at.max(container.metadata.created_at);
        inner.containers.insert(container.id().to_string(), container);
    }

    /// Forgets a sandbox; whether it was there.
    pub fn remove_sandbox(&self, id: &SandboxId) -> bool {
        self.inner().sandboxes.remove(id.as_str()).is_some()
    }

    /// Forgets a container; whether it was there.
    pub fn remove_container(&self, id: &ContainerId) -> bool {
        self.inner().containers.remove(id.as_str()).is_some()
    }

    /// The sandbox of this id or unique prefix of one.
    pub fn sandbox(&self, id: &str) -> Lookup<Arc<Sandbox>> {
        lookup(&self.inner().sandboxes, id)
    }

    /// The container of this id or unique prefix of one.
    pub fn container(&self, id: &str) -> Lookup<Arc<Container>> {
        lookup(&self.inner().containers, id)
    }

    /// All sandboxes, oldest first.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.inner().sandboxes.values().cloned().collect();
        all.sort_by_key(|sandbox| sandbox.metadata.created_at);
        all
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.inner().containers.values().cloned().collect();
        all.sort_by_key(|container| container.metadata.created_at);
        all
    }

    /// The containers of one sandbox, oldest first.
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let of_sandbox = |container: &&Arc<Container>| container.metadata.sandbox == *sandbox;
        let mut all: Vec<_> = self.inner().containers.values().filter(of_sandbox).cloned().collect();
        all.sort_by_key(|container| container.metadata.created_at);
        all
    }

    /// The sandbox with this metadata.
    pub fn sandbox_of(&self, metadata: &cri::PodSandboxMetadata) -> Option<Arc<Sandbox>> {
        let inner = self.inner();
        let mut all = inner.sandboxes.values();
        all.find(|sandbox| sandbox.metadata.config.metadata.as_ref() == Some(metadata))
            .cloned()
    }

    /// The container with this metadata in `sandbox`.
    pub fn container_of(&self, sandbox: &SandboxId, metadata: &cri::ContainerMetadata) -> Option<Arc<Container>> {
        let inner = self.inner();
        let mut all = inner.containers.values();
        all.find(|container| {
            container.metadata.sandbox == *sandbox && container.metadata.config.metadata.as_ref() == Some(metadata)
        })
        .cloned()
    }
}

/// Now, in nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The value under `id`, or under the only key that begins with it. An empty id finds nothing.
fn lookup<T: Clone>(map: &BTreeMap<String, T>, id: &str) -> Lookup<T> {
    if let Some(value) = map.get(id) {
        return Lookup::Found(value.clone());
    }
    let from = (Bound::Included(id), Bound::Unbounded);
    let mut matches = map.range::<str, _>(from).take_while(|(key, _)| key.starts_with(id));
    match (id, matches.next(), matches.next()) {
        ("", _, _) | (_, None, _) => Lookup::Missing,
        (_, Some((_, value)), None) => Lookup::Found(value.clone()),
        _ => Lookup::Ambiguous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_prefixes() {
        let map: BTreeMap<String, i32> = [("ab", 1), ("abc", 2), ("b12", 3)]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        let table = [
            ("ab", "Found(1)"),
            ("abc", "Found(2)"),
            ("b", "Found(3)"),
            ("a", "Ambiguous"),
            ("c", "Missing"),
        ];
        for (id, expected) in table {
            assert_eq!(format!("{:?}", lookup(&map, id)), expected, "{id}");
        }
        assert_eq!(format!("{:?}", lookup(&map, "")), "Missing");
    }

    #[test]
    fn created_at_is_unique_and_rises() {
        let store = Store::default();
        let times: Vec<_> = (0..1000).map(|_| store.next_created_at()).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
