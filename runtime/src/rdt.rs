//! `linux.intelRdt`: the container's group in the resctrl filesystem, for its share of the last-level cache and of the
//! memory bandwidth, and for their monitoring. See resctrl(5)'s source, Documentation/filesystems/resctrl.rst.
//!
//! ```text
//! RESCTRL/                  closID "/": the group every process is in from the start
//!   schemata  tasks
//!   mon_groups/ID/tasks       enableMonitoring with closID "/"
//!   CLOSID/                   closID, or the container's id where that is not given
//!     schemata  tasks
//!     mon_groups/ID/tasks     enableMonitoring
//! ```
//! Delete removes the groups that were made for this container alone: the one named after it, and its monitoring group.
//! A group that a closID names can be others' as well, so that it goes only if create has made it and no process is
//! left in it; the kernel itself would put such processes back into the root group without a word.
//!
//! config-linux.md, "IntelRdt". The deprecated enableCMT and enableMBM ask for the monitoring group too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

use crate::mountinfo::{self, Line};

/// Names that are not a group's, but the filesystem's own directories.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_data", "mon_groups"];

/// The groups that create makes, and delete may have to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// The monitoring group.
    pub monitoring: Option<PathBuf>,
    /// The group of the container alone.
    pub own: Option<PathBuf>,
    /// A group that a closID names and that was not there before.
    pub shared: Option<PathBuf>,
}

/// What is to be done for a container.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    group: PathBuf,
    schemata: Option<String>,
    groups: Groups,
}

/// Where resctrl is mounted, by the lines of a mountinfo; `None` where it is not.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mut lines = mountinfo.lines().filter_map(Line::parse);
    let mount = lines.find(|line| line.kind == "resctrl")?;
    Some(mount.place.into_owned())
}

/// Where this machine has it mounted.
pub fn mounted() -> Result<PathBuf> {
    mount_point(&mountinfo::read("self")?)
        .context("linux.intelRdt: the resctrl filesystem is not mounted on this machine")
}

impl Plan {
    /// Checks everything that needs no change. `root` is where resctrl is mounted.
    pub fn new(rdt: &LinuxIntelRdt, id: &str, root: &Path) -> Result<Plan> {
        let clos = rdt.clos_id().as_deref().filter(|clos| !clos.is_empty());
        let name = clos.unwrap_or(id);
        let valid = name == "/" || (!name.contains(['/', '\n', '\0']) && !RESERVED.contains(&name));
        ensure!(valid, "linux.intelRdt.closID: {name:?}: is not the name of a group");
        let group = if name == "/" { root.to_owned() } else { root.join(name) };
        let exists = group.is_dir();
        let mut schemata = schemata(rdt)?;
        if clos.is_some() {
            let pre_configured = schemata.is_some() || exists;
            ensure!(
                pre_configured,
                "linux.intelRdt.closID: {name:?}: there is no such group, and no schema to make one with"
            );
        }
        if let (Some(wanted), true, true) = (&schemata, clos.is_some(), exists) {
            agree(&group, wanted)?;
            schemata = None;
        }
        let monitoring = monitors(rdt).then(|| group.join("mon_groups").join(id));
        let own = (clos.is_none() && !exists).then(|| group.clone());
        let shared = (clos.is_some() && !exists).then(|| group.clone());
        Ok(Plan {
            group,
            schemata,
            groups: Groups {
                monitoring,
                own,
                shared,
            },
        })
    }

    /// What there will be to remove.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Makes the groups and puts the process into them.
    pub fn apply(&self, pid: i32) -> Result<()> {
        make(&self.group)?;
        if let Some(schemata) = &self.schemata {
            write_schemata(&self.group, schemata)?;
        }
        add_task(&self.group, pid)?;
        if let Some(monitoring) = &self.groups.monitoring {
            make(monitoring).context("linux.intelRdt.enableMonitoring")?;
            add_task(monitoring, pid)?;
        }
        Ok(())
    }

