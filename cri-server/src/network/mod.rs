//! Pod networks: the namespace, the plugins that fill it, and the two files that name things in it.
//!
//! | module | owns |
//! |---|---|
//! | [`netns`] | a network namespace with its loopback up, kept alive by a bind mount |
//! | [`cni`] | the plugin chain of the node's CNI configuration |
//! | [`teardown`] | networks whose DEL has failed, until it succeeds; the garbage of the plugins |
//! | [`dns`] | `resolv.conf` and `hostname` of a sandbox |
//!
//! A sandbox with the node's network has none of this but the files.

pub mod cni;
pub mod dns;
pub mod netns;
pub mod teardown;

pub use cni::{Attachment, Bandwidth, Cni, PodNetwork};
