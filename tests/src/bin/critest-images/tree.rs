//! A file tree that becomes a layer: in order of name, with the directories that its paths need, hard links last.

use std::collections::BTreeMap;

use corten_tests::image::{Entry, Layer};
use tar::EntryType;

/// One entry of a tree.
#[derive(Clone)]
pub(crate) enum Item {
    /// A directory.
    Dir { mode: u32, owner: u64 },
    /// A regular file.
    File { mode: u32, data: Vec<u8> },
    /// A symbolic link to this target.
    Symlink(String),
    /// A hard link to this entry.
    HardLink(String),
    /// What a layer below has here is not there.
    Whiteout,
}

/// Entries by path, without a leading slash.
#[derive(Clone, Default)]
pub(crate) struct Tree(BTreeMap<String, Item>);

impl Tree {
    /// Puts `item` at `path`.
    pub(crate) fn put(mut self, path: &str, item: Item) -> Self {
        self.0.insert(path.to_owned(), item);
        self
    }

    /// Puts many.
    pub(crate) fn put_all(mut self, items: Vec<(String, Item)>) -> Self {
        self.0.extend(items);
        self
    }

    /// Puts a file that everybody may read.
    pub(crate) fn text(self, path: &str, text: &str) -> Self {
        self.file(path, 0o644, text.as_bytes())
    }

    /// Puts a file.
    pub(crate) fn file(self, path: &str, mode: u32, data: &[u8]) -> Self {
        let data = data.to_vec();
        self.put(path, Item::File { mode, data })
    }

    /// Puts a directory of root's.
    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.put(path, Item::Dir { mode, owner: 0 })
    }

    /// Puts a symbolic link.
    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.put(path, Item::Symlink(target.to_owned()))
    }

    /// The layer.
    pub(crate) fn layer(&self) -> Layer {
        let mut entries = self.0.clone();
        for path in self.0.keys() {
            for (slash, _) in path.match_indices('/') {
                let parent = path[..slash].to_owned();
                entries.entry(parent).or_insert(Item::Dir { mode: 0o755, owner: 0 });
            }
        }
        let is_link = |item: &Item| matches!(item, Item::HardLink(_));
        // A hard link follows its target.
        let (links, others): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, item)| is_link(item));
        others
            .into_iter()
            .chain(links)
            .fold(Layer::new(), |layer, (path, item)| add(layer, path, item))
    }
}

fn add(layer: Layer, path: &str, item: &Item) -> Layer {
    match item {
        Item::Dir { mode, owner } => layer.entry(&Entry {
            path,
            kind: EntryType::Directory,
            mode: *mode,
            uid: *owner,
            gid: *owner,
            ..Entry::default()
        }),
        Item::File { mode, data } => layer.file(path, *mode, data),
        Item::Symlink(target) => layer.symlink(path, target),
        Item::HardLink(target) => layer.entry(&Entry {
            path,
            kind: EntryType::Link,
            mode: 0o755,
            link: target,
            ..Entry::default()
        }),
        Item::Whiteout => {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            layer.whiteout(dir, name)
        }
    }
}