    /// Puts a container's threads into the group once it runs. `pids` are its processes; it is asked until all are in,
    /// because those that are not yet may start others.
    pub fn take(&self, pids: impl Fn() -> Result<Vec<i32>>) -> Result<()> {
        let mut taken = BTreeSet::new();
        loop {
            let tasks: BTreeSet<i32> = pids()?.into_iter().flat_map(threads).collect();
            let more: Vec<i32> = tasks.difference(&taken).copied().collect();
            if more.is_empty() {
                return Ok(());
            }
            for &task in &more {
                match add_task(&self.group, task) {
                    // Gone since.
                    Err(error) if is_no_process(&error) => {}
                    added => added?,
                }
            }
            taken.extend(more);
        }
    }
}

/// Puts one more process, of one thread yet, into the groups of a container that runs. For `exec`.
pub fn enter(rdt: &LinuxIntelRdt, id: &str, root: &Path, pid: i32) -> Result<()> {
    let group = group_of(rdt, id, root);
    add_task(&group, pid)?;
    if monitors(rdt) {
        add_task(&group.join("mon_groups").join(id), pid)?;
    }
    Ok(())
}

/// Where the processes of a container are.
fn group_of(rdt: &LinuxIntelRdt, id: &str, root: &Path) -> PathBuf {
    let clos = rdt.clos_id().as_deref().filter(|clos| !clos.is_empty());
    match clos.unwrap_or(id) {
        "/" => root.to_owned(),
        name => root.join(name),
    }
}

/// The threads of a process; none where it is gone.
fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

fn is_no_process(error: &anyhow::Error) -> bool {
    let number = error.downcast_ref().and_then(std::io::Error::raw_os_error);
    number == Some(libc::ESRCH)
}

/// Whether any of the fields for it asks for monitoring.
pub(crate) fn monitors(rdt: &LinuxIntelRdt) -> bool {
    [rdt.enable_monitoring(), rdt.enable_cmt(), rdt.enable_mbm()].contains(&&Some(true))
}

/// The lines for the schemata file: `schemata` as they are, else the cache's and the bandwidth's. A line of the bandwidth
/// among the cache's gives way to memBwSchema, as the specification has it.
fn schemata(rdt: &LinuxIntelRdt) -> Result<Option<String>> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (cache, bandwidth) = (text(rdt.l3_cache_schema()), text(rdt.mem_bw_schema()));
    let mut lines: Vec<String> = rdt.schemata().clone().unwrap_or_default();
    for line in &lines {
        let one = !line.contains('\n') && line.contains(':');
        ensure!(
            one,
            "linux.intelRdt.schemata: {line:?}: must be one line, RESOURCE:ID=VALUE;..."
        );
    }
    if lines.is_empty() {
        let is_bandwidth = |line: &&str| line.trim_start().starts_with("MB:");
        let of_cache = cache.lines().filter(|line| bandwidth.is_empty() || !is_bandwidth(line));
        lines = of_cache.chain(bandwidth.lines()).map(str::to_owned).collect();
    }
    lines.retain(|line| !line.trim().is_empty());
    Ok((!lines.is_empty()).then(|| lines.join("\n") + "\n"))
}

/// A group that exists must have what is asked for: it is shared, and not changed for one of those who share it.
fn agree(group: &Path, wanted: &str) -> Result<()> {
    let path = group.join("schemata");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (is, wanted) = (parse_schemata(&text), parse_schemata(wanted));
    for (domain, value) in wanted {
        let other = is.get(&domain);
        let (resource, id) = &domain;
        ensure!(
            other == Some(&value),
            "linux.intelRdt: {resource}:{id}={value}: {} has {other:?}, and is not changed for one container",
            path.display()
        );
    }
    Ok(())
}

