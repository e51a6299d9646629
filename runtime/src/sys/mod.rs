//! System calls that nix and rustix do not wrap, one function each, and all unsafe code of this crate.
//!
//! Every descriptor these functions return is close-on-exec.

pub mod bpf;
pub mod clone;
pub mod fd;
pub mod keyring;
pub mod mount;
pub mod sched;
pub mod seccomp;
pub mod signal;
pub mod spawn;
