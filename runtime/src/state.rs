//! A container's directory under the runtime's root, and the OCI state machine.
//!
//! ```text
//! ROOT/ID/             0700; its flock orders create, start and delete
//!   state.json         State, replaced by rename
//!   config.json        the specification as create read it: exec and the hooks of delete need it
//!   exec.fifo          exists until start: init waits for somebody to open it for reading
//! ```
//! The status is not stored, it is read off: no pid yet is `creating`, a process that is gone is `stopped`, a frozen cgroup
//! is `paused`, a fifo is `created`, else `running`. state.json is written before the cgroup is made, so that whatever a killed create leaves
//! can be found and removed by `delete --force`.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use corten_proto::id::ContainerId;
use oci_spec::runtime::{ContainerState, Spec};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, CgroupPaths, Scope};
use crate::error::Error;
use crate::netdev::NetDevice;
use crate::rdt;
use crate::rootless;

/// The version of the OCI runtime specification this runtime follows.
pub const OCI_VERSION: &str = "1.3.0";

/// How long a command waits for another that changes the same container.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// The name of the fifo in a container's directory.
const EXEC_FIFO: &str = "exec.fifo";

/// What state.json holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification, see [`OCI_VERSION`].
    pub oci_version: String,
    /// The container's id.
    pub id: ContainerId,
    /// Host pid of init, 0 while there is none.
    pub pid: i32,
    /// When init started, in clock ticks since boot (field 22 of /proc/PID/stat): with it a pid names one process.
    pub start_time: u64,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root filesystem.
    pub rootfs: PathBuf,
    /// When create began, RFC 3339.
    pub created: String,
    /// Init is the first process of a pid namespace: when it ends, the kernel ends the rest.
    pub own_pid_namespace: bool,
    /// The annotations of the specification.
    pub annotations: HashMap<String, String>,
    /// Where the container's cgroups are.
    pub cgroup: CgroupPaths,
    /// They have been found empty or made: what is in them is the container's. A create that is killed before may have
    /// been on its way to somebody else's.
    pub own_cgroup: bool,
    /// The unit of systemd that they are, where systemd made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The host's network devices that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
    /// Its resctrl groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<rdt::Groups>,
}

impl State {
    /// The state as hooks get it on their standard input.
    pub fn oci(&self, status: ContainerState) -> oci_spec::runtime::State {
        let mut state = oci_spec::runtime::State::default();
        state.set_version(self.oci_version.clone());
        state.set_id(self.id.to_string());
        state.set_status(status);
        state.set_pid((self.pid > 0 && status != ContainerState::Stopped).then_some(self.pid));
        state.set_bundle(self.bundle.clone());
        state.set_annotations(Some(self.annotations.clone()));
        state
    }
}

/// What a container is doing: the states of the specification (runtime.md, State), and `paused`, which runc adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There is no process yet, or nobody has recorded it.
    Creating,
    /// Its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// All its processes are suspended; they may be started yet or not.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A container's directory.
#[derive(Debug)]
pub struct Directory {
    id: ContainerId,
    path: PathBuf,
    fd: OwnedFd,
}

/// A directory just made, and locked; dropping it removes it again.
#[derive(Debug)]
pub struct Reserved(Option<Directory>);

/// Reserves the id: makes the directory, which is what fails where the id is taken.
pub fn reserve(root: &Path, id: &ContainerId) -> Result<Reserved> {
    let mut builder = fs::DirBuilder::new();
    // Sticky: what is in $XDG_RUNTIME_DIR may be tidied up after some hours otherwise (XDG base directory specification).
    builder.mode(if rootless::unprivileged() { 0o1700 } else { 0o700 });
    builder
        .recursive(true)
        .create(root)
        .with_context(|| format!("create {}", root.display()))?;
    let path = root.join(id.as_str());
    match builder.recursive(false).mode(0o700).create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Exists(id.clone()).into());
        }
        result => result.with_context(|| format!("create {}", path.display()))?,
    }
    let reserved = Reserved(Some(Directory::open(root, id)?));
    reserved.directory().lock()?;
    Ok(reserved)
}

