//! Images: references, registries, layers on disk, and the root filesystems made of them.
//!
//! # On disk
//! ```text
//! /var/lib/corten/
//!   images/HEX.json          one image: tags, digests, config, layers; HEX is the config's digest, the image's id
//!   layers/HEX/              one unpacked layer; HEX is the digest of its archive (the diff id)
//!              fs/           its files, ready to be an overlay lower directory
//!              layer.json    what it takes on disk
//!   layers/HEX.N.partial/    a layer being unpacked or removed; gone at the next start
//!   quarantine/              records and layers that could not be read, for a human to look at
//!   containers/ID/           upper/ and work/ of a container's root (snapshot)
//! ```
//! A layer appears under its name by a rename, after both of its digests were checked and the filesystem was synced; an
//! image's record appears after all of its layers. So whatever has its final name is whole, whenever the server or the
//! machine stopped. A layer is shared by all images that have it and stays while an image or a lease (a container's)
//! uses it.
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
//! | [`reference`] | the text form of an image's name |
//! | [`registry`], [`auth`] | HTTP, credentials |
//! | `manifest` | what documents are accepted, pure |
//! | `pull`, `in_flight` | the order of a pull, and what pulls share |
//! | `policy`, `signature` | which images may be used, and cosign's signatures of them |
//! | `progress` | how far pulls and imports are |
//! | `slots`, `pace` | how many layers at once, and how slow they may come |
//! | `archive`, `import` | images from files instead of registries |
//! | `export`, `layer_tar` | an image as a file, its layers as archives again |
//! | `check` | whether records, layers and accounts agree |
//! | `layer`, `unpack` | one layer: digests, and its archive applied to a directory |
//! | `store`, `record` | what is here, leases, what is freed when; the records |
//! | [`snapshot`] | a container's root: the overlay mount |
//!
//! Left out: zstd, resuming downloads, trying several mirrors, image volumes.

mod archive;
pub mod auth;
mod check;
mod error;
mod export;
mod import;
mod in_flight;
mod layer;
mod layer_tar;
mod manifest;
mod pace;
mod policy;
mod progress;
mod pull;
mod record;
pub mod reference;
pub mod registry;
mod signature;
mod slots;
pub mod snapshot;
mod store;
mod unpack;

pub use archive::ArchiveSource;
pub use auth::Credentials;
pub use check::{Finding, Report};
pub use error::{Cause, PullError};
pub use import::Imported;
pub use policy::{Admission, Policy};
pub use progress::{LayerSnapshot, Progress, Snapshot};
pub use record::Image;
pub use reference::{Reference, ReferenceError};
pub use registry::{RegistryConfig, RegistryConfigs};
pub use store::{ImageStore, LayerLease};
