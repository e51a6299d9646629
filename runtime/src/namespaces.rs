//! Which namespaces a container gets: new ones, and ones that exist.
//!
//! The order matters. A namespace belongs to the user namespace it was made in, and whoever enters a user namespace
//! loses the right to enter namespaces of the one outside. So existing namespaces are joined first, the user namespace
//! last of them (but for those that belong to it, and that a user who is not root can enter by its root's rights alone),
//! and only then are new ones made; a pid namespace takes effect for children only. Where that means joining
//! something before the container's init is cloned, a process in between does it (see [`crate::spawn`]).
//!
//! A mount namespace that exists is joined twice. The container's root becomes its root, as with runc: for every process
//! in it, and for good. So init joins it, copies it, builds the root in the copy, where a failure leaves no trace, and
//! comes back for the exchange alone ([`crate::rootfs::Rootfs::relocate`]). Paths of the specification lead where they
//! lead in that namespace: one that has no such root, another container's for one, is left as it is, with an error.
//! Where we differ: runc mounts right into the namespace, and leaves in it what a failed create has mounted; the
//! namespace of the host, whose root would be exchanged under everything, is refused.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxTimeOffset, Spec};
use rustix::fs::{Mode, OFlags};

use crate::id_map::{self, Kind};

/// Linux 5.6. The signal mask of clone(2) has this bit, so that only clone3, unshare and setns take it.
pub const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// The namespaces of one container.
#[derive(Debug)]
pub struct Namespaces {
    /// To be made.
    pub new: CloneFlags,
    /// To be joined; the user namespace is the last.
    join: Vec<Existing>,
    /// A mount namespace to be joined, before the others.
    mount: Option<Existing>,
    /// What the clocks of a new time namespace are ahead by, as its `timens_offsets` takes it.
    pub time_offsets: Option<String>,
}

/// A namespace that exists, held open.
#[derive(Debug)]
struct Existing {
    flag: CloneFlags,
    path: PathBuf,
    file: OwnedFd,
}

