//! The cgroups of a container: where they are, making them, limits, moving processes in, signals, removal.
//!
//! ```text
//!   v1, hybrid   MOUNT/PATH in every hierarchy: /sys/fs/cgroup/memory/PATH, /sys/fs/cgroup/pids/PATH, ...
//!   v2           MOUNT/PATH
//!   PATH         linux.cgroupsPath: absolute as it is, relative below /corten; none: /corten/ID
//! ```
//! The order of a create: [`Cgroup::plan`] (no side effect), [`Cgroup::create`], [`Cgroup::apply`], then processes: a
//! process that enters before its limits would run without them. [`Created`] undoes all of it until it is kept.
//!
//! Invariant: a `Cgroup` is never a hierarchy's root, and `create` refuses a cgroup that has processes; so whatever is in
//! it later is the container's, and `kill` and `delete` may take everything they find.
//!
//! `layout.rs` finds the hierarchies, `resources.rs` and `devices.rs` translate the spec (pure), `limits.rs` writes what they
//! say, `place.rs` makes and removes directories, `freezer.rs` holds and signals processes.
//! `delegate.rs` gives a v2 cgroup to the container's user, `systemd.rs` has systemd make them, `stats.rs` and
//! `oom.rs` tell of them. Left out: the v2 tree of a
//! hybrid machine.

mod below;
mod delegate;
mod devices;
mod directory;
mod freezer;
mod layout;
mod limits;
mod oom;
mod place;
mod resources;
mod stats;
mod systemd;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, anyhow, ensure};
use corten_proto::id::ContainerId;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::rootless;
use directory::Directory;
pub use freezer::{is_frozen, may_outlive_kill};
pub use layout::{Hierarchy, Layout, layout, parse_memberships, unified};
pub use limits::check;
pub use oom::OomWatch;
pub use place::Created;
pub use stats::{Event, Stats};
pub use systemd::Scope;

/// Where a container's cgroups are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupPaths {
    /// One directory per v1 hierarchy; the key is the hierarchy as /proc/PID/cgroup names it (`cpu,cpuacct`).
    V1(BTreeMap<String, PathBuf>),
    /// The one directory of the unified hierarchy.
    V2(PathBuf),
}

impl CgroupPaths {
    /// (hierarchy, directory) of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        let (v1, v2) = match self {
            CgroupPaths::V1(paths) => (Some(paths), None),
            CgroupPaths::V2(path) => (None, Some(path)),
        };
        let v1 = v1
            .into_iter()
            .flatten()
            .map(|(name, path)| (name.as_str(), path.as_path()));
        v1.chain(v2.map(|path| ("", path.as_path())))
    }
}

/// Who makes a container's cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// We do, below the hierarchies' roots.
    Cgroupfs,
    /// systemd does, as a scope.
    Systemd,
}

/// The cgroups of one container.
#[derive(Debug)]
pub struct Cgroup {
    paths: CgroupPaths,
    /// The unit of systemd that they are, if one is.
    scope: Option<Scope>,
    /// Those that exist, held open from the first use on.
    open: OnceLock<Vec<(String, Directory)>>,
}

/// The container's path below each hierarchy's mount.
fn location(path: Option<&Path>, id: &ContainerId) -> Result<PathBuf> {
    let location = place::location(path, id)?;
    let asked = path.is_some_and(|path| !path.as_os_str().is_empty());
    match layout()? {
        Layout::V2(hierarchy) if !asked && rootless::unprivileged() => {
            Ok(place::delegated(hierarchy)?.unwrap_or_default().join(location))
        }
        _ => Ok(location),
    }
}

