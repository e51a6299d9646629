//! Images: references, registries, layers on disk, and the root filesystems made of them.
//!
//! # On disk
//! ```text
//! /var/lib/corten/
//!   images/HEX.json          one image: tags, digests, config, layers; HEX is the config's digest, the image's id
//!   layers/HEX/              one unpacked layer; HEX is the digest of its archive (the diff id): 64 digits of SHA-256, or 128 of SHA-512
//!              fs/           its files, ready to be an overlay lower directory
//!              layer.json    what it takes on disk
//!              implied.json  the directories that its archive has no entry for; seldom there
//!   layers/HEX.N.partial/    a layer being unpacked or removed; gone at the next start
//!   quarantine/              records and layers that could not be read, for a human to look at
//!   containers/ID/           upper/ and work/ of a container's root (snapshot)
//! ```
//! A layer appears under its name by a rename, after both of its digests were checked and the filesystem was synced; an
//! image's record appears after all of its layers. So whatever has its final name is whole, whenever the server or the
//! machine stopped. A layer is shared by all images that have it and stays while an image or a lease (a container's)
//! uses it.
//!
//! ```text
//! pull     files -> syncfs -> rename layer -> fsync layers/ -> write, fsync record -> rename record -> fsync images/
//! removal  unlink record -> fsync images/ -> rename layer to .partial -> remove its files
//! start    remove *.partial; quarantine what is damaged and images that miss a layer; containers lease their layers;
//!          remove layers that nobody uses. Each is reported in the log
//! ```
//! An image in use can be removed: it is gone from every list at once, and a pull brings it back without a download; its
//! layers count as used space and go with the last container. The kubelet removes none that is in use.
//!
//! `images/`, `layers/` and the quarantine of both lie in the image root (`storage.image_root`), `containers/` always in
//! the server's root: only renames within `layers/` and within `images/` are needed, and overlayfs asks no more than that
//! `upper` and `work` are on one filesystem.
//!
//! # A pull
//! ```text
//! reference --> registry: manifest --> index? the platform's manifest --> config --> layers, a few at a time --> record
//! ```
//! Pulls of the same image join; so do pulls of different images that have a layer in common and get it from the same
//! place. What one pull's registry does costs no other pull more than its turn. Nothing that is here
//! already is fetched again, except the manifest: it proves to the registry that the caller may have the image.
//!
//! | module | owns |
//! |---|---|
//! | [`reference`], `short_name` | the text form of an image's name, and what names without a registry mean |
//! | [`registry`], [`auth`] | HTTP, mirrors, credentials |
//! | `json`, `manifest`, `platform` | how large documents may get, which are accepted, and which of an index; pure |
//! | `pull`, `in_flight` | the order of a pull, and what pulls share |
//! | `policy`, `signature` | which images may be used, and cosign's signatures of them |
//! | `progress` | how far pulls and imports are |
//! | `slots`, `pace` | how many layers at once, and how slow they may come |
//! | `layer`, `blob`, `decode`, `hash` | one layer: threads, digests, packings |
//! | `unpack` | a layer's archive applied to a directory |
//! | `archive`, `import` | images from files instead of registries |
//! | `export`, `layer_tar` | an image as a file, its layers as archives again |
//! | `holes` | files with holes on the disk |
//! | `place` | trees that somebody else may change meanwhile |
//! | `check` | whether records, layers and accounts agree |
//! | `store`, `record` | what is here, leases, what is freed when; the records |
//! | `pins` | which images the kubelet is asked to leave alone, pure |
//! | [`snapshot`] | containers' roots and image volumes; what containers have written |
//!
//! Left out: keyless signatures.

mod archive;
pub mod auth;
mod blob;
mod check;
mod decode;
mod error;
mod export;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hash;
mod holes;
mod import;
mod in_flight;
mod json;
mod layer;
mod layer_tar;
mod manifest;
mod pace;
mod pins;
mod place;
mod platform;
mod policy;
mod progress;
mod pull;
mod record;
pub mod reference;
pub mod registry;
mod short_name;
mod signature;
mod slots;
pub mod snapshot;
mod store;
mod unpack;

pub use archive::ArchiveSource;
pub(crate) use archive::check_space;
pub use auth::Credentials;
pub use check::{Finding, Report};
pub use error::{Cause, PullError};
pub use import::Imported;
pub use pins::Pins;
pub use policy::{Admission, Policy};
pub use progress::{LayerSnapshot, Progress, Snapshot};
pub use record::Image;
pub use reference::{Reference, ReferenceError};
pub use registry::{PullConfig, RegistryConfig, RegistryConfigs};
pub use slots::{MAX_LAYERS, PullLimits};
pub use store::{ImageStore, LayerLease};
