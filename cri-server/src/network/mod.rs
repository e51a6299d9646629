//! Pod networks: the namespace, what fills it, and the two files that name things in it.
//!
//! | module | owns |
//! |---|---|
//! | [`netns`] | a network namespace with its loopback up, kept alive by a bind mount |
//! | [`cni`] | the plugin chain of the node's CNI configuration |
//! | [`builtin`] | a bridge of our own, for nodes without one |
//! | `attach` | which of the two a pod gets, and which takes it back |
//! | [`teardown`] | networks whose DEL has failed, until it succeeds; the garbage of the plugins |
//! | [`dns`] | `resolv.conf` and `hostname` of a sandbox |
//!
//! A sandbox with the node's network has none of this but the files.

mod attach;
pub mod builtin;
pub mod cni;
pub mod dns;
pub mod netns;
pub mod teardown;

pub use attach::Attachment;
pub use builtin::Builtin;
pub use cni::{Bandwidth, Cni, PodNetwork};
