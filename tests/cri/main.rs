//! The server as a kubelet sees it: the real `corten-cri`, `corten-shim` and `corten`, Debian's CNI plugins, a registry
//! on loopback. Every test has a node of its own, and fails if anything of it is left.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cdi;
mod cgroup_driver;
mod checkpoint;
mod checkpoint_criu;
mod checkpoint_pod;
mod checkpoint_restore;
mod cni;
mod config;
mod container;
mod crictl;
mod crictl_resources;
mod crictl_streams;
mod devices;
mod error;
mod events;
mod exec;
mod image;
mod image_archive;
mod image_archive_hostile;
mod image_cli;
mod image_policy;
mod image_service;
mod image_users;
mod image_volumes;
mod killed_pods;
mod killed_pulls;
mod kubelet_needs;
mod kubelet_replay;
mod log;
mod lost;
mod metrics;
mod mounts;
mod network;
mod order;
mod parallel;
mod pid_namespace;
mod pod_files;
mod process;
mod pull_memory;
mod registry;
mod resources;
mod restart;
mod sandbox;
mod security;
mod service;
mod stats;
mod status;
mod stop;
mod streaming;
mod streaming_crictl;
mod streams;
mod update;
mod user_namespace;
