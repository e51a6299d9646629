//! Which cgroups are a container's: found by its init's pid, which holds for every cgroup driver and every runtime.
//!
//! ```text
//!   /proc/PID/cgroup   0::/kubepods.slice/.../corten-ID.scope/init.scope
//!                         └─────────────── path ────────────┘ up to the part that holds the id: what the container made
//!                                                           below, and may have moved its init to, is counted with it
//! ```
//! An id is 64 random digits, so that a cgroup with the id in its name is that container's, whatever became of the pid.

use std::path::{Path, PathBuf};

use corten_runtime::cgroup::{Cgroup, CgroupPaths, Layout, layout, parse_memberships};

use super::process::Process;

/// A container's or a pod's cgroups.
pub(crate) struct Cgroups {
    /// As /proc/PID/cgroup has it.
    path: PathBuf,
    /// The directories.
    paths: CgroupPaths,
}

impl Cgroups {
    /// The cgroups of the container with this id, of which `init` is a process; none if it is not, any more.
    pub(crate) fn of(init: &Process, id: &str) -> Option<Cgroups> {
        let memberships = init.text("cgroup")?;
        let find = |layout| find(&memberships, layout, id);
        layout().ok().and_then(find)
    }

    /// The pod's cgroup, in which this is one container's: none if it is not the pod's own.
    ///
    /// The kubelet makes one for each pod and puts the pod's uid into its name, where a slice has `_` for `-`. Any other
    /// parent may be that of several pods.
    pub(super) fn of_pod(&self, uid: &str) -> Option<Cgroups> {
        let above = |path: &Path| path.parent().map(Path::to_path_buf);
        let path = above(&self.path)?;
        let name = path.file_name()?.to_str()?;
        if uid.is_empty() || !(name.contains(uid) || name.contains(&uid.replace('-', "_"))) {
            return None;
        }
        let paths = match &self.paths {
            CgroupPaths::V1(all) => {
                let all = all.iter().map(|(name, path)| Some((name.clone(), above(path)?)));
                CgroupPaths::V1(all.collect::<Option<_>>()?)
            }
            CgroupPaths::V2(path) => CgroupPaths::V2(above(path)?),
        };
        Some(Cgroups { path, paths })
    }

    /// As /proc/PID/cgroup has it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is one of cgroup v2, whose files have other names.
    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.paths, CgroupPaths::V2(_))
    }

    /// A control file of a controller; none where kernel, controller or cgroup lack it.
    pub(super) fn text(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.directory(controller)?.join(file)).ok()
    }

    /// Pids of all processes in it and below it.
    pub(super) fn processes(&self) -> Vec<i32> {
        let one = match &self.paths {
            CgroupPaths::V1(all) => CgroupPaths::V1(all.iter().take(1).map(|(k, v)| (k.clone(), v.clone())).collect()),
            CgroupPaths::V2(path) => CgroupPaths::V2(path.clone()),
        };
        Cgroup::open(one).processes().unwrap_or_default()
    }

    /// The directory with the files of a controller; none where the machine lacks it.
    pub(crate) fn directory(&self, controller: &str) -> Option<&Path> {
        match &self.paths {
            CgroupPaths::V1(all) => {
                let mut all = all.iter();
                all.find_map(|(name, path)| name.split(',').any(|it| it == controller).then_some(path.as_path()))
            }
            CgroupPaths::V2(path) => Some(path),
        }
    }
}

/// What `memberships`, the text of /proc/PID/cgroup, says of the container with this id. Pure.
fn find(memberships: &str, layout: &Layout, id: &str) -> Option<Cgroups> {
    let own: Vec<(&str, &Path)> = parse_memberships(memberships)
        .filter_map(|(name, path)| Some((name, up_to(Path::new(path), id)?)))
        .collect();
    let directories = layout.hierarchies().iter().filter_map(|hierarchy| {
        let (name, path) = own.iter().find(|(name, _)| *name == hierarchy.name)?;
        Some(((*name).to_owned(), hierarchy.directory(path)?))
    });
    let paths = match layout {
        Layout::V1(_) => CgroupPaths::V1(directories.collect()),
        Layout::V2(_) => CgroupPaths::V2(directories.map(|(_, path)| path).next()?),
    };
    let path = own.first()?.1.to_owned();
    Some(Cgroups { path, paths })
}