impl Namespaces {
    /// Reads the specification and opens the namespaces it names. No side effect.
    pub fn open(spec: &Spec) -> Result<Namespaces> {
        let mut namespaces = Namespaces {
            new: CloneFlags::empty(),
            join: Vec::new(),
            mount: None,
            time_offsets: time_offsets(spec),
        };
        for namespace in declared(spec) {
            let flag = clone_flag(namespace.typ())?;
            let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
                namespaces.new |= flag;
                continue;
            };
            let existing = Existing::open(flag, path.clone())?;
            if flag == CloneFlags::CLONE_NEWNS {
                existing.check_not_the_hosts()?;
                namespaces.mount = Some(existing);
            } else {
                namespaces.join.push(existing);
            }
        }
        namespaces
            .join
            .sort_by_key(|existing| existing.flag == CloneFlags::CLONE_NEWUSER);
        ensure!(
            namespaces.new.contains(CloneFlags::CLONE_NEWNS) || namespaces.joins_mount(),
            "linux.namespaces: a mount namespace is required: the root filesystem is built in it"
        );
        Ok(namespaces)
    }

    /// What the clone makes. The cgroup namespace is not of it: its root is the cgroup the process is in at that moment,
    /// so that init makes it once it is in the container's. Nor is, with a user namespace, the ipc namespace: its
    /// message queue filesystem belongs to the user who makes it, who has no id in there before the mappings exist.
    pub fn cloned(&self) -> CloneFlags {
        let offset = if self.time_offsets.is_some() {
            CLONE_NEWTIME
        } else {
            CloneFlags::empty()
        };
        self.new
            .difference(CloneFlags::CLONE_NEWCGROUP | self.after_mapping() | offset)
    }

    /// What is made once init is a user of the user namespace.
    fn after_mapping(&self) -> CloneFlags {
        if self.user() {
            CloneFlags::CLONE_NEWIPC
        } else {
            CloneFlags::empty()
        }
    }

    /// The container has a user namespace that is not the runtime's.
    pub fn user(&self) -> bool {
        self.new.contains(CloneFlags::CLONE_NEWUSER) || self.joins(CloneFlags::CLONE_NEWUSER)
    }

    /// The user namespace that exists and is joined.
    pub fn joined_user(&self) -> Option<BorrowedFd<'_>> {
        let user = self
            .join
            .iter()
            .find(|existing| existing.flag == CloneFlags::CLONE_NEWUSER);
        user.map(|existing| existing.file.as_fd())
    }

    /// The network namespace that the container's init, whose pid this is, is in or is about to join.
    pub fn network(&self, pid: i32) -> Result<OwnedFd> {
        if let Some(joined) = self
            .join
            .iter()
            .find(|existing| existing.flag == CloneFlags::CLONE_NEWNET)
        {
            return joined.file.try_clone().context("dup the network namespace");
        }
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(file.into())
    }

    /// Something has to be joined before init is cloned.
    pub fn join_before_clone(&self) -> bool {
        let beside_new_user = self.new.contains(CloneFlags::CLONE_NEWUSER) && !self.join.is_empty();
        self.joins(CloneFlags::CLONE_NEWPID) || self.joins(CloneFlags::CLONE_NEWUSER) || beside_new_user
    }

    /// The container gets a mount namespace that exists: its paths lead where they lead in there.
    pub fn joins_mount(&self) -> bool {
        self.mount.is_some()
    }

    /// Enters the namespaces that exist. One that only root of the user namespace may enter is entered after that.
    pub fn join(&self) -> Result<()> {
        let mut refused = Vec::new();
        for existing in self.mount.iter().chain(&self.join) {
            match existing.join() {
                Err(error) if existing.flag != CloneFlags::CLONE_NEWUSER && is_refusal(&error) => {
                    refused.push(existing)
                }
                joined => joined?,
            }
        }
        refused.into_iter().try_for_each(Existing::join)
    }

    /// Leaves a joined mount namespace for a copy of it, in which everything can be done without a trace.
    pub fn copy_mounts(&self) -> Result<()> {
        if self.joins_mount() {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
        }
        Ok(())
    }

    /// Returns from the copy to the joined mount namespace itself; its `/` is our root again.
    pub fn join_mount(&self) -> Result<()> {
        self.mount.iter().try_for_each(Existing::join)
    }

    /// Becomes root of the user namespace, if there is one, and makes what had to wait for that.
    pub fn become_root(&self) -> Result<()> {
        if !self.user() {
            return Ok(());
        }
        become_root()?;
        let late = self.new & self.after_mapping();
        unshare(late).with_context(|| format!("unshare({late:?})"))
    }

    /// Makes the cgroup namespace, if there is to be one.
    pub fn unshare_cgroup(&self) -> Result<()> {
        if self.new.contains(CloneFlags::CLONE_NEWCGROUP) {
            unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare(CLONE_NEWCGROUP)")?;
        }
        Ok(())
    }

    fn joins(&self, flag: CloneFlags) -> bool {
        self.join.iter().any(|existing| existing.flag == flag)
    }
}

impl Existing {
    fn open(flag: CloneFlags, path: PathBuf) -> Result<Existing> {
        // Whatever is there: the writer of a fifo is not waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())
            .with_context(|| format!("open namespace {}", path.display()))?;
        let stat = rustix::fs::fstatfs(&file).with_context(|| format!("fstatfs({})", path.display()))?;
        ensure!(
            i128::from(stat.f_type) == i128::from(libc::NSFS_MAGIC),
            "linux.namespaces: {} is not a namespace",
            path.display()
        );
        Ok(Existing { flag, path, file })
    }

    fn join(&self) -> Result<()> {
        setns(&self.file, self.flag).with_context(|| format!("join {}: setns({:?})", self.path.display(), self.flag))
    }

