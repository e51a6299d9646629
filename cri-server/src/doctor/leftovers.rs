//! What belongs to no pod any more: shims, mounts, network namespaces, cgroups and files without a record; layers that were
//! not finished; records that could not be read. Nothing is touched.
//!
//! An id is ours where it has the form of ours and stands where only we put one. A pod that is being made or removed looks
//! like a leftover for a moment, so that what is found is looked for again a second later.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_runtime::cgroup::layout;
use corten_runtime::mountinfo::Line;

use super::check::Check;
use super::disk::layers;
use super::server::server_pid;
use crate::config::Config;
use crate::paths::Paths;
use crate::record::{ContainerRecord, SandboxRecord, boot_id, read};

/// Between the two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// A pod or container whose directory is younger may still be in the making, where a server runs.
const YOUNG: Duration = Duration::from_secs(300);
/// Names that a check lists; more are counted.
const LISTED: usize = 5;
/// Most cgroups that are looked at, and how deep.
const MAX_CGROUPS: usize = 20_000;
const MAX_DEPTH: usize = 5;
/// Parents that kubelets use, beside the configured one.
const KUBELET: [&str; 2] = ["kubepods", "kubepods.slice"];
/// A part of the name of a layer that is being unpacked.
const PARTIAL: &str = ".partial";

/// What a look has found, one text each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    shims: BTreeSet<String>,
    mounts: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
    layers: BTreeSet<String>,
}

/// What is known of records.
#[derive(Debug, Default)]
struct Records {
    /// Ids of sandboxes and containers.
    ids: BTreeSet<String>,
    /// Records that cannot be read.
    bad: Vec<String>,
    /// Of a boot before this one.
    earlier: usize,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let paths = Paths::new(&config.root, &config.state);
    let serving = server_pid(config).is_some();
    let mut found = gather(config, &paths, serving);
    if found != Found::default() {
        std::thread::sleep(PAUSE);
        found = both(&found, &gather(config, &paths, serving));
    }
    let quarantined = names(&paths.quarantine());
    let mut checks = judge(&found, serving);
    checks.push(judge_records(&records(&paths), serving));
    checks.push(judge_quarantine(&quarantined, &paths.quarantine()));
    checks
}

fn both(one: &Found, other: &Found) -> Found {
    let both = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.intersection(other).cloned().collect();
    Found {
        shims: both(&one.shims, &other.shims),
        mounts: both(&one.mounts, &other.mounts),
        namespaces: both(&one.namespaces, &other.namespaces),
        cgroups: both(&one.cgroups, &other.cgroups),
        files: both(&one.files, &other.files),
        layers: both(&one.layers, &other.layers),
    }
}

fn gather(config: &Config, paths: &Paths, serving: bool) -> Found {
    // The records last: what has one by the time that everything else has been seen is no leftover.
    let shims = shims(paths);
    let mounts = mounts(paths);
    let namespaces = names(&config.netns_dir);
    let cgroups = cgroups(&config.cgroup_parent);
    let files = [paths.sandboxes(), paths.bundles(), paths.containers()].map(|dir| (names(&dir), dir));
    let partial = names(&layers(config)).into_iter().filter(|name| name.contains(PARTIAL));
    let partial = partial.collect();
    let mut known = records(paths).ids;
    // Networks that are still to be taken down have a namespace, perhaps, and no sandbox.
    known.extend(names(&paths.networks()).iter().map(|name| stem(name).to_owned()));
    if serving {
        let young = files.iter().flat_map(|(names, dir)| {
            let names = names.iter().filter(|name| is_young(&dir.join(name)));
            names.cloned().collect::<Vec<_>>()
        });
        known.extend(young);
    }
    let lost = |id: &str| is_id(id) && !known.contains(id);
    Found {
        shims: shims
            .iter()
            .filter(|(_, id)| lost(id))
            .map(|(pid, id)| format!("process {pid} of {id}"))
            .collect(),
        mounts: mounts
            .into_iter()
            .filter(|(_, id)| lost(id))
            .map(|(text, _)| text)
            .collect(),
        namespaces: namespaces.into_iter().filter(|name| lost(name)).collect(),
        cgroups: cgroups
            .into_iter()
            .filter(|(_, id)| lost(id))
            .map(|(text, _)| text)
            .collect(),
        files: files
            .iter()
            .flat_map(|(names, dir)| {
                let names = names.iter().filter(|name| lost(name));
                names.map(|name| dir.join(name).display().to_string())
            })
            .collect(),
        layers: partial,
    }
}