impl Cgroup {
    /// Where the container's cgroups are to be, from `linux.cgroupsPath`. No side effect.
    pub fn plan(path: Option<&Path>, id: &ContainerId, driver: Driver) -> Result<Cgroup> {
        let scope = match driver {
            Driver::Cgroupfs => None,
            Driver::Systemd => Some(Scope::plan(path, id, rootless::is_rootless())?),
        };
        let below = match &scope {
            Some(scope) => scope.cgroup()?,
            None => location(path, id)?,
        };
        let at = |hierarchy: &Hierarchy| match scope {
            // As /proc/PID/cgroup has it, of which the mount may show a part.
            Some(_) => hierarchy.directory(&below),
            None => Some(hierarchy.mount_point.join(&below)),
        };
        let at = |hierarchy: &Hierarchy| {
            at(hierarchy).ok_or_else(|| anyhow!("cgroup {}: outside of what is mounted here", below.display()))
        };
        let paths = match layout()? {
            Layout::V1(all) => {
                let paths = all.iter().map(|h| Ok((h.name.clone(), at(h)?)));
                CgroupPaths::V1(paths.collect::<Result<_>>()?)
            }
            Layout::V2(one) => CgroupPaths::V2(at(one)?),
        };
        Ok(Cgroup {
            scope,
            ..Cgroup::open(paths)
        })
    }

    /// The cgroups at `paths`, from a saved state. They need not exist any more.
    pub fn open(paths: CgroupPaths) -> Cgroup {
        Cgroup {
            paths,
            scope: None,
            open: OnceLock::new(),
        }
    }

    /// The same, where systemd made them: to be asked to change or to remove them.
    #[must_use]
    pub fn with_scope(self, scope: Option<Scope>) -> Cgroup {
        Cgroup { scope, ..self }
    }

    /// The cgroups that a process is in, for reading what they say. They may be more than that process's own: never to be
    /// killed or deleted.
    pub fn of_process(pid: i32) -> Result<Cgroup> {
        Cgroup::of(&pid.to_string())
    }

    /// The same of this process.
    pub fn own() -> Result<Cgroup> {
        Cgroup::of("self")
    }

    /// The cgroups of a process by its name in /proc.
    fn of(process: &str) -> Result<Cgroup> {
        let memberships = layout::memberships(process)?;
        let directory = |hierarchy: &Hierarchy| {
            let (_, path) = memberships.iter().find(|(name, _)| *name == hierarchy.name)?;
            hierarchy.directory(path)
        };
        let paths = match layout()? {
            Layout::V1(all) => CgroupPaths::V1(
                all.iter()
                    .filter_map(|h| Some((h.name.clone(), directory(h)?)))
                    .collect(),
            ),
            Layout::V2(one) => CgroupPaths::V2(
                directory(one)
                    .ok_or_else(|| anyhow!("the cgroup of process {process} is outside what is mounted here"))?,
            ),
        };
        Ok(Cgroup::open(paths))
    }

    /// The process, or thread, is in these cgroups or below them.
    pub fn holds(&self, pid: i32) -> Result<bool> {
        let own = Cgroup::of_process(pid)?;
        let inside = |(name, path): (&str, &Path)| {
            let mut all = own.paths.iter();
            all.any(|(hierarchy, own)| hierarchy == name && own.starts_with(path))
        };
        Ok(self.paths.iter().all(inside))
    }

    /// Where they are, to be saved.
    pub fn paths(&self) -> &CgroupPaths {
        &self.paths
    }