/// The outermost cgroup on `path` whose name holds the id.
fn up_to<'a>(path: &'a Path, id: &str) -> Option<&'a Path> {
    let holds = |path: &&Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(id));
    path.ancestors().filter(holds).last()
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use corten_runtime::cgroup::Hierarchy;

    use super::*;

    /// A cgroup of v2 whose files are these.
    pub(in crate::stats) fn v2(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let paths = CgroupPaths::V2(dir.path().to_owned());
        (
            dir,
            Cgroups {
                path: "/c".into(),
                paths,
            },
        )
    }

    /// Cgroups of v1, where a file is named `CONTROLLER/FILE`.
    pub(in crate::stats) fn v1(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let controllers = ["cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb"];
        let paths = controllers.map(|name| (name.to_owned(), dir.path().join(name)));
        let paths = CgroupPaths::V1(paths.into());
        (
            dir,
            Cgroups {
                path: "/c".into(),
                paths,
            },
        )
    }

    fn hierarchy(name: &str, mount_point: &str) -> Hierarchy {
        Hierarchy {
            name: name.to_owned(),
            mount_point: mount_point.into(),
            root: "/".into(),
        }
    }

    #[test]
    fn a_container_on_v2() {
        let layout = Layout::V2(hierarchy("", "/sys/fs/cgroup"));
        let table = [
            ("0::/kubepods/pod1/abc\n", Some("/kubepods/pod1/abc")),
            (
                "0::/kubepods.slice/corten-abc.scope\n",
                Some("/kubepods.slice/corten-abc.scope"),
            ),
            ("0::/corten/abc/init.scope\n", Some("/corten/abc")),
            ("0::/a.slice/corten-abc.scope/init\n", Some("/a.slice/corten-abc.scope")),
            ("0::/elsewhere\n", None),
            // What a container names as itself counts for nothing.
            ("0::/corten/abc/x/abc\n", Some("/corten/abc")),
            ("0::/corten/other\n", None),
            ("", None),
        ];
        for (memberships, expected) in table {
            let found = find(memberships, &layout, "abc");
            let path = found.as_ref().map(|found| found.path.as_path());
            assert_eq!(path, expected.map(Path::new), "{memberships:?}");
            let directory = found.as_ref().and_then(|found| found.directory("memory"));
            let expected = expected.map(|path| PathBuf::from(format!("/sys/fs/cgroup{path}")));
            assert_eq!(directory, expected.as_deref(), "{memberships:?}");
        }
    }

    #[test]
    fn a_container_on_v1() {
        let layout = Layout::V1(vec![
            hierarchy("cpu,cpuacct", "/c/cpu,cpuacct"),
            hierarchy("memory", "/c/memory"),
        ]);
        let found = find(
            "4:memory:/p/abc\n3:pids:/p/abc\n1:cpu,cpuacct:/p/abc\n0::/\n",
            &layout,
            "abc",
        )
        .unwrap();
        assert_eq!(found.path(), Path::new("/p/abc"));
        assert!(!found.is_v2());
        let table = [
            ("memory", Some("/c/memory/p/abc")),
            ("cpuacct", Some("/c/cpu,cpuacct/p/abc")),
            ("cpu", Some("/c/cpu,cpuacct/p/abc")),
            // Mounted nowhere.
            ("pids", None),
        ];
        for (controller, directory) in table {
            assert_eq!(found.directory(controller), directory.map(Path::new), "{controller}");
        }
        // The cgroup below that the init is in, and what is elsewhere, is not the container's.
        let hybrid = "9:memory:/kubepods/pod1/abc/inner\n2:cpu,cpuacct:/x\n0::/kubepods/pod1/abc\n";
        let hybrid = find(hybrid, &layout, "abc").unwrap();
        let expected = Path::new("/c/memory/kubepods/pod1/abc");
        assert_eq!((hybrid.directory("memory"), hybrid.is_v2()), (Some(expected), false));
        assert_eq!(hybrid.directory("cpu"), None);

        let pod = found.of_pod("p").unwrap();
        assert_eq!(
            (pod.path(), pod.directory("cpu").unwrap()),
            (Path::new("/p"), Path::new("/c/cpu,cpuacct/p"))
        );
    }

    #[test]
    fn pods_that_have_a_cgroup_of_their_own() {
        let layout = Layout::V2(hierarchy("", "/c"));
        let table = [
            ("/kubepods/burstable/pod12-34/abc", "12-34", true),
            (
                "/kubepods.slice/kubepods-pod12_34.slice/corten-abc.scope",
                "12-34",
                true,
            ),
            ("/corten/abc", "12-34", false),
            ("/corten/abc", "", false),
            ("/abc", "12-34", false),
        ];
        for (path, uid, own) in table {
            let container = find(&format!("0::{path}\n"), &layout, "abc").unwrap();
            assert_eq!(container.of_pod(uid).is_some(), own, "{path}");
        }
    }
}
