//! Network namespaces of sandboxes: one file each, kept alive by a bind mount, where ip-netns(8) finds them.
//!
//! A namespace is made by a thread that lives for it alone: unshare(2) changes the calling thread, and no other thread
//! of the server may ever be in a pod's network. When the thread ends, the bind mount is all that holds the
//! namespace; neither a descriptor nor a process stays behind.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use corten_proto::id::SandboxId;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::builtin;

/// The namespace of the thread that asks, Linux 3.17.
const OWN: &str = "/proc/thread-self/ns/net";

/// Makes a network namespace with its loopback up and binds it at `directory`/`id`. Blocks.
pub fn create(directory: &Path, id: &SandboxId) -> Result<PathBuf> {
    pin(directory, id, || {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare CLONE_NEWNET")
    })
}

/// The same with the namespace at `source`, which a user namespace may own. Blocks.
pub fn adopt(directory: &Path, id: &SandboxId, source: &Path) -> Result<PathBuf> {
    let namespace = fs::File::open(source).with_context(|| format!("open {}", source.display()))?;
    pin(directory, id, || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {} CLONE_NEWNET", source.display()))
    })
}

fn pin(directory: &Path, id: &SandboxId, enter: impl FnOnce() -> Result<()> + Send) -> Result<PathBuf> {
    let path = directory.join(id.as_str());
    fs::create_dir_all(directory).with_context(|| format!("mkdir {}", directory.display()))?;
    // Exclusive: whatever lies there belongs to someone.
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    let guard = Undo(Some(&path));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || populate(&path, enter))
            .context("start a thread for the network namespace")?;
        thread.join().expect("populate returns its errors")
    })?;
    guard.disarm();
    Ok(path)
}

/// Does `work` on a thread that is in the namespace at `path`, which is open for it. Blocks.
pub fn enter<T: Send>(path: &Path, work: impl FnOnce(&fs::File) -> Result<T> + Send) -> Result<T> {
    let namespace = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("setns {} CLONE_NEWNET", path.display()))?;
                work(&namespace)
            })
            .context("start a thread for the network namespace")?;
        thread.join().expect("work returns its errors")
    })
}

/// Whether there is a namespace at `path`, and not merely the file on which one was mounted, or was to be.
pub fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Removes the namespace at `directory`/`id`; it ends when no process is in it any more. One that is gone is fine.
pub fn remove(directory: &Path, id: &SandboxId) -> Result<()> {
    remove_at(&directory.join(id.as_str()))
}

fn remove_at(path: &Path) -> Result<()> {
    // DETACH: a process still inside must not keep the file. NOFOLLOW: the name is all that is ours.
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount point: left by a server that was killed in `create`, or by a reboot.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => bail!("umount2 {}: {errno}", path.display()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("unlink {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what `create` made if it does not come to its end.
struct Undo<'a>(Option<&'a Path>);

impl Undo<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0
            && let Err(error) = remove_at(path)
        {
            tracing::warn!("undo a network namespace: {error:#}");
        }
    }
}

/// Runs in the thread: leaves the server's network, brings up the new one's loopback, pins it.
fn populate(path: &Path, enter: impl FnOnce() -> Result<()>) -> Result<()> {
    enter()?;
    builtin::bring_up_loopback().context("bring up the loopback of a new network namespace")?;
    mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {OWN} on {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Namespaces need CAP_SYS_ADMIN.
    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    fn directory() -> PathBuf {
        tempfile::tempdir().unwrap().keep()
    }

    #[test]
    fn a_namespace_has_its_loopback_up_and_goes_without_a_trace() {
        if !is_root() {
            return;
        }
        let directory = directory();
        let id: SandboxId = "ns-test".parse().unwrap();
        let own = fs::metadata(OWN).unwrap().ino();
        let path = create(&directory, &id).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), own);
        assert_eq!(fs::metadata(OWN).unwrap().ino(), own, "the caller stayed where it was");
        assert!(create(&directory, &id).is_err(), "the name is taken");

        let namespace = fs::File::open(&path).unwrap();
        let addresses = std::thread::spawn(move || {
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            fs::read_to_string("/proc/thread-self/net/route").unwrap()
        });
        assert_eq!(
            addresses.join().unwrap().lines().count(),
            1,
            "no route but the loopback's"
        );

        remove(&directory, &id).unwrap();
        remove(&directory, &id).unwrap();
        assert!(!path.exists());
        fs::remove_dir(&directory).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory.to_str().unwrap()));
    }

    #[test]
    fn what_is_a_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, expected) in [
            (Path::new(OWN), true),
            (file.path(), false),
            (Path::new("/"), false),
            (Path::new("/nonexistent"), false),
        ] {
            assert_eq!(is_namespace(path), expected, "{}", path.display());
        }
    }

    #[test]
    fn a_name_without_a_mount_is_removed_too() {
        let directory = directory();
        fs::write(directory.join("left"), "").unwrap();
        remove(&directory, &"left".parse().unwrap()).unwrap();
        fs::remove_dir(&directory).unwrap();
    }
}