    /// A mount namespace that neither the runtime nor the machine's first process lives in.
    fn check_not_the_hosts(&self) -> Result<()> {
        let inode = rustix::fs::fstat(&self.file)
            .with_context(|| format!("fstat({})", self.path.display()))?
            .st_ino;
        for host in ["/proc/self/ns/mnt", "/proc/1/ns/mnt"] {
            // Another's may be out of sight, and is then nothing a path can lead to either.
            let same = std::fs::metadata(host).is_ok_and(|meta| meta.ino() == inode);
            ensure!(
                !same,
                "linux.namespaces: {}: the host's mount namespace, whose root would become the container's",
                self.path.display()
            );
        }
        Ok(())
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref() == Some(&nix::errno::Errno::EPERM)
}

/// The namespaces the specification lists.
pub fn declared(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default()
}

/// Every namespace kind a container has to itself, or shares with others but not with the host: what exec joins.
///
/// A namespace that turns out to be the caller's own is left out; joining one's own user namespace is an error.
pub fn to_join(spec: &Spec, pid: i32) -> Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for namespace in declared(spec) {
        let name = proc_name(namespace.typ());
        let inode = |of: &str| {
            let path = format!("/proc/{of}/ns/{name}");
            std::fs::metadata(&path)
                .map(|meta| meta.ino())
                .with_context(|| format!("stat {path}"))
        };
        if inode(&pid.to_string())? != inode("self")? {
            flags |= clone_flag(namespace.typ())?;
        }
    }
    Ok(flags)
}

/// The specification lists a namespace of this kind, new or not.
pub fn declares(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    declared(spec).iter().any(|namespace| namespace.typ() == kind)
}

/// init has a pid namespace to itself: when it ends, the kernel ends the others in it.
pub fn own_pid_namespace(spec: &Spec) -> bool {
    declared(spec).iter().any(|namespace| {
        let new = namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
        namespace.typ() == LinuxNamespaceType::Pid && new
    })
}

/// Takes the user namespace's root for our identity: the host's ids may not be mapped in it.
pub fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).context("setresgid(0)")?;
    nix::unistd::setresuid(uid, uid, uid).context("setresuid(0)")
}

/// The host's uid for `uid` of the user namespace that process `pid` is in; `None` where it has none.
pub fn host_uid(pid: i32, uid: u32) -> Result<Option<u32>> {
    host_id(pid, "uid_map", uid)
}

/// The same for a gid.
pub fn host_gid(pid: i32, gid: u32) -> Result<Option<u32>> {
    host_id(pid, "gid_map", gid)
}

fn host_id(pid: i32, file: &str, id: u32) -> Result<Option<u32>> {
    let path = format!("/proc/{pid}/{file}");
    let map = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(map_id(&map, id))
}

/// Looks an id up in the lines of a map: first id inside, first id outside, how many.
fn map_id(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line
            .split_ascii_whitespace()
            .map_while(|number| number.parse::<u32>().ok());
        let (inside, outside, size) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let offset = id.checked_sub(inside).filter(|&offset| offset < size)?;
        outside.checked_add(offset)
    })
}

/// Writes a new user namespace's id mappings, from outside.
pub fn write_mappings(spec: &Spec, pid: i32) -> Result<()> {
    let linux = spec.linux().as_ref().context("linux: missing")?;
    write_maps(pid, Kind::Uid.mappings(linux), Kind::Gid.mappings(linux))
}

/// Writes the id maps of the user namespace that process `pid` is the first of.
pub fn write_maps(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    // The groups first: while they can still be given up.
    for (kind, mappings) in [(Kind::Gid, gids), (Kind::Uid, uids)] {
        id_map::write(pid, kind, mappings)?;
    }
    Ok(())
}

/// The id mappings of a process's user namespace are the specification's.
pub fn check_mappings(spec: &Spec, pid: i32) -> Result<()> {
    let linux = spec.linux().as_ref().context("linux: missing")?;
    for (file, mappings) in [("uid_map", linux.uid_mappings()), ("gid_map", linux.gid_mappings())] {
        let path = format!("/proc/{pid}/{file}");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut found = text.split_ascii_whitespace().map(str::parse::<u32>);
        let mappings = mappings.iter().flatten();
        let mut expected = mappings.flat_map(|map| [map.container_id(), map.host_id(), map.size()]);
        let same = expected.all(|number| found.next() == Some(Ok(number))) && found.next().is_none();
        ensure!(same, "{path}: {text:?}: not the mappings of the bundle");
    }
    Ok(())
}

fn clone_flag(kind: LinuxNamespaceType) -> Result<CloneFlags> {
    Ok(match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    })
}

/// The lines of `linux.timeOffsets`.
fn time_offsets(spec: &Spec) -> Option<String> {
    let offsets = spec.linux().as_ref()?.time_offsets().as_ref()?;
    let line = |(clock, offset): (&String, &LinuxTimeOffset)| {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        format!("{clock} {seconds} {nanoseconds}\n")
    };
    let lines: String = offsets.iter().map(line).collect();
    (!lines.is_empty()).then_some(lines)
}

