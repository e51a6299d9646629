//! The cgroup of one exec, below its container's: what makes an exec's processes known, also those that have detached
//! themselves from it by a double fork and have init for a parent.
//!
//! The limits are the container's: on v2 no controller is enabled in the cgroup, on v1 there is one in the pids
//! hierarchy only. So an exec costs no memory cgroup, which page cache would keep alive long after it. What outlives an
//! exec that has ended by itself stays in its cgroup, and goes with the container.
//!
//! The runtime puts the exec there (`exec --cgroup`), which not every runtime can do: others' execs have no cage.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use corten_runtime::cgroup::CgroupPaths;
use rustix::process::Signal;

use crate::process::Process;
use crate::report::report;

/// Where a container's execs get their cgroups.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The container's cgroup: the one of v2, or of v1's pids hierarchy.
    directory: PathBuf,
    v2: bool,
    stale: Stale,
}

/// The cgroups of execs that are over, which were not empty when they were to be removed: what has detached itself runs
/// on in them, or what was killed had not all ended.
type Stale = Rc<RefCell<Vec<PathBuf>>>;

/// One exec's cgroup. It is removed with this value, or later by [`Site::sweep`] if it is not empty then.
#[derive(Debug)]
pub(crate) struct Cage {
    directory: PathBuf,
    stale: Stale,
    /// As `--cgroup` of the runtime has it.
    pub(crate) option: String,
}

impl Site {
    /// The place for the execs of container `id`, whose init is in these cgroups. None where they are not the container's
    /// own: nothing is made in a cgroup that is somebody else's.
    pub(crate) fn of(id: &ContainerId, cgroups: &CgroupPaths) -> Option<Site> {
        let (directory, v2) = match cgroups {
            CgroupPaths::V2(directory) => (directory, true),
            CgroupPaths::V1(all) => (
                all.iter().find(|(name, _)| name.split(',').any(|one| one == "pids"))?.1,
                false,
            ),
        };
        let own = directory.file_name()?.to_string_lossy().contains(id.as_str());
        own.then(|| Site {
            directory: directory.clone(),
            v2,
            stale: Stale::default(),
        })
    }

    /// Makes the cgroup of the exec of this number.
    pub(crate) fn make(&self, number: u64) -> Result<Cage> {
        self.sweep();
        let name = format!("exec-{number}");
        let directory = self.directory.join(&name);
        fs::create_dir(&directory).with_context(|| format!("mkdir({})", directory.display()))?;
        let option = if self.v2 { name } else { format!("pids:{name}") };
        let stale = Rc::clone(&self.stale);
        Ok(Cage {
            directory,
            stale,
            option,
        })
    }

    /// Removes the cgroups of earlier execs that have become empty.
    pub(crate) fn sweep(&self) {
        self.stale.borrow_mut().retain(|directory| !is_removed(directory));
    }
}

/// Removes a cgroup if it is empty; false if it is to be tried again.
fn is_removed(directory: &Path) -> bool {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => false,
        // Gone with the container.
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            report!("rmdir({}): {error}", directory.display());
            true
        }
        Ok(()) => true,
    }
}

/// Whether a runtime takes `exec --cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    Yes,
    No,
    /// Its name says that it might: older ones and wrappers do not. It is to be asked, for an option that it does not know
    /// is told to the exec's own standard output.
    Unknown,
}

impl Support {
    /// What the name of the runtime at `path` says.
    pub(crate) fn of(path: &Path) -> Support {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("corten") => Support::Yes,
            Some("runc" | "crun") => Support::Unknown,
            _ => Support::No,
        }
    }
}

impl Cage {
    /// SIGKILL to all in the cgroup, until nothing is left that could be killed.
    pub(crate) fn kill(&self) -> Result<()> {
        /// A cgroup that is not empty after this many looks holds what cannot end yet.
        const LOOKS: usize = 16;
        // Linux 5.14, v2.
        if self.write("cgroup.kill", "1")? {
            return Ok(());
        }
        // No process of it can fork any more, so that the looks come to an end.
        self.write("pids.max", "0")?;
        let mut killed = BTreeSet::new();
        for _ in 0..LOOKS {
            let found: Vec<i32> = self.processes()?.difference(&killed).copied().collect();
            for &pid in &found {
                // Gone since the look, or a stranger's number by now: nothing is left to kill.
                let Ok(process) = Process::open(pid) else {
                    continue;
                };
                if self.processes()?.contains(&pid) {
                    process.signal(Signal::KILL)?;
                    killed.insert(pid);
                }
            }
            if found.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Writes to a file of the cgroup. False where there is no such file.
    fn write(&self, file: &str, value: &str) -> Result<bool> {
        let path = self.directory.join(file);
        // Not `fs::write`, which would ask for the file to be made.
        match fs::OpenOptions::new().write(true).open(&path) {
            Ok(mut file) => {
                std::io::Write::write_all(&mut file, value.as_bytes())
                    .with_context(|| format!("write({}, {value:?})", path.display()))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("open({})", path.display())),
        }
    }

    fn processes(&self) -> Result<BTreeSet<i32>> {
        let path = self.directory.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error).with_context(|| format!("read({})", path.display())),
        }
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if !is_removed(&self.directory) {
            self.stale.borrow_mut().push(std::mem::take(&mut self.directory));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn sites() {
        let id: ContainerId = "c1".parse().expect("valid id");
        let v1 = |path: &str| {
            let paths = [("cpu,pids", path), ("memory", "/m/c1")];
            CgroupPaths::V1(BTreeMap::from(paths.map(|(name, path)| (name.to_owned(), path.into()))))
        };
        for (paths, expected) in [
            (CgroupPaths::V2("/g/pod/c1".into()), Some("/g/pod/c1")),
            (
                CgroupPaths::V2("/g/pod/cri-c1.scope".into()),
                Some("/g/pod/cri-c1.scope"),
            ),
            (CgroupPaths::V2("/g".into()), None),
            (CgroupPaths::V2("/".into()), None),
            (v1("/p/c1"), Some("/p/c1")),
            (v1("/p"), None),
            (CgroupPaths::V1(BTreeMap::new()), None),
        ] {
            let site = Site::of(&id, &paths).map(|site| site.directory);
            assert_eq!(site, expected.map(PathBuf::from), "{paths:?}");
        }
    }

    #[test]
    fn runtimes() {
        for (path, expected) in [
            ("/x/corten", Support::Yes),
            ("/usr/sbin/runc", Support::Unknown),
            ("/usr/bin/crun", Support::Unknown),
            ("/usr/bin/runsc", Support::No),
            ("/", Support::No),
        ] {
            assert_eq!(Support::of(Path::new(path)), expected, "{path}");
        }
    }
}
