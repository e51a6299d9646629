//! Puts the pause program where the infra containers of all pods find it.
//!
//! ```text
//!   PAUSE_ROOTFS/pause                    0755, the embedded program
//!   PAUSE_ROOTFS/{dev,etc,proc,run,sys,tmp}    empty, to be mounted on
//! ```
//! Shared by every pod and mounted read-only by each. Installing is safe at any time and by several shims at once: the
//! program is replaced by rename, and only where it differs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The program, built from `pause/pause.rs`.
static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Where the infra container's mounts go.
const MOUNT_POINTS: [&str; 6] = ["dev", "etc", "proc", "run", "sys", "tmp"];

/// Installs what is missing or differs below `rootfs`.
pub(crate) fn install(rootfs: &Path) -> Result<()> {
    for name in MOUNT_POINTS {
        let path = rootfs.join(name);
        fs::create_dir_all(&path).with_context(|| format!("mkdir({})", path.display()))?;
    }
    let path = rootfs.join("pause");
    if fs::read(&path).is_ok_and(|installed| installed == PAUSE) {
        return Ok(());
    }
    let temporary = rootfs.join(format!(".pause.{}", std::process::id()));
    write_program(&temporary)
        .and_then(|()| {
            fs::rename(&temporary, &path)
                .with_context(|| format!("rename({}, {})", temporary.display(), path.display()))
        })
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn write_program(path: &Path) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(path)
        .with_context(|| format!("open({}, O_CREAT, 0755)", path.display()))?;
    file.write_all(PAUSE)
        .with_context(|| format!("write({})", path.display()))
}
