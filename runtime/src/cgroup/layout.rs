//! Which cgroup hierarchies this machine has and where they are mounted, found once per process.
//!
//! Three layouts exist: v1 (each controller in a hierarchy of its own or with others), hybrid (the same, and an empty v2
//! tree beside it, which we leave alone), and v2 (one tree for all). What counts is where the controllers are, so hybrid
//! is v1 here.
//!
//! Source is /proc/self/cgroup for the hierarchies there are, and /proc/self/mountinfo for where each is mounted. The
//! kernel lists mounts in the order they were made (since 6.8 by their unique id, before that mostly so), and cgroups are
//! mounted at boot; reading stops when all are found, so that a node's thousands of container mounts cost nothing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use crate::mountinfo::Line;

/// The filesystems.
const V1: &str = "cgroup";
const V2: &str = "cgroup2";

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// As /proc/PID/cgroup names it: `memory`, `cpu,cpuacct`, `name=systemd`; empty for v2.
    pub name: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The cgroup that is the root of that mount; `/` but inside containers.
    pub root: PathBuf,
}

/// Where the controllers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// v1, or hybrid.
    V1(Vec<Hierarchy>),
    /// v2 alone.
    V2(Hierarchy),
}

/// This machine's layout; read at the first call.
pub fn layout() -> Result<&'static Layout> {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    if let Some(layout) = LAYOUT.get() {
        return Ok(layout);
    }
    let memberships = read("/proc/self/cgroup")?;
    let mounts = File::open("/proc/self/mountinfo").context("open /proc/self/mountinfo")?;
    let found = detect(&memberships, BufReader::new(mounts))?;
    Ok(LAYOUT.get_or_init(|| found))
}

/// Where the v2 hierarchy is mounted; an error where there are v1 hierarchies.
pub fn unified() -> Result<&'static Path> {
    match layout()? {
        Layout::V2(hierarchy) => Ok(&hierarchy.mount_point),
        Layout::V1(_) => bail!("the hierarchies of this machine are those of cgroup v1"),
    }
}

/// The cgroup of a process in every hierarchy: (hierarchy name, path), from /proc/PID/cgroup. The process is named by its
/// pid, or as `self`.
pub(super) fn memberships(process: &str) -> Result<Vec<(String, PathBuf)>> {
    let text = read(&format!("/proc/{process}/cgroup"))?;
    Ok(parse_memberships(&text)
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
        .collect())
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {path}"))
}

impl Layout {
    /// Every mounted hierarchy that controllers are in.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        match self {
            Layout::V1(all) => all,
            Layout::V2(one) => std::slice::from_ref(one),
        }
    }
}

impl Hierarchy {
    /// The directory of the cgroup that /proc/PID/cgroup calls `path`; `None` if this mount does not show it.
    pub fn directory(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        // Outside our cgroup namespace the kernel writes paths that climb: `/../..`.
        let climbs = below.components().any(|c| c.as_os_str() == "..");
        (!climbs).then(|| self.mount_point.join(below))
    }
}

/// Whether `controller` is one of a hierarchy's, by the hierarchy's name.
pub(super) fn has_controller(hierarchy: &str, controller: &str) -> bool {
    hierarchy.split(',').any(|name| name == controller)
}

/// The (hierarchy name, path) pairs of a text of /proc/PID/cgroup: lines `ID:NAME:PATH`, of which the path may hold colons.
pub fn parse_memberships(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    })
}

/// Puts together what the two files say; reads `mountinfo` no further than it must.
fn detect(memberships: &str, mountinfo: impl BufRead) -> Result<Layout> {
    let mut wanted: Vec<&str> = parse_memberships(memberships).map(|(name, _)| name).collect();
    // A named hierarchy has no controllers: with nothing but those beside it, v2 has them all.
    let v1 = wanted.iter().any(|name| !name.is_empty() && !name.starts_with("name="));
    wanted.retain(|name| name.is_empty() != v1);
    let (mut found, mut unified) = (Vec::new(), None);
    let mut lines = mountinfo.lines();
    while !wanted.is_empty() {
        let Some(line) = lines.next() else { break };
        let line = line.context("read /proc/self/mountinfo")?;
        let Some(mount) = Line::parse(&line).filter(|mount| matches!(mount.kind, V1 | V2)) else {
            continue;
        };
        let at = wanted.iter().position(|name| holds(&mount, name));
        let name = at.map_or("", |at| wanted.swap_remove(at)).to_owned();
        let hierarchy = Hierarchy {
            name,
            mount_point: mount.place.into_owned(),
            root: mount.root.into_owned(),
        };
        if mount.kind == V2 {
            unified.get_or_insert(hierarchy);
        } else if at.is_some() {
            found.push(hierarchy);
        }
    }
    // Where no v1 hierarchy is mounted, as in a mount namespace that shows v2 alone, v2 serves: without the controllers
    // that are elsewhere, but with devices, freezer and kill.
    if let (true, Some(unified)) = (found.is_empty(), unified) {
        return Ok(Layout::V2(unified));
    }
    ensure!(
        !found.is_empty(),
        "no cgroup filesystem is mounted (/proc/self/mountinfo)"
    );
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Layout::V1(found))
}

