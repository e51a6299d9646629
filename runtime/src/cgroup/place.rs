//! Where a container's cgroup is, making its directories, and taking them away.

use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use corten_proto::id::ContainerId;
use rustix::fs::{Access, AtFlags, CWD, Mode, accessat};
use rustix::io::Errno;

use super::Cgroup;
use super::directory::{self, Directory};
use super::freezer::signal_each;
use super::layout::Hierarchy;
use super::systemd::Placeholder;

/// The cgroup that those containers are in whose spec does not say where. It goes with the last of them.
const OWN_PARENT: &str = "corten";

/// How long a removal waits for processes that are dying. The kernel tears down a killed process's memory first, which
/// takes a second per few tens of GiB.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The container's path below each hierarchy's mount, from `linux.cgroupsPath`.
pub(super) fn location(path: Option<&Path>, id: &ContainerId) -> Result<PathBuf> {
    Ok(asked(path)?.unwrap_or_else(|| Path::new(OWN_PARENT).join(id.as_str())))
}

/// What `linux.cgroupsPath` says of it; `None` where it is for us to choose.
fn asked(path: Option<&Path>) -> Result<Option<PathBuf>> {
    // Go programs write an absent path as an empty one.
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let colons = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .filter(|&&byte| byte == b':')
        .count();
    ensure!(
        path.is_absolute() || colons != 2,
        "linux.cgroupsPath: {path:?}: slice:prefix:name needs the systemd cgroup driver, --systemd-cgroup"
    );
    let mut location = PathBuf::from(if path.is_relative() { OWN_PARENT } else { "" });
    for component in path.components() {
        match component {
            Component::Normal(name) => location.push(name),
            Component::RootDir => {}
            _ => bail!("linux.cgroupsPath: {path:?}: must not hold . or .."),
        }
    }
    ensure!(
        !location.as_os_str().is_empty(),
        "linux.cgroupsPath: {path:?}: the root cgroup is not a container's"
    );
    Ok(Some(location))
}

/// Where below the mount of v2 a user who is not root can have cgroups: beside its own, in what has been delegated to it,
/// by systemd as a rule. Not in its own one: that has processes, and can hand no controller on. `None` where the user may
/// make none there, or move no process there, which takes the right to write to the cgroup above both.
pub(super) fn delegated(hierarchy: &Hierarchy) -> Result<Option<PathBuf>> {
    let own = Cgroup::own()?;
    let Some(above) = own.paths.iter().next().and_then(|(_, path)| path.parent()) else {
        return Ok(None);
    };
    let may_write = |path: &Path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    let usable = may_write(above) && may_write(&above.join("cgroup.procs"));
    let below = above.strip_prefix(&hierarchy.mount_point).ok();
    Ok(below.filter(|_| usable).map(Path::to_owned))
}

/// Directories just made. Dropping it takes them away again, processes in them included.
#[derive(Debug)]
#[must_use = "dropping it removes the cgroups"]
pub struct Created<'a> {
    cgroup: &'a Cgroup,
    /// In the order they were made, parents first.
    made: Vec<PathBuf>,
    /// What keeps systemd's scope alive until init is in.
    placeholder: Option<Placeholder>,
}

impl<'a> Created<'a> {
    pub(super) fn new(cgroup: &'a Cgroup) -> Self {
        Created {
            cgroup,
            made: Vec::new(),
            placeholder: None,
        }
    }

    /// The scope has begun, with this process in it.
    pub(super) fn begin(&mut self, placeholder: Placeholder) {
        self.placeholder = Some(placeholder);
    }

    /// The container is to have them.
    pub fn keep(mut self) {
        self.made.clear();
        drop(self.placeholder.take());
    }

    /// Makes one directory of a scope's, if systemd has not made it.
    pub(super) fn complete(&mut self, path: &Path) -> Result<()> {
        self.make_all(path).map(drop)
    }

    /// Makes one directory with its parents, or takes one that has no processes.
    pub(super) fn make(&mut self, path: &Path) -> Result<()> {
        if self.make_all(path)? {
            return Ok(());
        }
        let directory = Directory::existing(path)?;
        ensure!(
            !directory.is_frozen()?,
            "cgroup {} is there already, and frozen",
            path.display()
        );
        let processes = directory.processes()?;
        ensure!(
            processes.is_empty(),
            "cgroup {} has processes already: {processes:?}",
            path.display()
        );
        Ok(())
    }

