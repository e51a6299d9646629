//! The CRI server of Corten: one process per node, between the kubelet and the pods' shims.
//!
//! ```text
//! kubelet, crictl --gRPC--> server ── runtime_service ──> node, store   memory and records
//!                              │            ├──────────> spec           CRI config to OCI spec, pure
//!                              │            ├──────────> network        CNI, the built-in network, namespaces
//!                              │            └──────────> shim           one corten-shim per pod
//! Prometheus <─HTTP─ telemetry ┤   around every call
//!                              ├──── image_service ────> image          pull, layers, snapshots
//! corten-cri image --gRPC-->   ├──── image_admin ──────> image          progress, archives, upkeep
//! corten-cri why   --gRPC-->   ├──── why                               why containers ended
//! corten-cri network --gRPC--> ├──── network_admin ────> network        the built-in network: show, repair, remove
//! corten-cri config, SIGHUP -> └──── reload ───────────> config         the files again
//! ```
//!
//! The binary is `main.rs`; everything is here so that the storage-level tests can link it. `corten-shim` is never
//! linked: it is another process with a protocol of its own (`proto/shim/shim.proto`).

mod apparmor;
mod batches;
mod bounded;
pub mod cdi;
mod checkpoint;
pub mod cli;
mod client;
pub mod config;
mod config_cli;
pub mod container;
mod deadline;
pub mod doctor;
mod drop_in;
pub mod error;
mod events;
mod health;
pub mod image;
pub mod image_admin;
pub mod image_cli;
pub mod image_service;
mod incoming;
mod limits;
pub mod network;
mod network_admin;
pub mod network_cli;
pub mod node;
pub mod oci;
pub mod own_process;
pub mod paths;
pub mod pod_userns;
pub mod record;
pub mod recover;
pub mod reload;
pub mod runtime_service;
pub mod sandbox;
pub mod server;
pub mod shim;
pub mod spec;
mod stage;
mod stats;
pub mod status_cli;
pub mod store;
pub mod streaming;
mod supervisor;
pub mod support_bundle;
mod sys;
pub mod systemd;
pub mod tasks;
mod telemetry;
mod tree;
mod watchdog;
mod why;
pub mod why_cli;

/// Most threads for blocking work: mounts, unpacking, records, looks at host paths.
pub const BLOCKING_THREADS: usize = 32;
