//! The CRI server of Corten: one process per node, between the kubelet and the pods' shims.
//!
//! ```text
//! kubelet, crictl --gRPC--> server ── runtime_service ──> node, store   memory and records
//!                              │            ├──────────> spec           CRI config to OCI spec, pure
//!                              │            ├──────────> network        CNI, network namespaces
//!                              │            └──────────> shim           one corten-shim per pod
//!                              ├──── image_service ────> image          pull, layers, snapshots
//! corten-cri image --gRPC-->   └──── image_admin ──────> image          progress, archives, upkeep
//! ```
//!
//! The binary is `main.rs`; everything is here so that the storage-level tests can link it. `corten-shim` is never
//! linked: it is another process with a protocol of its own (`proto/shim/shim.proto`).

mod apparmor;
mod batches;
pub mod cdi;
mod checkpoint;
pub mod cli;
pub mod config;
pub mod container;
mod deadline;
mod drop_in;
pub mod error;
mod events;
mod health;
pub mod image;
pub mod image_admin;
pub mod image_cli;
pub mod image_service;
pub mod network;
pub mod node;
pub mod oci;
pub mod paths;
pub mod pod_userns;
pub mod record;
pub mod recover;
pub mod runtime_service;
pub mod sandbox;
pub mod server;
pub mod shim;
pub mod spec;
mod stage;
mod stats;
pub mod store;
pub mod streaming;
mod supervisor;
pub mod tasks;
mod tree;

/// Most threads for blocking work: mounts, unpacking, records, looks at host paths.
pub const BLOCKING_THREADS: usize = 32;