    /// mkdir -p; whether the directory is new.
    fn make_all(&mut self, path: &Path) -> Result<bool> {
        // Parents may be removed by whoever deletes the last container in them: then they are made again.
        for _ in 0..100 {
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    self.made.push(path.to_owned());
                    return Ok(true);
                }
                Err(Errno::EXIST) => return Ok(false),
                Err(Errno::NOENT) => {
                    let parent = path
                        .parent()
                        .with_context(|| format!("cgroup {} has no parent", path.display()))?;
                    self.make_all(parent)?;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("mkdir {}", path.display()));
                }
            }
        }
        bail!("mkdir {}: its parent is removed again and again", path.display())
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        let placeholder = self.placeholder.take();
        if self.made.is_empty() && placeholder.is_none() {
            return;
        }
        crate::log::best_effort("empty the container's cgroups", self.cgroup.kill(libc::SIGKILL));
        if let (Some(placeholder), Some(scope)) = (placeholder, &self.cgroup.scope) {
            drop(placeholder);
            crate::log::best_effort("undo a scope", scope.stop());
        }
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        for path in self.made.iter().rev() {
            // A parent that somebody else uses by now stays.
            let ours = self.cgroup.paths.iter().any(|(_, own)| own == path);
            if ours {
                crate::log::best_effort("undo a cgroup", remove_tree_by(path, deadline));
            } else {
                let _in_use = directory::remove(path);
            }
        }
        // Made by another create, it may have waited for this one to go.
        self.cgroup.remove_own_parent();
    }
}

/// Files of a v1 cpuset that are empty at first; a cgroup with one of them empty takes no process.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Gives a v1 cpuset the processors and memory nodes of its parent, where it has none; answers with what it has then.
pub(super) fn inherit_cpuset(path: &Path) -> Result<[String; 2]> {
    let directory = Directory::existing(path)?;
    let mut own = [directory.read(CPUSET[0])?, directory.read(CPUSET[1])?];
    if own.iter().all(|value| !value.trim().is_empty()) {
        return Ok(own);
    }
    let parent = path
        .parent()
        .with_context(|| format!("{}: no cpus or mems", path.display()))?;
    // A parent that somebody made with mkdir alone has none either.
    for ((file, own), inherited) in CPUSET.iter().zip(&mut own).zip(inherit_cpuset(parent)?) {
        if own.trim().is_empty() {
            directory.write(file, inherited.trim())?;
            *own = inherited;
        }
    }
    Ok(own)
}

/// Controllers a v2 container's cgroup should have: those that limits are for, or that statistics come from.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Switches controllers on for the cgroup at `path`, in every cgroup from the mount down to its parent.
///
/// One that cannot be had is left out: a limit that needs it fails where it is set, naming the file.
pub(super) fn enable_controllers(mount_point: &Path, path: &Path) -> Result<()> {
    let listed = |text: &str, name: &str| text.split_ascii_whitespace().any(|word| word == name);
    let has = Directory::existing(path)?.read("cgroup.controllers")?;
    let offered = Directory::existing(mount_point)?.read("cgroup.controllers")?;
    let missing: Vec<&str> = V2_CONTROLLERS
        .into_iter()
        .filter(|name| listed(&offered, name) && !listed(&has, name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|dir| dir.starts_with(mount_point))
        .collect();
    above.reverse();
    for parent in above {
        let directory = Directory::existing(parent)?;
        if has_processes(&directory)? {
            return Ok(());
        }
        for name in &missing {
            // One by one, since one refusal is a refusal of the whole line. A cgroup that has got processes meanwhile
            // answers EBUSY, one above that lacks the controller ENOENT.
            match directory.try_write("cgroup.subtree_control", &format!("+{name}")) {
                // One that is not the caller's to change, above what has been delegated to it, EACCES.
                Ok(()) | Err(Errno::BUSY | Errno::NOENT | Errno::OPNOTSUPP | Errno::ACCESS) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("enable {name} in {}/cgroup.subtree_control", parent.display()));
                }
            }
        }
    }
    Ok(())
}

