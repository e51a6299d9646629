//! The OCI runtime as a library: what the `corten` binary is made of, and what the shim and the server share with it.
//!
//! Read [`container`] (the parent's half of a create), [`init`] (the child's half) and [`sync`] (the messages between
//! them) first; everything else is a step that one of the two calls.
//!
//! Linux 5.14 or later: mounts are made by descriptor (`fsopen` 5.2, `openat2` 5.6, `mount_setattr` 5.12) and
//! processes are named by pidfd; there is no second, path-based way of doing either.

pub mod activation;
pub mod bundle;
pub mod capabilities;
pub mod cgroup;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod console;
pub mod container;
pub mod dbus;
pub mod error;
pub mod exec;
pub mod foreground;
pub mod hooks;
pub mod id_map;
pub mod init;
pub mod interrupt;
pub mod log;
pub mod lsm;
pub mod memory_policy;
pub mod mountinfo;
pub mod namespaces;
pub mod netdev;
pub mod netlink;
pub mod notify;
pub mod process;
pub mod rdt;
pub mod rootfs;
pub mod rootless;
pub mod scheduling;
pub mod sealed;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod spawn;
pub mod start;
pub mod state;
pub mod sync;
pub mod sys;
pub mod time;
pub mod validate;
