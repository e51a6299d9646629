//! The OCI runtime as a library: what the `corten` binary is made of, and what the shim and the server share with it.

pub mod capabilities;
pub mod cgroup;
pub mod hooks;
pub mod validate;