/// Makes a time namespace with these offsets and enters it.
///
/// They can be set until the first process is in it, which a clone would be at once. So it is made for the children of
/// the caller, given its offsets, and entered like one that exists; execve alone does that from Linux 6.0 on only. The
/// caller must not have made itself undumpable, or /proc/self would not be its own any more.
pub fn enter_new_time(offsets: &str) -> Result<()> {
    unshare(CLONE_NEWTIME).context("unshare(CLONE_NEWTIME)")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open /proc")?;
    let kind = rustix::fs::fstatfs(&proc).context("fstatfs(/proc)")?.f_type;
    ensure!(
        i128::from(kind) == i128::from(libc::PROC_SUPER_MAGIC),
        "/proc is not a procfs"
    );
    let open = |path: &str, flags| {
        rustix::fs::openat(&proc, path, flags | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("open /proc/{path}"))
    };
    let file = open("self/timens_offsets", OFlags::WRONLY)?;
    // One write: the kernel takes all the lines of it or none.
    rustix::io::write(&file, offsets.as_bytes())
        .with_context(|| format!("linux.timeOffsets: write {offsets:?} to /proc/self/timens_offsets"))?;
    let namespace = open("self/ns/time_for_children", OFlags::RDONLY)?;
    setns(namespace, CLONE_NEWTIME).context("setns(CLONE_NEWTIME)")
}

/// A namespace's name in /proc/PID/ns.
pub fn proc_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// Sets the host name and the NIS domain name of the uts namespace.
pub fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<()> {
    // An empty name is one that a Go program did not set, as runc takes it.
    if let Some(name) = hostname.filter(|name| !name.is_empty()) {
        nix::unistd::sethostname(name).with_context(|| format!("sethostname({name:?})"))?;
    }
    if let Some(name) = domainname.filter(|name| !name.is_empty()) {
        let text = CString::new(name).with_context(|| format!("domainname {name:?}"))?;
        rustix::system::setdomainname(text.as_bytes()).with_context(|| format!("setdomainname({name:?})"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":{namespaces}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn when_a_process_between_is_needed() {
        let pid = r#"{"type":"pid","path":"/proc/self/ns/pid"}"#;
        let net = r#"{"type":"network","path":"/proc/self/ns/net"}"#;
        let user = r#"{"type":"user","path":"/proc/self/ns/user"}"#;
        let (mount, new_user) = (r#"{"type":"mount"}"#, r#"{"type":"user"}"#);
        for (list, between) in [
            (mount.to_owned(), false),
            (format!("{mount},{net}"), false),
            (format!("{mount},{pid}"), true),
            (format!("{user},{mount}"), true),
            (format!("{mount},{new_user}"), false),
            (format!("{mount},{new_user},{net}"), true),
        ] {
            let namespaces = Namespaces::open(&spec(&format!("[{list}]"))).unwrap();
            assert_eq!(namespaces.join_before_clone(), between, "{list}");
        }
        let joined = Namespaces::open(&spec(&format!("[{user},{mount},{net}]"))).unwrap();
        assert_eq!(joined.join.last().unwrap().flag, CloneFlags::CLONE_NEWUSER);
        assert!(joined.user());
    }

    #[test]
    fn ids_of_the_host() {
        let map = "         0     100000       1000\n      1000       5000          1\n";
        for (inside, outside) in [
            (0, Some(100_000)),
            (999, Some(100_999)),
            (1000, Some(5000)),
            (1001, None),
        ] {
            assert_eq!(map_id(map, inside), outside, "{inside}");
        }
        assert_eq!(map_id("0 0 4294967295\n", 7), Some(7));
        assert_eq!(map_id("", 0), None);
    }

    #[test]
    fn what_is_refused() {
        for list in [
            r#"[{"type":"pid"}]"#,
            r#"[{"type":"mount","path":"/proc/self/ns/mnt"}]"#,
            r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#,
            r#"[{"type":"mount"},{"type":"network","path":"/proc/self/status"}]"#,
            r#"[{"type":"mount"},{"type":"network","path":"/nonexistent"}]"#,
        ] {
            assert!(Namespaces::open(&spec(list)).is_err(), "{list}");
        }
    }
}