impl Reserved {
    /// The directory itself.
    pub fn directory(&self) -> &Directory {
        self.0.as_ref().expect("only keep and drop take it")
    }

    /// Keeps the directory; its lock is held until the value is dropped.
    pub fn keep(mut self) -> Directory {
        self.0.take().expect("only keep and drop take it")
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take() {
            crate::log::best_effort("undo the create", directory.remove());
        }
    }
}

impl Directory {
    /// The directory of an existing container.
    pub fn open(root: &Path, id: &ContainerId) -> Result<Directory> {
        let path = root.join(id.as_str());
        match rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Directory {
                id: id.clone(),
                path,
                fd,
            }),
            Err(Errno::NOENT) => Err(Error::NotFound(id.clone()).into()),
            Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
        }
    }

    /// Waits for its turn to change this container, but not for ever: a create can hang in a hook. The lock goes with
    /// the value, and with the process.
    pub fn lock(&self) -> Result<()> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_INTERVAL),
                Err(Errno::WOULDBLOCK) => {
                    let id = &self.id;
                    bail!("container {id}: another command has been changing it for {LOCK_TIMEOUT:?}")
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("flock({})", self.path.display()));
                }
            }
        }
        // Whoever held the lock before may have deleted the container, and another may have made one of that name.
        if self.is_current()? {
            Ok(())
        } else {
            Err(Error::NotFound(self.id.clone()).into())
        }
    }

    /// The directory that is open is the one at the path.
    fn is_current(&self) -> Result<bool> {
        let what = || format!("stat({})", self.path.display());
        let open = rustix::fs::fstat(&self.fd).with_context(what)?;
        match rustix::fs::lstat(&self.path) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (open.st_dev, open.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets others change this container; [`Directory::lock`] waits for them.
    pub fn unlock(&self) -> Result<()> {
        rustix::fs::flock(&self.fd, FlockOperation::Unlock)
            .with_context(|| format!("flock({}, LOCK_UN)", self.path.display()))
    }

    /// Replaces state.json.
    pub fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state).context("encode the state")?;
        let temporary = self.path.join("state.json.new");
        write_private(&temporary, &text)
            .and_then(|()| fs::rename(&temporary, self.path.join("state.json")))
            .with_context(|| format!("write {}", temporary.display()))
    }

    /// Reads state.json; `None` where a create was killed before it wrote any.
    pub fn read(&self) -> Result<Option<State>> {
        let path = self.path.join("state.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("decode {}", path.display()))
                .map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Reads state.json of a container that has one.
    pub fn state(&self) -> Result<State> {
        self.read()?
            .with_context(|| format!("container {} is still being created", self.id))
    }

    /// Keeps the specification as create got it.
    pub fn write_spec(&self, text: &[u8]) -> Result<()> {
        let path = self.path.join("config.json");
        write_private(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Replaces the kept specification, for an update.
    pub fn replace_spec(&self, text: &[u8]) -> Result<()> {
        let temporary = self.path.join("config.json.new");
        write_private(&temporary, text)
            .and_then(|()| fs::rename(&temporary, self.path.join("config.json")))
            .with_context(|| format!("write {}", temporary.display()))
    }

    /// The text of the kept specification.
    pub fn spec_text(&self) -> Result<Vec<u8>> {
        let path = self.path.join("config.json");
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The specification as create got it, or the last update left it.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.path.join("config.json");
        let text = self.spec_text()?;
        // Its warnings were heard when the container was created.
        let parsed = crate::validate::parse_spec(&text);
        Ok(parsed.with_context(|| path.display().to_string())?.value)
    }

    /// Makes the fifo, and opens it as a place only: init opens it for writing through this descriptor.
    pub fn make_fifo(&self) -> Result<OwnedFd> {
        // Write permission for others: init may be a user that owns nothing here; the directory is 0700.
        let mode = Mode::from_raw_mode(0o622);
        rustix::fs::mknodat(&self.fd, EXEC_FIFO, rustix::fs::FileType::Fifo, mode, 0)
            // mknod's mode is less the umask.
            .and_then(|()| rustix::fs::chmodat(&self.fd, EXEC_FIFO, mode, AtFlags::empty()))
            .and_then(|()| rustix::fs::openat(&self.fd, EXEC_FIFO, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .with_context(|| format!("make {}/{EXEC_FIFO}", self.path.display()))
    }

    /// Opens the fifo for reading, which lets init go on, and takes its name away: from here on the container counts
    /// as started.
    pub fn open_fifo(&self) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = rustix::fs::openat(&self.fd, EXEC_FIFO, flags, Mode::empty());
        let removed = rustix::fs::unlinkat(&self.fd, EXEC_FIFO, AtFlags::empty());
        let what = || format!("open {}/{EXEC_FIFO}", self.path.display());
        let fifo = fifo.with_context(what)?;
        removed.with_context(what)?;
        Ok(fifo.into())
    }

    /// The container's status, as its process, its cgroup and its fifo show it.
    pub fn status(&self, state: &State) -> Status {
        if state.pid == 0 {
            return Status::Creating;
        }
        // The process first: a container that is started between the two looks is then created, which it just was.
        if process_start(state.pid) != Some(state.start_time) {
            return Status::Stopped;
        }
        if cgroup::is_frozen(&state.cgroup) {
            return Status::Paused;
        }
        match rustix::fs::statat(&self.fd, EXEC_FIFO, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Status::Created,
            Err(_gone) => Status::Running,
        }
    }

    /// Removes the directory: the id is free again.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

/// The ids under a root, in order.
pub fn list(root: &Path) -> Result<Vec<ContainerId>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", root.display()))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("read {}", root.display()))?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    ids.sort();
    Ok(ids)
}

/// When the process `pid` started, in clock ticks since boot; `None` where there is none, or only its zombie.
pub fn process_start(pid: i32) -> Option<u64> {
    let mut text = String::with_capacity(1024);
    File::open(format!("/proc/{pid}/stat"))
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    parse_stat(&text)
}

/// Field 22 of a stat line, unless field 3 says the process is dead. Field 2, the name, may hold anything.
fn parse_stat(text: &str) -> Option<u64> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Writes a file that only its owner reads: a specification has the variables of its process, secrets among them.
fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let options = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .clone();
    options.open(path)?.write_all(text)
}

/// Writes `pid` to `path` at once: a reader sees the whole number or no file.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let Some(name) = path.file_name() else {
        bail!("pid file {}: not the name of a file", path.display())
    };
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let write = || {
        // Left by a command that was killed, or a link somebody has put there: nothing that exists is written to.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::create_new(&temporary)?.write_all(pid.to_string().as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write the pid file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_of_the_directory_that_is_there() {
        let root = std::env::temp_dir().join(format!("corten-state-{}", std::process::id()));
        let id: ContainerId = "x".parse().unwrap();
        let first = reserve(&root, &id).unwrap().keep();
        let waiting = Directory::open(&root, &id).unwrap();
        first.remove().unwrap();
        drop(first);
        let gone = waiting.lock().unwrap_err();
        assert!(matches!(gone.downcast_ref(), Some(Error::NotFound(_))));
        // Another of that name is not the one that was waited for.
        let second = reserve(&root, &id).unwrap();
        assert!(waiting.lock().is_err());
        drop(second);
        fs::remove_dir(root).unwrap();
    }

    #[test]
    fn stat_lines() {
        let line = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 8192 1 1")
        };
        assert_eq!(parse_stat(&line("sh", "S")), Some(123_456));
        assert_eq!(parse_stat(&line("a) Z (b", "R")), Some(123_456));
        assert_eq!(parse_stat(&line("sh", "Z")), None);
        assert_eq!(parse_stat("7 (sh) S 1"), None);
        assert_eq!(parse_stat(""), None);
        assert!(process_start(i32::try_from(std::process::id()).unwrap()).is_some());
        assert_eq!(process_start(0), None);
    }
}
