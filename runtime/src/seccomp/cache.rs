//! Compiled profiles, kept: libseccomp needs some milliseconds for a profile of 400 calls, reading the result takes none.
//!
//! ```text
//! ROOT/@seccomp/       0700 and the caller's own; `@` is in no container's id
//!   KEY                0600; KEY in hexadecimal is the SHA-256 of the profile, this runtime's version and libseccomp's
//!     8 bytes          MAGIC
//!    32 bytes          KEY
//!    32 bytes          SHA-256 of the program
//!     8 bytes each     the program, `struct sock_filter` of this machine
//! ```
//! A file appears whole, by rename. What is read counts only if its owner is the caller, nobody else could write it, and
//! both sums agree; anything else is compiled anew and replaced. A cache that cannot be used costs time and a warning,
//! never a container. The kernel judges every program again when it is loaded.
//!
//! At most [`MAX_FILES`] files: whoever adds one removes the one written first. They live as long as ROOT, on most machines
//! until the next boot.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::compile::{compile, decode, encode};
use super::rules;
use crate::log;
use crate::sys::seccomp::MAX_INSTRUCTIONS;

/// The cache's name in the runtime's root.
const DIRECTORY: &str = "@seccomp";

/// How many programs are kept. A machine has a handful of profiles; somebody who makes one per container shall not fill
/// a tmpfs.
const MAX_FILES: usize = 64;

/// What a file begins with; another layout gets another.
const MAGIC: &[u8; 8] = b"cortenB1";

const SUM: usize = 32;
const HEADER: usize = MAGIC.len() + 2 * SUM;

/// Everything a program depends on.
#[derive(Serialize)]
struct Inputs<'a> {
    runtime: &'static str,
    libseccomp: [u32; 3],
    machine: &'static str,
    default_action: LinuxSeccompAction,
    default_errno: Option<u32>,
    architectures: Option<&'a [Arch]>,
    rules: &'a [LinuxSyscall],
}

/// The program of a profile: as it was kept, or compiled and kept for the next time.
pub(super) fn program(root: &Path, profile: &LinuxSeccomp) -> Result<Vec<sock_filter>> {
    let key = key(profile)?;
    let directory = log::best_effort("the cache of seccomp programs", open(root)).flatten();
    if let Some(directory) = &directory
        && let Some(program) = log::best_effort("the cache of seccomp programs", read(directory.as_fd(), &key))
        && let Some(program) = program
    {
        return Ok(program);
    }
    let program = compile(profile)?;
    log::best_effort("keep a seccomp program", keep(root, directory, &key, &program));
    Ok(program)
}

fn key(profile: &LinuxSeccomp) -> Result<[u8; SUM]> {
    let library = libseccomp::ScmpVersion::current().context("seccomp_version")?;
    let inputs = Inputs {
        runtime: env!("CARGO_PKG_VERSION"),
        libseccomp: [library.major, library.minor, library.micro],
        machine: std::env::consts::ARCH,
        default_action: profile.default_action(),
        default_errno: profile.default_errno_ret(),
        architectures: profile.architectures().as_deref(),
        rules: rules(profile),
    };
    let text = serde_json::to_vec(&inputs).context("encode the profile")?;
    Ok(Sha256::digest(text).into())
}

fn name(key: &[u8; SUM]) -> String {
    key.iter().fold(String::with_capacity(2 * SUM), |mut name, byte| {
        write!(name, "{byte:02x}").expect("a String takes all that is written");
        name
    })
}

/// The directory, if there is one; one that others can write is not used.
fn open(root: &Path) -> Result<Option<OwnedFd>> {
    let path = root.join(DIRECTORY);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        directory => directory.with_context(|| format!("open {}", path.display()))?,
    };
    let stat = rustix::fs::fstat(&directory).context("fstat")?;
    let own = stat.st_uid == rustix::process::geteuid().as_raw();
    ensure!(
        own && stat.st_mode & 0o077 == 0,
        "{}: is not ours alone: owner {}, mode {:04o}",
        path.display(),
        stat.st_uid,
        stat.st_mode & 0o7777
    );
    Ok(Some(directory))
}