/// One whose age is not known, as with a clock that was set back, is young.
fn is_young(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age < YOUNG) || changed.elapsed().is_err())
}

/// 64 hexadecimal digits: what this server makes, and no tool that shares a directory with it.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".json").unwrap_or(name)
}

/// The names in a directory; none where there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn records(paths: &Paths) -> Records {
    let mut records = Records::default();
    let boot = boot_id().unwrap_or_default();
    for name in names(&paths.sandbox_records())
        .iter()
        .filter(|name| name.ends_with(".json"))
    {
        let path = paths.sandbox_records().join(name);
        records.add(
            stem(name),
            &path,
            read(&path).map(|it: SandboxRecord| it.boot_id),
            &boot,
        );
    }
    for name in names(&paths.containers()).iter().filter(|name| is_id(name)) {
        let path = paths.containers().join(name).join("record.json");
        if path.exists() {
            records.add(name, &path, read(&path).map(|it: ContainerRecord| it.boot_id), &boot);
        }
    }
    records
}

impl Records {
    fn add(&mut self, id: &str, path: &Path, of: Result<String, crate::record::ReadError>, boot: &str) {
        self.ids.insert(id.to_owned());
        match of {
            Ok(of) if of == boot => {}
            Ok(_) => self.earlier += 1,
            // Removed since it was listed.
            Err(_) if !path.exists() => {}
            Err(_) => self.bad.push(path.display().to_string()),
        }
    }
}

/// The shims of this state directory that run: pid and sandbox.
pub(crate) fn shims(paths: &Paths) -> Vec<(i32, String)> {
    let pids = names(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse().ok());
    pids.filter_map(|pid: i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, shim_id(&command, &paths.pause_rootfs())?))
    })
    .collect()
}

/// The sandbox of a shim, by its command line, if it is one of the server with this `pause_rootfs`.
fn shim_id(command: &[u8], pause_rootfs: &Path) -> Option<String> {
    let arguments: Vec<&str> = command
        .split(|&byte| byte == 0)
        .map(|it| str::from_utf8(it).unwrap_or_default())
        .collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|it| *it == option)?;
        arguments.get(at + 1).copied()
    };
    let is_shim = arguments.first()?.ends_with("corten-shim");
    let is_ours = after("--pause-rootfs").is_some_and(|path| Path::new(path) == pause_rootfs);
    (is_shim && is_ours).then(|| after("--id").map(str::to_owned))?
}

/// Mounts in directories of sandboxes and containers: text and id.
fn mounts(paths: &Paths) -> Vec<(String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parents = [paths.sandboxes(), paths.bundles(), paths.containers()];
    let mounts = table.lines().filter_map(Line::parse);
    mounts
        .filter_map(|mount| {
            let below = parents
                .iter()
                .find_map(|parent| mount.place.strip_prefix(parent).ok())?;
            let id = below.iter().next()?.to_str()?.to_owned();
            Some((mount.place.display().to_string(), id))
        })
        .collect()
}

/// Cgroups that have the name of a container: text and id. Below a kubelet's parents only those without a process, since
/// another runtime's containers may be there.
fn cgroups(parent: &str) -> Vec<(String, String)> {
    let Ok(layout) = layout() else { return Vec::new() };
    let mut found = Vec::new();
    let mut left = MAX_CGROUPS;
    for hierarchy in layout.hierarchies() {
        let own = hierarchy.mount_point.join(parent.trim_start_matches('/'));
        walk(&own, MAX_DEPTH, &mut left, &mut found);
        for parent in KUBELET.map(|name| hierarchy.mount_point.join(name)) {
            let mut below: Vec<(String, String)> = Vec::new();
            walk(&parent, MAX_DEPTH, &mut left, &mut below);
            found.extend(below.into_iter().filter(|(path, _)| is_empty(Path::new(path))));
        }
    }
    found
}