/// Resource and domain, and the value without what the kernel pads it with.
fn parse_schemata(text: &str) -> BTreeMap<(String, String), String> {
    let mut values = BTreeMap::new();
    for (resource, domains) in text.lines().filter_map(|line| line.split_once(':')) {
        for (id, value) in domains.split(';').filter_map(|domain| domain.split_once('=')) {
            let value = value.trim().to_ascii_lowercase();
            let short = value.trim_start_matches('0');
            let value = if short.is_empty() { "0" } else { short };
            values.insert((resource.trim().to_owned(), id.trim().to_owned()), value.to_owned());
        }
    }
    values
}

/// Changes the schemata of a container's group, also for the others that share it. For `update`.
pub fn update(rdt: &LinuxIntelRdt, id: &str, root: &Path) -> Result<()> {
    match schemata(rdt)? {
        Some(schemata) => write_schemata(&group_of(rdt, id, root), &schemata),
        None => Ok(()),
    }
}

/// Removes the groups that were made for a container which has no process any more: all that can be, and tells of the
/// first that cannot.
pub fn remove(groups: &Groups) -> Result<()> {
    let shared = groups.shared.iter().filter(|group| is_empty(group));
    let mut outcome = Ok(());
    for group in groups.monitoring.iter().chain(&groups.own).chain(shared) {
        match fs::remove_dir(group) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                outcome = outcome.and(Err(error).with_context(|| format!("rmdir {}", group.display())));
            }
            _ => {}
        }
    }
    outcome
}

fn is_empty(group: &Path) -> bool {
    fs::read_to_string(group.join("tasks")).is_ok_and(|tasks| tasks.trim().is_empty())
}

fn make(group: &Path) -> Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // The machine has as many groups as its processor has classes.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
            bail!("mkdir {}: no class of service or monitor is free", group.display())
        }
        made => made.with_context(|| format!("mkdir {}", group.display())),
    }
}

/// One thread: the kernel takes no more with a write.
fn add_task(group: &Path, tid: i32) -> Result<()> {
    write(&group.join("tasks"), &format!("{tid}\n"))
}