    /// The unit of systemd that they are, to be saved.
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Makes the directories, those of systemd's by systemd, and gives them to the container's user where that is due.
    /// Those that were there already must be empty and not frozen; the guard leaves them alone.
    pub fn create(&self, spec: &Spec) -> Result<Created<'_>> {
        let mut created = Created::new(self);
        if let Some(scope) = &self.scope {
            created.begin(scope.start(spec, self.is_v2())?);
        }
        for (hierarchy, path) in self.paths.iter() {
            if self.scope.is_some() {
                created.complete(path)?;
            } else {
                created.make(path)?;
            }
            if layout::has_controller(hierarchy, "cpuset") {
                place::inherit_cpuset(path)?;
            }
        }
        if let (CgroupPaths::V2(path), Layout::V2(hierarchy)) = (&self.paths, layout()?) {
            place::enable_controllers(&hierarchy.mount_point, path)?;
            if let Some(owner) = delegate::owner(spec) {
                delegate::give(&Directory::existing(path)?, owner)?;
            }
        }
        Ok(created)
    }

    /// Moves the calling process, which has one thread, in, in every hierarchy.
    ///
    /// On v1 as a thread: a thread that moves itself needs no lock, whereas every other move, by pid or through
    /// `cgroup.procs`, takes the lock against forks, and waits for an RCU grace period if nobody has just taken it. Measured:
    /// 0.04 ms against 5 to 24 ms.
    pub fn enter(&self) -> Result<()> {
        let directories = self.directories()?;
        ensure!(
            directories.len() == self.paths.iter().count(),
            "a cgroup of the container is gone: {:?}",
            self.paths
        );
        let file = if self.is_v2() { "cgroup.procs" } else { "tasks" };
        directories
            .iter()
            .try_for_each(|(_, directory)| directory.write(file, "0"))
    }

    /// Moves a process in that is another program, in every hierarchy. On v1 the first of these writes may wait for an RCU
    /// grace period: see [`Cgroup::enter`].
    pub fn add(&self, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        self.directories()?
            .iter()
            .try_for_each(|(_, directory)| directory.write("cgroup.procs", &pid))
    }

    /// The directory for `CLONE_INTO_CGROUP`, on v2.
    pub fn clone_fd(&self) -> Option<OwnedFd> {
        // A scope still has its first process in it: a clone would count against a limit of one, a move does not.
        let direct = self.is_v2() && self.scope.is_none();
        let directory = direct.then(|| self.controller("").ok()?)??;
        directory.descriptor().ok()
    }

    /// Every process in the container's cgroup and below it; none where the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<i32>> {
        match self.signal_directory()? {
            Some(directory) => directory.processes(),
            None => Ok(Vec::new()),
        }
    }

    /// The container has none: see [`Cgroup::none`].
    pub fn is_none(&self) -> bool {
        self.paths.iter().next().is_none()
    }

    fn is_v2(&self) -> bool {
        matches!(self.paths, CgroupPaths::V2(_))
    }

    /// The directories that exist.
    fn directories(&self) -> Result<&[(String, Directory)]> {
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let mut found = Vec::new();
        for (hierarchy, path) in self.paths.iter() {
            found.extend(Directory::open(path)?.map(|directory| (hierarchy.to_owned(), directory)));
        }
        Ok(self.open.get_or_init(|| found))
    }

    /// The directory whose processes get signals: on v1 the freezer's, so that they can be held meanwhile, or any.
    fn signal_directory(&self) -> Result<Option<&Directory>> {
        let freezer = self.controller("freezer")?;
        Ok(freezer.or(self.directories()?.first().map(|(_, directory)| directory)))
    }
}

/// The number on the line `KEY NUMBER`.
fn keyed_value(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_saved_as_they_are() {
        let v1 = CgroupPaths::V1(BTreeMap::from([("cpu,cpuacct".to_owned(), PathBuf::from("/c/x"))]));
        let v2 = CgroupPaths::V2("/c/x".into());
        for (paths, json) in [(v1, r#"{"v1":{"cpu,cpuacct":"/c/x"}}"#), (v2, r#"{"v2":"/c/x"}"#)] {
            assert_eq!(serde_json::to_string(&paths).unwrap(), json);
            assert_eq!(serde_json::from_str::<CgroupPaths>(json).unwrap(), paths);
        }
    }

    #[test]
    fn counters_by_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        for (key, value) in [("oom_kill", Some(3)), ("under_oom", Some(0)), ("oom", None)] {
            assert_eq!(keyed_value(text, key), value, "{key}");
        }
    }
}