/// Whether a mount of cgroups is the hierarchy called `name`. Its controllers stand among the filesystem's options, maybe
/// in another order.
fn holds(mount: &Line<'_>, name: &str) -> bool {
    match mount.kind {
        V2 => name.is_empty(),
        _ => {
            !name.is_empty()
                && name
                    .split(',')
                    .all(|part| has_controller(mount.filesystem_options, part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(name: &str, mount_point: &str, root: &str) -> Hierarchy {
        Hierarchy {
            name: name.into(),
            mount_point: mount_point.into(),
            root: root.into(),
        }
    }

    const HYBRID_MOUNTS: &str = "\
21 1 254:0 / / rw - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn layouts() {
        let cpu = hierarchy("cpuacct,cpu", "/sys/fs/cgroup/cpu,cpuacct", "/");
        let memory = hierarchy("memory", "/sys/fs/cgroup/memory", "/");
        let systemd = hierarchy("name=systemd", "/sys/fs/cgroup/systemd", "/");
        for (what, memberships, mountinfo, layout) in [
            (
                "hybrid: the v2 tree is left alone",
                "9:name=systemd:/\n4:memory:/a:b\n1:cpuacct,cpu:/\n0::/\n",
                HYBRID_MOUNTS,
                Layout::V1(vec![cpu.clone(), memory.clone(), systemd.clone()]),
            ),
            (
                "a hierarchy that is mounted nowhere is not there",
                "4:memory:/\n7:rdma:/\n",
                HYBRID_MOUNTS,
                Layout::V1(vec![memory.clone()]),
            ),
            (
                "v2, with a named hierarchy that has no controllers",
                "1:name=systemd:/\n0::/user.slice\n",
                HYBRID_MOUNTS,
                Layout::V2(hierarchy("", "/sys/fs/cgroup/unified", "/")),
            ),
            (
                "hybrid, where the v1 hierarchies are not mounted",
                "4:rdma:/\n0::/\n",
                HYBRID_MOUNTS,
                Layout::V2(hierarchy("", "/sys/fs/cgroup/unified", "/")),
            ),
            (
                "a mount that shows a part of the tree, at a path with a space",
                "0::/\n",
                "28 25 0:25 /docker/x /sys/fs/c\\040g ro shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n",
                Layout::V2(hierarchy("", "/sys/fs/c g", "/docker/x")),
            ),
        ] {
            assert_eq!(detect(memberships, mountinfo.as_bytes()).unwrap(), layout, "{what}");
        }
        assert!(detect("0::/\n", "21 1 254:0 / / rw - ext4 /dev/vda rw\n".as_bytes()).is_err());
    }

    #[test]
    fn reading_stops_when_all_are_found() {
        /// Gives lines and fails the test when asked for more.
        struct Strict(&'static [u8]);
        impl std::io::Read for Strict {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                unreachable!("lines() reads by fill_buf")
            }
        }
        impl BufRead for Strict {
            fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
                assert!(!self.0.is_empty(), "read past the last hierarchy");
                Ok(self.0)
            }
            fn consume(&mut self, amount: usize) {
                self.0 = &self.0[amount..];
            }
        }
        let lines = Strict(HYBRID_MOUNTS.as_bytes());
        assert!(detect("0::/\n", lines).is_ok());
    }

    #[test]
    fn directories_of_memberships() {
        let part = hierarchy("memory", "/m", "/docker/x");
        assert_eq!(part.directory(Path::new("/docker/x/y")), Some("/m/y".into()));
        assert_eq!(part.directory(Path::new("/docker/xy")), None);
        let whole = hierarchy("memory", "/m", "/");
        assert_eq!(whole.directory(Path::new("/a:b")), Some("/m/a:b".into()));
        assert_eq!(whole.directory(Path::new("/../a")), None);
    }
}