fn write_schemata(group: &Path, schemata: &str) -> Result<()> {
    write(&group.join("schemata"), schemata).map_err(|error| {
        // The kernel says there what was wrong with the last write.
        let info = group.ancestors().map(|above| above.join("info/last_cmd_status"));
        let said = info.filter_map(|path| fs::read_to_string(path).ok()).next();
        let said = said.unwrap_or_default();
        error.context(format!("linux.intelRdt: {schemata:?}: {}", said.trim()))
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text:?} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A directory that looks like resctrl. In the real one the kernel makes the files of a group with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let root = std::env::temp_dir().join(format!("corten-rdt-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("mon_groups")).unwrap();
            fs::write(root.join("schemata"), "    L3:0=fffff;1=fffff\n    MB:0=100;1=100\n").unwrap();
            Tree(root)
        }

        fn group(&self, name: &str) -> PathBuf {
            let group = self.0.join(name);
            fs::create_dir_all(group.join("mon_groups")).unwrap();
            fs::write(group.join("schemata"), "    L3:0=000ff;1=fffff\n    MB:0= 50;1=100\n").unwrap();
            group
        }

        fn plan(&self, rdt: Value) -> Result<Plan, String> {
            let rdt: LinuxIntelRdt = serde_json::from_value(rdt).unwrap();
            Plan::new(&rdt, "ship", &self.0).map_err(|error| format!("{error:#}"))
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn where_it_is_mounted() {
        let mountinfo = "29 23 0:25 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw\n\
                         40 23 0:33 / /sys/fs/res\\040ctrl rw,relatime shared:12 - resctrl resctrl rw,mba_MBps\n";
        assert_eq!(mount_point(mountinfo), Some(PathBuf::from("/sys/fs/res ctrl")));
        assert_eq!(mount_point("29 23 0:25 / /resctrl rw - tmpfs resctrl rw\n"), None);
        assert_eq!(mount_point(""), None);
    }

    #[test]
    fn what_is_written() {
        for (rdt, text) in [
            (json!({}), None),
            (json!({"l3CacheSchema": "L3:0=f"}), Some("L3:0=f\n")),
            (json!({"memBwSchema": "MB:0=20"}), Some("MB:0=20\n")),
            (
                json!({"l3CacheSchema": "L3:0=f\nMB:0=70", "memBwSchema": "MB:0=20"}),
                Some("L3:0=f\nMB:0=20\n"),
            ),
            (json!({"l3CacheSchema": "L3:0=f\nMB:0=70"}), Some("L3:0=f\nMB:0=70\n")),
            (
                json!({"schemata": ["L2:0=3", "MB:0=10"], "l3CacheSchema": "L3:0=f"}),
                Some("L2:0=3\nMB:0=10\n"),
            ),
        ] {
            let parsed: LinuxIntelRdt = serde_json::from_value(rdt.clone()).unwrap();
            assert_eq!(schemata(&parsed).unwrap().as_deref(), text, "{rdt}");
        }
        let two: LinuxIntelRdt = serde_json::from_value(json!({"schemata": ["L3:0=f\nMB:0=1"]})).unwrap();
        assert!(schemata(&two).is_err());
    }

    #[test]
    fn a_group_of_the_container_s_own() {
        let tree = Tree::new("own");
        let plan = tree.plan(json!({"l3CacheSchema": "L3:0=f"})).unwrap();
        assert!(!tree.0.join("ship").exists(), "a plan changes nothing");
        plan.apply(77).unwrap();
        assert_eq!(tree.read("ship/schemata"), "L3:0=f\n");
        assert_eq!(tree.read("ship/tasks"), "77\n");
        assert_eq!(plan.groups().own, Some(tree.0.join("ship")));
        // The kernel takes a group's files with it.
        for file in ["schemata", "tasks"] {
            fs::remove_file(tree.0.join("ship").join(file)).unwrap();
        }
        remove(plan.groups()).unwrap();
        assert!(!tree.0.join("ship").exists());
        remove(plan.groups()).unwrap();
    }

    #[test]
    fn a_group_that_exists() {
        let tree = Tree::new("exists");
        let group = tree.group("gold");
        for rdt in [
            json!({"closID": "gold"}),
            json!({"closID": "gold", "l3CacheSchema": "L3:0=ff"}),
            json!({"closID": "gold", "schemata": ["L3:0=0FF;1=fffff", "MB:0=50"]}),
        ] {
            let plan = tree.plan(rdt.clone()).unwrap();
            plan.apply(5).unwrap();
            assert_eq!(tree.read("gold/tasks"), "5\n", "{rdt}");
            assert!(
                tree.read("gold/schemata").starts_with("    L3:0=000ff"),
                "it is not written to: {rdt}"
            );
            assert_eq!(plan.groups(), &Groups::default());
        }
        for rdt in [
            json!({"closID": "gold", "l3CacheSchema": "L3:0=f0"}),
            json!({"closID": "gold", "memBwSchema": "MB:0=60"}),
            json!({"closID": "gold", "schemata": ["L2:0=1"]}),
        ] {
            let error = tree.plan(rdt).unwrap_err();
            assert!(
                error.starts_with("linux.intelRdt: ") && error.contains("gold/schemata"),
                "{error}"
            );
        }
        drop(group);
    }

    #[test]
    fn a_group_that_is_named_and_missing() {
        let tree = Tree::new("missing");
        let error = tree.plan(json!({"closID": "silver"})).unwrap_err();
        assert!(error.starts_with("linux.intelRdt.closID: \"silver\""), "{error}");
        let plan = tree.plan(json!({"closID": "silver", "schemata": ["L3:0=f"]})).unwrap();
        plan.apply(5).unwrap();
        assert_eq!(plan.groups().shared, Some(tree.0.join("silver")));
        // Somebody is still in it.
        remove(plan.groups()).unwrap();
        assert!(tree.0.join("silver").exists());
        // What cannot be removed, having something in it here, does not keep the rest.
        fs::create_dir(tree.0.join("empty")).unwrap();
        let groups = Groups {
            monitoring: Some(tree.0.join("silver")),
            own: Some(tree.0.join("empty")),
            shared: None,
        };
        assert!(remove(&groups).is_err());
        assert!(!tree.0.join("empty").exists());
        for name in ["a/b", "..", "info", "mon_groups", "x\ny"] {
            assert!(
                tree.plan(json!({"closID": name, "schemata": ["L3:0=f"]})).is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn monitoring_has_a_group_of_its_own() {
        let tree = Tree::new("monitoring");
        tree.group("gold");
        for (rdt, path) in [
            (
                json!({"closID": "gold", "enableMonitoring": true}),
                "gold/mon_groups/ship",
            ),
            (json!({"closID": "/", "enableMonitoring": true}), "mon_groups/ship"),
            (
                json!({"closID": "gold", "l3CacheSchema": "L3:0=ff", "enableMonitoring": true}),
                "gold/mon_groups/ship",
            ),
        ] {
            let plan = tree.plan(rdt).unwrap();
            plan.apply(9).unwrap();
            assert_eq!(tree.read(&format!("{path}/tasks")), "9\n");
            fs::remove_file(tree.0.join(path).join("tasks")).unwrap();
            remove(plan.groups()).unwrap();
            assert!(!tree.0.join(path).exists() && tree.0.join("gold").exists());
        }
    }

    #[test]
    fn a_schema_is_changed() {
        let tree = Tree::new("update");
        tree.group("ship");
        tree.group("gold");
        for (rdt, path, text) in [
            (json!({"memBwSchema": "MB:0=10"}), "ship/schemata", "MB:0=10\n"),
            (
                json!({"closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"}),
                "gold/schemata",
                "L3:0=f\nMB:0=20\n",
            ),
            (
                json!({"closID": "/", "l3CacheSchema": "L3:0=3"}),
                "schemata",
                "L3:0=3\n",
            ),
        ] {
            let rdt: LinuxIntelRdt = serde_json::from_value(rdt).unwrap();
            update(&rdt, "ship", &tree.0).unwrap();
            assert_eq!(tree.read(path), text);
        }
    }

    #[test]
    fn an_exec_goes_where_the_container_is() {
        let tree = Tree::new("enter");
        tree.group("ship");
        tree.group("gold");
        fs::create_dir_all(tree.0.join("gold/mon_groups/ship")).unwrap();
        for (rdt, files) in [
            (json!({}), &["ship/tasks"][..]),
            (
                json!({"closID": "gold", "enableMonitoring": true}),
                &["gold/tasks", "gold/mon_groups/ship/tasks"],
            ),
            (json!({"closID": "/"}), &["tasks"]),
        ] {
            let rdt: LinuxIntelRdt = serde_json::from_value(rdt).unwrap();
            enter(&rdt, "ship", &tree.0, 7).unwrap();
            for file in files {
                assert_eq!(tree.read(file), "7\n", "{rdt:?}");
                fs::remove_file(tree.0.join(file)).unwrap();
            }
        }
    }

    #[test]
    fn what_runs_is_taken_with_its_threads() {
        let tree = Tree::new("take");
        let plan = tree.plan(json!({"l3CacheSchema": "L3:0=f"})).unwrap();
        fs::create_dir(tree.0.join("ship")).unwrap();
        let asked = std::cell::Cell::new(0);
        let own = i32::try_from(std::process::id()).unwrap();
        // The second time there is another process, which nothing is known of.
        let pids = || {
            asked.set(asked.get() + 1);
            Ok(if asked.get() == 1 {
                vec![own]
            } else {
                vec![own, i32::MAX]
            })
        };
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        plan.take(pids).unwrap();
        drop(stop);
        assert!(thread.join().unwrap().is_err());
        let last: i32 = tree.read("ship/tasks").trim().parse().unwrap();
        assert!(last > own, "the thread came after the process");
        assert!(asked.get() > 1, "those that were started meanwhile");
    }
}