/// Whether no process is in a cgroup or below it. In v2 the kernel says so; in v1 all of them are looked at.
fn is_empty(cgroup: &Path) -> bool {
    if let Ok(events) = fs::read_to_string(cgroup.join("cgroup.events")) {
        return events.lines().any(|line| line == "populated 0");
    }
    let has_none = fs::read(cgroup.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let mut below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    has_none && below.all(|entry| is_empty(&entry.path()))
}

fn walk(directory: &Path, depth: usize, left: &mut usize, found: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    for path in directories {
        if *left == 0 || depth == 0 {
            return;
        }
        *left -= 1;
        match path.file_name().and_then(|name| name.to_str()).and_then(container_of) {
            Some(id) => found.push((path.display().to_string(), id.to_owned())),
            None => walk(&path, depth - 1, left, found),
        }
    }
}

/// The container that a cgroup of this name is of, for either driver.
fn container_of(name: &str) -> Option<&str> {
    let id = name
        .strip_prefix("corten-")
        .and_then(|name| name.strip_suffix(".scope"))
        .unwrap_or(name);
    is_id(id).then_some(id)
}

fn judge(found: &Found, serving: bool) -> Vec<Check> {
    let restart = "restart corten-cri: what it finds without a record it removes; pods go on";
    let kill = "kill these processes (SIGKILL): the shim's containers end with their cgroups, which are listed too";
    let mut checks = vec![
        judge_list(
            "leftover-shims",
            &found.shims,
            "they hold memory, and perhaps running containers",
            kill,
        ),
        judge_list(
            "leftover-mounts",
            &found.mounts,
            "the mount table grows, and layers below them cannot be removed",
            "umount -l each of these",
        ),
        judge_list(
            "leftover-netns",
            &found.namespaces,
            "their network links and addresses stay taken",
            "ip netns delete NAME, for each (or umount and rm the file in netns_dir); then free addresses left in the IPAM",
        ),
        judge_list(
            "leftover-cgroups",
            &found.cgroups,
            "they hold kernel memory, and what runs in them nobody counts",
            "end what cgroup.procs lists in there, then rmdir",
        ),
        judge_list("leftover-files", &found.files, "they take room", restart),
    ];
    // While a server pulls, they are what it is at.
    checks.push(match serving {
        true => Check::ok("partial-layers", format!("{} are being unpacked", found.layers.len())),
        false => judge_list(
            "partial-layers",
            &found.layers,
            "they take room",
            "start corten-cri: it removes them",
        ),
    });
    checks
}

fn judge_list(name: &'static str, found: &BTreeSet<String>, meaning: &str, fix: &str) -> Check {
    match found.len() {
        0 => Check::ok(name, "none"),
        count => Check::warning(name, format!("{count}: {}", listed(found)), meaning, fix),
    }
}

fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    let more = names.len().saturating_sub(LISTED);
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn judge_records(records: &Records, serving: bool) -> Check {
    let name = "records";
    if !records.bad.is_empty() {
        return Check::warning(
            name,
            format!("cannot be read: {}", listed(&records.bad)),
            "at its next start the server puts them into quarantine and ends their pods; it does not start if a later \
             release wrote them",
            "keep a copy (`corten-cri support-bundle`), then restart corten-cri",
        );
    }
    if records.earlier > 0 && !serving {
        let found = format!("{} of {} are of an earlier boot", records.earlier, records.ids.len());
        return Check::ok(name, format!("{found}: their containers have ended"));
    }
    Check::ok(name, format!("{} can be read", records.ids.len()))
}

fn judge_quarantine(names: &[String], directory: &Path) -> Check {
    let name = "quarantine";
    if names.is_empty() {
        return Check::ok(name, "empty");
    }
    Check::warning(
        name,
        format!("{} in {}: {}", names.len(), directory.display(), listed(names)),
        "records or layers that made no sense were put there; their pods were ended",
        "look at them, at the disk and at the server's log; then remove them",
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    #[test]
    fn whose_a_shim_is() {
        let ours = Path::new("/run/corten/pause");
        let command = |program: &str, pause: &str| {
            format!("{program}\0--id\0{}\0--runtime\0/x\0--pause-rootfs\0{pause}\0", id("a")).into_bytes()
        };
        let table = [
            (command("/usr/bin/corten-shim", "/run/corten/pause"), Some(id("a"))),
            (command("/usr/bin/corten-shim", "/run/other/pause"), None),
            (command("/usr/bin/editor", "/run/corten/pause"), None),
            (b"corten-shim\0--pause-rootfs".to_vec(), None),
            (Vec::new(), None),
        ];
        for (command, expected) in table {
            assert_eq!(
                shim_id(&command, ours),
                expected,
                "{}",
                String::from_utf8_lossy(&command)
            );
        }
    }

    #[test]
    fn whose_a_cgroup_is() {
        let id = id("b");
        for (name, expected) in [
            (id.clone(), Some(id.as_str())),
            (format!("corten-{id}.scope"), Some(id.as_str())),
            (format!("cri-containerd-{id}.scope"), None),
            ("pod1".to_owned(), None),
        ] {
            assert_eq!(container_of(&name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_being_made_is_young() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_young(dir.path()));
        let before = std::time::SystemTime::now() - 2 * YOUNG;
        fs::File::open(dir.path()).unwrap().set_modified(before).unwrap();
        assert!(!is_young(dir.path()) && !is_young(&dir.path().join("gone")));
    }

    #[test]
    fn a_cgroup_with_processes_below_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("init");
        fs::create_dir(&below).unwrap();
        let write = |path: &Path, text: &str| fs::write(path, text).unwrap();
        write(&dir.path().join("cgroup.procs"), "");
        write(&below.join("cgroup.procs"), "7\n");
        assert!(!is_empty(dir.path()));
        write(&below.join("cgroup.procs"), "");
        assert!(is_empty(dir.path()));
        write(&dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n");
        assert!(!is_empty(dir.path()));
    }

    #[test]
    fn a_leftover_has_been_seen_twice() {
        let with = |names: &[&str]| Found {
            namespaces: names.iter().map(ToString::to_string).collect(),
            layers: ["a.partial".to_owned()].into(),
            ..Found::default()
        };
        let found = both(&with(&["a", "b"]), &with(&["b", "c"]));
        assert_eq!(found, with(&["b"]));
        let of = |name: &str, serving| {
            let mut checks = judge(&found, serving).into_iter();
            checks.find(|check| check.name == name).unwrap().verdict
        };
        assert_eq!(of("leftover-netns", true), Verdict::Warning);
        assert_eq!(of("leftover-shims", true), Verdict::Ok);
        assert_eq!(
            (of("partial-layers", true), of("partial-layers", false)),
            (Verdict::Ok, Verdict::Warning)
        );
    }

    #[test]
    fn records_and_quarantine() {
        let records = |bad: &[&str], earlier| Records {
            bad: bad.iter().map(ToString::to_string).collect(),
            earlier,
            ..Records::default()
        };
        assert_eq!(
            judge_records(&records(&["/r/a.json"], 0), true).verdict,
            Verdict::Warning
        );
        assert_eq!(judge_records(&records(&[], 3), false).verdict, Verdict::Ok);
        let many: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert!(
            judge_quarantine(&many, Path::new("/q"))
                .found
                .ends_with("0, 1, 2, 3, 4 and 2 more")
        );
        assert_eq!(judge_quarantine(&[], Path::new("/q")).verdict, Verdict::Ok);
    }
}