/// A kept program; `None` where there is none.
fn read(directory: BorrowedFd<'_>, key: &[u8; SUM]) -> Result<Option<Vec<sock_filter>>> {
    let name = name(key);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, &name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        file => File::from(file.with_context(|| format!("open {name}"))?),
    };
    let metadata = file.metadata().with_context(|| format!("fstat({name})"))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    ensure!(
        own && metadata.is_file() && metadata.mode() & 0o022 == 0,
        "{name}: is not a file of ours alone"
    );
    let most = HEADER + MAX_INSTRUCTIONS * size_of::<sock_filter>();
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    ensure!(
        (HEADER + 1..=most).contains(&length),
        "{name}: {length} bytes are no program"
    );
    let mut bytes = Vec::with_capacity(length + 1);
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {name}"))?;
    verify(&bytes, key)
        .with_context(|| format!("{name}: is damaged"))
        .map(Some)
}

fn verify(bytes: &[u8], key: &[u8; SUM]) -> Option<Vec<sock_filter>> {
    let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
    let (its_key, rest) = rest.split_at_checked(SUM)?;
    let (sum, program) = rest.split_at_checked(SUM)?;
    let whole = magic == MAGIC && its_key == key && Sha256::digest(program).as_slice() == sum;
    whole.then(|| decode(program)).flatten()
}

/// Writes a program for the next time.
fn keep(root: &Path, directory: Option<OwnedFd>, key: &[u8; SUM], program: &[sock_filter]) -> Result<()> {
    let directory = match directory {
        Some(directory) => directory,
        None => make(root)?,
    };
    let program = encode(program);
    let sum = Sha256::digest(&program);
    let bytes = [MAGIC.as_slice(), key, &sum, &program].concat();
    // Of this name there is one at a time: a leftover of a killed process with our pid is replaced.
    let (name, new) = (name(key), format!("new-{}", std::process::id()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, &new, flags, Mode::from_raw_mode(0o600));
    let mut file = File::from(file.with_context(|| format!("create {new}"))?);
    file.write_all(&bytes).with_context(|| format!("write {new}"))?;
    rustix::fs::renameat(&directory, &new, &directory, &name).with_context(|| format!("rename {new} to {name}"))?;
    make_room(directory.as_fd())
}

fn make(root: &Path) -> Result<OwnedFd> {
    let path = root.join(DIRECTORY);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(&path)
        .with_context(|| format!("create {}", path.display()))?;
    open(root)?.context("the directory has gone again")
}

/// Removes what was written first, as long as there is too much.
fn make_room(directory: BorrowedFd<'_>) -> Result<()> {
    let mut files = Vec::new();
    for entry in Dir::read_from(directory).context("read the directory")? {
        let name = entry.context("read the directory")?.file_name().to_owned();
        // Another runtime may have removed it.
        if let Ok(stat) = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)
            && !matches!(name.to_bytes(), b"." | b"..")
        {
            files.push(((stat.st_mtime, stat.st_mtime_nsec), name));
        }
    }
    files.sort();
    let excess = files.len().saturating_sub(MAX_FILES);
    for (_, name) in &files[..excess] {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("remove {name:?}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno})).unwrap()
    }

    #[test]
    fn a_file_is_verified() {
        let key = key(&profile(7)).unwrap();
        let program = encode(&compile(&profile(7)).unwrap());
        let whole = [MAGIC.as_slice(), &key, &Sha256::digest(&program), &program].concat();
        assert_eq!(encode(&verify(&whole, &key).unwrap()), program);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(verify(&bytes, &key).is_none(), "byte {at}");
            assert!(verify(&whole[..at], &key).is_none(), "cut at {at}");
        }
        let other = super::key(&profile(8)).unwrap();
        assert_ne!(key, other);
        assert!(verify(&whole, &other).is_none());
    }

    #[test]
    fn a_name_is_no_container_s() {
        assert!(DIRECTORY.parse::<corten_proto::id::ContainerId>().is_err());
        assert_eq!(name(&[0xa5; SUM]), "a5".repeat(SUM));
    }
}