/// Whether a v2 cgroup has processes of its own, and so can hand nothing on (no internal processes, cgroup-v2.rst). The
/// root may; it is told by the lack of this file.
///
/// To be asked and not tried: the kernel does switch cpu, cpuset and pids on there, but makes the cgroup the root of a
/// threaded tree by it, in which no container can run, and leaves it so.
fn has_processes(directory: &Directory) -> Result<bool> {
    let kind = match directory.try_read("cgroup.type") {
        Err(Errno::NOENT) => return Ok(false),
        kind => kind.with_context(|| format!("read {}/cgroup.type", directory.path.display()))?,
    };
    ensure!(
        kind.trim() == "domain",
        "cgroup {} is of type \"{}\": below it there can be threads, but no container",
        directory.path.display(),
        kind.trim()
    );
    Ok(!directory.read("cgroup.procs")?.is_empty())
}

impl Cgroup {
    /// Kills what is left in the container's cgroups and removes them, with those the container made below. What is gone
    /// already is fine.
    pub fn delete(&self) -> Result<()> {
        if let Some(scope) = &self.scope {
            // By ourselves first: systemd would ask them to end, and wait.
            self.kill(libc::SIGKILL).context("empty the container's cgroups")?;
            crate::log::best_effort("have systemd remove the cgroups", scope.stop());
        }
        let busy: Vec<&Path> = self
            .paths
            .iter()
            .map(|(_, path)| path)
            .filter(|path| directory::remove(path).is_err())
            .collect();
        if !busy.is_empty() {
            self.kill(libc::SIGKILL).context("empty the container's cgroups")?;
            let deadline = Instant::now() + REMOVAL_TIMEOUT;
            busy.into_iter().try_for_each(|path| remove_tree_by(path, deadline))?;
        }
        self.remove_own_parent();
        Ok(())
    }

    /// Removes what is empty and kills nobody: for whoever cannot tell whether these cgroups are a container's.
    pub fn remove_empty(&self) {
        for (_, path) in self.paths.iter() {
            let _in_use = directory::remove(path);
        }
        self.remove_own_parent();
    }

    /// Removes /corten if this was the last container in it.
    fn remove_own_parent(&self) {
        for (_, path) in self.paths.iter() {
            let parent = path
                .parent()
                .filter(|parent| parent.file_name().is_some_and(|name| name == OWN_PARENT));
            // In every hierarchy: one that has others in it here may be what a killed create left there.
            if let Some(parent) = parent {
                let _in_use = directory::remove(parent);
            }
        }
    }
}

/// Removes a cgroup and all below it, trying until `deadline`: a process that has been killed stays in its cgroup until
/// it is dead, and one that forks while it is killed leaves a child.
fn remove_tree_by(path: &Path, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        let error = match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let left = Directory::open(path)?.map_or(Ok(Vec::new()), |directory| directory.processes())?;
        ensure!(
            Instant::now() < deadline,
            "remove cgroup {}: {error:#} after {REMOVAL_TIMEOUT:?}; processes in it: {left:?}",
            path.display()
        );
        signal_each(&left, libc::SIGKILL)?;
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// One attempt, from the leaves up.
fn remove_tree(path: &Path) -> Result<()> {
    let Err(error) = directory::remove(path) else {
        return Ok(());
    };
    let Some(directory) = Directory::open(path)? else {
        return Ok(());
    };
    for child in directory.children()? {
        remove_tree(&child.path)?;
    }
    directory::remove(path).with_context(|| format!("rmdir {} (at first: {error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let id: ContainerId = "c1".parse().unwrap();
        for (path, location) in [
            (None, Ok("corten/c1")),
            (Some(""), Ok("corten/c1")),
            (Some("/kubepods/pod1/c1"), Ok("kubepods/pod1/c1")),
            (Some("//a//b/"), Ok("a/b")),
            (Some("/a:b:c"), Ok("a:b:c")),
            (Some("x/y"), Ok("corten/x/y")),
            (Some("system.slice:corten:c1"), Err("systemd")),
            (Some("/"), Err("root cgroup")),
            (Some("/a/../b"), Err("..")),
            (Some("../b"), Err("..")),
        ] {
            let result = super::location(path.map(Path::new), &id);
            match location {
                Ok(expected) => assert_eq!(result.unwrap(), Path::new(expected), "{path:?}"),
                Err(word) => {
                    let error = result.unwrap_err().to_string();
                    assert!(
                        error.starts_with("linux.cgroupsPath: ") && error.contains(word),
                        "{path:?}: {error}"
                    );
                }
            }
        }
    }
}
