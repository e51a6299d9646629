//! The server as a kubelet sees it: the real `corten-cri`, `corten-shim` and `corten`, Debian's CNI plugins, a registry
//! on loopback. Every test has a node of its own, and fails if anything of it is left.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod config;
mod container;
mod crictl;
mod crictl_resources;
mod crictl_streams;
mod error;
mod exec;
mod image;
mod image_archive;
mod image_archive_hostile;
mod image_cli;
mod image_policy;
mod image_service;
mod image_volumes;
mod killed_pulls;
mod kubelet_replay;
mod log;
mod lost;
mod network;
mod parallel;
mod pod_files;
mod process;
mod pull_memory;
mod registry;
mod restart;
mod sandbox;
mod service;
mod stop;
mod unimplemented;
