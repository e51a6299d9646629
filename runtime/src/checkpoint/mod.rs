//! Checkpoint and restore, by CRIU: what runc's commands of these names do, with the bundle above the images.
//!
//! ```text
//!   dump.rs        a running container to images           rpc.rs        CRIU's protocol, and starting it
//!   restore.rs     images to a running container           external.rs   what is not in the images: binds, cgroups, namespaces
//!   verify.rs      is it what the bundle says? the tasks  images.rs     what is read in the images before CRIU reads them
//!   mounts.rs      the same of its mounts
//! ```
//! The images are untrusted: whoever can write them decides what CRIU makes, identity, capabilities, filters, mounts and
//! all, and CRIU asks nobody (CVE-2026-95837, CVE-2026-95838). So the specification in the bundle given at the restore is
//! the measure:
//!
//! | before CRIU starts | every mount has the name of one in the bundle or none; its place is in the root and behind no link; every seccomp filter is the bundle's |
//! | by what CRIU is told | sources of binds, joined namespaces, cgroup, root, security label: the bundle's, never the images' |
//! | after, before a task runs | [`verify`]: ids, capabilities, no_new_privs, seccomp, label, limits, namespaces, id mappings, cgroup of every thread; mounts, their kinds and flags |
//!
//! A container that is more than its bundle allows is killed before it runs an instruction. Left to CRIU alone: memory,
//! registers, open files within the container's root (a restored task could have opened them itself), sockets, timers.
//! A container that has mounted something itself cannot be restored, nor one with mount namespaces of its own making.

pub mod dump;
pub mod external;
pub mod images;
pub mod mounts;
pub mod restore;
pub mod rpc;
pub mod verify;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{cli, rootless};
use rpc::{Options, Response};

/// `CLONE_NEWNET`, as CRIU takes it.
const NETWORK: u32 = libc::CLONE_NEWNET.cast_unsigned();

/// CRIU traces processes, writes to their memory, and makes them with pids of its choice.
fn needs_root() -> Result<()> {
    ensure!(!rootless::unprivileged(), "criu needs root, and all capabilities");
    Ok(())
}

/// The directories CRIU works in.
#[derive(Debug)]
struct Directories {
    images: OwnedFd,
    work: OwnedFd,
    work_path: PathBuf,
}

impl Directories {
    /// Opens them; where something is to be written makes them, readable to nobody else: memory can hold secrets.
    fn open(asked: &cli::Images, make: bool) -> Result<Directories> {
        let images_path = std::path::absolute(&asked.image_path).context("--image-path")?;
        let work_path = match &asked.work_path {
            Some(path) => std::path::absolute(path).context("--work-path")?,
            None => images_path.clone(),
        };
        if make {
            make_directory(&images_path).context("--image-path")?;
        }
        make_directory(&work_path).context("--work-path")?;
        Ok(Directories {
            images: images::open(&images_path).context("--image-path")?,
            work: images::open(&work_path).context("--work-path")?,
            work_path,
        })
    }

    /// What both directions tell CRIU.
    fn options(&self, asked: &cli::Images, log: &str) -> Options {
        Options {
            images: self.images.as_raw_fd(),
            work: Some(self.work.as_raw_fd()),
            log_level: Some(4),
            log_file: Some(log.to_owned()),
            notify: Some(true),
            ext_unix_sockets: Some(asked.ext_unix_sk),
            tcp_established: Some(asked.tcp_established),
            evasive_devices: Some(true),
            shell_job: Some(asked.shell_job),
            file_locks: Some(asked.file_locks),
            auto_dedup: Some(asked.auto_dedup),
            lazy_pages: Some(asked.lazy_pages),
            manage_cgroups: Some(true),
            cgroups_mode: Some(cgroups_mode(asked.manage_cgroups_mode)),
            orphan_pts_master: Some(true),
            empty_namespaces: asked.empty_network.then_some(NETWORK),
            ..Options::default()
        }
    }

    /// A failure in CRIU's words, with where to read more.
    fn failure(&self, what: &str, response: &Response, log: &str) -> anyhow::Error {
        let words = response.message.as_deref().unwrap_or_default().trim();
        let errno = response
            .errno
            .filter(|&errno| errno != 0)
            .map(std::io::Error::from_raw_os_error);
        let errno = errno.map_or(String::new(), |error| format!(": {error}"));
        let told = rpc::last_errors(&self.work_path.join(log));
        anyhow!("criu cannot {what}{errno}: {words}; {told}")
    }

    /// An error that CRIU's log may explain.
    fn explain(&self, error: anyhow::Error, log: &str) -> anyhow::Error {
        let told = rpc::last_errors(&self.work_path.join(log));
        error.context(told)
    }
}

fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

/// `criu_cg_mode`.
fn cgroups_mode(mode: cli::CgroupsMode) -> i32 {
    match mode {
        cli::CgroupsMode::Ignore => 0,
        cli::CgroupsMode::Soft => 3,
        cli::CgroupsMode::Full => 4,
        cli::CgroupsMode::Strict => 5,
    }
}
